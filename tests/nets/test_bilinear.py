import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.nets.bilinear import as_channels, traced_for, weights_gradient_if
from darts_jax.nets.depthwise import depthwise_conv, depthwise_convs_apart
from darts_jax.nets.layers import pointwise, pointwise_convs, pointwise_convs_of_channels

MAPS = {
  'depthwise': (lambda x, w: depthwise_conv(x, w, stride=2), (3, 3, 2, 4)),
  'pointwise of channels': (lambda x, w: pointwise_convs_of_channels([x[None]], [w])[0], (2, 2, 3)),
  'pointwise': (lambda x, w: pointwise_convs([x.reshape(2, 2, 4, 6, 2)], [w])[0], (2, 2, 3)),
}


def draw(shape):
  """Images, weights and a cotangent, and a direction for each."""
  rng = np.random.default_rng(0)
  return [(rng.normal(size=(2, 4, 6, 4)), rng.normal(size=shape), rng.normal()) for _ in range(2)]


def two_orders(function, point, direction, wanted=None, call=lambda function, *args: jax.jit(function)(*args)):
  """Values, gradients in images and weights, and the derivatives of these in both modes."""

  def gradient(x, w, ct):
    y, transpose = jax.vjp(function, x, w)
    return transpose(ct * jnp.cos(y))

  def compute(point, direction):
    value = function(*point[:2])
    first, forward = jax.jvp(gradient, point, direction)
    return value, first, forward, jax.vjp(gradient, *point)[1](direction[:2])

  if wanted is None:
    return call(compute, point, direction)

  def gated(wanted, point, direction):
    with weights_gradient_if(wanted):
      return compute(point, direction)

  return call(gated, wanted, point, direction)


def called(program_for, platform, function, *args):
  """What the program of a function for a platform returns."""
  return program_for(platform, function, *args).call(*args)


@pytest.mark.parametrize('platform', ['cpu', 'cuda', 'tpu'])
@pytest.mark.parametrize(('function', 'shape'), MAPS.values(), ids=MAPS)
@pytest.mark.usefixtures('x64')
def test_gradient_in_the_weights_that_is_wanted_is_the_same(program_for, function, shape, platform):
  point, direction = draw(shape)
  expected = two_orders(function, point, direction)
  found = two_orders(function, point, direction, True, functools.partial(called, program_for, platform))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected)


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize(('function', 'shape'), MAPS.values(), ids=MAPS)
@pytest.mark.usefixtures('x64')
def test_gradient_in_the_weights_that_is_not_wanted_is_zero_and_so_are_its_derivatives(
  program_for, function, shape, platform
):
  point, direction = draw(shape)
  expected = two_orders(lambda x, w: function(x, jax.lax.stop_gradient(w)), point, direction)
  value, (dx, dw), (_, tangent_dw), reverse = two_orders(
    function, point, direction, False, functools.partial(called, program_for, platform)
  )
  np.testing.assert_allclose(value, expected[0], rtol=1e-12)
  np.testing.assert_allclose(dx, expected[1][0], rtol=1e-12)
  assert not np.any(dw)
  assert not np.any(tangent_dw)
  # In reverse mode a gradient that is zero wherever it is taken has no derivative, in images and cotangents.
  np.testing.assert_allclose(reverse[0], expected[3][0], rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(reverse[2], expected[3][2], rtol=1e-12)


@pytest.mark.parametrize(('function', 'shape'), MAPS.values(), ids=MAPS)
@pytest.mark.usefixtures('x64')
def test_gradient_in_the_weights_is_computed_on_gpus_even_if_it_is_not_wanted(program_for, function, shape):
  point, direction = draw(shape)
  expected = two_orders(function, point, direction)
  found = two_orders(function, point, direction, False, functools.partial(called, program_for, 'cuda'))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found[:2], expected[:2])


@pytest.mark.usefixtures('x64')
def test_edges_as_channels_are_a_stack_of_edges_to_second_order():
  def of_a_stack(x, w):
    stack = jnp.moveaxis(x.reshape(*x.shape[:3], 2, 2), 3, 0)
    [found] = pointwise_convs([stack], [w])
    return jnp.moveaxis(found, 0, 3).reshape(1, *x.shape[:3], 6)

  found, expected = (two_orders(f, *draw((2, 2, 3))) for f in (MAPS['pointwise of channels'][0], of_a_stack))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), found, expected)


