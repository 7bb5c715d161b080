"""How a cell reads mixing weights: their shapes are checked, and what is not computed is left out."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.spaces import CellSpec, Mixing

Array = jax.Array


class Weights(NamedTuple):
  """The weights of a cell.

  Attributes:
    operations: `[E, O]`; 0, also to derivatives, where an operation is not computed.
    edges: `[E]`; None if all are 1.
    constants: `[E]`, what is added to every pixel of an edge in place of operations that are not computed; None for
      nothing.
  """

  operations: Array
  edges: Array | None = None
  constants: Array | None = None

  def constant_of(self, rows: Sequence[int]) -> Array | None:
    """`[]`: what is added to every pixel of the sum of edges, of which the rows are given; None for nothing."""
    if self.constants is None:
      return None
    constants = self.constants if self.edges is None else self.constants * self.edges
    return jnp.sum(constants[np.array(rows, int)])


def weights_of(mixing: Mixing | Array, spec: CellSpec) -> Weights:
  """The weights of a cell from mixing weights, or from those of operations alone, `[E, O]`.

  Raises:
    AssertionError: an array of the mixing weights has another shape than the cell asks for, or flags are no bool.
  """
  mixing = mixing if isinstance(mixing, Mixing) else Mixing(mixing)
  edges, columns = spec.num_edges, len(spec.operations)
  message = f'mixing weights of a cell with {edges} edges and {columns} operations'
  chex.assert_shape(mixing.operations, (edges, columns), custom_message=message)
  if mixing.edges is not None:
    chex.assert_shape(mixing.edges, (edges,), custom_message=message)
  if mixing.drop is not None:
    chex.assert_shape(mixing.drop, (edges,), custom_message=message)
  for flags in (mixing.active, mixing.computed):
    if flags is not None:
      chex.assert_shape(flags, (edges, columns), custom_message=message)
      chex.assert_type(flags, bool, custom_message=message)
  if mixing.computed is None:
    return Weights(mixing.operations, mixing.edges)
  operations = jnp.where(mixing.computed, mixing.operations, 0)
  if mixing.constant is None:
    return Weights(operations, mixing.edges)
  chex.assert_rank(mixing.constant, 0, custom_message=message)
  left_out = jnp.sum(jnp.where(mixing.computed, 0, mixing.operations), axis=1)
  return Weights(operations, mixing.edges, mixing.constant * left_out)
