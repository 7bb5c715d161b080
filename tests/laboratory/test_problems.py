"""The closed forms of the laboratory's problems, against differentiation through explicit programs."""

import jax
import numpy as np
import pytest

from darts_jax.hypergradient import BILEVEL
from darts_jax.laboratory.problems import Quadratic, toy_estimate, toy_expected, toy_search

FIELDS = {
  'radius': 0.01,
  'one_sided': False,
  'steps': 5,
  'backward_steps': 3,
  'terms': 4,
  'step_size': 0.3,
  'iterations': 16,
  'damping': 1e-3,
  'amending': 0.2,
}


@pytest.fixture(scope='module')
def problem():
  return Quadratic.random(8, 3, 10.0, seed=0)


@pytest.mark.parametrize('rate', [0.0, 0.1, 0.25, 0.5])
def test_toy_search_comes_to_rest_where_the_paper_says(rate):
  alphas, weights = toy_search(rate)
  assert (alphas[0], weights[0]) == (2, -2)
  np.testing.assert_allclose([alphas[-1], weights[-1]], 2 / (1 + 2 * rate), rtol=1e-6)


@pytest.mark.parametrize('name', BILEVEL)
def test_toy_problem_has_the_closed_forms(name):
  assert toy_estimate(name, FIELDS, 0.2) == pytest.approx(toy_expected(name, FIELDS, 0.2), rel=1e-10)


@pytest.mark.parametrize('name', BILEVEL)
def test_quadratic_problem_has_the_closed_forms(problem, name):
  found, _ = problem.estimate(name, FIELDS, 'float64')
  # Conjugate gradients have twice as many iterations as weights, against rounding.
  np.testing.assert_allclose(found, problem.expected(name, FIELDS), rtol=1e-9)


@pytest.mark.usefixtures('x64')
def test_true_hypergradient_is_the_derivative_through_the_optimum(problem):
  def outer(alphas):
    optimum = -jax.numpy.linalg.solve(problem.a, problem.c @ alphas + problem.linear_a)
    return problem.valid(optimum, alphas)

  np.testing.assert_allclose(problem.true_hypergradient(), jax.grad(outer)(problem.alphas), rtol=1e-10)


def test_quadratic_problem_is_as_large_and_ill_conditioned_as_asked(problem):
  eigenvalues = np.linalg.eigvalsh(problem.a)
  assert problem.c.shape == (8, 3)
  np.testing.assert_allclose(eigenvalues[[0, -1]], [0.1, 1], rtol=1e-10)
  np.testing.assert_allclose(problem.learning_rate, 1)
