"""Evaluates architectures by a training of each from scratch."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from darts_jax import training
from darts_jax.runtime import metrics
from darts_jax.runtime.files import one_line
from darts_jax.settings import rename
from darts_jax.spaces.base import Space
from darts_jax.strategies.sampled import Outcome, Proposal, failed
from darts_jax.training import comparison
from darts_jax.training.settings import Training
from darts_jax.trials.evaluators.base import Evaluator

#: Name of the folder, beside those of the trainings, of the training that is tested.
PICK = 'pick'


@dataclasses.dataclass(frozen=True)
class ScratchSettings(Training):
  """Settings of every training, see `Training`; in a search, its seed is that of the search by default."""

  def open(self, folder: pathlib.Path) -> 'Scratch':
    """See `EvaluatorSettings`."""
    return Scratch(self, folder)


@dataclasses.dataclass(frozen=True)
class Scratch(Evaluator):
  """The reward is the accuracy on held-out images after the last epoch; the test images are not read.

  Attributes:
    training: settings of every training; a proposal with a part of the budget gets that part of the epochs.
    folder: gets a folder for each training, by the number of its proposal, in which an interrupted training goes on.
  """

  measure: ClassVar[str] = 'valid_accuracy'

  training: Training
  folder: pathlib.Path

  def check(self, space: Space[Any]) -> None:
    """Raises a ValueError if the space has no networks for images, or if no images are held out."""
    task = getattr(space, 'task', self.training.task)
    if task != self.training.task:
      raise ValueError(
        f'config.evaluator.name: scratch trains on {self.training.task}; architectures of the space {space.name} are'
        f' for {task}'
      )
    if not self.training.data.validation_fraction:
      raise ValueError(
        'config.evaluator.data.validation_fraction: 0.0 is not allowed; architectures are compared by images held out'
      )

  def identity(self) -> dict[str, Any]:
    """See `Evaluator`; the folder and the data may have moved."""
    identity = super().identity()
    data = identity['training']['data']
    del identity['folder'], data['dir'], data['path']
    return identity

  def fingerprint(self, space: Space[Any]) -> Any:
    """See `Evaluator`."""
    with _named():
      return training.check(self.training, _some(space))[1]

  def __call__(self, proposal: Proposal) -> Outcome:
    """See `Evaluator`; a training that diverges has failed.

    Raises:
      ValueError: the data or a folder is unfit.
      Interrupted: by a signal; the training goes on when the proposal is evaluated again.
    """
    folder = self.folder / str(proposal.number)
    epochs = math.ceil(proposal.budget * self.training.epochs)
    settings = comparison.without_test(dataclasses.replace(self.training, epochs=epochs))
    try:
      with _named():
        result = comparison.train(settings, proposal.arch, folder)
    except training.Diverged as error:
      return failed(proposal, one_line(error), comparison.seconds(folder))
    return Outcome(
      proposal,
      'done',
      result.valid_accuracy,
      {'parameters': float(result.num_weights)},
      curve=tuple(line['valid_accuracy'] for line in metrics.read(folder) if line['kind'] == 'epoch'),
      seconds=comparison.seconds(folder),
      artefact=str(folder),
    )

  def test(self, outcome: Outcome) -> Mapping[str, float]:
    """Trains the architecture again, with the same seed and so to the same weights, and reads the test images."""
    with _named():
      if 'test' not in training.check(self.training, outcome.proposal.arch)[0]:
        return {}
      result = comparison.train(self.training, outcome.proposal.arch, self.folder.parent / PICK)
    return {'test_loss': result.test_loss, 'test_accuracy': result.test_accuracy}


def _some(space: Space[Any]) -> Any:
  """An architecture of a space; whether networks can be trained does not depend on which."""
  return space.sample(np.random.default_rng(0))


@contextlib.contextmanager
def _named() -> Iterator[None]:
  """Gives errors of a training the names that its fields have in the config of a search."""
  try:
    yield
  except ValueError as error:
    raise ValueError(rename(str(error), 'config.evaluator')) from error
