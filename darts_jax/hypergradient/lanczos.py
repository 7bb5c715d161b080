"""The largest eigenvalue of a symmetric matrix, from products of the matrix with vectors.

Source: [Lanczos] C. Lanczos, J. Res. Natl. Bur. Stand. 45 (1950) 255–282.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array


class Tridiagonal(NamedTuple):
  """A symmetric tridiagonal matrix of `m` rows.

  Attributes:
    diagonal: `[m]`.
    beside: `[m]`; entry `i` is the matrix element at `(i, i + 1)`. The last entry is unused.
  """

  diagonal: Array
  beside: Array

  def largest(self) -> float:
    """The largest eigenvalue, computed on the host in double precision; NaN if an element is not finite."""
    diagonal, beside = (np.asarray(values, np.float64) for values in self)
    if not np.isfinite(diagonal).all() or not np.isfinite(beside).all():
      return float('nan')
    return float(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1))[-1])


def tridiagonal(product: Callable[[Array], Array], key: Array, size: int, products: int = 32) -> Tridiagonal:
  """Projects a symmetric matrix onto the Krylov space of a random vector [Lanczos].

  The largest eigenvalue of the projection is never above the largest eigenvalue of the matrix. It converges to it
  faster than any power of the number of products, and equals it once there are as many products as rows. Every vector
  is orthogonalised against all earlier ones, since rounding would otherwise add spurious eigenvalues.

  Args:
    product: maps a vector `[size]` to its product with the matrix `[size, size]`; it is traced once.
    key: typed random key of the random vectors; consumed.
    size: number of rows.
    products: number of products; at most `size` are made.

  Returns:
    The projection, of `min(products, size)` rows.
  """
  count = min(products, size)
  with jax.default_matmul_precision('float32'):
    first = jax.random.normal(key, (size,))
    first = first / jnp.linalg.norm(first)
    dtype = jax.eval_shape(product, first).dtype
    first = first.astype(dtype)
    basis = jnp.zeros((count, size), dtype).at[0].set(first)

    def orthogonal(vector: Array, basis: Array) -> Array:
      # The second round removes the components that rounding has left.
      for _ in range(2):
        vector = vector - (basis @ vector) @ basis
      return vector

    def step(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
      basis, diagonal, beside = carry
      vector = basis[number]
      image = product(vector)
      rest = orthogonal(image, basis)
      norm = jnp.linalg.norm(rest)
      # The Krylov space is invariant: continue with a random vector orthogonal to it.
      closed = norm <= 10 * jnp.finfo(dtype).eps * jnp.linalg.norm(image)
      other = orthogonal(jax.random.normal(jax.random.fold_in(key, number), (size,)).astype(dtype), basis)
      rest = jnp.where(closed, other, rest)
      rest = rest / jnp.linalg.norm(rest)
      return (
        basis.at[number + 1].set(rest, mode='drop'),
        diagonal.at[number].set(jnp.vdot(image, vector)),
        beside.at[number].set(jnp.where(closed, 0, norm)),
      )

    zeros = jnp.zeros(count, dtype)
    return Tridiagonal(*lax.fori_loop(0, count, step, (basis, zeros, zeros))[1:])
