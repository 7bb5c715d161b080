import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.nets.layers import (
  BatchNorm,
  init_variables,
  pointwise_convs,
  running_average,
  uniform_fan_in,
)


@pytest.mark.usefixtures('x64')
def test_batch_norm_uses_the_batch_and_its_gradient_is_that_of_the_definition(two_orders, assert_close):
  rng = np.random.default_rng(0)
  x, direction = rng.normal(size=(2, 3, 4, 5, 2)) * [1.0, 3.0] + [2.0, -1.0]
  params = {'scale': np.array([1.5, -0.5]), 'bias': np.array([0.3, 2.0])}
  layer = BatchNorm(affine=True)

  def definition(x, params):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / jnp.sqrt(var + 1e-5) * params['scale'] + params['bias']

  def ours(x, params):
    statistics = {'mean': np.full(2, 9.0), 'var': np.full(2, 9.0)}
    return layer.apply({'params': params, 'batch_stats': statistics}, x, train=True)

  point, directions = (x, params), (direction, {'scale': np.array([1.0, 0.2]), 'bias': np.array([-1.0, 0.4])})
  found, expected = jax.jit(lambda: [two_orders(function, point, directions) for function in (ours, definition)])()
  assert_close(found, expected, 1e-11)


@pytest.mark.usefixtures('x64')
def test_batch_norm_keeps_running_statistics():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 4, 2)) * 2 + 1
  layer = BatchNorm(affine=False)
  variables = layer.init(jax.random.key(0), x, train=True)
  jax.tree.map(np.testing.assert_array_equal, variables, {'batch_stats': {'mean': np.zeros(2), 'var': np.ones(2)}})
  mean, var = np.zeros(2), np.ones(2)
  for batch in (x, 3 * x - 1):
    _, alone = layer.apply({}, batch, train=True, mutable=['moments'])
    _, changed = layer.apply(variables, batch, train=True, mutable=['batch_stats'])
    together = jax.tree.map(running_average, variables['batch_stats'], alone['moments'])
    jax.tree.map(np.testing.assert_array_equal, together, changed['batch_stats'])
    variables = changed
    mean = 0.9 * mean + 0.1 * batch.mean((0, 1, 2))
    var = 0.9 * var + 0.1 * batch.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(variables['batch_stats']['mean'], mean, rtol=1e-12)
    np.testing.assert_allclose(variables['batch_stats']['var'], var, rtol=1e-12)
  y, changed = layer.apply(variables, x, train=False, mutable=['batch_stats'])
  np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-12)
  np.testing.assert_array_equal(changed['batch_stats']['mean'], variables['batch_stats']['mean'])