@pytest.mark.parametrize(('function', 'shape'), MAPS.values(), ids=MAPS)
def test_all_products_of_a_tpu_have_the_precision_of_where_the_map_was_called(function, shape):
  """By default they round to bfloat16."""

  def precise(x, w):
    with jax.default_matmul_precision('highest'):
      return function(x, w)

  def gradients(x, w):
    y, transpose = jax.vjp(precise, x, w)
    return y, transpose(y)

  x, w = (jax.ShapeDtypeStruct(each, np.float32) for each in ((2, 4, 6, 4), shape))
  program = jax.jit(gradients).trace(x, w).lower(lowering_platforms=('tpu',)).as_text()
  products = [
    line for line in program.splitlines() if 'stablehlo.dot_general' in line or 'stablehlo.convolution' in line
  ]
  # The map and its gradients in images and in weights.
  assert len(products) == 3
  assert [line.count('HIGHEST') for line in products] == [2] * 3


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_edges_are_channels_on_tpus_alone(platform):
  class Chip:
    pass

  mesh = Chip()
  mesh.devices = np.array([[Chip()]])
  mesh.devices[0, 0].platform = platform
  assert traced_for(mesh, as_channels)() == (platform == 'tpu')
  assert not as_channels()


def test_no_gate_is_left_behind():
  with weights_gradient_if(jnp.array(False)):
    pass
  x, w = jnp.ones((1, 2, 2, 1)), jnp.ones((1, 1))
  np.testing.assert_array_equal(jax.grad(lambda w: pointwise(x, w).sum())(w), [[4]])


def test_tangent_that_is_kept_is_one_array():
  """And not two for whoever reads it to add."""
  x, w = jnp.ones((1, 2, 2, 1)), jnp.ones((1, 1))
  both = jax.make_jaxpr(lambda: jax.jvp(pointwise, (x, w), (x, w)))()
  one = jax.make_jaxpr(lambda: jax.jvp(lambda x: pointwise(x, w), (x,), (x,)))()
  assert [str(each).count('materialise') for each in (both, one)] == [1, 0]


@pytest.mark.usefixtures('x64')
def test_maps_beside_each_other_are_each_map_with_one_conditional_for_all_gradients_in_weights(program_for):
  rng = np.random.default_rng(0)
  # The first and the last are alike, so that they share kernels on a GPU.
  images = [rng.normal(size=(edges, 2, 4, 6, channels)) for edges, channels in ((2, 2), (2, 3), (1, 2))]
  kernels = [rng.normal(size=(len(x), x.shape[-1], x.shape[-1])) for x in images]
  filters = [rng.normal(size=(size, size, len(x), x.shape[-1])) for size, x in zip((3, 5, 5), images, strict=True)]
  dilations = (1, 2, 1)

  def apart(images, kernels, filters):
    outputs = [pointwise_convs([x], [kernel])[0] for x, kernel in zip(images, kernels, strict=True)]
    return outputs + [
      depthwise_conv(x, kernel, dilation=dilation)
      for x, kernel, dilation in zip(images, filters, dilations, strict=True)
    ]

  def together(images, kernels, filters):
    return pointwise_convs(images, kernels) + depthwise_convs_apart(images, filters, dilations=dilations)

  def gradients(function, *point):
    def loss(*point):
      return sum(jnp.sum(jnp.sin(y)) for y in function(*point))

    gradient = jax.grad(loss, (0, 1, 2))
    return jax.jvp(gradient, point, point), jax.vjp(gradient, *point)[1](point)

  point = images, kernels, filters
  expected = jax.jit(functools.partial(gradients, apart))(*point)
  of_both = functools.partial(gradients, together)
  for found in (jax.jit(of_both)(*point), program_for('cuda', of_both, *point).call(*point)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected)

  def gated(wanted, function):
    with weights_gradient_if(wanted):
      return jax.grad(lambda point: sum(map(jnp.sum, function(*point))))(point)

  counts = [
    jax.jit(functools.partial(gated, function=each)).lower(True).as_text().count('stablehlo.case')
    for each in (together, apart)
  ]
  assert counts == [2, 6]
  # For the host would wait at each of them.
  on_gpu = program_for('cuda', functools.partial(gated, function=together), True)
  assert 'stablehlo.case' not in on_gpu.mlir_module()


def test_no_images_are_images(program_for):
  assert pointwise(jnp.ones((0, 2, 2, 3)), jnp.ones((3, 5))).shape == (0, 2, 2, 5)
  assert pointwise_convs([jnp.ones((2, 0, 2, 2, 3))], [jnp.ones((2, 3, 5))])[0].shape == (2, 0, 2, 2, 5)
  for_gpu = program_for(
    'cuda', lambda x, w: depthwise_conv(x, w, stride=2), jnp.ones((0, 4, 4, 3)), jnp.ones((3, 3, 2, 3))
  )
  assert for_gpu.out_avals[0].shape == (2, 0, 2, 2, 3)
