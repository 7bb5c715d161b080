"""The contract of evaluators, and the handling of evaluations that fail."""

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
  """Scores architectures; with several workers it is pickled into a worker process for every evaluation.

  Attributes:
    measure: name of the reward in logs and reports, which print rewards as percentages if it contains `accuracy`.
  """

  measure: ClassVar[str] = 'reward'

  def open(self, folder: pathlib.Path) -> 'Evaluator':
    """See `EvaluatorSettings`; an evaluator that writes no files needs no folder and returns itself."""
    return self

  def check(self, space: Space[Any]) -> None:
    """Raises a ValueError, before anything runs, if architectures of this space cannot be evaluated."""
    return

  def identity(self) -> dict[str, Any]:
    """JSON values on which rewards depend, by default class and fields; a journal with other values is refused."""
    return describe(self)

  def fingerprint(self, space: Space[Any]) -> Any:
    """JSON values that identify the data; None by default.

    Raises:
      ValueError: architectures of this space cannot be evaluated on these data; nothing has been written then.
    """
    return None

  def data_name(self) -> str:
    """Name of the data; empty, the default, if there is none."""
    return ''

  def known(self) -> Mapping[str, float]:
    """Values for logs and reports that are known before any evaluation, such as the highest reward, `optimum`."""
    return {}

  def fit(self, sample: Callable[[Key], Any]) -> None:
    """Trains state that evaluations share, such as shared weights; by default there is none.

    Args:
      sample: draws an architecture from a key.
    """
    return

  @abc.abstractmethod
  def __call__(self, proposal: Proposal) -> Outcome:
    """Evaluates an architecture.

    An error that concerns every architecture, such as missing data, has to be raised and ends the search. A failure of
    this architecture alone is an outcome; only out-of-memory errors may be raised instead (see `evaluate`).
    """

  def test(self, outcome: Outcome) -> Mapping[str, float]:
    """Measures the best architecture on test data, once, after the last evaluation.

    Args:
      outcome: the best outcome.

    Returns:
      Measures by name, such as `test_accuracy`, that the outcome does not have yet; by default none.
    """
    return {}


class EvaluatorSettings(Protocol):
  """The settings of an evaluator, a frozen dataclass; an `Evaluator` can be its own settings."""

  def open(self, folder: pathlib.Path) -> Evaluator:
    """The evaluator of a run; `folder` is for its files."""


def evaluate(evaluator: Evaluator, proposal: Proposal) -> Outcome:
  """Evaluates a proposal; the outcome is a failure if memory runs out or the reward is not finite."""
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
  # The class is compared by name, so that JAX need not be imported here.
  of_jax = any(kind.__name__ in ('JaxRuntimeError', 'XlaRuntimeError') for kind in type(error).__mro__)
  return isinstance(error, MemoryError) or (of_jax and 'RESOURCE_EXHAUSTED' in str(error))
