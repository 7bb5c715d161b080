"""The state of a search."""

import dataclasses
from typing import Any, Self

import jax

from darts_jax.runtime.packed import Packed
from darts_jax.tasks.base import Halves

Array = jax.Array
PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SearchState:
  """The state that a search step reads and writes; a pytree.

  Attributes:
    step: `[]` int32, steps taken.
    key: typed random key of the run; it never changes, since the random numbers of a step are a function of key and
      `step`.
    weights: weights of the supernet as one vector; `state.weights.tree` is the pytree.
    statistics: running BN statistics as one vector; `state.statistics.tree` is the pytree.
    alphas: architecture parameters, the pytree of the strategy; of DARTS, `[E, O]` float32 for every kind of cell.
    weights_optimizer: Optax state of the weights as one vector.
    alphas_optimizer: Optax state of α.
    carried: per-example values that one batch of a half passes to the next, such as hidden states on text.
    weight_decay: `[]` float32, decay of the weights; None if it is always that of the config.
  """

  step: Array
  key: Array
  weights: Packed
  statistics: Packed
  alphas: dict[str, Array]
  weights_optimizer: PyTree
  alphas_optimizer: PyTree
  carried: Halves = Halves((), ())
  weight_decay: Array | None = None

  def replace(self, **changes: Any) -> Self:
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)
