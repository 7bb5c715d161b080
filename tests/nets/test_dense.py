import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from darts_jax.nets.bilinear import weights_gradient_if
from darts_jax.nets.dense import dense_conv
from darts_jax.runtime.mesh import batch_sharding, make_mesh, replicated


def draw(size, kernel):
  rng = np.random.default_rng(0)
  return [(rng.normal(size=(4, *size, kernel[2])), rng.normal(size=kernel)) for _ in range(2)]


@pytest.mark.parametrize(
  ('size', 'kernel', 'stride', 'padding'),
  [
    ((5, 6), (3, 3, 3, 4), 1, 1),
    ((6, 8), (3, 3, 2, 3), 2, 1),
    ((2, 3), (2, 2, 3, 2), 1, 0),
    ((4, 5), (1, 1, 3, 2), 1, 0),
    ((7, 5), (1, 3, 2, 2), 2, 0),
  ],
)
@pytest.mark.usefixtures('x64')
def test_equals_a_convolution_of_xla_to_second_order(two_orders, assert_close, size, kernel, stride, padding):
  point, direction = draw(size, kernel)

  def expected(x, kernel):
    pads = ((padding, padding),) * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  def ours(x, kernel):
    return dense_conv(x, kernel, stride=stride, padding=padding)

  found, definition = jax.jit(lambda: [two_orders(each, point, direction) for each in (ours, expected)])()
  assert_close(found, definition)


def test_gradient_in_the_weights_that_is_not_wanted_is_left_out():
  (x, kernel), _ = draw((4, 4), (3, 3, 2, 3))

  @jax.jit
  def gradients(wanted):
    with weights_gradient_if(wanted):
      return jax.grad(lambda *point: jnp.sum(dense_conv(*point, padding=1) ** 2), (0, 1))(x, kernel)

  (dx, dkernel), (dx_without, nothing) = gradients(True), gradients(False)
  np.testing.assert_array_equal(dx, dx_without)
  assert np.any(dkernel)
  assert not np.any(nothing)


def test_over_two_devices_no_images_are_exchanged():
  mesh = make_mesh(2)
  (x, kernel), _ = draw((4, 6), (3, 3, 2, 3))
  placed = jax.device_put((x, kernel), (batch_sharding(mesh), replicated(mesh)))
  gradient = jax.jit(jax.grad(lambda *point: jnp.sum(dense_conv(*point, padding=1) ** 2), 1))
  compiled = gradient.lower(*placed).compile()
  np.testing.assert_allclose(compiled(*placed), gradient(x, kernel), rtol=1e-4)
  assert 'all-reduce' in compiled.as_text()
  assert 'all-gather' not in compiled.as_text()