@pytest.mark.usefixtures('x64')
def test_batch_norm_normalises_several_stacks_with_variables_as_channels():
  rng = np.random.default_rng(0)
  images = [rng.normal(size=(edges, 2, 3, 4, channels)) * 2 + 1 for edges, channels in ((3, 1), (1, 3), (2, 2))]

  def side_by_side(stacks):
    return np.concatenate([np.moveaxis(x, 0, 3).reshape(2, 3, 4, -1) for x in stacks], axis=-1)

  layer = BatchNorm(affine=False)
  found, moments = layer.apply({}, *images, train=True, mutable=['moments'], method='fold')
  whole, expected = layer.apply({}, side_by_side(images), train=True, mutable=['moments'])
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), moments, expected)
  np.testing.assert_allclose(side_by_side([x.evaluate() for x in found]), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(('ratio', 'outlier'), [(0, 0), (1000, 0), (3000, 0), (1000, 5e5)])
def test_batch_norm_in_float32_is_that_in_float64_however_far_the_mean_is_from_zero(ratio, outlier):
  """To second order; of channels at once whose means are so many standard deviations from zero, on either side."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(8, 8, 8, 3)) + ratio * np.array([1, -0.7, 0])
  x[3, 3, 3] += outlier
  x = x.astype(np.float32)
  direction, weights = rng.normal(size=(2, *x.shape)).astype(np.float32)
  layer = BatchNorm(affine=False)

  def ours(x):
    y, moments = layer.apply({}, x, train=True, mutable=['moments'])
    return y, moments['moments']['var']

  def definition(x):
    left = x - jnp.mean(x, (0, 1, 2))
    variance = jnp.mean(left**2, (0, 1, 2))
    return left / jnp.sqrt(variance + 1e-5), variance * 512 / 511

  def orders(function, x, direction, weights):
    def loss(x):
      y, variance = function(x)
      return jnp.sum(jnp.sin(y + 0.3) * weights), (y, variance)

    (gradient, (y, variance)), (product, _) = jax.jvp(jax.grad(loss, has_aux=True), (x,), (direction,))
    return y, variance, gradient, product

  rough = jax.jit(functools.partial(orders, ours))(x, direction, weights)
  with jax.enable_x64(True):
    exact = jax.jit(functools.partial(orders, definition))(*(a.astype(np.float64) for a in (x, direction, weights)))
  for ours, expected in zip(rough, exact, strict=True):
    # Images themselves are rounded by 6e-8 of the mean.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=(1e-5 + 3e-7 * ratio) * np.abs(expected).max())


def test_variances_of_constant_channels_are_not_negative():
  """They are nothing but rounding, whose sign may be any."""
  values = np.append(12345.678, np.random.default_rng(0).uniform(1e5, 1e6, 63)).astype(np.float32)
  layer = BatchNorm(affine=False)
  x = np.broadcast_to(values, (3, 5, 7, 64))
  y, moments = jax.jit(lambda x: layer.apply({}, x, train=True, mutable=['moments']))(x)
  assert np.min(moments['moments']['var']) >= 0
  np.testing.assert_allclose(moments['moments']['mean'], values, rtol=1e-6)
  assert np.isfinite(y).all()


def test_batch_norm_computes_statistics_of_bfloat16_in_float32():
  # In bfloat16 the difference of E[x²] = 102.53 and E[x]² = 102.52 would be lost.
  x = jnp.where(jnp.arange(64).reshape(1, 8, 8, 1) % 2 == 0, 10.0, 10.25).astype(jnp.bfloat16)
  layer = BatchNorm(affine=False)
  y, changed = layer.apply(layer.init(jax.random.key(0), x, train=True), x, train=True, mutable=['batch_stats'])
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.unique(np.asarray(y, np.float32)), [-1, 1], rtol=0.01)
  np.testing.assert_allclose(changed['batch_stats']['mean'], [0.1 * 10.125], rtol=1e-6)
  np.testing.assert_allclose(changed['batch_stats']['var'], [0.9 + 0.1 * 0.125**2 * 64 / 63], rtol=1e-5)


@pytest.mark.parametrize(('edges', 'channels', 'features'), [(1, 5, 3), (4, 16, 5), (2, 129, 3), (5, 64, 4)])
@pytest.mark.usefixtures('x64')
def test_pointwise_equals_an_einsum_over_edges(two_orders, assert_close, edges, channels, features):
  rng = np.random.default_rng(0)
  x, dx = rng.normal(size=(2, edges, 2, 3, 2, channels))
  kernel, dkernel = rng.normal(size=(2, edges, channels, features))

  def expected(x, kernel):
    return jnp.einsum('mnijc,mcd->mnijd', x, kernel)

  def ours(x, kernel):
    return pointwise_convs([x], [kernel])[0]

  found, definition = jax.jit(lambda *args: [two_orders(function, *args) for function in (ours, expected)])(
    (x, kernel), (dx, dkernel)
  )
  assert_close(found, definition)


class TwoKernels(nn.Module):
  """Weights with fan-ins 25 and 100, and a BN with scale and bias."""

  @nn.compact
  def __call__(self, x, *, train):
    self.param('small', uniform_fan_in(25), (100, 100))
    self.param('large', uniform_fan_in(100), (100, 100))
    return BatchNorm(affine=True)(x, train=train)


def net_init(net, key, *args, **kwargs):
  return net.init(key, *args, **kwargs)


@pytest.mark.parametrize('initialise', [net_init, init_variables])
def test_initial_weights_are_uniform_up_to_one_over_the_root_of_the_fan_in(initialise):
  net, x = TwoKernels(), jnp.ones((1, 2, 2, 3))
  variables = jax.jit(lambda: initialise(net, jax.random.key(0), x, train=False))()
  params = variables['params']
  for name, bound in (('small', 0.2), ('large', 0.1)):
    sample = np.asarray(params[name])
    assert sample.shape == (100, 100)
    assert np.abs(sample).max() <= bound
    # Mean and variance of a uniform variable, to five standard errors of 10⁴ samples.
    np.testing.assert_allclose(sample.mean(), 0, atol=5 * bound / math.sqrt(3) / 100)
    np.testing.assert_allclose(sample.var(), bound**2 / 3, atol=5 * math.sqrt(4 / 45) * bound**2 / 100)
  correlation = np.corrcoef(params['small'].ravel(), params['large'].ravel())[0, 1]
  np.testing.assert_allclose(correlation, 0, atol=5 / 100)
  np.testing.assert_array_equal(params['BatchNorm_0']['scale'], np.ones(3))
  np.testing.assert_array_equal(params['BatchNorm_0']['bias'], np.zeros(3))
  np.testing.assert_array_equal(variables['batch_stats']['BatchNorm_0']['mean'], np.zeros(3))
  np.testing.assert_array_equal(variables['batch_stats']['BatchNorm_0']['var'], np.ones(3))
