"""The convolutional space of DARTS: a normal and a reduction cell, two edges per node [DARTS §2.1, §3.1.1].

Nodes 0 and 1 of a cell are its inputs, the outputs of the two cells before it; the output concatenates nodes. Earlier
papers have cells of this form with other operations [NASNet].

Sources: [DARTS] arXiv 1806.09055, [NASNet] arXiv 1707.07012.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from darts_jax import limits
from darts_jax.settings import setting
from darts_jax.spaces.cells import CellSpace, CellSpec, Genotype, full_cell
from darts_jax.spaces.checks import (
  Pairs,
  check_fields,
  check_nodes,
  check_operations,
  check_outputs,
  flattened,
  in_nodes,
  parse_outputs,
  parse_pairs,
)
from darts_jax.spaces.look import Look
from darts_jax.spaces.operations import OPERATIONS

#: The default candidates, in the order of the columns of α [DARTS §3.1.1].
CANDIDATES = (
  'none',
  'max_pool_3x3',
  'avg_pool_3x3',
  'skip_connect',
  'sep_conv_3x3',
  'sep_conv_5x5',
  'dil_conv_3x3',
  'dil_conv_5x5',
)

_INPUTS = _KEPT = 2
_CELLS = ('normal', 'reduce')
_FIELDS = ('normal', 'normal_concat', 'reduce', 'reduce_concat')


@dataclasses.dataclass(frozen=True)
class Darts(CellSpace):
  """The space of two cells, in which every node reads all earlier nodes through all operations.

  Attributes:
    nodes: number of intermediate nodes of a cell; 4 in the paper, which gives 2+3+4+5 = 14 edges.
    operations: candidate operations, names in `OPERATIONS`, the columns of α. `none` may be among them.

  Raises:
    ValueError: an operation is unknown or listed twice, only `none` is given, or there are too few or too many nodes.
  """

  name: ClassVar[str] = 'darts'
  kind: ClassVar[str] = 'convolutional'
  look: ClassVar[Look] = Look(
    titles={'normal': 'Normal cell', 'reduce': 'Reduction cell'}, inputs=('c_{k-2}', 'c_{k-1}'), output='c_{k}'
  )
  known_operations: ClassVar[Collection[str] | None] = OPERATIONS

  nodes: int = setting(4, at_least=1, at_most=limits.NODES)
  operations: tuple[str, ...] = setting(CANDIDATES)

  def __post_init__(self) -> None:
    check_operations(self.operations, OPERATIONS, 'operations')
    _cell(self.operations, self.nodes)

  @functools.cached_property
  def cells(self) -> Mapping[str, CellSpec]:
    """The normal and the reduction cell, which have the same spec."""
    return dict.fromkeys(_CELLS, _cell(self.operations, self.nodes))

  def to_json(self, arch: Genotype) -> dict[str, Any]:
    """The pairs and the concatenated nodes of both cells, as papers publish them."""
    values: dict[str, Any] = {}
    for name in _CELLS:
      cell = arch.cell(name)
      values[name], values[f'{name}_concat'] = [list(pair) for pair in cell.pairs], list(cell.outputs)
    return values

  def from_json(self, values: Any) -> Genotype:
    """See `Space`; the cells may have any number of nodes and any of `OPERATIONS`."""
    check_fields(values, _FIELDS)
    fields: dict[str, Any] = {}
    for name in _CELLS:
      fields[name] = parse_pairs(flattened(values[name], _KEPT, _INPUTS, name), name)
      fields[f'{name}_concat'] = parse_outputs(values[f'{name}_concat'], f'{name}_concat')
    return genotype(**fields)


def genotype(normal: Pairs, normal_concat: Sequence[int], reduce: Pairs, reduce_concat: Sequence[int]) -> Genotype:
  """An architecture in the form in which papers publish it.

  Args:
    normal: `(operation, source)` pairs of the normal cell, two per node, node by node.
    normal_concat: nodes whose channels the normal cell concatenates.
    reduce: `(operation, source)` pairs of the reduction cell.
    reduce_concat: nodes whose channels the reduction cell concatenates.

  Raises:
    ValueError: an operation is unknown, a pair reads a node that is not earlier, a node has one pair only or two
      of `none`, or a concatenated node does not exist.
  """
  cells = []
  for name, pairs, outputs in zip(_CELLS, (normal, reduce), (normal_concat, reduce_concat), strict=True):
    if not pairs or len(pairs) % _KEPT:
      raise ValueError(f'{name}: {len(pairs)} pairs; a cell lists two (operation, source) pairs a node')
    nodes = in_nodes(pairs, _KEPT)
    check_nodes(nodes, _INPUTS, OPERATIONS, name)
    for node, arriving in enumerate(nodes, _INPUTS):
      # The state of such a node would be zero.
      if all(operation == 'none' for operation, _ in arriving):
        raise ValueError(f"{name}: node {node}: both operations are 'none'; one of them may be")
    check_outputs(outputs, _INPUTS, len(nodes), f'{name}_concat')
    cells.append((name, _cell(CANDIDATES, 1).discrete(nodes, tuple(outputs))))
  return Genotype(Darts.name, tuple(cells))


def _cell(operations: Sequence[str], nodes: int) -> CellSpec:
  return full_cell(operations, nodes, num_inputs=_INPUTS, output='concat', kept=_KEPT)
