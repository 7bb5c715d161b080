"""NAS-Bench-201: one cell of four nodes with an operation on each of its six edges, 15,625 architectures in all.

Node 0 is the input, every later node sums the edges from all earlier nodes, and the last node is the output. An edge
may have the operation `none`, which outputs zeros, so some architectures do not connect the input with the output.

Source: [NB201] arXiv 2001.00326, §2.1.
"""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from darts_jax.runtime.files import one_line
from darts_jax.settings import setting
from darts_jax.spaces.cells import CellSpace, CellSpec, Genotype, full_cell
from darts_jax.spaces.checks import suggest
from darts_jax.spaces.look import Look
from darts_jax.spaces.plan import Plan, stages

#: The candidates of every edge, in the order of the columns of α.
OPERATIONS = ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3', 'avg_pool_3x3')
#: Name of the only kind of cell.
CELL = 'cell'

_SPEC = dataclasses.replace(
  full_cell(OPERATIONS, 3, num_inputs=1, output='last', kept=None), preparation='none', pools_normalised=False
)
_OUTPUT = _SPEC.outputs[0]
_TEXT = re.compile(r'\|(\w+)~0\|\+\|(\w+)~0\|(\w+)~1\|\+\|(\w+)~0\|(\w+)~1\|(\w+)~2\|', re.ASCII)
_FORM = '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|'


