import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.hypergradient import (
  Gradients,
  Problem,
  exact,
  exact_reverse,
  finite_difference,
  first_order,
  hypergradient,
  sgd,
)

SECOND_ORDER = {
  'exact': exact(),
  'exact_reverse': exact_reverse(),
  'finite_difference': finite_difference(),
  'one_sided': finite_difference(one_sided=True),
}
OPTIMIZERS = ['sgd', 'decay', 'nesterov', 'loosely_clipped', 'adam', 'schedule']

second_order = pytest.mark.parametrize('estimator', list(SECOND_ORDER.values()), ids=list(SECOND_ORDER))


@second_order
@pytest.mark.parametrize('rate', [0.1, 0.5, 0.7])
@pytest.mark.usefixtures('x64')
def test_toy_problem(toy, estimator, rate):
  function = jax.jit(hypergradient(estimator, toy.train, toy.valid, sgd(rate)))
  for weights, alphas in ((-2.0, 2.0), (0.3, -1.7)):
    gradient, _ = function(weights, alphas)
    np.testing.assert_allclose(gradient, (1 - 2 * rate) * weights + 4 * rate * alphas - 2, rtol=1e-11)
  # The search comes to rest at α = w = 2 / (1 + 2ξ).
  rest = 2 / (1 + 2 * rate)
  np.testing.assert_allclose(function(rest, rest)[0], 0, atol=1e-11)


@pytest.mark.usefixtures('x64')
def test_toy_problem_to_first_order(toy):
  np.testing.assert_allclose(jax.jit(hypergradient(first_order(), toy.train, toy.valid, sgd(0.5)))(-2.0, 2.0)[0], -4)


@pytest.mark.parametrize(
  ('estimator', 'rate'),
  [(first_order(), 0.0), *((make(), rate) for make in (exact, finite_difference) for rate in (0.1, 0.25, 0.5))],
  ids=lambda value: value if isinstance(value, float) else value.name,
)
@pytest.mark.usefixtures('x64')
def test_search_of_the_toy_problem_comes_to_rest_where_it_should(toy, estimator, rate):
  function = hypergradient(estimator, toy.train, toy.valid, sgd(rate))

  def step(_, state):
    alphas, weights = state
    return alphas - 0.1 * function(weights, alphas)[0], weights - 0.1 * jax.grad(toy.train)(weights, alphas)

  # The error shrinks by a tenth of a step at least: 0.91^500 < 1e-20.
  rest = jax.jit(lambda start: jax.lax.fori_loop(0, 500, step, start))((jnp.array(2.0), jnp.array(-2.0)))
  np.testing.assert_allclose(rest, 2 / (1 + 2 * rate), rtol=0, atol=1e-6)


@second_order
@pytest.mark.parametrize('clip', ['momentum', 'clipped'])
@pytest.mark.usefixtures('x64')
def test_quadratic_problem_by_a_step_with_momentum_decay_and_clipping(nested, estimator, clip):
  optimizer = nested.optimizer(clip)
  g, slope = nested.g(nested.w), np.eye(6)
  if clip == 'clipped':
    norm = np.linalg.norm(g)
    assert norm > 0.7
    slope = 0.7 / norm * (np.eye(6) - np.outer(g, g) / norm**2)
    g = 0.7 / norm * g
  step = g + nested.decay * nested.w + nested.momentum * nested.buffer(optimizer)
  after = nested.w - nested.rate * step
  direction = -nested.rate * slope @ nested.v(after)

  gradient, memory = nested.estimate(estimator, optimizer.inner)
  assert jax.tree.map(jnp.shape, memory.estimate) == {'normal': (2,), 'reduce': (2,)}
  expected = nested.direct(after) + nested.C.T @ direction
  np.testing.assert_allclose(gradient, expected, rtol=1e-10)
  np.testing.assert_allclose(nested.flat(memory.direction), direction, rtol=1e-10)
  np.testing.assert_allclose(nested.flat(memory.outer), nested.direct(after), rtol=1e-12)


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    *((kind, name) for kind in ('exact', 'finite_difference') for name in OPTIMIZERS),
    ('exact_reverse', 'adam'),
    ('one_sided', 'adam'),
    ('one_sided', 'schedule'),
  ],
)
@pytest.mark.usefixtures('x64')
def test_quadratic_problem_by_a_step_of_any_optimizer(quadratic, kind, name):
  optimizer = quadratic.optimizer(name)
  gradient, _ = quadratic.estimate(SECOND_ORDER[kind], optimizer.inner)
  np.testing.assert_allclose(gradient, quadratic.explicit(optimizer, 1), rtol=1e-10)


@pytest.mark.parametrize('make', [exact, exact_reverse])
@pytest.mark.parametrize('name', ['momentum', 'clipped', 'adam'])
@pytest.mark.usefixtures('x64')
def test_exact_product_is_taken_at_the_weights_and_not_after_the_step(bent, make, name):
  optimizer = bent.optimizer(name)
  gradient, _ = bent.estimate(make(), optimizer.inner)
  np.testing.assert_allclose(gradient, bent.explicit(optimizer, 1), rtol=1e-10)


