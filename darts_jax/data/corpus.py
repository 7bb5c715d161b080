"""A text as arrays of token ids, for language models."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

#: Tokens that stand for words outside the vocabulary, and for the end of a line or sentence.
UNKNOWN, END = '<unk>', '<eos>'


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Tokens of a text, split into three parts.

  Attributes:
    name: name of the corpus, for reports.
    vocabulary: the tokens by id, in the order of their first occurrence in the training text.
    train: [N] int32 ids.
    valid: [M] int32 ids.
    test: [K] int32 ids.
  """

  name: str
  vocabulary: tuple[str, ...]
  train: np.ndarray
  valid: np.ndarray
  test: np.ndarray

  @property
  def fingerprint(self) -> dict[str, Any]:
    """JSON values that identify these tokens, whatever the name of the corpus."""
    words = hashlib.sha256('\n'.join(self.vocabulary).encode())

    def digest(ids: np.ndarray) -> dict[str, Any]:
      digested = words.copy()
      digested.update(ids.astype('<i4').tobytes())
      return {'tokens': len(ids), 'sha256': digested.hexdigest()[:16]}

    splits = {'train': self.train, 'valid': self.valid, 'test': self.test}
    return {'vocabulary': len(self.vocabulary), **{name: digest(ids) for name, ids in splits.items()}}


def columns(tokens: np.ndarray, batch_size: int) -> np.ndarray:
  """Lays a text out in B columns that are read in parallel, from top to bottom.

  Args:
    tokens: [N] ids.
    batch_size: B.

  Returns:
    [N // B, B] int32, C-contiguous; column b is the b-th of B consecutive pieces. The last N mod B tokens are dropped.
  """
  num_rows = len(tokens) // batch_size
  return np.ascontiguousarray(tokens[: num_rows * batch_size].reshape(batch_size, num_rows).T, np.int32)
