"""An evaluator that trains every architecture from scratch."""

import abc
import contextlib
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from darts_jax import spaces, training
from darts_jax.runtime import metrics
from darts_jax.runtime.files import one_line, read_object
from darts_jax.settings import rename
from darts_jax.spaces.base import Space
from darts_jax.strategies.sampled import Outcome, Proposal, failed
from darts_jax.training import comparison
from darts_jax.training.language import LanguageTraining
from darts_jax.training.settings import Training
from darts_jax.trials.evaluators.base import Evaluator

T = TypeVar('T', Training, LanguageTraining)

#: Name of the folder, beside that of the trainings, of the training that is tested; earlier ones have a number.
PICK = 'pick'


@dataclasses.dataclass(frozen=True)
class FromScratch(Evaluator, Generic[T]):
  """Trains every architecture from scratch, without reading the test data.

  Attributes:
    training: settings of every training; a proposal with a budget b < 1 is trained for b times as many epochs.
    folder: folder of the trainings; each has a working directory in it, named by its proposal's number, from which an
      interrupted training resumes.
  """

  training: T
  folder: pathlib.Path

  def check(self, space: Space[Any]) -> None:
    """Raises a ValueError if the architectures of the space are for another task."""
    task = getattr(space, 'task', self.training.task)
    if task != self.training.task:
      raise ValueError(
        f'config.evaluator.name: its trainings are on {self.training.task}; architectures of the space {space.name} are'
        f' for {task}'
      )

  def data_name(self) -> str:
    """See `Evaluator`."""
    return self.training.data.name

  def identity(self) -> dict[str, Any]:
    """See `Evaluator`; the paths of folder and data are left out, since both may have moved."""
    identity = super().identity()
    data = identity['training']['data']
    del identity['folder']
    for name in ('dir', 'path'):
      data.pop(name, None)
    return identity

  def __call__(self, proposal: Proposal) -> Outcome:
    """See `Evaluator`; a training that diverges is a failure.

    Raises:
      ValueError: the data or a working directory is invalid.
      Interrupted: a signal asked to stop; the training resumes when the proposal is evaluated again.
    """
    folder = self.folder / str(proposal.number)
    epochs = math.ceil(proposal.budget * self.training.epochs)
    settings = comparison.without_test(dataclasses.replace(self.training, epochs=epochs))
    try:
      with named():
        reward, num_weights = self._train(settings, proposal.arch, folder)
    except training.Diverged as error:
      return failed(proposal, one_line(error), comparison.seconds(folder))
    return Outcome(
      proposal,
      'done',
      reward,
      {'parameters': float(num_weights)},
      curve=tuple(self._reward(line) for line in metrics.read(folder) if line['kind'] == 'epoch'),
      seconds=comparison.seconds(folder),
      artefact=str(folder),
    )

  def _pick(self, arch: Any) -> pathlib.Path:
    """The folder of the training that is tested; there may be one of the best of fewer trials, which is moved away."""
    folder = self.folder.parent / PICK
    if (folder / 'config.json').exists():
      known = read_object(folder / 'config.json').get('genotype')
      if known != spaces.to_json(arch):
        numbers = itertools.count(1)
        folder.rename(next(path for n in numbers if not (path := folder.with_name(f'{PICK}_{n}')).exists()))
    return folder

  @abc.abstractmethod
  def _train(self, settings: T, arch: Any, folder: pathlib.Path) -> tuple[float, int]:
    """Trains an architecture, or resumes its training; returns the reward and the number of weights."""

  @abc.abstractmethod
  def _reward(self, epoch: Mapping[str, Any]) -> float:
    """The reward after an epoch, from the log line of the epoch."""


@dataclasses.dataclass(frozen=True)
class Scratch(FromScratch[Training]):
  """Trains networks for images; the reward is the accuracy on held-out images after the last epoch."""

  measure: ClassVar[str] = 'valid_accuracy'

  def check(self, space: Space[Any]) -> None:
    """Raises a ValueError if the space has no networks for images, or no training images are held out."""
    super().check(space)
    if not self.training.data.validation_fraction:
      raise ValueError(
        'config.evaluator.data.validation_fraction: 0.0 is not allowed; architectures are compared by images held out'
      )

  def fingerprint(self, space: Space[Any]) -> Any:
    """See `Evaluator`."""
    with named():
      # Any architecture will do, since the check depends on it only through the user's own operations: `candidates`.
      arch, candidates = space.sample(np.random.default_rng(0)), getattr(space, 'cells', None)
      return training.check(self.training, arch, candidates)[1]

  def test(self, outcome: Outcome) -> Mapping[str, float]:
    """Trains the architecture again, with the same seed and so to the same weights, and tests it on the test images."""
    arch = outcome.proposal.arch
    with named():
      if 'test' not in training.check(self.training, arch)[0]:
        return {}
      result = comparison.train(self.training, arch, self._pick(arch))
    return {'test_loss': result.test_loss, 'test_accuracy': result.test_accuracy}

  def _train(self, settings: Training, arch: Any, folder: pathlib.Path) -> tuple[float, int]:
    result = comparison.train(settings, arch, folder)
    return result.valid_accuracy, result.num_weights

  def _reward(self, epoch: Mapping[str, Any]) -> float:
    return float(epoch['valid_accuracy'])


@dataclasses.dataclass(frozen=True)
class ScratchSettings(Training):
  """The settings of every training, see `Training`; by default the seed is that of the search."""

  def open(self, folder: pathlib.Path) -> Scratch:
    """See `EvaluatorSettings`."""
    return Scratch(self, folder)


@contextlib.contextmanager
def named() -> Iterator[None]:
  """Replaces `config` in a training's errors by `config.evaluator`, the place of its fields in a search's config."""
  try:
    yield
  except ValueError as error:
    raise ValueError(rename(str(error), 'config.evaluator')) from error
