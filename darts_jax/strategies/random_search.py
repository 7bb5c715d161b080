"""Random search: every proposal is drawn from the space's uniform distribution, independently of earlier outcomes."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from darts_jax.spaces.base import Space
from darts_jax.strategies.sampled import Key, Outcome, Proposal, Sampled, architecture, better


class RandomState(NamedTuple):
  """The state of a random search.

  Attributes:
    space: the space from which architectures are drawn.
    asked: number of proposals.
    best: the best outcome so far.
  """

  space: Space[Any]
  asked: int = 0
  best: Outcome | None = None


@dataclasses.dataclass(frozen=True)
class RandomSearch(Sampled[RandomState]):
  """Draws architectures by `Space.sample`, with replacement."""

  def init(self, space: Space[Any], key: Key) -> RandomState:
    """See `Sampled`."""
    return RandomState(space)

  def ask(self, state: RandomState, key: Key) -> tuple[RandomState, Proposal]:
    """See `Sampled`; never waits."""
    return state._replace(asked=state.asked + 1), Proposal(state.asked, self.sample(state, key))

  def tell(self, state: RandomState, outcome: Outcome) -> RandomState:
    """See `Sampled`."""
    return state._replace(best=better(state.best, outcome))

  def best(self, state: RandomState) -> Any:
    """See `Sampled`."""
    return architecture(state.best)

  def sample(self, state: RandomState, key: Key) -> Any:
    """See `Sampled`."""
    return state.space.sample(np.random.default_rng(key))
