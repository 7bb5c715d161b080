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


@pytest.fixture(scope='session')
def check_in_any_call() -> Callable[[Lab, list[SearchState]], None]:
  """Checks that three steps in one call are those of three calls, so that a killed search draws the same again."""

  def check(lab: Lab, states: list[SearchState]) -> None:
    state, _ = lab.searcher.run(jax.device_put(states[1]), lab.data, np.int32(3))
    leaves = (jax.tree.leaves(each.replace(key=None)) for each in (state, states[4]))
    for a, b in zip(*leaves, strict=True):
      np.testing.assert_array_equal(a, b)

  return check


@pytest.fixture(scope='session')
def check_on_eight_devices(make_lab) -> Callable[[Search, list[SearchState]], None]:
  """Checks that eight devices take the four steps of one, but for rounding in sums of another order."""

  def check(settings: Search, states: list[SearchState]) -> None:
    wide = make_lab(settings, 8)
    state, _ = wide.searcher.run(wide.searcher.init(wide.searcher.keys()), wide.data, np.int32(4))
    for name, alphas in states[4].alphas.items():
      np.testing.assert_allclose(state.alphas[name], alphas, rtol=0, atol=1e-5)
    np.testing.assert_allclose(state.weights.vector, states[4].weights.vector, rtol=0, atol=1e-4)
    np.testing.assert_allclose(state.statistics.vector, states[4].statistics.vector, rtol=0, atol=1e-4)

  return check
