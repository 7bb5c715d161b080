import functools

import jax
import jax.numpy as jnp
import pytest

from darts_jax.hypergradient import finite_difference, hypergradient, sgd, unrolled

WIDTH, BATCH, LAYERS = 16, 4096, 4


def loss(batch, weights, alphas):
  """Of a network whose activations are two hundred times as large as its weights."""
  x = batch
  for layer in range(LAYERS):
    y = x @ weights[layer]
    x = alphas[0] * jnp.tanh(y) + alphas[1] * jnp.sin(y)
  return jnp.mean(x**2)


def temporary_bytes(function):
  arguments = jnp.zeros((LAYERS, WIDTH, WIDTH)), jnp.zeros(2), jnp.zeros((BATCH, WIDTH)), jnp.zeros((BATCH, WIDTH))
  analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
  assert analysis is not None
  return analysis.temp_size_in_bytes


def of_estimator(estimator):
  def function(weights, alphas, train, valid):
    losses = functools.partial(loss, train), functools.partial(loss, valid)
    return hypergradient(estimator, *losses, sgd(0.1))(weights, alphas)[0]

  return temporary_bytes(function)


@functools.cache
def of_gradient():
  def function(weights, alphas, train, valid):
    del valid
    return jax.grad(functools.partial(loss, train), (0, 1))(weights, alphas)

  return temporary_bytes(function)


def test_measure():
  """A gradient keeps an activation or more for every layer, or the tests below say nothing."""
  assert of_gradient() > LAYERS * BATCH * WIDTH * 4


@pytest.mark.parametrize('one_sided', [False, True])
def test_finite_difference_needs_the_memory_of_one_gradient(one_sided):
  assert of_estimator(finite_difference(one_sided=one_sided)) <= 1.2 * of_gradient()


def test_unrolled_needs_the_same_memory_for_any_number_of_steps():
  assert of_estimator(unrolled(8)) <= 1.2 * of_estimator(unrolled(2))
