"""Texts in columns on the devices, and the sequences of them that steps read."""

import dataclasses
import math
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax import lax

from darts_jax.data.corpus import Corpus, columns
from darts_jax.data.windows import Windows

Array = jax.Array

_NAMES = {'train': 'training', 'valid': 'validation', 'test': 'test'}


class Sequences(NamedTuple):
  """A batch of text.

  Attributes:
    tokens: `[T, B]` int32.
    targets: `[T, B]` int32, the tokens that follow.
    length: `[]` int32; time steps from it on are padding.
  """

  tokens: Any
  targets: Any
  length: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Text:
  """A text in columns, and windows of it; a pytree of arrays, or of how they lie on devices.

  Attributes:
    columns: `[N + capacity, B]` int32; the last rows are padding, so that no window ends behind them.
    starts: `[S]` int32, the first row of the inputs of every window.
    lengths: `[S]` int32, in rows.
    capacity: no window is longer; all of them are padded to it, so that they are one program.
  """

  columns: Any
  starts: Any
  lengths: Any
  capacity: int = dataclasses.field(metadata={'static': True})

  @classmethod
  def cut(cls, rows: np.ndarray, windows: Windows) -> Self:
    """A text as NumPy arrays, from its rows, `[N, B]` int32, and the windows of it."""
    padded = np.pad(rows, ((0, windows.capacity), (0, 0)))
    return cls(padded, windows.starts, windows.lengths, windows.capacity)

  def window(self, index: Array) -> tuple[Array, Sequences]:
    """The row that a window starts at, and what is in it; the index may be traced."""
    start = self.starts[index]
    rows = lax.dynamic_slice_in_dim(self.columns, start, self.capacity + 1)
    return start, Sequences(rows[:-1], rows[1:], self.lengths[index])


def divide(corpus: Corpus, part: str, field: str, batch_size: int, least_rows: int) -> np.ndarray:
  """`[N, B]` int32: a part of a corpus in columns.

  Args:
    corpus: the corpus.
    part: `train`, `valid` or `test`.
    field: of the config that the batch size is from.
    batch_size: B.
    least_rows: N has to be at least this.

  Raises:
    ValueError: the text is too short.
  """
  tokens: np.ndarray = getattr(corpus, part)
  if len(tokens) < least_rows * batch_size:
    raise ValueError(
      f'config.{field}: {batch_size} is too large; the {_NAMES[part]} text of {corpus.name} has {len(tokens)} tokens,'
      f' which are enough for {len(tokens) // least_rows} columns'
    )
  return columns(tokens, batch_size)


def perplexity(loss: float) -> float:
  """Of a loss in nats per token, its exponential; infinite beyond the range of floats."""
  try:
    return math.exp(loss)
  except OverflowError:
    return math.inf
