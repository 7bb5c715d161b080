"""The second derivative of a batch's loss in the architecture parameters, by products with vectors.

Its largest eigenvalue grows before architectures degenerate [RobustDARTS §4].

Source: [RobustDARTS] arXiv 1909.09656.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree

from darts_jax.hypergradient.lanczos import Tridiagonal, tridiagonal
from darts_jax.runtime.mesh import Shards
from darts_jax.search.step import BatchLoss

Array = jax.Array


def architecture_curvature(loss: BatchLoss, weights: Array, alphas: Any, batch: Any, shards: Shards) -> Tridiagonal:
  """A small matrix with the largest eigenvalue of ∂²L/∂α² for the loss L of a batch.

  Args:
    loss: of the batch; its key also begins the random vectors that are multiplied with the second derivative.
    weights: as one vector.
    alphas: architecture parameters.
    batch: this device's part of it.
    shards: how it is shared out among devices.
  """
  product, size = hessian_product(loss, weights, alphas, batch, shards)
  return tridiagonal(product, loss.key, size)


def hessian_product(
  loss: BatchLoss, weights: Array, alphas: Any, batch: Any, shards: Shards
) -> tuple[Callable[[Array], Array], int]:
  """The product of ∂²L/∂α², rows and columns in the order of `ravel_pytree`, with vectors; and the number of rows."""
  at, unravel = ravel_pytree(alphas)

  def gradient(values: Array) -> Array:
    return jax.grad(lambda x: loss(weights, unravel(x), batch)[0])(values)

  def product(vector: Array) -> Array:
    # The mean over devices of their gradients is that of the loss of the whole batch, and so are its derivatives.
    return shards.mean(jax.jvp(gradient, (at,), (vector.astype(at.dtype),))[1])

  return product, at.size
