import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.hypergradient import InnerOptimizer, amended, conjugate_gradient, hypergradient, neumann, sgd, unrolled

decays = pytest.mark.parametrize('decay', [0.0, 0.2])
curved = pytest.mark.parametrize(
  'estimator', [neumann(2), conjugate_gradient(2), amended()], ids=lambda estimator: estimator.name
)


def with_decay(decay):
  """SGD at a rate that no implicit estimator may depend on."""
  return dataclasses.replace(sgd(17.0), weight_decay=decay)


def run(problem, estimator, decay):
  return problem.estimate(estimator, with_decay(decay))


@pytest.mark.parametrize(('terms', 'decay'), [(0, 0.2), (1, 0.0), (6, 0.2)])
@pytest.mark.usefixtures('x64')
def test_neumann_series_and_its_residual(nested, terms, decay):
  size = 0.35
  v = nested.v(nested.w)
  shrink = np.eye(6) - size * nested.decayed(decay)
  gradient, memory = run(nested, neumann(terms, size), decay)
  total = size * sum(np.linalg.matrix_power(shrink, j) for j in range(terms + 1)) @ v
  direct = nested.direct(nested.w)
  np.testing.assert_allclose(gradient, direct - nested.C.T @ total, rtol=1e-10)
  np.testing.assert_allclose(nested.flat(memory.outer), direct, rtol=1e-12)
  left = np.linalg.matrix_power(shrink, terms + 1) @ v
  np.testing.assert_allclose(memory.residual, np.linalg.norm(left) / np.linalg.norm(v), rtol=1e-10)


@pytest.mark.usefixtures('x64')
def test_neumann_series_of_one_term_takes_the_hessian_for_the_identity(quadratic):
  gradient, _ = run(quadratic, neumann(0, 0.35), 0.0)
  v = quadratic.v(quadratic.w)
  np.testing.assert_allclose(gradient, quadratic.direct(quadratic.w) - 0.35 * quadratic.C.T @ v, rtol=1e-12)


@pytest.mark.usefixtures('x64')
def test_neumann_series_converges_at_the_rate_of_its_slowest_direction(quadratic):
  size, decay = 0.35, 0.2
  decayed = quadratic.decayed(decay)
  factor = np.max(np.abs(1 - size * np.linalg.eigvalsh(decayed)))
  solved = np.linalg.solve(decayed, quadratic.v(quadratic.w))
  implicit = quadratic.direct(quadratic.w) - quadratic.C.T @ solved

  def error(terms):
    return np.linalg.norm(run(quadratic, neumann(terms, size), decay)[0] - implicit)

  start = np.linalg.norm(quadratic.C, 2) * np.linalg.norm(solved)
  errors = {terms: error(terms) for terms in (3, 40, 41)}
  for terms, value in errors.items():
    assert value <= start * factor ** (terms + 1)
  # The second slowest direction is left with (0.51 / 0.755)^40 < 1e-6 of the slowest.
  np.testing.assert_allclose(errors[41] / errors[40], factor, rtol=1e-6)
  np.testing.assert_allclose(error(200), 0, atol=1e-10)


@pytest.mark.parametrize('terms', [0, 3])
@pytest.mark.usefixtures('x64')
def test_neumann_series_at_the_optimum_is_an_unrolled_gradient_from_there(quadratic, terms):
  rate, optimizer = quadratic.rate, quadratic.optimizer('decay')
  at_optimum = dataclasses.replace(quadratic, w=quadratic.optimum(optimizer.decay))
  gradient, _ = run(at_optimum, neumann(terms, rate), optimizer.decay)
  np.testing.assert_allclose(gradient, at_optimum.explicit(optimizer, terms + 1), rtol=1e-10)
  unrolled_gradient, _ = at_optimum.estimate(unrolled(terms + 1), optimizer.inner)
  np.testing.assert_allclose(gradient, unrolled_gradient, rtol=1e-10)


@pytest.mark.parametrize(('decay', 'damping'), [(0.0, 1e-6), (0.0, 0.7), (0.2, 0.7)])
@pytest.mark.usefixtures('x64')
def test_conjugate_gradients_solve_in_as_many_steps_as_there_are_weights(nested, decay, damping):
  solved = np.linalg.solve(nested.decayed(decay + damping), nested.v(nested.w))
  gradient, memory = run(nested, conjugate_gradient(6, damping), decay)
  direct = nested.direct(nested.w)
  np.testing.assert_allclose(gradient, direct - nested.C.T @ solved, rtol=1e-10)
  np.testing.assert_allclose(nested.flat(memory.direction), solved, rtol=1e-10)
  np.testing.assert_allclose(nested.flat(memory.outer), direct, rtol=1e-12)
  assert memory.residual < 1e-12


