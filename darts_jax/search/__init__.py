"""Searches: how weights and α move. `run` is a whole search, and `Searcher` its compiled functions."""

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
