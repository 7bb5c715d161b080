"""The curvature of a batch's loss in the architecture parameters, by Hessian-vector products.

The largest eigenvalue of ∂²L/∂α² grows before architectures degenerate [RobustDARTS §4].

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
  """Projects ∂²L/∂α², L the loss of a batch, onto a Krylov space, by the Lanczos method.

  Args:
    loss: the loss L; the random start vector is drawn from its key.
    weights: `[P]`, the weights as one vector.
    alphas: the architecture parameters.
    batch: this device's part of the batch.
    shards: how the batch is shared out among devices.

  Returns:
    A tridiagonal matrix whose largest eigenvalue approximates that of ∂²L/∂α² from below.
  """
  product, size = hessian_product(loss, weights, alphas, batch, shards)
  return tridiagonal(product, loss.key, size)


def hessian_product(
  loss: BatchLoss, weights: Array, alphas: Any, batch: Any, shards: Shards
) -> tuple[Callable[[Array], Array], int]:
  """Returns the function v ↦ (∂²L/∂α²) v and the number of rows of ∂²L/∂α²; see `architecture_curvature`.

  Rows and columns are in the order of `ravel_pytree(alphas)`.
  """
  at, unravel = ravel_pytree(alphas)

  def gradient(values: Array) -> Array:
    return jax.grad(lambda x: loss(weights, unravel(x), batch)[0])(values)

  def product(vector: Array) -> Array:
    # The mean of the devices' gradients is the gradient of the whole batch's loss; the same holds for derivatives.
    return shards.mean(jax.jvp(gradient, (at,), (vector.astype(at.dtype),))[1])

  return product, at.size
