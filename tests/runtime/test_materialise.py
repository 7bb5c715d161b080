import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from darts_jax.hypergradient import derivative
from darts_jax.runtime.materialise import computed_once, materialise, materialise_all, product_with_tangents


def loss(weights, alphas):
  """With a value that is computed once between two nonlinear layers."""
  return jnp.sum(jnp.cos(alphas * materialise(jnp.sin(weights))))


def plain_loss(weights, alphas):
  return jnp.sum(jnp.cos(alphas * jnp.sin(weights)))


@pytest.fixture
def point():
  return np.random.default_rng(0).normal(size=(3, 4))


def calls(jaxpr):
  """Numbers of arrays that are materialised together, however deep in a program."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'materialise':
      yield len(eqn.invars)
    for inner in jaxprs_in_params(eqn.params):
      yield from calls(inner)


@pytest.mark.usefixtures('x64')
def test_identity_and_its_derivatives(point):
  weights, alphas, direction = point

  def two_orders(loss):
    gradient = jax.grad(loss, (0, 1))
    forward = jax.jvp(gradient, (weights, alphas), (direction, alphas))
    return loss(weights, alphas), forward, jax.vjp(gradient, weights, alphas)[1]((direction, alphas))

  for jitted in (lambda f: f, jax.jit):
    found, expected = (jitted(lambda loss=loss: two_orders(loss))() for loss in (loss, plain_loss))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), found, expected)


@pytest.mark.usefixtures('x64')
def test_vmapped_over_any_axis(point):
  mapped = jax.jit(jax.vmap(materialise, 1, 0))(point)
  np.testing.assert_array_equal(mapped, point.T)


@pytest.mark.usefixtures('x64')
def test_arrays_that_stay_are_materialised_beside_those_that_move(point):
  def function(x):
    return materialise_all([x, jnp.float64(2), jnp.arange(3), x * x])

  tangents = [point, 0, np.zeros(3, jax.dtypes.float0), 2 * point * point]
  values, found = jax.jvp(jax.jit(function), (point,), (point,))
  jax.tree.map(np.testing.assert_array_equal, (values, found), (function(point), tangents))
  together = product_with_tangents(jax.make_jaxpr(function)(point), [jnp.asarray(point)], [jnp.asarray(point)])
  jax.tree.map(np.testing.assert_array_equal, together, tangents)


@pytest.mark.usefixtures('x64')
def test_products_compute_values_together_with_tangents(point):
  weights, alphas, direction = point

  def product(loss):
    return lambda: derivative('product', loss, weights, alphas, direction)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), jax.jit(product(loss))(), jax.jit(product(plain_loss))()
  )
  # On the way to the loss and on the way back.
  assert list(calls(jax.make_jaxpr(product(loss))().jaxpr)) == [2, 2]


@pytest.mark.usefixtures('x64')
def test_products_can_be_differentiated_and_leave_no_trace(point):
  """In reverse mode, values must not depend on tangents, whatever JAX remembers of a program."""
  weights, alphas, direction = map(jnp.asarray, point)

  def reverse(loss):
    product = functools.partial(derivative, 'product', loss)
    first = product(weights, alphas, direction)
    second = jax.grad(lambda *args: jnp.sum(product(*args, direction).alphas), (0, 1))(weights, alphas)
    _, transpose = jax.vjp(lambda weights: jax.grad(loss, (0, 1))(weights, alphas), weights)
    return first, second, transpose((direction, direction)), jax.linearize(jax.grad(loss), weights, alphas)[0]

  for wrap in (lambda f: f, lambda f: jax.jit(jax.checkpoint(f))):
    found, expected = (reverse(wrap(each)) for each in (loss, plain_loss))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def test_direction_that_is_not_like_the_weights_is_refused():
  with pytest.raises(ValueError, match='tuple'):
    derivative('product', lambda w, a: w['x'] ** 2 * a, {'x': 1.0}, 1.0, (1.0,))


def scaled(x, *, factor):
  scaled.traces += 1
  return factor * x


def test_function_that_is_computed_once_is_traced_once_for_all_arrays_of_a_shape(point):
  jax.clear_caches()
  scaled.traces = 0
  for _ in range(2):
    for factor in (2, 3):
      np.testing.assert_allclose(computed_once(scaled, jnp.asarray(point), factor=factor), factor * point, rtol=1e-6)
  assert scaled.traces == 2
