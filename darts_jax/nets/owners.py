"""The owners of a supernet's packed variables: the operation and the edge that each number belongs to.

The parameters of a supernet are one vector, its running statistics another (`darts_jax.runtime.packed`). The variables
of a pruned supernet are those numbers of the vectors that belong to remaining operations, in the same order.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.nets.cell import node_operations, operation_groups
from darts_jax.nets.conv import Supernet
from darts_jax.nets.parts import Parts, Path, noting
from darts_jax.runtime.packed import Packed
from darts_jax.spaces import CellSpec

Array = jax.Array
PyTree = Any


class Owner(NamedTuple):
  """An operation on an edge, or on several edges that share a number (BN statistics of a pool).

  Attributes:
    cell: the kind of cell.
    edges: rows of the mixing weights.
    operation: column of the mixing weights.
  """

  cell: str
  edges: tuple[int, ...]
  operation: int


@dataclasses.dataclass(frozen=True)
class Owners:
  """The owners of all numbers of a vector; all layers with cells of one kind have the same owners.

  Attributes:
    entries: `[P]` int32: for every number, the index of its owner in `owners`; −1 if it belongs to no operation.
    owners: the owners, without duplicates.
  """

  entries: np.ndarray
  owners: tuple[Owner, ...]

  def flagged(self, flags: Mapping[str, Any]) -> Any:
    """Flags the numbers that belong to flagged operations.

    Args:
      flags: for each kind of cell, `[E, O]` bool: a flag for every operation on every edge.

    Returns:
      `[P]` bool, a NumPy array if all flags are NumPy arrays. Numbers that edges share are flagged if one of the edges
      is; numbers that belong to no operation are always flagged.
    """
    xp: Any = np if all(isinstance(each, np.ndarray) for each in flags.values()) else jnp
    starts, total = {}, 0
    for name, each in flags.items():
      starts[name] = total
      total += each.size
    columns = {name: each.shape[1] for name, each in flags.items()}
    most = max((len(owner.edges) for owner in self.owners), default=1)
    # Padded with copies of the first place, which do not change `any`.
    places = np.zeros((len(self.owners), most), np.int32)
    for row, (cell, edges, operation) in zip(places, self.owners, strict=True):
      found = [starts[cell] + edge * columns[cell] + operation for edge in edges]
      row[:] = found + found[:1] * (most - len(found))
    flat = xp.concatenate([xp.asarray(each).reshape(-1) for each in flags.values()])
    # Entries of −1 index the last one.
    by_owner = xp.concatenate([flat[places].any(axis=1), xp.ones(1, bool)])
    return by_owner[self.entries]


def owners(net: Supernet, variables: PyTree) -> Owners:
  """The owners of packed variables, from the structure of a supernet; no network is evaluated.

  Args:
    net: the supernet.
    variables: its parameters or its running statistics: arrays, or shapes, nested by module as in Flax.
  """
  specs = dict(net.cells)
  nodes = {
    (f'cell{index}', f'node{source}'): (layer, source)
    for index, layer in enumerate(net.plan.layers)
    if layer.cell in specs
    for source in range(specs[layer.cell].num_inputs + len(specs[layer.cell].nodes))
  }
  places: dict[Owner, int] = {}

  def of_variable(keys: Sequence[Any], leaf: Any) -> np.ndarray:
    path = tuple(key.key for key in keys)
    if path[:2] not in nodes:
      return np.full(leaf.shape, -1, np.int32)
    layer, source = nodes[path[:2]]
    spec = specs[layer.cell]
    groups = operation_groups(spec, source)
    parts = _parts_of(_noted(spec, source, layer.stride, layer.channels * net.channels), path[2:])
    if parts.member is not None:
      [(operation, _)] = parts.counts
      owner = Owner(layer.cell, (groups[operation][parts.member][0],), spec.operations.index(operation))
      return np.full(leaf.shape, places.setdefault(owner, len(places)), np.int32)
    labels = []
    for operation, count in parts.counts:
      edges = tuple(edge for edge, _ in groups[operation])
      for some in [(edge,) for edge in edges] if count == len(edges) else [edges]:
        owner = Owner(layer.cell, some, spec.operations.index(operation))
        labels.append(places.setdefault(owner, len(places)))
    # One label per part, repeated over the part and over all other axes.
    along = np.repeat(np.array(labels, np.int32), leaf.shape[parts.axis] // len(labels))
    axes = [-1 if axis == parts.axis else 1 for axis in range(len(leaf.shape))]
    return np.broadcast_to(along.reshape(axes), leaf.shape)

  entries: Any = Packed.pack(jax.tree_util.tree_map_with_path(of_variable, variables)).vector
  return Owners(entries, tuple(places))


def flagged(net: Supernet, variables: PyTree, flags: Mapping[str, Any]) -> Any | None:
  """Flags the packed variables of a supernet that belong to flagged operations.

  Args:
    net: the supernet.
    variables: see `owners`.
    flags: for each kind of cell, `[E, O]` bool; None if all operations of the cell are flagged.

  Returns:
    See `Owners.flagged`; None if no kind of cell has flags.
  """
  if all(each is None for each in flags.values()):
    return None
  shapes = {name: (spec.num_edges, len(spec.operations)) for name, spec in net.cells}
  whole = {name: np.ones(shape, bool) if flags[name] is None else flags[name] for name, shape in shapes.items()}
  return owners(net, variables).flagged(whole)


def left(before: CellSpec, after: CellSpec) -> np.ndarray:
  """Flags the operations of a searched cell that remain in a pruned cell.

  Args:
    before: the cell.
    after: the pruned cell; its edges are edges of `before`, with some of their operations.

  Returns:
    `[E, O]` bool, with the edges and operations of `before`.

  Raises:
    ValueError: the pruned cell has an edge or an operation that `before` lacks.
  """
  rows = {(edge.source, target): row for row, (target, edge) in enumerate(before.edges)}
  found = np.zeros((before.num_edges, len(before.operations)), bool)
  for target, edge in after.edges:
    row = rows.get((edge.source, target))
    for operation in edge.operations:
      if row is None or operation not in before.edges[row][1].operations:
        raise ValueError(f'edge {edge.source} → {target}: {operation} is new; a cell can only lose operations')
      found[row, before.operations.index(operation)] = True
  return found


@functools.cache
def _noted(spec: CellSpec, source: int, stride: int, channels: int) -> Mapping[Path, Parts]:
  """How the variables of a node are divided, by their paths within the module of the node."""
  operations = node_operations(spec, source, stride=stride, discrete=False)
  # Without jit, a node that was traced before is traced again and notes its parts.
  with noting() as found, jax.disable_jit():
    jax.eval_shape(lambda: operations.init(jax.random.key(0), jnp.zeros((1, 4, 4, channels)), train=False))
  return found


def _parts_of(noted: Mapping[Path, Parts], path: Path) -> Parts:
  """The note of a variable, or of the module that it belongs to."""
  return next(noted[path[:length]] for length in range(len(path), 0, -1) if path[:length] in noted)
