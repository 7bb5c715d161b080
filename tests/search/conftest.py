"""What several files of tests search on."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest

from darts_jax.data.corpus import Corpus
from darts_jax.data.images import Images, load
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import Search, Searcher
from darts_jax.search.state import SearchState
from darts_jax.tasks.base import Halves

VOCAB = 10


@pytest.fixture(scope='module')
def corpus() -> Corpus:
  """Words that follow each other as a rule; some are left over, whatever the columns."""
  rng = np.random.default_rng(0)

  def text(length):
    return np.cumsum(rng.choice([1, 3], size=length, p=[0.8, 0.2])).astype(np.int32) % VOCAB

  return Corpus('counting', tuple('abcdefghij'), text(203), text(101), text(50))


class Lab(NamedTuple):
  searcher: Searcher
  data: Halves


@pytest.fixture(scope='session')
def digits() -> Images:
  return load('digits')


@pytest.fixture(scope='session')
def make_lab(digits) -> Callable[[Search, int], Lab]:
  """Opens a search on the digits for a number of devices."""

  def make(settings: Search, num_devices: int) -> Lab:
    searcher = Searcher.open(settings, digits, make_mesh(num_devices))
    return Lab(searcher, searcher.place([settings.task.halves(digits, settings, settings.seed)]))

  return make


@pytest.fixture(scope='module')
def states(lab) -> list[SearchState]:
  """Before the first of four steps of the file's `lab`, and after each of them, on the host."""
  state = lab.searcher.init(lab.searcher.keys())
  found = [jax.device_get(state)]
  for _ in range(4):
    state, _ = lab.searcher.run(state, lab.data, np.int32(1))
    found.append(jax.device_get(state))
  return found