@pytest.mark.usefixtures('x64')
def test_quadratic_problem_to_first_order(nested):
  inner = nested.optimizer('clipped').inner
  gradient, memory = nested.estimate(first_order(), inner)
  expected = nested.direct(nested.w)
  np.testing.assert_allclose(gradient, expected, rtol=1e-12)
  np.testing.assert_allclose(nested.flat(memory.outer), expected, rtol=1e-12)


@pytest.mark.parametrize('one_sided', [False, True])
@pytest.mark.usefixtures('x64')
def test_finite_difference_of_a_quadratic_problem_is_exact_at_any_radius(quadratic, one_sided):
  """Gradients are linear. Rounding is 1e-16 of the gradients, which divided by the radius is to stay below 1e-10."""
  optimizer = quadratic.optimizer('momentum')
  after = quadratic.w - quadratic.rate * (
    quadratic.g(quadratic.w) + quadratic.decay * quadratic.w + quadratic.momentum * quadratic.buffer(optimizer)
  )
  direction = -quadratic.rate * quadratic.v(after)
  expected = quadratic.direct(after) + quadratic.C.T @ direction
  for radius in (1e-3, 1e3):
    gradient, memory = quadratic.estimate(finite_difference(radius, one_sided), optimizer.inner)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    np.testing.assert_allclose(memory.epsilon, radius / np.linalg.norm(direction), rtol=1e-12)


@pytest.fixture
def cubic():
  """With ∇α L_train = Σ w³ a central difference along u gives Σ (3w²u + ε²u³), a one-sided Σ (3w²u + 3εwu² + ε²u³)."""
  rate = 0.3
  w, v = np.array([0.5, -1.0, 2.0]), np.array([3.0, 1.0, -2.0])
  u = -rate * v

  def train(weights, alpha):
    return alpha * (jnp.sum(weights['a'] ** 3) + jnp.sum(weights['b'] ** 3))

  def valid(weights, alpha):
    return jnp.vdot(v[:2], weights['a']) + jnp.vdot(v[2:], weights['b'])

  return types.SimpleNamespace(
    train=train,
    valid=valid,
    inner=sgd(rate),
    weights={'a': jnp.array(w[:2]), 'b': jnp.array(w[2:])},
    alphas=jnp.array(1.5),
    w=w,
    u=u,
    product=np.sum(3 * w**2 * u),
  )


@pytest.mark.parametrize('one_sided', [False, True])
def test_finite_difference_steps_by_the_radius_over_all_weights(x64, request, one_sided):
  cubic = request.getfixturevalue('cubic')

  def estimate(estimator):
    return jax.jit(hypergradient(estimator, cubic.train, cubic.valid, cubic.inner))(cubic.weights, cubic.alphas)[0]

  np.testing.assert_allclose(estimate(exact()), cubic.product, rtol=1e-12)
  for radius in (0.01, 0.5):
    epsilon = radius / np.linalg.norm(cubic.u)
    error = epsilon**2 * np.sum(cubic.u**3) + one_sided * 3 * epsilon * np.sum(cubic.w * cubic.u**2)
    np.testing.assert_allclose(estimate(finite_difference(radius, one_sided)) - cubic.product, error, rtol=1e-8)


@pytest.mark.parametrize('one_sided', [False, True])
def test_checks_compare_a_finite_difference_with_that_of_half_the_radius(x64, request, one_sided):
  cubic = request.getfixturevalue('cubic')
  estimator = finite_difference(0.5, one_sided)
  problem = Problem(cubic.inner, cubic.weights, cubic.alphas)
  memory = estimator.start(problem)
  for each in (*estimator.passes, *estimator.checks):
    loss = {'train': cubic.train, 'valid': cubic.valid}[each.loss]
    memory = each.advance(problem, memory, Gradients(*jax.grad(loss, (0, 1))(memory.at, cubic.alphas)))

  def quotient(epsilon):
    error = epsilon**2 * np.sum(cubic.u**3) + one_sided * 3 * epsilon * np.sum(cubic.w * cubic.u**2)
    return cubic.product + error

  whole, half = (quotient(radius / np.linalg.norm(cubic.u)) for radius in (0.5, 0.25))
  np.testing.assert_allclose(memory.disagreement, abs((whole - half) / whole), rtol=1e-10)
  np.testing.assert_allclose(memory.estimate, whole, rtol=1e-10)


@pytest.mark.parametrize('radius', [0, -0.01, float('nan'), float('inf')])
def test_radius_that_is_not_positive_and_finite_is_refused(radius):
  message = f'radius: {radius} is not allowed; a finite difference needs a positive, finite radius'
  with pytest.raises(ValueError, match=f'^{message}$'):
    finite_difference(radius)
