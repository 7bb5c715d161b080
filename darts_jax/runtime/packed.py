"""Packs pytrees of many small arrays into one vector."""

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
  """A pytree of arrays of one dtype, stored as one vector.

  A network has hundreds of small arrays. Operations on all of them (an optimizer, a norm, a checkpoint) are one kernel
  for a vector, but hundreds of kernels for the arrays, each of which has to be compiled.

  Attributes:
    vector: `[P]`, the raveled leaves, concatenated.
    treedef: structure of the pytree.
    shapes: shapes of the leaves.
  """

  vector: Array
  treedef: Any = dataclasses.field(metadata={'static': True})
  shapes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={'static': True})

  @classmethod
  def pack(cls, tree: PyTree) -> Self:
    """Packs a pytree; the vector is a NumPy array if all leaves are NumPy arrays."""
    leaves, treedef = jax.tree.flatten(tree)
    if not leaves:
      return cls(jnp.zeros(0), treedef, ())
    xp = np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp
    return cls(xp.concatenate([xp.ravel(leaf) for leaf in leaves]), treedef, tuple(leaf.shape for leaf in leaves))

  @property
  def tree(self) -> PyTree:
    """The pytree; its leaves are NumPy arrays if the vector is a NumPy array."""
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
    """A packed pytree of the same structure with another vector."""
    return dataclasses.replace(self, vector=vector)
