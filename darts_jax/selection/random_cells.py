"""Random architectures of a search space: the baseline that a search has to beat."""

import numpy as np

from darts_jax.spaces import CellSpace, Genotype


def random_genotype(space: CellSpace, seed: int, number: int) -> Genotype:
  """An architecture drawn uniformly, see `CellSpace.sample`.

  Args:
    space: the search space.
    seed: any non-negative integer.
    number: of the architecture; each number of a seed is another draw.
  """
  return space.sample(np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(number,)))))
