"""The contract of evaluators, and what becomes of an evaluation that cannot be made."""

import abc
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from darts_jax.runtime.files import one_line
from darts_jax.spaces.base import Space
from darts_jax.strategies.sampled import Key, Outcome, Proposal, failed
from darts_jax.trials.journal import describe


class Evaluator(abc.ABC):
  """Scores architectures; it is pickled into worker processes before every evaluation.

  Attributes:
    measure: what logs and reports call the reward; of a name that ends in `accuracy` they give percentages.
  """

  measure: ClassVar[str] = 'reward'

  def open(self, folder: pathlib.Path) -> 'Evaluator':
    """See `EvaluatorSettings`; an evaluator that writes no files is complete without a folder."""
    return self

  def check(self, space: Space[Any]) -> None:
    """Raises a ValueError, before anything runs, if architectures of this space cannot be evaluated."""
    return

  def identity(self) -> dict[str, Any]:
    """JSON values on which rewards depend; a journal of another evaluator is refused. By default, class and fields."""
    return describe(self)

  def fingerprint(self, space: Space[Any]) -> Any:
    """JSON values that tell the data from others; None by default.

    Raises:
      ValueError: an architecture of this space cannot be evaluated on these data; nothing has been written then.
    """
    return None

  def data_name(self) -> str:
    """What the data are called; empty if there are none, or nobody says."""
    return ''

  def known(self) -> Mapping[str, float]:
    """Numbers that are known before any evaluation, for reports: `optimum`, the highest reward there is, and others."""
    return {}

  def fit(self, sample: Callable[[Key], Any]) -> None:
    """Trains what evaluations share, on architectures that `sample` draws; by default they share nothing."""
    return

  @abc.abstractmethod
  def __call__(self, proposal: Proposal) -> Outcome:
    """Evaluates an architecture.

    An error that would meet every architecture, such as missing data, is raised and ends the search. A failure of this
    architecture is an outcome; running out of memory may be raised.
    """

  def test(self, outcome: Outcome) -> Mapping[str, float]:
    """Measures the best architecture on test data, once, after the last evaluation.

    Returns:
      Numbers by name, such as `test_accuracy`, that the outcome does not have yet; by default none.
    """
    return {}


class EvaluatorSettings(Protocol):
  """The settings of an evaluator, a frozen dataclass; an `Evaluator` can be its own settings."""

  def open(self, folder: pathlib.Path) -> Evaluator:
    """The evaluator of a run, which may write files into a folder."""


def evaluate(evaluator: Evaluator, proposal: Proposal) -> Outcome:
  """The outcome of a proposal; without enough memory, or with a reward that is not finite, it has failed."""
  start = time.monotonic()
  try:
    outcome = evaluator(proposal)
  except (MemoryError, RuntimeError) as error:
    if not _is_out_of_memory(error):
      raise
    return failed(proposal, f'out of memory: {one_line(error)}', time.monotonic() - start)
  if outcome.status != 'failed' and not math.isfinite(outcome.reward):
    failure = f'the reward is {outcome.reward}'
    return dataclasses.replace(outcome, status='failed', reward=-math.inf, failure=failure)
  return outcome


def _is_out_of_memory(error: Exception) -> bool:
  # JAX is not imported to know its error.
  of_jax = any(kind.__name__ in ('JaxRuntimeError', 'XlaRuntimeError') for kind in type(error).__mro__)
  return isinstance(error, MemoryError) or (of_jax and 'RESOURCE_EXHAUSTED' in str(error))
