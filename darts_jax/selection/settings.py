"""The settings of a selection: searches, brief trainings of what they found, full trainings of the pick."""

import dataclasses

from darts_jax.search.settings import Search
from darts_jax.settings import setting
from darts_jax.training.settings import Training


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

  searches: int = setting(4, at_least=1)
  selection_epochs: int = setting(100, at_least=1)
  trainings: int = setting(3, at_least=1)
  random_architectures: int = setting(3, at_least=0)
  random_search: bool = setting(True)
  random_candidates: int = setting(24, at_least=1)
  search: Search = setting(Search())
  training: Training = setting(Training())

  def __post_init__(self) -> None:
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
    data = dataclasses.replace(self.training.data, test=False)
    return dataclasses.replace(self.training, epochs=self.selection_epochs, data=data)
