"""Gradient-based search: `run` is a whole search, and `Searcher` holds its compiled functions.

The package itself is callable: `darts_jax.search(…)` is `darts_jax.api.search`.
"""

from typing import Any

from darts_jax.runtime.callable import make_callable
from darts_jax.runtime.loop import Diverged
from darts_jax.search.loop import Result, check, run, run_side_by_side
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search
from darts_jax.search.state import SearchState

__all__ = [
  'Diverged',
  'Result',
  'Search',
  'SearchState',
  'Searcher',
  'check',
  'run',
  'run_side_by_side',
]


def _search(*args: Any, **kwargs: Any) -> Any:
  """See `darts_jax.api.search`."""
  from darts_jax import api  # Imported late, since it imports this package.

  return api.search(*args, **kwargs)


make_callable(__name__, _search)
