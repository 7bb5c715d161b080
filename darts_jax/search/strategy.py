"""What a search strategy is: how architecture parameters become mixing weights and, in the end, a genotype.

A strategy is one file in this folder. It may shape α, the relaxation and the derivation, as pure functions;
it may not touch the weights, the optimisers or the data, which belong to the step and are the same for all.
"""

from collections.abc import Mapping
from typing import Protocol

import jax
from numpy.typing import ArrayLike

from darts_jax.genotype import AnyGenotype, CellSpec

Array = jax.Array
Alphas = dict[str, Array]


class Strategy(Protocol):
  """The contract."""

  @property
  def specs(self) -> Mapping[str, CellSpec]:
    """Cell specs of the supernet, `'normal'` and `'reduce'`, or `'recurrent'`."""
    ...

  def init(self, key: Array) -> Alphas:
    """The initial α of every kind of cell, `[E, O]` float32; consumes the key."""
    ...

  def relax(self, alphas: Alphas, key: Array, step: Array) -> Alphas:
    """Mixing weights `[E, O]` of every kind of cell.

    Traced and differentiated with respect to α. The key is one for all passes of a step, and is consumed; schedules
    are functions of the traced `step`, so that nothing recompiles.
    """
    ...

  def derive(self, alphas: Mapping[str, ArrayLike]) -> AnyGenotype:
    """The genotype that α stands for."""
    ...
