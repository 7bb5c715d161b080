import jax
import numpy as np
import pytest

from darts_jax.hypergradient import exact, hypergradient, sgd, truncated, unrolled

OPTIMIZERS = ['momentum', 'nesterov', 'clipped', 'loosely_clipped', 'adam', 'schedule']
# Of gradient descent with and without decay there are closed forms.
STEPS = {
  'unrolled_1': (unrolled(1), 1, 1),
  'unrolled_2': (unrolled(2), 2, 2),
  'unrolled_5': (unrolled(5), 5, 5),
  'truncated': (truncated(5, 2), 5, 2),
}


@pytest.mark.parametrize(
  ('name', 'kind'),
  [(name, kind) for name in OPTIMIZERS for kind in STEPS if kind != 'unrolled_1' or name in ('clipped', 'adam')],
)
@pytest.mark.usefixtures('x64')
def test_is_the_derivative_of_the_program(bent, name, kind):
  """Of one with second derivatives that change from step to step."""
  estimator, steps, backward_steps = STEPS[kind]
  optimizer = bent.optimizer(name)
  gradient, _ = bent.estimate(estimator, optimizer.inner)
  np.testing.assert_allclose(gradient, bent.explicit(optimizer, steps, backward_steps), rtol=1e-10)


@pytest.mark.parametrize(('estimator', 'steps', 'backward_steps'), list(STEPS.values()), ids=list(STEPS))
@pytest.mark.usefixtures('x64')
def test_gradient_descent_with_decay_in_closed_form(quadratic, estimator, steps, backward_steps):
  """w − w* shrinks by M = (1 − ξλ)I − ξA a step, and ∂w_T/∂α is −(I − M^K)(A + λI)⁻¹C."""
  shrink = np.eye(6) - quadratic.rate * quadratic.decayed(quadratic.decay)
  optimum = quadratic.optimum(quadratic.decay)
  after = optimum + np.linalg.matrix_power(shrink, steps) @ (quadratic.w - optimum)
  slope = np.linalg.solve(quadratic.decayed(quadratic.decay), quadratic.C)
  slope = -(np.eye(6) - np.linalg.matrix_power(shrink, backward_steps)) @ slope

  inner = quadratic.optimizer('decay').inner
  gradient, memory = quadratic.estimate(estimator, inner)
  direct = quadratic.direct(after)
  np.testing.assert_allclose(gradient, direct + slope.T @ quadratic.v(after), rtol=1e-10)
  np.testing.assert_allclose(quadratic.flat(memory.outer), direct, rtol=1e-10)


@pytest.mark.parametrize(('estimator', 'steps', 'backward_steps'), list(STEPS.values()), ids=list(STEPS))
@pytest.mark.usefixtures('x64')
def test_heavy_ball_in_closed_form(nested, estimator, steps, backward_steps):
  """The slopes of weights and momentum together are Z ← SZ + E; they begin at zero."""
  rate, decay, momentum = nested.rate, nested.decay, nested.momentum
  decayed, eye = nested.decayed(decay), np.eye(6)
  step = np.block([[eye - rate * decayed, -rate * momentum * eye], [decayed, momentum * eye]])
  new = np.concatenate([-rate * nested.C, nested.C])
  slopes = sum(np.linalg.matrix_power(step, t) @ new for t in range(backward_steps))[:6]

  optimizer = nested.optimizer('momentum')
  weights, trace = nested.w, nested.buffer(optimizer)
  for _ in range(steps):
    trace = nested.g(weights) + decay * weights + momentum * trace
    weights = weights - rate * trace

  gradient, _ = nested.estimate(estimator, optimizer.inner)
  expected = nested.direct(weights) + slopes.T @ nested.v(weights)
  np.testing.assert_allclose(gradient, expected, rtol=1e-10)


@pytest.mark.parametrize('steps', [1, 2, 5])
@pytest.mark.usefixtures('x64')
def test_toy_problem(toy, steps):
  rate, weights, alphas = 0.15, -2.0, 2.0
  left = (1 - 2 * rate) ** steps
  after = alphas + left * (weights - alphas)
  gradient, _ = jax.jit(hypergradient(unrolled(steps), toy.train, toy.valid, sgd(rate)))(weights, alphas)
  np.testing.assert_allclose(gradient, after - 2 + (1 - left) * alphas, rtol=1e-12)


@pytest.mark.parametrize('decay', [False, True])
@pytest.mark.usefixtures('x64')
def test_many_steps_come_to_the_implicit_gradient(quadratic, decay):
  """The slowest direction is left with 0.85^250 < 1e-17 of its error."""
  optimizer = quadratic.optimizer('decay' if decay else 'sgd')
  optimum = quadratic.optimum(optimizer.decay)
  solved = np.linalg.solve(quadratic.decayed(optimizer.decay), quadratic.v(optimum))
  gradient, _ = quadratic.estimate(unrolled(250), optimizer.inner)
  expected = quadratic.direct(optimum) - quadratic.C.T @ solved
  np.testing.assert_allclose(gradient, expected, rtol=1e-10)


@pytest.mark.usefixtures('x64')
def test_one_step_has_the_same_direction_as_exact(bent):
  optimizer = bent.optimizer('clipped')
  one, other = (bent.estimate(estimator, optimizer.inner)[1] for estimator in (unrolled(1), exact()))
  np.testing.assert_allclose(bent.flat(one.direction), bent.flat(other.direction), rtol=1e-12)
  np.testing.assert_allclose(bent.flat(one.outer), bent.flat(other.outer), rtol=1e-12)


@pytest.mark.parametrize('backward_steps', [1, 3, 4])
@pytest.mark.usefixtures('x64')
def test_any_number_of_the_last_steps(bent, backward_steps):
  optimizer = bent.optimizer('momentum')
  gradient, _ = bent.estimate(truncated(4, backward_steps), optimizer.inner)
  np.testing.assert_allclose(gradient, bent.explicit(optimizer, 4, backward_steps), rtol=1e-10)


@pytest.mark.parametrize('steps', [0, -1])
def test_less_than_a_step_is_refused(steps):
  message = f'^steps: {steps} is not allowed; an unrolled gradient takes at least 1 inner step$'
  with pytest.raises(ValueError, match=message):
    unrolled(steps)
  with pytest.raises(ValueError, match=message):
    truncated(steps, 1)


@pytest.mark.parametrize('backward_steps', [-1, 0, 4])
def test_truncation_outside_of_the_steps_is_refused(backward_steps):
  message = f'^backward_steps: {backward_steps} is not allowed; between 1 and steps, 3, can be differentiated$'
  with pytest.raises(ValueError, match=message):
    truncated(3, backward_steps)
