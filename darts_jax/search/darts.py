"""DARTS: a softmax over candidate operations on every edge, read off by largest weights [DARTS §2.2–2.4]."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from darts_jax import relaxation
from darts_jax.relaxation import Annealing
from darts_jax.search.strategy import Alphas, Strategy, normal_alphas
from darts_jax.spaces import CellSpace, Doubts, Genotype, doubts

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Darts(Strategy):
  """The strategy of the paper (see `darts_jax.search.strategy.Strategy`).

  Attributes:
    space: cells of the supernet.
    init_scale: α start at so many times a standard normal.
    temperature: of the softmax in the supernet; 1 in the paper. An architecture is derived at a temperature of 1.
  """

  space: CellSpace
  init_scale: float = 1e-3
  temperature: Annealing = Annealing()

  def init(self, key: Array) -> Alphas:
    """See `Strategy`."""
    return normal_alphas(key, self.space, self.init_scale)

  def temperature_at(self, step: int) -> float:
    """See `Strategy`."""
    return float(self.temperature.at(step))

  def over(self, num_steps: int) -> Self:
    """See `Strategy`."""
    return dataclasses.replace(self, temperature=self.temperature.over(num_steps))

  def relax(self, alphas: Alphas, key: Array, step: Array) -> Alphas:
    """The softmax of every edge."""
    del key
    return {name: relaxation.softmax(value, self.temperature.at(step)) for name, value in alphas.items()}

  def derive(self, alphas: Mapping[str, ArrayLike]) -> Genotype:
    """The strongest edges of every node, as many as it keeps, with their best operations."""
    return self.space.strongest(self._preferences(alphas))

  def doubts(self, before: Mapping[str, ArrayLike], after: Mapping[str, ArrayLike]) -> Doubts:
    """See `Strategy`."""
    space = self.space
    return doubts(self._preferences(before), self._preferences(after), space.cells, keeps_none=space.keeps_none)

  def _preferences(self, alphas: Mapping[str, ArrayLike]) -> Alphas:
    return {name: relaxation.softmax(jnp.asarray(alphas[name])) for name in self.space.cells}
