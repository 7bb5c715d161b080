"""A small corpus, and a language model that is compiled in seconds."""

import numpy as np
import pytest

from darts_jax.data.corpus import Corpus
from darts_jax.spaces import Genotype, recurrent

GENOTYPE = recurrent.genotype((('tanh', 0), ('relu', 0)), (1, 2))
WORDS = tuple(f'w{i}' for i in range(19))


def sentences(seed: int, num: int) -> list[list[str]]:
  """Of five words each that mostly follow each other in their order."""
  rng = np.random.default_rng(seed)
  found = []
  for _ in range(num):
    ids = [rng.integers(19)]
    while len(ids) < 5:
      ids.append((ids[-1] + 1) % 19 if rng.random() < 0.8 else rng.integers(19))
    found.append([WORDS[i] for i in ids])
  return found


@pytest.fixture(scope='session')
def genotype() -> Genotype:
  return GENOTYPE


@pytest.fixture(scope='session')
def corpus() -> Corpus:
  """Of 20 words; 242 tokens train, which leave two over beside 8 columns of 30."""
  rng = np.random.default_rng(0)
  train, valid, test = (rng.integers(0, 20, size).astype(np.int32) for size in (242, 41, 43))
  return Corpus('mine', (*WORDS, '<eos>'), train, valid, test)


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
  """Text files of 2,400, 120 and 120 tokens."""
  path = tmp_path_factory.mktemp('text')
  for seed, (split, num) in enumerate((('train', 400), ('valid', 20), ('test', 20))):
    lines = [' '.join(words) for words in sentences(seed, num)]
    (path / f'{split}.txt').write_text('\n'.join(lines) + '\n')
  return path
