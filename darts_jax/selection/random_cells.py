"""Random architectures of a search space, a baseline for searches."""

import numpy as np

from darts_jax.spaces import CellSpace, Genotype


def random_genotype(space: CellSpace, seed: int, number: int) -> Genotype:
  """Draws an architecture uniformly, see `CellSpace.sample`.

  Args:
    space: the search space.
    seed: any non-negative integer.
    number: number of the architecture; different numbers are independent draws.
  """
  return space.sample(np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(number,)))))