@pytest.mark.usefixtures('x64')
def test_more_conjugate_gradients_than_weights_change_nothing(quadratic):
  solved = np.linalg.solve(quadratic.decayed(0.7), quadratic.v(quadratic.w))
  gradient, memory = run(quadratic, conjugate_gradient(40, 0.7), 0.0)
  np.testing.assert_allclose(gradient, quadratic.direct(quadratic.w) - quadratic.C.T @ solved, rtol=1e-10)
  assert memory.residual < 1e-12


@pytest.mark.parametrize(('iterations', 'decay'), [(1, 0.0), (2, 0.2), (4, 0.2)])
@pytest.mark.usefixtures('x64')
def test_conjugate_gradients_are_best_in_their_krylov_space(quadratic, decay, iterations):
  """In the norm of the matrix: its residual is orthogonal to v, Av, A²v, …"""
  matrix, v = quadratic.decayed(decay + 0.7), quadratic.v(quadratic.w)
  space, _ = np.linalg.qr(np.stack([np.linalg.matrix_power(matrix, j) @ v for j in range(iterations)], 1))
  solved = space @ np.linalg.solve(space.T @ matrix @ space, space.T @ v)
  gradient, memory = run(quadratic, conjugate_gradient(iterations, 0.7), decay)
  np.testing.assert_allclose(gradient, quadratic.direct(quadratic.w) - quadratic.C.T @ solved, rtol=1e-10)
  residual = np.linalg.norm(v - matrix @ solved) / np.linalg.norm(v)
  np.testing.assert_allclose(memory.residual, residual, rtol=1e-10)


@pytest.mark.parametrize('iterations', [1, 6])
@pytest.mark.usefixtures('x64')
def test_conjugate_gradients_stop_at_a_direction_of_negative_curvature(quadratic, iterations):
  """On two weights of curvatures 3 and −1 the first step is along v, and the second finds no minimum."""
  matrix = np.diag([3.0, -1, 0, 0, 0, 0])
  v = np.array([2.0, 0.5, 0, 0, 0, 0])
  problem = dataclasses.replace(
    quadratic, A=matrix - 0.5 * np.eye(6), F=np.zeros((6, 6)), K=0 * quadratic.K, f=v, w=np.zeros(6)
  )
  solved = (v @ v) / (v @ matrix @ v) * v
  gradient, memory = run(problem, conjugate_gradient(iterations, 0.5), 0.0)
  np.testing.assert_allclose(gradient, problem.direct(problem.w) - problem.C.T @ solved, rtol=1e-10)
  residual = np.linalg.norm(v - matrix @ solved) / np.linalg.norm(v)
  np.testing.assert_allclose(memory.residual, residual, rtol=1e-10)


@pytest.mark.usefixtures('x64')
def test_conjugate_gradients_do_not_start_along_negative_curvature(quadratic):
  problem = dataclasses.replace(quadratic, A=-quadratic.A)
  gradient, memory = run(problem, conjugate_gradient(4, 0.1), 0.0)
  np.testing.assert_allclose(gradient, problem.direct(problem.w), rtol=1e-12)
  np.testing.assert_allclose(memory.residual, 1)


@decays
@pytest.mark.usefixtures('x64')
def test_amended_gradient_multiplies_where_it_should_divide(nested, decay):
  gradient, memory = run(nested, amended(0.4), decay)
  direct = nested.direct(nested.w)
  second = 0.4 * nested.C.T @ nested.decayed(decay) @ nested.v(nested.w)
  np.testing.assert_allclose(gradient, direct - second, rtol=1e-10)
  np.testing.assert_allclose(nested.flat(memory.outer), direct, rtol=1e-12)


@pytest.mark.parametrize(
  ('estimator', 'solve'),
  [
    (neumann(1, 0.3), lambda matrix, v: 0.3 * (2 * v - 0.3 * matrix @ v)),
    (conjugate_gradient(6, 0.7), lambda matrix, v: np.linalg.solve(matrix + 0.7 * np.eye(6), v)),
    (amended(0.4), lambda matrix, v: 0.4 * matrix @ v),
  ],
  ids=['neumann', 'conjugate_gradient', 'amended'],
)
@pytest.mark.usefixtures('x64')
def test_second_derivatives_are_taken_at_the_weights(bent, estimator, solve):
  """Of a loss that is not quadratic: its matrices there, in place of products."""
  hessian = np.asarray(jax.jit(jax.hessian(bent.train))(bent.w, bent.alpha))
  mixed = np.asarray(jax.jit(jax.jacobian(jax.grad(bent.train), 1))(bent.w, bent.alpha))
  assert np.linalg.norm(hessian - bent.A) > 0.1
  gradient, _ = run(bent, estimator, 0.2)
  second = mixed.T @ solve(hessian + 0.2 * np.eye(6), bent.v(bent.w))
  np.testing.assert_allclose(gradient, bent.direct(bent.w) - second, rtol=1e-10)


