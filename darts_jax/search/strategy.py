"""What a search strategy is: how architecture parameters become mixing weights and, in the end, a genotype.

A strategy is one file in this folder, and an immutable value: what it has learnt so far is a part of it, and where it
changes its mind it returns another one. docs/strategies.md says how to write one.

It may shape α, the relaxation, the derivation, and from one epoch to the next the supernet, which can only lose edges
and operations. It may not touch the weights, the optimisers, the hypergradient or the data: those belong to the step,
are the same for all strategies, and are carried over to a smaller supernet by
`darts_jax.search.searcher.Searcher.inherit`.
"""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from numpy.typing import ArrayLike

from darts_jax.spaces import CellSpace, CellSpec, Doubts, Genotype

Array = jax.Array
Alphas = dict[str, Array]
#: By name, then by kind of cell, `[E]` float64: what a strategy scores edges by.
Scores = Mapping[str, Mapping[str, np.ndarray]]


class Turn(NamedTuple):
  """What a strategy makes of an epoch.

  Attributes:
    strategy: for the next one.
    scores: of the edges, by which it decided.
    messages: what it decided, a line each.
  """

  strategy: 'Strategy'
  scores: Scores
  messages: tuple[str, ...] = ()


class Strategy(abc.ABC):
  """The contract; what is not abstract may be left as it is.

  Attributes:
    space: the searched cells; their edges and operations are the rows and columns of α throughout a search.
  """

  space: CellSpace

  @abc.abstractmethod
  def init(self, key: Array) -> Alphas:
    """The initial α of every kind of cell, `[E, O]` float32; consumes the key."""

  @abc.abstractmethod
  def relax(self, alphas: Alphas, key: Array, step: Array) -> Alphas:
    """Mixing weights of every kind of cell, rows and columns as `specs` has edges and operations.

    Traced and differentiated with respect to α. The key is one for all passes of a step, and is consumed; schedules
    are functions of the traced `step`, so that nothing recompiles.
    """

  @abc.abstractmethod
  def derive(self, alphas: Mapping[str, ArrayLike]) -> Genotype:
    """The genotype that α and what has been decided stand for; after any epoch."""

  def temperature_at(self, step: int) -> float:
    """What α of a step are divided by before the softmax that `relax` makes of them; for logs and reports."""
    del step
    return 1.0

  def doubts(self, before: Mapping[str, ArrayLike], after: Mapping[str, ArrayLike]) -> Doubts | None:
    """What of the architecture that α stand for is in doubt by how far they moved from `before` to `after`.

    None for a strategy whose architecture does not depend on the α of the end.
    """
    del before, after
    return None

  def over(self, num_steps: int) -> Self:
    """The same for a search of so many steps, which is what schedules are relative to."""
    del num_steps
    return self

  @property
  def specs(self) -> Mapping[str, CellSpec]:
    """The cells of the supernet; those of `space` without what has been pruned."""
    return self.space.cells

  @property
  def active(self) -> Mapping[str, np.ndarray]:
    """`[E]` bool for every kind of cell: rows of α that are trained; others stay as they are, momentum and all."""
    return {name: np.ones(spec.num_edges, bool) for name, spec in self.space.cells.items()}

  def growth(self, epoch: int) -> int:
    """By how many examples a batch of an epoch, counted from 0, is larger than `config.batch_size`.

    Known in advance, and the same from one decision to the next.
    """
    del epoch
    return 0

  def stages(self, epochs: int) -> int:
    """How many different supernets are trained in so many epochs; each is compiled once."""
    del epochs
    return 1

  def turn(self, alphas: Mapping[str, np.ndarray], epoch: int) -> Turn:
    """Decides after an epoch, counted from 0; the same strategy and α always give the same."""
    del alphas, epoch
    return Turn(self, {})

  def scores(self, alphas: Mapping[str, np.ndarray]) -> Scores:
    """What `turn` would score edges by; none if there is nothing to decide."""
    del alphas
    return {}

  @property
  def memory(self) -> Any:
    """What it has learnt, as JSON values; checkpoints keep it."""
    return None

  def recall(self, memory: Any) -> Self:
    """The strategy that had this memory."""
    del memory
    return self


def normal_alphas(key: Array, space: CellSpace, scale: float) -> Alphas:
  """α = `scale` · N(0, 1) for every kind of cell, `[E, O]` float32; consumes the key."""
  keys = jax.random.split(key, len(space.cells))
  return {
    name: scale * jax.random.normal(k, (spec.num_edges, len(spec.operations)))
    for k, (name, spec) in zip(keys, sorted(space.cells.items()), strict=True)
  }
