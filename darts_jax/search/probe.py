"""The probe of a supernet: its curvature, and evaluations at given mixing weights, for a strategy after an epoch."""

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
  """Runs programs of a search, or of searches side by side, on one state and fetches their results to the host.

  Attributes:
    searcher: the compiled functions of the search.
    state: the state after an epoch.
    step: steps taken by then.
    feed: provides the data.
    note: logs an event; see `darts_jax.tasks.base.Note`.
    compiled: returns the compiled program for `(name, function, *arguments)`.
  """

  searcher: Searcher
  state: SearchState
  step: int
  feed: Feed
  note: Note
  compiled: Callable[..., Any]

  def over(self, name: str, function: Any, *further: Any) -> Any:
    """The sum of `function(state, data, *further)` over all parts of the architecture half."""
    parts = (self._fetched(name, function, data, *further) for data in self.feed.evaluation(self.step, self.note))
    return functools.reduce(functools.partial(jax.tree.map, np.add), parts)

  def latest(self, name: str, function: Any) -> Any:
    """The result of `function(state, data)` on the batches of the latest step at which α moved."""
    step = self.searcher.latest_update(self.step)
    return self._fetched(name, function, self.feed.at(step, self.state.key, self.note))

  def _fetched(self, name: str, function: Any, *further: Any) -> Any:
    arguments = self.state, *further
    return processes.fetch(self.compiled(name, function, *arguments)(*arguments))


class SupernetProbe(Probe):
  """The probe of one search at one state; see `Probe`."""

  def __init__(self, evaluator: Evaluator, index: int | None = None) -> None:
    """Keeps the arguments; computes nothing yet.

    Args:
      evaluator: runs the programs of the search, or of searches side by side.
      index: index of the search among those side by side; None for a single search.
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
