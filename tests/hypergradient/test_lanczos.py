"""The largest eigenvalue by products alone, against matrices whose eigenvalues are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.hypergradient.lanczos import Tridiagonal, tridiagonal

KEY = jax.random.key(0)


def matrix(eigenvalues):
  """A symmetric matrix with these eigenvalues, whose eigenvectors are no axes."""
  size = len(eigenvalues)
  basis = np.linalg.qr(np.random.default_rng(size).normal(size=(size, size)))[0]
  return basis @ np.diag(eigenvalues) @ basis.T


def find(values, products=32):
  run = jax.jit(lambda matrix: tridiagonal(lambda v: matrix @ v, KEY, len(values), products))
  return run(jnp.asarray(values)).largest()


SPECTRA = {
  'one': [0.3],
  'separate': [-2.0, -0.5, 0.1, 1.0, 3.0],
  # The largest in modulus is another one.
  'negative': [-5.0, -4.0, 0.5, 0.25],
  'all_negative': [-1.0, -2.0, -3.0],
  # A Krylov space has two dimensions here, and the others are those of other vectors.
  'repeated': [1.0, 1.0, 1.0, 1.0, -1.0, -1.0],
  'zero': [0.0, 0.0, 0.0],
  'small': [1e-12, -1e-12, 2e-12],
}


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name', SPECTRA)
def test_with_as_many_products_as_rows_it_is_exact(name):
  eigenvalues = SPECTRA[name]
  scale = np.abs(eigenvalues).max()
  assert find(matrix(eigenvalues)) == pytest.approx(max(eigenvalues), rel=0, abs=1e-13 * scale)


@pytest.mark.parametrize('name', SPECTRA)
def test_in_single_precision(name):
  eigenvalues = SPECTRA[name]
  scale = np.abs(eigenvalues).max()
  assert find(matrix(eigenvalues)) == pytest.approx(max(eigenvalues), rel=0, abs=1e-5 * scale)


@pytest.mark.usefixtures('x64')
def test_few_products_are_enough_where_the_largest_stands_apart():
  """Chebyshev polynomials bound the error [Golub & Van Loan, Matrix Computations, theorem 10.1.2].

  With k products it is at most (λ₁ − λₙ) (tan φ / c)², of the angle φ between start and eigenvector, and the value c of
  the polynomial of degree k − 1 at 1 + 2 (λ₁ − λ₂) / (λ₂ − λₙ).
  """
  size, products = 200, 12
  eigenvalues = np.concatenate([np.linspace(-1, 0.5, size - 1), [1.0]])
  values = matrix(eigenvalues)
  start = np.asarray(jax.random.normal(KEY, (size,)))
  cosine = np.abs(start @ np.linalg.eigh(values)[1][:, -1]) / np.linalg.norm(start)
  growth = np.cosh((products - 1) * np.arccosh(1 + 2 * 0.5 / 1.5))
  bound = 2 * (np.tan(np.arccos(cosine)) / growth) ** 2
  found = find(values, products)
  assert 0 <= 1 - found <= bound < 1e-4


def test_a_projection_is_never_above_the_matrix():
  rng = np.random.default_rng(0)
  for products in (1, 2, 3, 5):
    values = matrix(rng.normal(size=9))
    assert find(values, products) <= np.linalg.eigvalsh(values)[-1] + 1e-5


def test_values_that_are_not_finite_are_told():
  assert np.isnan(Tridiagonal(np.array([1.0, np.nan]), np.zeros(2)).largest())
  assert np.isnan(Tridiagonal(np.ones(2), np.array([np.inf, 0.0])).largest())
