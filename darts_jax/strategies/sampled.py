"""The contract of sampled strategies: architectures are proposed, evaluated, and their rewards told back.

A strategy is its settings, a frozen dataclass. What it has learnt is a value, its state, which comes first in every
method and is never changed in place, as the carry of `lax.scan`. What is drawn is a function of the key alone. A state
holds no weights of networks; these stay in files, which outcomes name.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from darts_jax.spaces.base import Space

S = TypeVar('S')

#: What random numbers are drawn with, by `numpy.random.default_rng(key)`; `key.generate_state(2)` seeds other sources.
Key = np.random.SeedSequence


class Proposal(NamedTuple):
  """An architecture that is to be evaluated.

  Attributes:
    number: counts the proposals of a run, from 0.
    arch: the architecture, of the space's own type.
    parent: the number of the proposal that it was made from, if there is one.
    transforms: how it was made from that, for evaluators that start from the parent's weights.
    aux: values that the strategy needs when the outcome is told, such as the probability of what it drew.
    budget: fraction of a whole evaluation that is asked for, for evaluators that know fractions.
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
    proposal: that was evaluated.
    status: `stopped` if the evaluation was ended early and its reward is an estimate, `failed` if there is none.
    reward: higher is better; −∞ if the evaluation failed.
    measures: further numbers that a strategy may choose by.
    test: numbers that nothing may be chosen by, such as accuracies on test images; they are written down, and
      strategies are told outcomes without them.
    curve: the validation accuracy, or whatever the reward is made of, after every epoch.
    seconds: that the evaluation took.
    artefact: path of what the evaluation left, such as trained weights.
    failure: one line about why it failed.
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
  """The outcome of an evaluation that failed, for the reason that one line gives."""
  return Outcome(proposal, 'failed', -math.inf, seconds=seconds, failure=failure)


class Sampled(abc.ABC, Generic[S]):
  """A sampled strategy; `S` is the type of its state."""

  @abc.abstractmethod
  def init(self, space: Space[Any], key: Key) -> S:
    """The state before the first proposal."""

  @abc.abstractmethod
  def ask(self, state: S, key: Key) -> tuple[S, Proposal | None]:
    """The state after the next proposal, and the proposal, whose number is that of the proposals before it.

    None asks for patience until another outcome has been told. It is allowed only while a proposal is pending, and the
    state has to be as it was.
    """

  @abc.abstractmethod
  def tell(self, state: S, outcome: Outcome) -> S:
    """The state after an outcome, also of a failure; outcomes come in any order."""

  @abc.abstractmethod
  def best(self, state: S) -> Any:
    """The best architecture that was told.

    Raises:
      ValueError: no evaluation has succeeded.
    """

  @abc.abstractmethod
  def sample(self, state: S, key: Key) -> Any:
    """Draws an architecture from the distribution that `ask` draws from, which changes nothing.

    Weights that many architectures share are trained with such draws.
    """

  def front(self, state: S) -> tuple[Any, ...]:
    """The best architectures by several measures: those of which no other is better in one and as good in the others.

    Raises:
      ValueError: no evaluation has succeeded.
    """
    return (self.best(state),)


def better(best: Outcome | None, outcome: Outcome) -> Outcome | None:
  """The outcome with the higher reward; of equal ones that of the earlier proposal, whenever they were told.

  Failures do not count; None if neither does.
  """
  if outcome.status == 'failed':
    return best
  return outcome if best is None else max(best, outcome, key=lambda each: (each.reward, -each.proposal.number))


def architecture(best: Outcome | None) -> Any:
  """The architecture of the best outcome; raises a ValueError if there is none."""
  if best is None:
    raise ValueError('config.strategy: no evaluation has succeeded, so there is no best architecture')
  return best.proposal.arch
