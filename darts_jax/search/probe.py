"""Answers about a supernet that strategies ask for after an epoch: its curvature, and evaluations at mixing weights."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from darts_jax.hypergradient.lanczos import Tridiagonal
from darts_jax.runtime import processes
from darts_jax.search.searcher import Searcher
from darts_jax.search.state import SearchState
from darts_jax.spaces import Mixing
from darts_jax.strategies.relaxed import Probe
from darts_jax.tasks import Feed
from darts_jax.tasks.base import Note


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Runs programs of a search, or of searches side by side, on one state and fetches their results.

  Attributes:
    searcher: the search.
    state: after an epoch.
    step: steps taken by then.
    feed: hands over the data.
    note: see `darts_jax.tasks.base.Note`.
    compiled: gets a name, a function and its arguments, and returns the compiled program.
  """

  searcher: Searcher
  state: SearchState
  step: int
  feed: Feed
  note: Note
  compiled: Callable[..., Any]

  def over(self, name: str, function: Any, *further: Any) -> Any:
    """The result of a function of state, data and further arguments on the whole architecture half."""
    parts = (self._fetched(name, function, data, *further) for data in self.feed.evaluation(self.step, self.note))
    return functools.reduce(functools.partial(jax.tree.map, np.add), parts)

  def latest(self, name: str, function: Any) -> Any:
    """The result of a function of state and data that reads the batch of the latest step at which α moved."""
    step = self.searcher.latest_update(self.step)
    return self._fetched(name, function, self.feed.at(step, self.state.key, self.note))

  def _fetched(self, name: str, function: Any, *further: Any) -> Any:
    arguments = self.state, *further
    return processes.fetch(self.compiled(name, function, *arguments)(*arguments))


class SupernetProbe(Probe):
  """See `Probe`; it is about one state of one search."""

  def __init__(self, evaluator: Evaluator, index: int | None = None) -> None:
    """Computes nothing.

    Args:
      evaluator: of the search, or the searches side by side.
      index: which one of several searches it is about; None if there is one.
    """
    self._evaluator, self._searcher, self._index = evaluator, evaluator.searcher, index

  def curvature(self) -> float:
    """See `Probe`."""
    found: Tridiagonal = self._own(self._evaluator.latest('curvature', self._searcher.curvature))
    return found.largest()

  def measure(self, mixing: Mapping[str, Mixing]) -> dict[str, float]:
    """See `Probe`."""
    given = jax.tree.map(_as_float32, dict(mixing))
    found = self._evaluator.over('evaluation at given mixing weights', self._searcher.measure, given)
    return self._searcher.learner.metrics(self._own(found))

  def _own(self, found: Any) -> Any:
    return found if self._index is None else jax.tree.map(lambda x: x[self._index], found)


def _as_float32(x: Any) -> np.ndarray:
  x = np.asarray(x)
  return x if x.dtype == bool else x.astype(np.float32)
