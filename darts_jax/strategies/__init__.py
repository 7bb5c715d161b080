"""Sampled strategies: which architecture is evaluated next, given how good the earlier ones were. No JAX is imported.

`STRATEGIES` has them by the names that configs use; a strategy of one's own is added with `STRATEGIES['mine'] = Mine`.
"""

from typing import Any

from darts_jax.strategies.random_search import RandomSearch
from darts_jax.strategies.regularized_evolution import RegularizedEvolution
from darts_jax.strategies.sampled import Sampled

STRATEGIES: dict[str, type[Sampled[Any]]] = {
  'random_search': RandomSearch,
  'regularized_evolution': RegularizedEvolution,
}
