"""Random architectures of a search space: the baseline that a search has to beat."""

from typing import Protocol

import numpy as np

from darts_jax.genotype import NUM_INPUTS, Genotype, Pairs


class Cells(Protocol):
  """The cells of a search space, such as those of `darts_jax.search.settings.Network`."""

  @property
  def nodes(self) -> int:
    """Intermediate nodes a cell."""

  @property
  def operations(self) -> tuple[str, ...]:
    """Candidate operations of every edge."""


def random_genotype(cells: Cells, seed: int, number: int) -> Genotype:
  """A cell of each kind, drawn uniformly: for every node two earlier nodes, and an operation on each edge.

  Args:
    cells: whose operations and nodes are those of the search space; `none` is not drawn.
    seed: any non-negative integer.
    number: of the architecture; each number of a seed is another draw.
  """
  operations = [operation for operation in cells.operations if operation != 'none']
  generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(number,))))

  def cell() -> Pairs:
    pairs = []
    for node in range(NUM_INPUTS, NUM_INPUTS + cells.nodes):
      sources = sorted(int(source) for source in generator.choice(node, size=2, replace=False))
      pairs += [(operations[int(generator.integers(len(operations)))], source) for source in sources]
    return tuple(pairs)

  concat = tuple(range(NUM_INPUTS, NUM_INPUTS + cells.nodes))
  return Genotype(cell(), concat, cell(), concat)
