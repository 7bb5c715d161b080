"""A cell of a user's own modules on arrays of any shape, such as rows of a table: one module per edge and operation."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.nets.mixed import weights_of
from darts_jax.nets.operations import make_own, train_of
from darts_jax.runtime.packed import Packed
from darts_jax.spaces import CellSpec, Mixing
from darts_jax.spaces.operations import is_own

Array = jax.Array
PyTree = Any

_NAME = re.compile(r'(?P<kind>\w+)__(?P<source>\d+)_(?P<target>\d+)__(?P<operation>.+)')


class ArrayCell(nn.Module):
  """A cell, searched or discrete, as its spec says; images have the faster `nets.cell.Cell`.

  Its operations are `none`, `skip_connect`, and a user's own (see docs/operations.md), which map arrays
  `[N, …, features]` to arrays of the same shape; their stride is 1.

  Attributes:
    kind: name of the cell in the space.
    spec: nodes, edges and candidate operations. The inputs are the first nodes, without any preparation.
    features: size of the last axis of every node.
  """

  kind: str
  spec: CellSpec
  features: int

  @nn.compact
  def __call__(self, inputs: Sequence[Array], mixing: Mixing | Array | None = None, *, train: bool) -> Array:
    """Computes the cell.

    Args:
      inputs: `[N, …, features]` for each input.
      mixing: mixing weights; None for a discrete cell.
      train: whether the network is in training mode.

    Returns:
      `[N, …, D]`: the concatenation or the mean of the output nodes. `D` is `features` times their number if they are
      concatenated, otherwise `features`.

    Raises:
      ValueError: the cell has an operation for images, or a user's own operation cannot be made or changes the shape.
    """
    spec = self.spec
    if isinstance(mixing, Mixing) and mixing.drop is not None:
      raise ValueError('config.strategy: array cells have no drop path')
    weights = None if mixing is None else weights_of(mixing, spec)
    states = list(inputs)
    row = 0
    for edges in spec.nodes:
      target, total = len(states), jnp.zeros_like(states[0])
      for edge in edges:
        images = {name: self._image(name, edge.source, target, states[edge.source], train) for name in edge.operations}
        if weights is None:
          [message] = images.values()
        else:
          message = functools.reduce(
            jnp.add, (weights.operations[row, spec.operations.index(name)] * x for name, x in images.items())
          )
          if weights.constants is not None:
            message = message + weights.constants[row]
          if weights.edges is not None:
            message = weights.edges[row] * message
        total = total + message
        row += 1
      states.append(total / len(edges) if spec.merge == 'mean' and edges else total)
    found = [states[node] for node in spec.outputs]
    if spec.output == 'concat':
      return jnp.concatenate(found, axis=-1)
    return found[0] if len(found) == 1 else functools.reduce(jnp.add, found) / len(found)

  def _image(self, operation: str, source: int, target: int, x: Array, train: bool) -> Array:
    if operation == 'none':
      return jnp.zeros_like(x)
    if operation == 'skip_connect':
      return x
    if not is_own(operation):
      raise ValueError(
        f'operation {operation}: is for images; array cells have the operations none, skip_connect and your own'
      )
    module = make_own(operation, self.features, 1, f'{self.kind}__{source}_{target}__{operation}')
    image: Array = module(x, **train_of(module, train))
    if image.shape != x.shape:
      raise ValueError(f'operation {operation}: gives {image.shape} of {x.shape}; it has to be of the same shape')
    return image.astype(x.dtype)


def flagged(cells: Mapping[str, CellSpec], variables: PyTree, flags: Mapping[str, Any]) -> Any | None:
  """Flags for the packed variables of a network: False only for variables of operations that are not flagged.

  Args:
    cells: the network's cells by name.
    variables: variables of a network with array cells.
    flags: for each kind of cell, `[E, O]` bool; None if all operations of the cell are flagged.

  Returns:
    `[P]` bool, one entry per packed number; None if no kind of cell has flags.

  Raises:
    ValueError: the network has an array cell of a kind that `cells` lacks.
  """
  if all(each is None for each in flags.values()):
    return None
  rows = {name: {(edge.source, t): row for row, (t, edge) in enumerate(spec.edges)} for name, spec in cells.items()}

  def of_variable(path: Any, leaf: Any) -> Array:
    for key in path:
      found = _NAME.fullmatch(key.key)
      if found is not None and found['kind'] not in cells:
        raise ValueError(f'array cell {found["kind"]}: the space has no cell of this name, only {", ".join(cells)}')
      if found is not None and flags.get(found['kind']) is not None:
        row = rows[found['kind']][int(found['source']), int(found['target'])]
        column = cells[found['kind']].operations.index(found['operation'])
        return jnp.full(leaf.shape, flags[found['kind']][row, column])
    return jnp.ones(leaf.shape, bool)

  return Packed.pack(jax.tree_util.tree_map_with_path(of_variable, variables)).vector


def inherited(before: PyTree, after: PyTree) -> np.ndarray:
  """Indices, in the packed variables of a network with array cells, of the variables that a smaller network keeps.

  Args:
    before: variables of the network.
    after: variables of the network with fewer operations.

  Returns:
    `[P']` ascending indices.
  """
  left = {path for path, _ in jax.tree_util.tree_leaves_with_path(after)}
  flags = [np.full(leaf.size, path in left) for path, leaf in jax.tree_util.tree_leaves_with_path(before)]
  return np.flatnonzero(np.concatenate([np.zeros(0, bool), *flags]))
