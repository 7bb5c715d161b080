"""Strategies, which find architectures: one file per method, under the names that configs use.

A relaxed strategy has architecture parameters, which gradients move inside the compiled step of a search (`relaxed`). A
sampled strategy proposes the next architecture, given the rewards of earlier ones (`sampled`). A user adds a strategy
with `STRATEGIES['mine'] = Mine`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from darts_jax.strategies.darts import Darts
from darts_jax.strategies.gdas import Gdas
from darts_jax.strategies.pc_darts import PcDarts
from darts_jax.strategies.random_search import RandomSearch
from darts_jax.strategies.regularized_evolution import RegularizedEvolution
from darts_jax.strategies.relaxed import Relaxed
from darts_jax.strategies.robust_darts import RobustDarts
from darts_jax.strategies.sampled import Sampled
from darts_jax.strategies.sgas import Sgas

T = TypeVar('T')

STRATEGIES: dict[str, type[Relaxed] | type[Sampled[Any]]] = {
  'darts': Darts,
  'sgas': Sgas,
  'gdas': Gdas,
  'pc_darts': PcDarts,
  'robust_darts': RobustDarts,
  'random_search': RandomSearch,
  'regularized_evolution': RegularizedEvolution,
}


class _Strategies(Mapping[str, type[T]]):
  """A view of the strategies of one contract, including those that are added later."""

  def __init__(self, contract: type[T]) -> None:
    self._contract = contract

  def __getitem__(self, name: str) -> type[T]:
    kind = STRATEGIES[name]
    if not issubclass(kind, self._contract):
      raise KeyError(name)
    return kind

  def __iter__(self) -> Iterator[str]:
    return (name for name, kind in STRATEGIES.items() if issubclass(kind, self._contract))

  def __len__(self) -> int:
    return sum(1 for _ in self)


#: The relaxed and the sampled strategies by name.
RELAXED: Mapping[str, type[Relaxed]] = _Strategies(Relaxed)  # type: ignore[type-abstract]
SAMPLED: Mapping[str, type[Sampled[Any]]] = _Strategies(Sampled)  # type: ignore[type-abstract]
