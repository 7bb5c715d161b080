"""Trainings that architectures are compared by: each in a folder of its own, without a look at the test images."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from darts_jax.runtime import metrics
from darts_jax.runtime.loop import Diverged
from darts_jax.settings import as_config
from darts_jax.spaces import Genotype
from darts_jax.training import language, loop
from darts_jax.training.language import LanguageResult, LanguageTraining
from darts_jax.training.loop import Result
from darts_jax.training.settings import Training

T = TypeVar('T', Training, LanguageTraining)


class Interrupted(RuntimeError):
  """A run was interrupted and saved; the same command goes on with it."""


class Trial(NamedTuple):
  """What the training of an architecture came to that is compared with others.

  Attributes:
    valid_accuracy: on the held-out images after the last epoch, 0 to 1; 0 if the training diverged.
    seconds: in its epochs.
  """

  valid_accuracy: float
  seconds: float


def without_test(settings: T) -> T:
  """The same training, which does not read the test data: no choice can be made by them."""
  return dataclasses.replace(settings, data=dataclasses.replace(settings.data, test=False))


def train(settings: Training, genotype: Genotype, folder: pathlib.Path) -> Result:
  """A whole training in a folder of its own, or the rest of it.

  Raises:
    ValueError: the data or the folder is unfit.
    Diverged: a loss or gradient was not finite.
    Interrupted: by a signal; nothing is lost.
  """
  result = loop.run(as_config(settings), folder, genotype)
  _check_finished(result, folder)
  return result


def train_language(settings: LanguageTraining, genotype: Genotype, folder: pathlib.Path) -> LanguageResult:
  """As `train`, of a language model."""
  result = language.run(as_config(settings), folder, genotype)
  _check_finished(result, folder)
  return result


def _check_finished(result: Result | LanguageResult, folder: pathlib.Path) -> None:
  if result.interrupted or not result.finished:
    raise Interrupted(f'the training in {folder} was interrupted; the same command goes on with it')


def compare(settings: Training, genotype: Genotype, folder: pathlib.Path, note: Callable[[str], None]) -> Trial:
  """As `train`; but one that diverges counts as a validation accuracy of 0, which `note` is told."""
  try:
    accuracy = train(settings, genotype, folder).valid_accuracy
  except Diverged as error:
    # Others may not diverge, and this one is not picked before them.
    note(f'{error}; it counts as a validation accuracy of 0')
    accuracy = 0.0
  return Trial(accuracy, seconds(folder))


def seconds(folder: pathlib.Path) -> float:
  """Time in the epochs of a run."""
  return sum(float(line.get('seconds', 0.0)) for line in metrics.read(folder) if line['kind'] == 'epoch')
