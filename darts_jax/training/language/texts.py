"""The texts of a training, divided into columns, and the windows of time steps that training steps read."""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from darts_jax.data import sequences
from darts_jax.data.corpus import Corpus
from darts_jax.data.sequences import Text
from darts_jax.data.windows import Windows, consecutive, draw
from darts_jax.runtime.mesh import put, replicated
from darts_jax.training.language.settings import LanguageTraining

Array = jax.Array

# Least numbers of rows of a text: a training window has at least two rows, an evaluation window one, and each needs
# one row more for the targets.
_TRAIN_ROWS, _EVALUATION_ROWS = 3, 2


class Texts(NamedTuple):
  """The texts of a training, divided into columns and windows, on the host.

  Attributes:
    corpus: the corpus of the texts.
    columns: by part, `[N, B]` int32 ids of words; parts are `train`, `valid` and, if the settings say so, `test`.
    windows: windows by part; those of `train` are for all epochs.
  """

  corpus: Corpus
  columns: dict[str, np.ndarray]
  windows: dict[str, Windows]

  @property
  def parts(self) -> tuple[str, ...]:
    """Names of the parts that can be measured."""
    return tuple(name for name in self.columns if name != 'train')

  def place(self, part: str, mesh: Mesh) -> Text:
    """Puts a part on the devices; columns of the training text are sharded, other parts are replicated."""
    same = replicated(mesh)
    divided = NamedSharding(mesh, PartitionSpec(None, 'data')) if part == 'train' else same
    text = Text.cut(self.columns[part], self.windows[part])
    return put(text, Text(divided, same, same, text.capacity))


def divide(corpus: Corpus, settings: LanguageTraining) -> Texts:
  """Divides the texts of a corpus as the settings say.

  Raises:
    ValueError: a text is too short for its batch size.
  """
  divided = {
    'train': sequences.divide(corpus, 'train', 'batch_size', settings.batch_size, _TRAIN_ROWS),
    'valid': sequences.divide(corpus, 'valid', 'valid_batch_size', settings.valid_batch_size, _EVALUATION_ROWS),
  }
  if settings.data.test:
    divided['test'] = sequences.divide(corpus, 'test', 'test_batch_size', settings.test_batch_size, _EVALUATION_ROWS)
  windows = {part: consecutive(len(rows), settings.bptt) for part, rows in divided.items() if part != 'train'}
  windows['train'] = draw(
    settings.seed,
    len(divided['train']),
    settings.epochs,
    bptt=settings.bptt,
    short_fraction=settings.short_fraction,
    spread=settings.spread,
  )
  return Texts(corpus, divided, windows)


def mean_loss(losses: Array, windows: Windows) -> float:
  """The mean over all targets from the means of each window, `[S]`; summed in double precision."""
  return float(np.average(np.asarray(losses, np.float64), weights=windows.lengths))
