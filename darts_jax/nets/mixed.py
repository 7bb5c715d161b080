"""Checks mixing weights for a cell, and removes operations that are not computed."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.spaces import CellSpec, Mixing

Array = jax.Array


class Weights(NamedTuple):
  """The mixing weights of a cell, without operations that are not computed.

  Attributes:
    operations: `[E, O]`; 0, with derivative 0, where an operation is not computed.
    edges: `[E]`; None if all are 1.
    constants: `[E]`: constant that replaces the operations of an edge that are not computed, added to every pixel;
      None for nothing.
  """

  operations: Array
  edges: Array | None = None
  constants: Array | None = None

  def constant_of(self, rows: Sequence[int]) -> Array | None:
    """The constant, `[]`, that is added to every pixel of the sum of the edges `rows`; None for nothing."""
    if self.constants is None:
      return None
    constants = self.constants if self.edges is None else self.constants * self.edges
    return jnp.sum(constants[np.array(rows, int)])


def weights_of(mixing: Mixing | Array, spec: CellSpec) -> Weights:
  """Checks mixing weights and removes operations that are not computed.

  Args:
    mixing: mixing weights of a kind of cell, or the weights of operations alone, `[E, O]`.
    spec: spec of the cell.

  Raises:
    AssertionError: an array has another shape than the cell needs, or flags are not bool.
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
