"""DARTS: a softmax over candidate operations on every edge, read off by largest weights [DARTS §2.2–2.4]."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from darts_jax import relaxation
from darts_jax.derive import derive_genotype
from darts_jax.genotype import AnyGenotype, CellSpec
from darts_jax.search.strategy import Alphas

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Darts:
  """The strategy of the paper (see `darts_jax.search.strategy.Strategy`).

  Attributes:
    specs: cell specs of the supernet.
    init_scale: α start at so many times a standard normal.
  """

  specs: Mapping[str, CellSpec]
  init_scale: float = 1e-3

  def init(self, key: Array) -> Alphas:
    """α = `init_scale` · N(0, 1)."""
    keys = jax.random.split(key, len(self.specs))
    return {
      name: self.init_scale * jax.random.normal(k, (spec.num_edges, len(spec.operations)))
      for k, (name, spec) in zip(keys, sorted(self.specs.items()), strict=True)
    }

  def relax(self, alphas: Alphas, key: Array, step: Array) -> Alphas:
    """The softmax of every edge, the same at every step."""
    del key, step
    return jax.tree.map(relaxation.softmax, alphas)

  def derive(self, alphas: Mapping[str, ArrayLike]) -> AnyGenotype:
    """The two strongest edges of every node, or in a recurrent cell the strongest, with their best operations."""
    return derive_genotype({name: relaxation.softmax(jnp.asarray(alphas[name])) for name in self.specs}, self.specs)
