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
    searches: searches, with the seeds `search.seed`, `search.seed + 1`, ….
    selection_epochs: of the brief training that candidates are compared by.
    trainings: full trainings of a pick, with the seeds `training.seed`, `training.seed + 1`, ….
    random_architectures: random cells that are fully trained, once each: what no search at all comes to. 0 for none.
    random_search: whether random cells are selected among, too, as many as fit into the time of searches and their
      selection.
    random_candidates: upper limit of their number.
    search: see `Search`.
    training: see `Training`; of full trainings. Its seed is also that of random cells.
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
    """The training that candidates are compared by; it does not read the test images."""
    return without_test(dataclasses.replace(self.training, epochs=self.selection_epochs))


def checked(path: str, check: Callable[[S], T], settings: S) -> T:
  """What the check returns for settings that hang at `path`, by which its errors name their fields."""
  try:
    return check(settings)
  except ValueError as error:
    raise ValueError(rename(str(error), path)) from error
