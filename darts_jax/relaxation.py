"""α → mixing weights: how architecture parameters weigh candidate operations."""

import jax

Array = jax.Array


def softmax(alphas: Array) -> Array:
  """The continuous relaxation of the paper: a softmax over the operations of each edge [DARTS §2.2].

  Args:
    alphas: `[E, O]` architecture parameters.

  Returns:
    `[E, O]` positive mixing weights; every row sums to 1.
  """
  return jax.nn.softmax(alphas, axis=-1)
