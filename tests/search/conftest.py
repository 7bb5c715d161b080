"""What several files of tests search on."""

import numpy as np
import pytest

from darts_jax.data.corpus import Corpus

VOCAB = 10


@pytest.fixture(scope='module')
def corpus() -> Corpus:
  """Words that follow each other as a rule; some are left over, whatever the columns."""
  rng = np.random.default_rng(0)

  def text(length):
    return np.cumsum(rng.choice([1, 3], size=length, p=[0.8, 0.2])).astype(np.int32) % VOCAB

  return Corpus('counting', tuple('abcdefghij'), text(203), text(101), text(50))