@dataclasses.dataclass(frozen=True)
class NasBench201(CellSpace):
  """The search space of NAS-Bench-201.

  Attributes:
    table: folder with the benchmark's results (see `darts_jax.spaces.nasbench201_table`), from which a search logs the
      true accuracy of its architecture after every epoch; empty for none. No strategy reads it.
  """

  name: ClassVar[str] = 'nasbench201'
  evaluation: ClassVar[str] = 'nasbench201_eval'
  defaults: ClassVar[Mapping[str, Any]] = MappingProxyType(
    {
      'network': {'channels': 16, 'layers': 15, 'stem_multiplier': 1},
      # The published code evaluates supernets with the statistics of each batch.
      'batch_norm': {'tracked': False},
    }
  )
  look: ClassVar[Look] = Look(
    titles={CELL: 'Cell'},
    inputs=('input',),
    legend='Blue boxes are nodes, which add what arrives; the last one is the output.',
  )

  table: str = setting('')

  @property
  def cells(self) -> Mapping[str, CellSpec]:
    """The searched cell."""
    return {CELL: _SPEC}

  def plan(self, num_layers: int) -> Plan:
    """Three stages of `num_layers / 3` cells each, with residual blocks between them; see `stages`."""
    return stages(num_layers, CELL)

  def judge(self, dataset: str) -> Callable[[Genotype], Mapping[str, float]] | None:
    """See `CellSpace`; looks up test accuracies after 200 epochs in the table. None without a table.

    The accuracies are those on `dataset`, or on CIFAR-10 if the table does not have it. The function returns
    `true_accuracy` of the architecture and its `true_rank`, 1 for the best one; and for comparison the largest accuracy
    of all architectures, `true_optimum`, and their mean, `true_mean`.
    """
    if not self.table:
      return None
    from darts_jax.spaces.nasbench201_table import DATASETS, Accuracies, Table  # Imported late: it imports this module.

    table = Table.read(self.table, 'config.space.table')
    column = DATASETS.index(dataset) if dataset in DATASETS else 0
    values = table.values[:, column, Accuracies._fields.index('test_200')]

    def known(arch: Genotype) -> Mapping[str, float]:
      accuracy = float(values[self.index(arch)])
      rank = 1 + int(np.sum(values > accuracy))
      optimum, mean = float(values.max()), float(values.mean())
      return {'true_accuracy': accuracy, 'true_rank': rank, 'true_optimum': optimum, 'true_mean': mean}

    return known

  @property
  def keeps_none(self) -> bool:
    """True: edges may have the operation `none`."""
    return True

  @property
  def size(self) -> int:
    """Number of architectures."""
    return len(OPERATIONS) ** _SPEC.num_edges

  def all(self) -> Iterator[Genotype]:
    """Yields all architectures, sorted by the operation of the first edge, then of the second, and so on."""
    for operations in itertools.product(OPERATIONS, repeat=_SPEC.num_edges):
      yield self._of(operations)

  def index(self, arch: Genotype) -> int:
    """The index of an architecture in the order of `all`."""
    return place(self.operations(arch))

  def operations(self, arch: Genotype) -> tuple[str, ...]:
    """The operation of each edge, in the order of the rows of α.

    Raises:
      ValueError: the architecture is of another space; one line.
    """
    self.check_own(arch)
    nodes = arch.cell(CELL).nodes
    return tuple(edge.operations[0] for edges in nodes for edge in sorted(edges, key=lambda edge: edge.source))

  def is_connected(self, arch: Genotype) -> bool:
    """Whether a path leads from the input to the output; if not, the output is always zero."""
    reached = {0}
    for (node, edge), operation in zip(_SPEC.edges, self.operations(arch), strict=True):
      if edge.source in reached and operation != 'none':
        reached.add(node)
    return _OUTPUT in reached

  def key(self, arch: Genotype) -> str:
    """The formula of the output, as in the column `UniqueString` of the benchmark's files; there are 6,466 of them.

    The formula of a node is the sum of its sorted terms. The term of an edge is `(formula)@operation`, where `formula`
    is that of its source; for a skip connection it is the formula alone, and for zero, if the operation is `none` or
    the formula is `#`, it is `#`. The benchmark's authors count architectures by these formulas [NB201 §2.1]. They miss
    some equal networks, since sums keep zero terms. A convolution of zeros counts as zero, although its trained BN
    would add a bias.
    """
    formulas = {0: '0'}
    operations = iter(self.operations(arch))
    for node, edges in enumerate(_SPEC.nodes, _SPEC.num_inputs):
      formulas[node] = '+'.join(sorted(_term(next(operations), formulas[edge.source]) for edge in edges))
    return formulas[_OUTPUT]

  def to_json(self, arch: Genotype) -> str:
    """The architecture in the benchmark's notation: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
    operations = iter(self.operations(arch))
    nodes = [''.join(f'|{next(operations)}~{edge.source}' for edge in edges) for edges in _SPEC.nodes]
    return '+'.join(f'{node}|' for node in nodes)

  def from_json(self, values: Any) -> Genotype:
    """The architecture from the benchmark's notation; see `to_json`.

    Raises:
      ValueError: the value is not a text of this form, or names an unknown operation; one line.
    """
    return self._of(operations_of(values))

  def _of(self, operations: Sequence[str]) -> Genotype:
    rest = iter(operations)
    cell = _SPEC.discrete([[(next(rest), edge.source) for edge in edges] for edges in _SPEC.nodes])
    return self.genotype({CELL: cell})


def operations_of(text: Any) -> tuple[str, ...]:
  """The operation of each edge of an architecture in the benchmark's notation.

  Raises:
    ValueError: see `NasBench201.from_json`.
  """
  found = _TEXT.fullmatch(text) if isinstance(text, str) else None
  if found is None:
    raise ValueError(f'{one_line(repr(text))} is no architecture of NAS-Bench-201; the form is {_FORM}')
  for operation in found.groups():
    if operation not in OPERATIONS:
      raise ValueError(
        f'{one_line(repr(operation))} is no operation of NAS-Bench-201; {suggest(operation, OPERATIONS)}'
      )
  return found.groups()


def last_printed(text: str) -> str | None:
  """The last architecture in the benchmark's notation that a text contains; None if there is none."""
  found = collections.deque(_TEXT.finditer(text), maxlen=1)
  return found[0].group() if found else None


def place(operations: Sequence[str]) -> int:
  """The index of an architecture in `NasBench201.all`: its operations are digits in base 5, the first counts most."""
  return functools.reduce(lambda found, operation: found * len(OPERATIONS) + OPERATIONS.index(operation), operations, 0)


def _term(operation: str, formula: str) -> str:
  if operation == 'none' or formula == '#':
    return '#'
  return formula if operation == 'skip_connect' else f'({formula})@{operation}'