# Without curvature.


def linear(weights, alphas):
  return jnp.vdot(weights, alphas)


def piecewise_linear(weights, alphas):
  rows = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  return jnp.sum(jax.nn.relu(rows @ weights)) * jnp.sum(alphas)


def flat_valid(weights, alphas):
  return jnp.sum(weights**2) + jnp.sum(alphas)


flat_losses = pytest.mark.parametrize('loss', [linear, piecewise_linear])


def call(function):
  return function(jnp.ones(3), jnp.ones(3))


def call_jitted(function):
  return jax.jit(function)(jnp.ones(3), jnp.ones(3))


def call_in_a_scan(function):
  def step(weights, _):
    return weights - 0.1 * function(weights, jnp.ones(3))[0], None

  return jax.lax.scan(step, jnp.ones(3), length=2)


calls = pytest.mark.parametrize('how', [call, call_jitted, call_in_a_scan])


@curved
@flat_losses
@calls
def test_loss_without_curvature_is_refused(estimator, loss, how):
  message = (
    f'^train_loss: its gradient does not change with the weights; {estimator.name} needs a loss with curvature(?:\n|$)'
  )
  with pytest.raises(ValueError, match=message):
    how(hypergradient(estimator, loss, flat_valid, sgd(0.1)))


@calls
@curved
def test_loss_with_curvature_is_not_refused_where_only_part_of_it_is_curved(estimator, how):
  def loss(weights, alphas):
    return jnp.vdot(weights, alphas) + weights[0] ** 2

  assert np.all(np.isfinite(jax.tree.leaves(how(hypergradient(estimator, loss, flat_valid, sgd(0.1))))[0]))


@flat_losses
@calls
def test_estimators_that_need_no_curvature_take_any_loss(loss, how):
  assert np.all(np.isfinite(jax.tree.leaves(how(hypergradient(unrolled(2), loss, flat_valid, sgd(0.1))))[0]))


@calls
def test_weight_decay_is_curvature(how):
  """With H = 0 and λ = 1/4: B is the identity, v = 2w = 2."""
  inner = InnerOptimizer(sgd(0.1).update, weight_decay=0.25)

  for estimator, second in (
    (neumann(1, 1.0), 2 * (1 + 0.75)),
    (conjugate_gradient(1, 0.75), 2 / (0.25 + 0.75)),
    (amended(0.4), 2 * 0.4 * 0.25),
  ):
    first = 1 - second
    found = how(hypergradient(estimator, linear, flat_valid, inner))[0]
    if how is call_in_a_scan:
      # v = 2w, and w moves by −0.1 of the gradient.
      weights = 1 - 0.1 * first
      weights = weights - 0.1 * (1 - second * weights)
      np.testing.assert_allclose(found, weights, rtol=1e-5)
    else:
      np.testing.assert_allclose(found, first, rtol=1e-5)


@pytest.mark.parametrize('terms', [-1, -5])
def test_less_than_no_terms_are_refused(terms):
  message = f'^terms: {terms} is not allowed; a Neumann series has at least 0 terms beyond the first$'
  with pytest.raises(ValueError, match=message):
    neumann(terms)


not_positive = pytest.mark.parametrize('value', [0, -0.5, float('nan'), float('inf')])


@not_positive
def test_step_size_that_is_not_positive_and_finite_is_refused(value):
  message = f'^step_size: {value} is not allowed; a Neumann series needs a positive, finite one$'
  with pytest.raises(ValueError, match=message):
    neumann(2, value)


@not_positive
def test_damping_that_is_not_positive_and_finite_is_refused(value):
  message = f'^damping: {value} is not allowed; conjugate gradients need a positive, finite one$'
  with pytest.raises(ValueError, match=message):
    conjugate_gradient(2, value)


@pytest.mark.parametrize('iterations', [0, -1])
def test_less_than_one_iteration_is_refused(iterations):
  message = f'^iterations: {iterations} is not allowed; conjugate gradients need at least 1$'
  with pytest.raises(ValueError, match=message):
    conjugate_gradient(iterations)


@not_positive
def test_amending_that_is_not_positive_and_finite_is_refused(value):
  message = f'^amending: {value} is not allowed; an amended gradient needs a positive, finite one$'
  with pytest.raises(ValueError, match=message):
    amended(value)
