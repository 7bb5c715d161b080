"""The recurrent space of DARTS: one cell, whose nodes apply an activation to one earlier state each [DARTS §2.1].

Node 0 is a state computed from the input and the previous hidden state; the output is the mean of nodes.

Source: [DARTS] arXiv 1806.09055.
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
from darts_jax.spaces.operations import ACTIVATIONS as KNOWN

#: The default candidates, in the order of the columns of α [DARTS §3.1.2].
ACTIVATIONS = ('none', 'tanh', 'relu', 'sigmoid', 'identity')

_CELL = 'recurrent'
_FIELDS = (_CELL, 'concat')


@dataclasses.dataclass(frozen=True)
class Recurrent(CellSpace):
  """The space of one cell, in which every node reads all earlier states through all activations.

  Attributes:
    nodes: number of intermediate nodes; 8 in the paper, which gives 1+2+…+8 = 36 edges.
    operations: candidate activations, the columns of α. `none` may be among them.

  Raises:
    ValueError: an activation is unknown or listed twice, only `none` is given, or there are too few or too many nodes.
  """

  name: ClassVar[str] = 'recurrent'
  kind: ClassVar[str] = 'recurrent'
  task: ClassVar[str] = 'text'
  evaluation: ClassVar[str] = 'ptb_eval'
  look: ClassVar[Look] = Look(
    titles={_CELL: 'Recurrent cell'},
    output='h_t',
    inner='s',
    origins=('x_t', 'h_{t-1}'),
    legend=(
      'Blue boxes are states. The first is made from the word x and the last output h; any other is'
      ' s + σ(c)·(f(g) − s), with [c, g] = s·W, of the state s that its arrow comes from and the activation f on it.'
      ' Grey lines lead to the output, which is the mean of what arrives.'
    ),
  )
  identity: ClassVar[str] = 'identity'
  known_operations: ClassVar[Collection[str] | None] = KNOWN

  nodes: int = setting(8, at_least=1, at_most=limits.NODES)
  operations: tuple[str, ...] = setting(ACTIVATIONS)

  def __post_init__(self) -> None:
    check_operations(self.operations, KNOWN, 'operations')
    _cell(self.operations, self.nodes)

  @functools.cached_property
  def cells(self) -> Mapping[str, CellSpec]:
    """The recurrent cell."""
    return {_CELL: _cell(self.operations, self.nodes)}

  def to_json(self, arch: Genotype) -> dict[str, Any]:
    """The pairs, one per node, and the averaged nodes, as papers publish them."""
    cell = arch.cell(_CELL)
    return {_CELL: [list(pair) for pair in cell.pairs], 'concat': list(cell.outputs)}

  def from_json(self, values: Any) -> Genotype:
    """See `Space`; the cell may have any number of nodes and any known activation other than `none`."""
    check_fields(values, _FIELDS)
    pairs = parse_pairs(flattened(values[_CELL], 1, 1, _CELL), _CELL)
    return genotype(pairs, parse_outputs(values['concat'], 'concat'))


def genotype(recurrent: Pairs, concat: Sequence[int]) -> Genotype:
  """An architecture in the form in which papers publish it.

  Args:
    recurrent: `(activation, source)` pairs, one per node; source 0 is the state computed from the input.
    concat: indices of the nodes whose mean is the output.

  Raises:
    ValueError: an activation is unknown, a pair reads a node that is not earlier, or an averaged node does not exist.
  """
  if not recurrent:
    raise ValueError('recurrent: 0 pairs; a cell lists one (activation, source) pair a node')
  # `none` is not allowed, since the state of such a node would be zero.
  nodes = in_nodes(recurrent, 1)
  check_nodes(nodes, 1, [name for name in KNOWN if name != 'none'], _CELL)
  check_outputs(concat, 1, len(nodes), 'concat')
  cell = _cell(ACTIVATIONS, 1).discrete(nodes, tuple(concat))
  return Genotype(Recurrent.name, ((_CELL, cell),))


def _cell(operations: Sequence[str], nodes: int) -> CellSpec:
  return full_cell(operations, nodes, num_inputs=1, output='mean', kept=1)
