"""DARTS: a softmax over the candidates of every edge; the largest weights make the architecture [DARTS §2.2–2.4]."""

import dataclasses
from typing import ClassVar

from darts_jax.spaces.cells import CellSpace, Genotype
from darts_jax.spaces.doubts import Doubts, doubts
from darts_jax.strategies.relaxation import Softmax, preferences
from darts_jax.strategies.relaxed import Arch, Memory


@dataclasses.dataclass(frozen=True)
class Darts(Softmax):
  """The strategy of the paper, where the temperature is 1; architectures are always derived at temperature 1."""

  name: ClassVar[str] = 'darts'

  def read(self, arch: Arch, space: CellSpace, memory: Memory) -> Genotype:
    """The strongest edges of every node, each with its best operation."""
    del memory
    return space.strongest(preferences(arch, space))

  def doubts(self, before: Arch, after: Arch, space: CellSpace) -> Doubts:
    """The edges and operations that another epoch like the last one could change."""
    found = preferences(before, space), preferences(after, space)
    return doubts(*found, space.cells, keeps_none=space.keeps_none)
