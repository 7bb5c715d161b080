import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from darts_jax.hypergradient import ESTIMATORS, Gradients, Problem, exact, finite_difference, first_order, hypergradient

RATE, DECAY, MOMENTUM = 0.3, 0.05, 0.9


any_estimator = pytest.mark.parametrize('estimator', [make() for make in ESTIMATORS.values()], ids=list(ESTIMATORS))
second_order = pytest.mark.parametrize('estimator', [exact(), finite_difference()], ids=['exact', 'finite_difference'])


# The toy problem of the paper, with its one-step hypergradient (1 − 2ξ)w + 4ξα − 2.


def toy_train(weights, alphas):
  return weights * weights - 2 * alphas * weights + alphas * alphas


def toy_valid(weights, alphas):
  return alphas * weights - 2 * alphas + 1


def toy(estimator, rate):
  return jax.jit(hypergradient(estimator, toy_train, toy_valid, lambda weights, gradient: weights - rate * gradient))


@second_order
@pytest.mark.parametrize('rate', [0.1, 0.5, 0.7])
@pytest.mark.usefixtures('x64')
def test_toy_problem(estimator, rate):
  function = toy(estimator, rate)
  for weights, alphas in ((-2.0, 2.0), (0.3, -1.7)):
    gradient, _ = function(weights, alphas)
    np.testing.assert_allclose(gradient, (1 - 2 * rate) * weights + 4 * rate * alphas - 2, rtol=1e-11)
  # The search comes to rest at α = w = 2 / (1 + 2ξ).
  rest = 2 / (1 + 2 * rate)
  np.testing.assert_allclose(function(rest, rest)[0], 0, atol=1e-11)


@pytest.mark.usefixtures('x64')
def test_toy_problem_to_first_order():
  np.testing.assert_allclose(toy(first_order(), 0.5)(-2.0, 2.0)[0], -4)


@second_order
@pytest.mark.usefixtures('x64')
def test_hypergradients_can_be_differentiated_and_mapped(estimator):
  rate = 0.2
  function = toy(estimator, rate)
  slopes = jax.jit(jax.grad(lambda weights, alphas: function(weights, alphas)[0], (0, 1)))(-2.0, 2.0)
  np.testing.assert_allclose(slopes, [1 - 2 * rate, 4 * rate], rtol=1e-10)
  weights, alphas = jnp.array([1.0, 2.0, 5.0]), jnp.array([-3.0, 0.5, 4.0])
  mapped = jax.jit(jax.vmap(lambda w, a: function(w, a)[0]))(weights, alphas)
  np.testing.assert_allclose(mapped, (1 - 2 * rate) * weights + 4 * rate * alphas - 2, rtol=1e-10)


# Quadratic problems: L_train = ½wᵀAw + wᵀCα + aᵀw, L_val = ½wᵀFw + wᵀKα + fᵀw + ½αᵀQα + qᵀα.


@pytest.fixture
def quadratic():
  """A problem in six weights and four α, both as nested pytrees; its matrices, and the derivatives by hand."""
  rng = np.random.default_rng(0)
  a, f = (matrix @ matrix.T for matrix in rng.normal(size=(2, 6, 6)))
  c, k = rng.normal(size=(2, 6, 4))
  q = rng.normal(size=(4, 4))
  q = q + q.T
  linear = types.SimpleNamespace(a=rng.normal(size=6), f=rng.normal(size=6), q=rng.normal(size=4))
  w, alphas = rng.normal(size=6), rng.normal(size=4)

  def flat(tree):
    return ravel_pytree(tree)[0]

  def train(weights, alphas):
    x, y = flat(weights), flat(alphas)
    return x @ a @ x / 2 + x @ c @ y + linear.a @ x

  def valid(weights, alphas):
    x, y = flat(weights), flat(alphas)
    return x @ f @ x / 2 + x @ k @ y + linear.f @ x + y @ q @ y / 2 + linear.q @ y

  def outer_gradient(w):
    return q @ alphas + linear.q + k.T @ w

  return types.SimpleNamespace(
    train=train,
    valid=valid,
    w=w,
    g=a @ w + c @ alphas + linear.a,
    v=lambda w: f @ w + k @ alphas + linear.f,
    outer_gradient=outer_gradient,
    mixed=c.T,
    weights={'cell': [w[:3], {'kernel': w[3:5].reshape(1, 2)}], 'stem': w[5]},
    alphas={'normal': alphas[:2], 'reduce': alphas[2:]},
    flat=flat,
  )


