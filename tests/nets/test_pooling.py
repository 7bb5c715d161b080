import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from darts_jax.nets.pooling import avg_pool, max_halve, max_pool
from darts_jax.runtime.mesh import batch_sharding, make_mesh

WINDOW = (1, 3, 3, 1)
PADDING = [(0, 0), (1, 1), (1, 1), (0, 0)]


def window_max(x, stride):
  return lax.reduce_window(x, -jnp.inf, lax.max, WINDOW, (1, stride, stride, 1), PADDING)


def window_mean(x, stride):
  strides = (1, stride, stride, 1)
  total = lax.reduce_window(x, 0.0, lax.add, WINDOW, strides, PADDING)
  return total / lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, WINDOW, strides, PADDING)


@pytest.mark.parametrize(('pool', 'expected'), [(max_pool, window_max), (avg_pool, window_mean)], ids=['max', 'avg'])
@pytest.mark.usefixtures('x64')
def test_equals_a_window_reduction_to_second_order(plain, two_orders, assert_close, pool, expected):
  rng = np.random.default_rng(0)
  point, direction = rng.normal(size=(2, 1, 3, 5, 6, 2))

  @jax.jit
  def compute(point, direction):
    return [
      two_orders(lambda x, stride=stride, function=function: function(x, stride), tuple(point), tuple(direction))
      for function in (pool, expected)
      for stride in (1, 2)
    ]

  results = compute(point, direction)
  assert_close(results[:2], results[2:])
  by_definition = {max_pool: plain.max_pool, avg_pool: plain.avg_pool}[pool]
  for result, stride in zip(results, (1, 2), strict=False):
    np.testing.assert_allclose(result[0], by_definition(point[0], stride), rtol=1e-12)


@pytest.mark.parametrize('pool', [max_pool, avg_pool])
@pytest.mark.usefixtures('x64')
def test_vmapped_and_for_accelerators_the_same_is_computed(two_orders, program_for, assert_close, pool):
  x, direction = np.random.default_rng(0).normal(size=(2, 3, 2, 5, 4, 2))

  def orders(x, direction):
    return two_orders(lambda x: pool(x, 2), (x,), (direction,))

  expected = [jax.jit(orders)(*each) for each in zip(x, direction, strict=True)]
  found = jax.jit(jax.vmap(orders))(x, direction)
  for i, each in enumerate(expected):
    assert_close(jax.tree.map(lambda a, i=i: a[i], found), each)
  for platform in ('cuda', 'tpu'):
    assert_close(program_for(platform, orders, x[0], direction[0]).call(x[0], direction[0]), expected[0])


def test_average_does_not_count_padding():
  np.testing.assert_allclose(avg_pool(jnp.full((1, 4, 3, 2), 7.0), 1), np.full((1, 4, 3, 2), 7), rtol=1e-6)
  x = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)
  np.testing.assert_allclose(avg_pool(x, 2), [[[[2.5]]]])
  # From the corner of a larger image only four pixels are seen.
  x = jnp.arange(9.0).reshape(1, 3, 3, 1)
  np.testing.assert_allclose(avg_pool(x, 2)[0, ..., 0], [[(0 + 1 + 3 + 4) / 4, 3], [5, 6]])


def test_gradient_of_the_largest_goes_to_the_first_of_equal_pixels():
  gradient = jax.grad(lambda x: max_pool(x, 1).sum())(jnp.full((1, 3, 4, 1), 2.0))
  # Row by row the first pixel of a window is the one up and left of its centre, where the image has that.
  np.testing.assert_array_equal(gradient[0, ..., 0], np.outer([2, 1, 0], [2, 1, 1, 0]))
  _, tangent = jax.jvp(lambda x: max_pool(x, 2), (jnp.ones((1, 2, 2, 1)),), (jnp.arange(5.0, 9.0).reshape(1, 2, 2, 1),))
  np.testing.assert_array_equal(tangent, [[[[5.0]]]])
  # So do second derivatives.
  gradient = jax.grad(lambda x: jnp.sum(max_pool(x, 2) ** 2) / 2)
  _, tangent = jax.jvp(gradient, (jnp.ones((1, 2, 2, 1)),), (jnp.arange(5.0, 9.0).reshape(1, 2, 2, 1),))
  np.testing.assert_array_equal(tangent[0, ..., 0], [[5, 0], [0, 0]])


def test_over_two_devices_exchange_no_images():
  mesh = make_mesh(2)
  x = jax.device_put(np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32), batch_sharding(mesh))

  def compute(x):
    return jax.value_and_grad(lambda x: jnp.sum(max_pool(x, 1) * avg_pool(x, 1)))(x)

  compiled = jax.jit(compute).lower(x).compile()
  for a, b in zip(compiled(x), compute(jax.device_put(x, jax.devices()[0])), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert 'all-reduce' in compiled.as_text()
  assert 'all-gather' not in compiled.as_text()


@pytest.mark.parametrize('size', [(4, 6), (5, 3)])
@pytest.mark.usefixtures('x64')
def test_the_maximum_over_two_by_two_pixels_to_second_order(two_orders, assert_close, size):
  """As a reduction of windows; an odd side has one row more."""
  padding = [(0, 0), *[(0, side % 2) for side in size], (0, 0)]

  def expected(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), padding)

  point, direction = np.random.default_rng(0).normal(size=(2, 2, *size, 3))
  ours, theirs = jax.jit(
    lambda point, direction: [two_orders(each, (point,), (direction,)) for each in (max_halve, expected)]
  )(point, direction)
  assert ours[0].shape == (2, -(-size[0] // 2), -(-size[1] // 2), 3)
  assert_close(ours, theirs)


def test_the_gradient_of_that_maximum_goes_to_the_first_of_equal_pixels():
  x = jnp.array([[1.0, 2.0], [2.0, 2.0]]).reshape(1, 2, 2, 1)
  np.testing.assert_array_equal(jax.grad(lambda x: max_halve(x).sum())(x)[0, :, :, 0], [[0, 1], [0, 0]])
