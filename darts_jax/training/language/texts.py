"""Texts in columns on the devices, and the windows of them that steps read."""

import dataclasses
from typing import NamedTuple, Self

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from darts_jax.data.text import Corpus, columns
from darts_jax.data.windows import Windows, consecutive, draw
from darts_jax.nets.recurrent import Sequences
from darts_jax.runtime.mesh import replicated
from darts_jax.training.language.settings import LanguageTraining

Array = jax.Array

# A window of a training has two rows and the targets of the second; one of an evaluation may have a single row.
_TRAIN_ROWS, _EVALUATION_ROWS = 3, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Text:
  """A text in columns, and windows of it; a pytree.

  Attributes:
    columns: `[N + capacity, B]` int32; the last rows are padding, so that no window ends behind them.
    starts: `[S]` int32, the first row of the inputs of every window.
    lengths: `[S]` int32, in rows.
    capacity: no window is longer; all of them are padded to it, so that they are one program.
  """

  columns: Array
  starts: Array
  lengths: Array
  capacity: int = dataclasses.field(metadata={'static': True})

  @classmethod
  def place(cls, rows: np.ndarray, windows: Windows, mesh: Mesh, *, sharded: bool) -> Self:
    """Puts a text on the devices.

    Args:
      rows: `[N, B]` int32.
      windows: of it.
      mesh: devices with an axis `data`.
      sharded: whether every device holds some of the columns, and not all.
    """
    same = replicated(mesh)
    padded = np.pad(rows, ((0, windows.capacity), (0, 0)))
    place = NamedSharding(mesh, PartitionSpec(None, 'data')) if sharded else same
    starts, lengths = jax.device_put((windows.starts, windows.lengths), same)
    return cls(jax.device_put(padded, place), starts, lengths, windows.capacity)

  def window(self, index: Array) -> tuple[Array, Sequences]:
    """The row that a window starts at, and what is in it; the index may be traced."""
    start = self.starts[index]
    rows = lax.dynamic_slice_in_dim(self.columns, start, self.capacity + 1)
    return start, Sequences(rows[:-1], rows[1:], self.lengths[index])


class Texts(NamedTuple):
  """The texts of a training, divided into columns and windows, on the host.

  Attributes:
    corpus: where they are from.
    columns: `[N, B]` int32 of each part: `train`, `valid` and, if it is to be read, `test`.
    windows: of each part; those of `train` for all epochs.
  """

  corpus: Corpus
  columns: dict[str, np.ndarray]
  windows: dict[str, Windows]

  @property
  def parts(self) -> tuple[str, ...]:
    """Names of the parts that can be measured."""
    return tuple(name for name in self.columns if name != 'train')

  def place(self, part: str, mesh: Mesh) -> Text:
    """A part on the devices; the training text is shared out among them."""
    return Text.place(self.columns[part], self.windows[part], mesh, sharded=part == 'train')


def divide(corpus: Corpus, settings: LanguageTraining) -> Texts:
  """Divides the texts of a corpus as the settings say.

  Raises:
    ValueError: a text is too short for its batch size.
  """
  sizes = {
    'train': ('batch_size', corpus.train, 'training', _TRAIN_ROWS),
    'valid': ('valid_batch_size', corpus.valid, 'validation', _EVALUATION_ROWS),
  }
  if settings.data.test:
    sizes['test'] = 'test_batch_size', corpus.test, 'test', _EVALUATION_ROWS
  divided = {}
  for part, (field, tokens, name, rows) in sizes.items():
    batch_size = getattr(settings, field)
    if len(tokens) < rows * batch_size:
      raise ValueError(
        f'config.{field}: {batch_size} is too large; the {name} text of {corpus.name} has {len(tokens)} tokens, which'
        f' are enough for {len(tokens) // rows} columns'
      )
    divided[part] = columns(tokens, batch_size)
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
  """The mean over all targets, from the means over those of each window; added up in double precision."""
  return float(np.average(np.asarray(losses, np.float64), weights=windows.lengths))
