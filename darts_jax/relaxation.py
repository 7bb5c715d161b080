"""α → mixing weights: how architecture parameters weigh candidate operations."""

import dataclasses

import jax
import jax.numpy as jnp

Array = jax.Array


def softmax(alphas: Array, temperature: Array | float = 1.0) -> Array:
  """The continuous relaxation of the paper: a softmax over the operations of each edge [DARTS §2.2].

  Args:
    alphas: `[E, O]` architecture parameters.
    temperature: `[]`, what they are divided by; the smaller, the closer weights are to 0 and 1.

  Returns:
    `[E, O]` positive mixing weights; every row sums to 1.
  """
  return jax.nn.softmax(alphas / temperature, axis=-1)


@dataclasses.dataclass(frozen=True)
class Annealing:
  """A temperature that changes by the same factor at every step.

  Attributes:
    initial: at step 0.
    final: at step `num_steps`.
    num_steps: of the search.
  """

  initial: float = 1.0
  final: float = 1.0
  num_steps: int = 1

  def over(self, num_steps: int) -> 'Annealing':
    """The same in a search of so many steps."""
    return dataclasses.replace(self, num_steps=num_steps)

  def at(self, step: Array | int) -> Array | float:
    """`[]`: the temperature at a step, which may be traced; a number if it is the same at all steps."""
    if self.initial == self.final:
      return self.initial
    return self.initial * (self.final / self.initial) ** (jnp.asarray(step, jnp.float32) / self.num_steps)
