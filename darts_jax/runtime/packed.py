"""Pytrees of many small arrays as one vector."""

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
  """A pytree of arrays of one dtype, kept as one vector.

  A network has hundreds of small arrays. What treats them all alike (an optimiser, a norm, a checkpoint) takes one
  kernel for a vector and hundreds for them, each with its time to compile.

  Attributes:
    vector: `[P]`, the leaves in their order, each row by row.
    treedef: the pytree's structure.
    shapes: of the leaves.
  """

  vector: Array
  treedef: Any = dataclasses.field(metadata={'static': True})
  shapes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={'static': True})

  @classmethod
  def pack(cls, tree: PyTree) -> Self:
    """The pytree as one vector; one of NumPy arrays as a NumPy array."""
    leaves, treedef = jax.tree.flatten(tree)
    if not leaves:
      return cls(jnp.zeros(0), treedef, ())
    xp = np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp
    return cls(xp.concatenate([xp.ravel(leaf) for leaf in leaves]), treedef, tuple(leaf.shape for leaf in leaves))

  @property
  def tree(self) -> PyTree:
    """The pytree; of NumPy arrays if the vector is one."""
    sizes = [math.prod(shape) for shape in self.shapes]
    leaves: Any = []
    if not sizes:
      return jax.tree.unflatten(self.treedef, leaves)
    if isinstance(self.vector, np.ndarray):
      leaves = np.split(self.vector, np.cumsum(sizes)[:-1])
    else:
      leaves = lax.split(self.vector, sizes)
    return jax.tree.unflatten(self.treedef, [x.reshape(s) for x, s in zip(leaves, self.shapes, strict=True)])

  def replace(self, vector: Array) -> Self:
    """Another pytree of this structure."""
    return dataclasses.replace(self, vector=vector)
