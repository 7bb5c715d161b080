"""Trainings by which candidate architectures are compared: each in its own folder, without any test data."""

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
  """Result of the training of a candidate.

  Attributes:
    valid_accuracy: accuracy on the held-out images after the last epoch, 0 to 1; 0 if the training diverged.
    seconds: time in the epochs of the training.
  """

  valid_accuracy: float
  seconds: float


def without_test(settings: T) -> T:
  """Copies settings of a training with `data.test` off, so that no choice can depend on the test data."""
  return dataclasses.replace(settings, data=dataclasses.replace(settings.data, test=False))


def train(settings: Training, genotype: Genotype, folder: pathlib.Path) -> Result:
  """Runs, or resumes, a whole training in its own folder.

  Raises:
    ValueError: the data or the folder is unfit.
    Diverged: a loss or gradient was not finite.
    Interrupted: a signal stopped the training; the same command resumes it.
  """
  result = loop.run(as_config(settings), folder, genotype)
  _check_finished(result, folder)
  return result


def train_language(settings: LanguageTraining, genotype: Genotype, folder: pathlib.Path) -> LanguageResult:
  """Runs, or resumes, the training of a language model; see `train`."""
  result = language.run(as_config(settings), folder, genotype)
  _check_finished(result, folder)
  return result


def _check_finished(result: Result | LanguageResult, folder: pathlib.Path) -> None:
  if result.interrupted or not result.finished:
    raise Interrupted(f'the training in {folder} was interrupted; the same command goes on with it')


def compare(settings: Training, genotype: Genotype, folder: pathlib.Path, note: Callable[[str], None]) -> Trial:
  """Trains a candidate as `train` does; divergence counts as a validation accuracy of 0 and is reported to `note`."""
  try:
    accuracy = train(settings, genotype, folder).valid_accuracy
  except Diverged as error:
    # The comparison goes on: with an accuracy of 0 this candidate is picked last.
    note(f'{error}; it counts as a validation accuracy of 0')
    accuracy = 0.0
  return Trial(accuracy, seconds(folder))


def seconds(folder: pathlib.Path) -> float:
  """Seconds in the epochs of the run in a folder."""
  return sum(float(line.get('seconds', 0.0)) for line in metrics.read(folder) if line['kind'] == 'epoch')
