"""The largest eigenvalue of a symmetric matrix that is known by its products with vectors alone.

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
    beside: `[m]`, of which the entry `i` is that at `(i, i + 1)`; the last one belongs to no entry.
  """

  diagonal: Array
  beside: Array

  def largest(self) -> float:
    """The largest eigenvalue, on the host and in double precision."""
    diagonal, beside = (np.asarray(values, np.float64) for values in self)
    if not np.isfinite(diagonal).all() or not np.isfinite(beside).all():
      return float('nan')
    return float(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1))[-1])


def tridiagonal(product: Callable[[Array], Array], key: Array, size: int, products: int = 32) -> Tridiagonal:
  """Projects a symmetric matrix onto the Krylov space of a random vector [Lanczos].

  The largest eigenvalue of the projection is never above that of the matrix, comes to it with the number of products
  faster than any power, and is equal to it with as many products as the matrix has rows. Vectors are kept orthogonal to
  all that came before, without which rounding would bring in eigenvalues that are not there.

  Args:
    product: of the matrix `[size, size]` and a vector `[size]`; it stands in the program once.
    key: of the random vectors; consumed.
    size: number of rows.
    products: how many products are made, if the matrix has as many rows.
  """
  count = min(products, size)
  with jax.default_matmul_precision('float32'):
    first = jax.random.normal(key, (size,))
    first = first / jnp.linalg.norm(first)
    dtype = jax.eval_shape(product, first).dtype
    first = first.astype(dtype)
    basis = jnp.zeros((count, size), dtype).at[0].set(first)

    def orthogonal(vector: Array, basis: Array) -> Array:
      # Once more for what rounding has left.
      for _ in range(2):
        vector = vector - (basis @ vector) @ basis
      return vector

    def step(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
      basis, diagonal, beside = carry
      vector = basis[number]
      image = product(vector)
      rest = orthogonal(image, basis)
      norm = jnp.linalg.norm(rest)
      # The space is closed under products: the next vector is any other one.
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
