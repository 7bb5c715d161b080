"""DARTS: a softmax over candidate operations on every edge, read off by largest weights [DARTS §2.2–2.4]."""

import dataclasses
from typing import ClassVar

from darts_jax.spaces.cells import CellSpace, Genotype
from darts_jax.spaces.doubts import Doubts, doubts
from darts_jax.strategies.relaxation import Softmax, preferences
from darts_jax.strategies.relaxed import Arch, Memory


@dataclasses.dataclass(frozen=True)
class Darts(Softmax):
  """The strategy of the paper, whose temperature is 1; architectures are read at that temperature in any case."""

  name: ClassVar[str] = 'darts'

  def read(self, arch: Arch, space: CellSpace, memory: Memory) -> Genotype:
    """The strongest edges of every node with their best operations."""
    del memory
    return space.strongest(preferences(arch, space))

  def doubts(self, before: Arch, after: Arch, space: CellSpace) -> Doubts:
    """What another epoch like the last one could change."""
    found = preferences(before, space), preferences(after, space)
    return doubts(*found, space.cells, keeps_none=space.keeps_none)
