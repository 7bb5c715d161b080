"""Evaluates architectures by a training of each from scratch."""

import dataclasses
import math
import pathlib
from typing import Any

from darts_jax import training
from darts_jax.runtime import metrics
from darts_jax.runtime.files import one_line
from darts_jax.selection import trials
from darts_jax.spaces.base import Space
from darts_jax.strategies.sampled import Outcome, Proposal, failed
from darts_jax.training.settings import Training
from darts_jax.trials.evaluators.base import Evaluator


@dataclasses.dataclass(frozen=True)
class Scratch(Evaluator):
  """The reward is the accuracy on held-out images after the last epoch; the test images are not read.

  Attributes:
    training: settings of every training; a proposal with a part of the budget gets that part of the epochs.
    folder: gets a folder for each training, by the number of its proposal, in which an interrupted training goes on.
  """

  training: Training
  folder: pathlib.Path

  def check(self, space: Space[Any]) -> None:
    """Raises a ValueError if no images are held out."""
    if not self.training.data.validation_fraction:
      raise ValueError(
        'config.evaluator.training.data.validation_fraction: 0.0 is not allowed; architectures are compared by images'
        ' held out'
      )

  def identity(self) -> dict[str, Any]:
    """See `Evaluator`; the folder and the data may have moved."""
    identity = super().identity()
    data = identity['training']['data']
    del identity['folder'], data['dir'], data['path']
    return identity

  def __call__(self, proposal: Proposal) -> Outcome:
    """See `Evaluator`; a training that diverges has failed.

    Raises:
      ValueError: the data or a folder is unfit.
      Interrupted: by a signal; the training goes on when the proposal is evaluated again.
    """
    folder = self.folder / str(proposal.number)
    epochs = math.ceil(proposal.budget * self.training.epochs)
    settings = trials.without_test(dataclasses.replace(self.training, epochs=epochs))
    try:
      result = trials.train(settings, proposal.arch, folder)
    except training.Diverged as error:
      return failed(proposal, one_line(error), trials.seconds(folder))
    curve = tuple(line['valid_accuracy'] for line in metrics.read(folder) if line['kind'] == 'epoch')
    seconds = trials.seconds(folder)
    return Outcome(proposal, 'done', result.valid_accuracy, curve=curve, seconds=seconds, artefact=str(folder))