def sgd(problem, clip=None):
  """An Optax step with momentum and decay from a state with a momentum buffer, that buffer, and where it goes by hand.

  Returns:
    Φ as a function of weights and gradient, w', and ∂Φ/∂g as a symmetric matrix.
  """
  buffer = np.random.default_rng(1).normal(size=6)
  optimiser = optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    optax.add_decayed_weights(DECAY),
    optax.sgd(RATE, MOMENTUM),
  )
  _, unravel = ravel_pytree(problem.weights)
  state = optax.tree.set(optimiser.init(problem.weights), trace=unravel(buffer))

  def inner_update(weights, gradient):
    return optax.apply_updates(weights, optimiser.update(gradient, state, weights)[0])

  norm = np.linalg.norm(problem.g)
  direction = problem.g / norm
  slope = (clip / norm) * (np.eye(6) - np.outer(direction, direction)) if clip else np.eye(6)
  gradient = clip * direction if clip else problem.g
  after = problem.w - RATE * (MOMENTUM * buffer + gradient + DECAY * problem.w)
  return inner_update, after, -RATE * slope


@second_order
@pytest.mark.parametrize('clip', [None, 0.7])
@pytest.mark.usefixtures('x64')
def test_quadratic_problem_by_a_step_with_momentum_decay_and_clipping(quadratic, estimator, clip):
  inner_update, after, slope = sgd(quadratic, clip)
  function = jax.jit(hypergradient(estimator, quadratic.train, quadratic.valid, inner_update))
  gradient, memory = function(quadratic.weights, quadratic.alphas)
  direction = slope @ quadratic.v(after)
  outer = quadratic.outer_gradient(after)
  assert jax.tree.map(jnp.shape, gradient) == {'normal': (2,), 'reduce': (2,)}
  np.testing.assert_allclose(quadratic.flat(gradient), outer + quadratic.mixed @ direction, rtol=1e-10)
  np.testing.assert_allclose(quadratic.flat(memory.direction), direction, rtol=1e-10)
  np.testing.assert_allclose(memory.outer_norm, np.linalg.norm(outer), rtol=1e-12)


@pytest.mark.usefixtures('x64')
def test_quadratic_problem_to_first_order(quadratic):
  function = jax.jit(hypergradient(first_order(), quadratic.train, quadratic.valid, sgd(quadratic)[0]))
  gradient, memory = function(quadratic.weights, quadratic.alphas)
  expected = quadratic.outer_gradient(quadratic.w)
  np.testing.assert_allclose(quadratic.flat(gradient), expected, rtol=1e-12)
  np.testing.assert_allclose(memory.outer_norm, np.linalg.norm(expected), rtol=1e-12)


@pytest.mark.usefixtures('x64')
def test_finite_difference_of_a_quadratic_problem_is_exact_at_any_radius(quadratic):
  inner_update, after, slope = sgd(quadratic)
  direction = slope @ quadratic.v(after)
  expected = quadratic.outer_gradient(after) + quadratic.mixed @ direction
  for radius in (1e-3, 0.1, 1e3):
    function = hypergradient(finite_difference(radius), quadratic.train, quadratic.valid, inner_update)
    gradient, memory = function(quadratic.weights, quadratic.alphas)
    np.testing.assert_allclose(quadratic.flat(gradient), expected, rtol=1e-10)
    np.testing.assert_allclose(memory.epsilon, radius / np.linalg.norm(direction), rtol=1e-12)


