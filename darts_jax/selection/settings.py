"""The settings of the paper's protocol."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from darts_jax import limits
from darts_jax.search.settings import Search, check_alone, image_task
from darts_jax.settings import check_seeds, rename, setting
from darts_jax.training.comparison import without_test
from darts_jax.training.settings import Training

S = TypeVar('S')
T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Selection:
  """The paper's protocol [DARTS §3.2]: several searches, the best cell by validation, trained from scratch.

  Attributes:
    searches: number of searches, with the seeds `search.seed`, `search.seed + 1`, ….
    selection_epochs: epochs of the brief training by which candidates are compared.
    trainings: number of full trainings of a pick, with the seeds `training.seed`, `training.seed + 1`, ….
    random_architectures: number of random cells that are fully trained, once each, as a baseline without any search or
      selection. 0 for none.
    random_search: whether to also select among random cells, as many as fit into the time of the searches and their
      selection.
    random_candidates: largest number of random cells to select among.
    search: settings of the searches, see `Search`.
    training: settings of full trainings, see `Training`; its seed also draws the random cells.
  """

  searches: int = setting(4, at_least=1, at_most=limits.RUNS)
  selection_epochs: int = setting(100, at_least=1, at_most=limits.EPOCHS)
  trainings: int = setting(3, at_least=1, at_most=limits.RUNS)
  random_architectures: int = setting(3, at_least=0, at_most=limits.RUNS)
  random_search: bool = setting(True)
  random_candidates: int = setting(24, at_least=1, at_most=limits.RUNS)
  search: Search = setting(Search())
  training: Training = setting(Training())

  def __post_init__(self) -> None:
    check_alone(self.search, 'config.search')
    image_task(self.search, 'config.search')
    check_seeds(self.search.seed, self.searches, 'searches', 'config.search.seed')
    check_seeds(self.training.seed, self.trainings, 'trainings', 'config.training.seed')
    if not self.training.data.validation_fraction:
      raise ValueError(
        'config.training.data.validation_fraction: 0.0 is not allowed; candidates are compared by images held out'
      )
    if not self.training.data.test:
      raise ValueError('config.training.data.test: False is not allowed; picks are compared by test images in the end')
    if self.selection_epochs > self.training.epochs:
      raise ValueError(
        f'config.selection_epochs: {self.selection_epochs} is not allowed; a full training has {self.training.epochs}'
        ' epochs'
      )
    if self.training.weights.warmup_epochs > self.selection_epochs:
      raise ValueError(
        f'config.training.weights.warmup_epochs: {self.training.weights.warmup_epochs} is not allowed; brief trainings'
        f' have {self.selection_epochs} epochs'
      )

  @property
  def brief(self) -> Training:
    """The brief training by which candidates are compared; it does not read the test images."""
    return without_test(dataclasses.replace(self.training, epochs=self.selection_epochs))


def checked(path: str, check: Callable[[S], T], settings: S) -> T:
  """Returns `check(settings)`; errors name fields with the prefix `path`.

  Args:
    path: name of the field that holds the settings, such as `config.search`.
    check: the check; its errors name fields as `config.…`.
    settings: the settings.

  Raises:
    ValueError: the check fails.
  """
  try:
    return check(settings)
  except ValueError as error:
    raise ValueError(rename(str(error), path)) from error
