"""From several architectures to one trained network, without a look at the test images until the end.

`run` is the paper's protocol of searches and trainings, `random_search.run` the search without any gradient.
"""

from darts_jax.runtime.loop import Diverged
from darts_jax.selection import random_search
from darts_jax.selection.page import markdown
from darts_jax.selection.random_cells import random_genotype
from darts_jax.selection.random_search import RandomSearchResult
from darts_jax.selection.settings import RandomSearch, Selection
from darts_jax.selection.stages import run
from darts_jax.selection.trials import Interrupted

__all__ = [
  'Diverged',
  'Interrupted',
  'RandomSearch',
  'RandomSearchResult',
  'Selection',
  'markdown',
  'random_genotype',
  'random_search',
  'run',
]
