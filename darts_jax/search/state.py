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
  """All that a search step reads and writes; a pytree. Weights and α are separate.

  Attributes:
    step: `[]` int32, steps taken.
    key: typed random key of the run; what a step draws is a function of this key and `step`, so it never changes.
    weights: parameters of the supernet, `state.weights.tree`.
    statistics: running BN statistics, `state.statistics.tree`.
    alphas: `[E, O]` float32 for every kind of cell.
    weights_optimizer: Optax state of the weights as one vector.
    alphas_optimizer: Optax state of the α.
    carried: what one batch of a half hands to the next, such as the hidden state of a recurrent network.
    weight_decay: `[]` float32, of the weights; None where it is that of the config throughout.
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
