"""The contract of sampled strategies: a strategy proposes architectures, and is told the rewards of their evaluations.

A strategy is its settings, a frozen dataclass. Its state is a separate value, which is the first argument of every
method and never changed in place, like the carry of `lax.scan`. Random draws are functions of state and key alone. A
state holds no weights of networks; these stay in files, whose paths are in the outcomes.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from darts_jax.spaces.base import Space

S = TypeVar('S')

#: Key of random draws: `numpy.random.default_rng(key)`, or `key.generate_state(2)` to seed another generator.
Key = np.random.SeedSequence


class Proposal(NamedTuple):
  """An architecture to evaluate.

  Attributes:
    number: number of the proposal in its run, counted from 0.
    arch: the architecture, of the type of the space.
    parent: number of the proposal from which the architecture was made, if there is one.
    transforms: the changes to the parent, for evaluators that start from the parent's weights.
    aux: values that the strategy needs when it is told the outcome, such as the probability of its draw.
    budget: fraction of a full evaluation to spend, for evaluators that support it.
  """

  number: int
  arch: Any
  parent: int | None = None
  transforms: tuple[Any, ...] = ()
  aux: Any = None
  budget: float = 1.0


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The result of an evaluation.

  Attributes:
    proposal: the proposal that was evaluated.
    status: `done`; `stopped` if the evaluation was ended early and the reward is an estimate; `failed` if there is no
      reward.
    reward: reward of the architecture, higher is better; −∞ if the evaluation failed.
    measures: further values by name that a strategy may use.
    test: values by name that must not influence the search, such as test accuracies; they are logged, and the strategy
      is told the outcome without them.
    curve: the reward after every epoch of the evaluation.
    seconds: duration of the evaluation.
    artefact: path of the files that the evaluation left, such as trained weights.
    failure: one line with the reason of a failure.
  """

  proposal: Proposal
  status: Literal['done', 'failed', 'stopped']
  reward: float
  measures: Mapping[str, float] = dataclasses.field(default_factory=dict)
  test: Mapping[str, float] = dataclasses.field(default_factory=dict)
  curve: tuple[float, ...] = ()
  seconds: float = 0.0
  artefact: str | None = None
  failure: str = ''


def failed(proposal: Proposal, failure: str, seconds: float = 0.0) -> Outcome:
  """The outcome of an evaluation that failed; `failure` is one line with the reason."""
  return Outcome(proposal, 'failed', -math.inf, seconds=seconds, failure=failure)


class Sampled(abc.ABC, Generic[S]):
  """A sampled strategy; `S` is the type of its state."""

  @abc.abstractmethod
  def init(self, space: Space[Any], key: Key) -> S:
    """The state before the first proposal."""

  @abc.abstractmethod
  def ask(self, state: S, key: Key) -> tuple[S, Proposal | None]:
    """Makes the next proposal.

    Returns:
      The new state, and the proposal, whose number is the number of earlier proposals. Instead of a proposal, None
      means that the strategy waits for the next outcome; this is allowed only while a proposal is pending, and the
      state has to be unchanged.
    """

  @abc.abstractmethod
  def tell(self, state: S, outcome: Outcome) -> S:
    """The state after an outcome, which may be a failure; outcomes may be told in any order."""

  @abc.abstractmethod
  def best(self, state: S) -> Any:
    """The best architecture among the outcomes so far.

    Raises:
      ValueError: no evaluation has succeeded.
    """

  @abc.abstractmethod
  def sample(self, state: S, key: Key) -> Any:
    """Draws an architecture from the distribution of `ask`, without a new state.

    Evaluators with shared weights train these on such draws.
    """

  def front(self, state: S) -> tuple[Any, ...]:
    """The Pareto front of several measures; by default the best architecture alone.

    Raises:
      ValueError: no evaluation has succeeded.
    """
    return (self.best(state),)


def better(best: Outcome | None, outcome: Outcome) -> Outcome | None:
  """The outcome with the higher reward; among equals, that of the earlier proposal.

  Failures do not count. None if there is no outcome that counts.
  """
  if outcome.status == 'failed':
    return best
  return outcome if best is None else max(best, outcome, key=lambda each: (each.reward, -each.proposal.number))


def architecture(best: Outcome | None) -> Any:
  """The architecture of the best outcome; raises a ValueError if there is none."""
  if best is None:
    raise ValueError('config.strategy: no evaluation has succeeded, so there is no best architecture')
  return best.proposal.arch