@pytest.mark.usefixtures('x64')
def test_finite_difference_steps_by_the_radius_over_all_weights():
  """With ∇α L_train = Σ w³ a central difference along u gives Σ (3w²u + ε²u³), where ε = radius / ‖u‖."""
  w, slopes = ({'a': rows[:2], 'b': rows[2:]} for rows in (np.array([0.5, -1.0, 2.0]), np.array([3.0, 1.0, -2.0])))
  u = -RATE * np.array([3.0, 1.0, -2.0])
  product = np.sum(3 * np.array([0.5, -1.0, 2.0]) ** 2 * u)

  def train(weights, alpha):
    return alpha * (jnp.sum(weights['a'] ** 3) + jnp.sum(weights['b'] ** 3))

  def valid(weights, alpha):
    return jnp.vdot(slopes['a'], weights['a']) + jnp.vdot(slopes['b'], weights['b'])

  def inner_update(weights, gradient):
    return jax.tree.map(lambda w, g: w - RATE * g, weights, gradient)

  def estimate(estimator):
    return jax.jit(hypergradient(estimator, train, valid, inner_update))(w, 1.5)[0]

  np.testing.assert_allclose(estimate(exact()), product, rtol=1e-12)
  for radius in (0.01, 0.5):
    error = radius**2 * np.sum(u**3) / np.sum(u**2)
    np.testing.assert_allclose(estimate(finite_difference(radius)) - product, error, rtol=1e-8)


@second_order
@pytest.mark.usefixtures('x64')
def test_no_gradient_at_the_virtual_weights(quadratic, estimator):
  """With v = 0 there is no mixed product, and 0 · ∞ must not appear in its place."""

  def valid(weights, alphas):
    return 3 * jnp.sum(alphas['normal']) + 0 * weights['stem']

  function = jax.jit(hypergradient(estimator, quadratic.train, valid, sgd(quadratic)[0]))
  gradient, memory = function(quadratic.weights, quadratic.alphas)
  np.testing.assert_allclose(quadratic.flat(gradient), [3, 3, 0, 0], atol=1e-11)
  np.testing.assert_array_equal(quadratic.flat(memory.direction), 0)


@any_estimator
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_gradient_has_the_dtype_of_alpha(quadratic, estimator, dtype):
  function = hypergradient(estimator, quadratic.train, quadratic.valid, sgd(quadratic)[0])
  alphas = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), quadratic.alphas)
  gradient, _ = jax.eval_shape(function, quadratic.weights, alphas)
  assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(dtype)}


@any_estimator
def test_memory_has_one_structure_in_all_passes(quadratic, estimator):
  """So that the passes can be the iterations of a `lax.scan`."""
  weights, alphas = jax.tree.map(jnp.asarray, (quadratic.weights, quadratic.alphas))
  problem = Problem(quadratic.train, sgd(quadratic)[0], weights, alphas)
  gradients = Gradients(weights, alphas)
  memory = jax.eval_shape(lambda: estimator.start(problem))
  assert jax.tree.map(jnp.shape, memory.at) == jax.tree.map(jnp.shape, weights)
  for step in estimator.passes:
    after = jax.eval_shape(lambda memory, step=step: step.advance(problem, memory, gradients), memory)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), memory, after))
    memory = after


@pytest.mark.parametrize('radius', [0, -0.01, float('nan'), float('inf')])
def test_radius_that_is_not_positive_and_finite_is_refused(radius):
  with pytest.raises(ValueError, match=f'^radius: {radius} is not allowed; a finite difference needs a positive'):
    finite_difference(radius)


def test_passes_say_what_they_ask_of_a_gradient():
  """The second-order estimators need g and v; a finite difference is the only one to subtract gradients."""
  asked = {name: [(p.weights, p.precise) for p in make().passes] for name, make in ESTIMATORS.items()}
  assert asked == {
    'first_order': [(False, False)],
    'finite_difference': [(True, False), (True, False), (False, True), (False, True)],
    'exact': [(True, False), (True, False)],
  }
