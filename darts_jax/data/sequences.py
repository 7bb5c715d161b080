"""Texts in columns on the devices, and the sequences that steps read from them."""

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
    targets: `[T, B]` int32, the next token after each of `tokens`.
    length: `[]` int32, number of time steps; the rest is padding.
  """

  tokens: Any
  targets: Any
  length: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Text:
  """A text in columns, and windows of it; a pytree of arrays, or of their shardings.

  Attributes:
    columns: `[N + capacity, B]` int32; the last `capacity` rows are padding, so that every window can be sliced.
    starts: `[S]` int32, the first row of the inputs of every window.
    lengths: `[S]` int32, number of rows of every window.
    capacity: largest length of a window; all windows are padded to it, so that one program serves all of them.
  """

  columns: Any
  starts: Any
  lengths: Any
  capacity: int = dataclasses.field(metadata={'static': True})

  @classmethod
  def cut(cls, rows: np.ndarray, windows: Windows) -> Self:
    """Makes a text, as NumPy arrays, from its rows, `[N, B]` int32, and windows of these."""
    padded = np.pad(rows, ((0, windows.capacity), (0, 0)))
    return cls(padded, windows.starts, windows.lengths, windows.capacity)

  def window(self, index: Array) -> tuple[Array, Sequences]:
    """The first row of a window, and its sequences; the index may be traced."""
    start = self.starts[index]
    rows = lax.dynamic_slice_in_dim(self.columns, start, self.capacity + 1)
    return start, Sequences(rows[:-1], rows[1:], self.lengths[index])


def divide(corpus: Corpus, part: str, field: str, batch_size: int, least_rows: int) -> np.ndarray:
  """Lays out a part of a corpus in columns, `[N, B]` int32.

  Args:
    corpus: the corpus.
    part: `train`, `valid` or `test`.
    field: name of the field of the config that gives the batch size.
    batch_size: B.
    least_rows: smallest allowed N.

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
  """The perplexity for a loss in nats per token, its exponential; infinite beyond the range of floats."""
  try:
    return math.exp(loss)
  except OverflowError:
    return math.inf
