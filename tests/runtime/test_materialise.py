import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun, jaxprs_in_params

from darts_jax.hypergradient import derivative
from darts_jax.runtime.materialise import computed_once, materialise, materialise_all, materialised_with_tangents


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

  expected = function(point), [point, 0, np.zeros(3, jax.dtypes.float0), 2 * point * point]
  apart = jax.jvp(jax.jit(function), (point,), (point,))
  with materialised_with_tangents():
    together = jax.jvp(function, (point,), (point,))
  for found in (apart, together):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


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


def test_values_stay_apart_elsewhere(point):
  weights, alphas, direction = point
  gradient = jax.make_jaxpr(lambda weights: jax.grad(loss)(weights, alphas))(weights)

  def product():
    # A new function each time, since JAX remembers the program of an old one.
    return jax.make_jaxpr(lambda: jax.jvp(jaxpr_as_fun(gradient), [weights], [direction]))().jaxpr

  assert list(calls(product())) == [1] * 4
  with materialised_with_tangents():
    assert list(calls(product())) == [2, 2]
  assert list(calls(product())) == [1] * 4


def scaled(x, *, factor):
  scaled.traces += 1
  return factor * x


def test_function_that_is_computed_once_is_traced_once_for_all_arrays_of_a_shape(point):
  scaled.traces = 0
  for _ in range(2):
    for factor in (2, 3):
      np.testing.assert_allclose(computed_once(scaled, jnp.asarray(point), factor=factor), factor * point, rtol=1e-6)
  assert scaled.traces == 2
