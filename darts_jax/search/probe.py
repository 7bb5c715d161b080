"""Answers about a supernet that strategies ask for after an epoch: its curvature, and evaluations at mixing weights."""

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


class SupernetProbe(Probe):
  """See `Probe`; it is about one state of one search."""

  def __init__(
    self, searcher: Searcher, state: SearchState, data: Any, compiled: Callable[..., Any], index: int | None = None
  ) -> None:
    """Computes nothing.

    Args:
      searcher: the search, or the searches side by side.
      state: after an epoch.
      data: on the devices.
      compiled: gets a name, a function and its arguments, and returns the compiled program.
      index: which one of several searches it is about; None if there is one.
    """
    self._searcher, self._state, self._data = searcher, state, data
    self._compiled, self._index = compiled, index

  def curvature(self) -> float:
    """See `Probe`."""
    found: Tridiagonal = self._run('curvature', self._searcher.curvature)
    return found.largest()

  def measure(self, mixing: Mapping[str, Mixing]) -> dict[str, float]:
    """See `Probe`."""
    found = self._run(
      'evaluation at given mixing weights', self._searcher.measure, jax.tree.map(_as_float32, dict(mixing))
    )
    return self._searcher.learner.metrics(found)

  def _run(self, name: str, function: Any, *further: Any) -> Any:
    arguments = self._state, self._data, *further
    found = processes.fetch(self._compiled(name, function, *arguments)(*arguments))
    return found if self._index is None else jax.tree.map(lambda x: x[self._index], found)


def _as_float32(x: Any) -> np.ndarray:
  x = np.asarray(x)
  return x if x.dtype == bool else x.astype(np.float32)
