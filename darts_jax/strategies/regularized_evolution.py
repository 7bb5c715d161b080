"""Regularised evolution [RE]: a population in which every child replaces the oldest member, whatever its reward.

Source: [RE] Real et al. 2019, arXiv 1802.01548, algorithm 1.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from darts_jax import limits
from darts_jax.settings import check, setting
from darts_jax.spaces.base import Space
from darts_jax.strategies.sampled import Key, Outcome, Proposal, Sampled, architecture, better


class EvolutionState(NamedTuple):
  """The state of an evolution.

  Attributes:
    space: the space of the architectures.
    asked: number of proposals.
    failed: number of evaluations that failed.
    population: outcomes of the living members in the order told, the oldest first.
    best: the best outcome so far, whether its member is still alive or not.
  """

  space: Space[Any]
  asked: int = 0
  failed: int = 0
  population: tuple[Outcome, ...] = ()
  best: Outcome | None = None


@dataclasses.dataclass(frozen=True)
class RegularizedEvolution(Sampled[EvolutionState]):
  """Random architectures fill the population, then mutated winners of tournaments; failures never become members.

  Attributes:
    population: number of living members. A child may equal a member; it is evaluated again, and is a member of its own.
    sample_size: members drawn for a tournament, with replacement; at most `population`. The best becomes the parent.
  """

  population: int = setting(100, at_least=1, at_most=limits.TRIALS)
  sample_size: int = setting(25, at_least=1, at_most=limits.TRIALS)

  def __post_init__(self) -> None:
    check(self)
    if self.sample_size > self.population:
      raise ValueError(
        f'config.sample_size: {self.sample_size} is not allowed; it has to be ≤ config.population, {self.population}'
      )

  def init(self, space: Space[Any], key: Key) -> EvolutionState:
    """See `Sampled`."""
    return EvolutionState(space)

  def ask(self, state: EvolutionState, key: Key) -> tuple[EvolutionState, Proposal | None]:
    """See `Sampled`; waits if all random architectures have been proposed and none has an outcome yet."""
    rng = np.random.default_rng(key)
    if state.asked - state.failed < self.population:
      proposal = Proposal(state.asked, state.space.sample(rng))
    elif state.population:
      parent = self._winner(state, rng)
      proposal = Proposal(state.asked, state.space.mutate(parent.arch, rng), parent.number)
    else:
      return state, None
    return state._replace(asked=state.asked + 1), proposal

  def tell(self, state: EvolutionState, outcome: Outcome) -> EvolutionState:
    """See `Sampled`; the oldest member dies if the population is full."""
    if outcome.status == 'failed':
      return state._replace(failed=state.failed + 1)
    living = (*state.population, outcome)[-self.population :]
    return state._replace(population=living, best=better(state.best, outcome))

  def best(self, state: EvolutionState) -> Any:
    """See `Sampled`; the best of all evaluated architectures, not only of living members."""
    return architecture(state.best)

  def sample(self, state: EvolutionState, key: Key) -> Any:
    """See `Sampled`; a child, or a random architecture while there are no members."""
    rng = np.random.default_rng(key)
    space = state.space
    return space.mutate(self._winner(state, rng).arch, rng) if state.population else space.sample(rng)

  def _winner(self, state: EvolutionState, rng: np.random.Generator) -> Proposal:
    """The winner of a tournament: the member with the highest reward; among equals, the one drawn first."""
    drawn = rng.integers(len(state.population), size=self.sample_size)
    return max((state.population[int(place)] for place in drawn), key=lambda member: member.reward).proposal
