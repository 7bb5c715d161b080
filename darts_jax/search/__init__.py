"""Searches: how weights and α move. `run` is a whole search; `ImageSearcher` and `TextSearcher` its compiled parts."""

from darts_jax.runtime.loop import Diverged
from darts_jax.search.images import ImageSearcher
from darts_jax.search.loop import Result, check, is_random, run, run_side_by_side
from darts_jax.search.settings import RecurrentSearch, Search
from darts_jax.search.state import SearchState
from darts_jax.search.text import TextSearcher

__all__ = [
  'Diverged',
  'ImageSearcher',
  'RecurrentSearch',
  'Result',
  'Search',
  'SearchState',
  'TextSearcher',
  'check',
  'is_random',
  'run',
  'run_side_by_side',
]
