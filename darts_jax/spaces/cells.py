"""Spaces whose architectures are cells: edges, cell specs, genotypes, and the derivation of a genotype.

A cell is a directed acyclic graph [DARTS §2.1]. Its first nodes are its inputs; every later node sums its incoming
edges; the output is computed from some of the nodes. One type describes search spaces and architectures: a `CellSpec`
lists the operations of every edge: all candidates in a search space, one operation in a discrete architecture, and some
of the candidates in a search that prunes.

Sources: [DARTS] arXiv 1806.09055, [SGAS] arXiv 1912.00195.
"""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from darts_jax import limits
from darts_jax.runtime.files import one_line
from darts_jax.spaces.base import Space
from darts_jax.spaces.checks import (
  Pairs,
  check_fields,
  check_operations,
  check_outputs,
  check_source,
  listed,
  parse_listed,
)
from darts_jax.spaces.derivation import strongest
from darts_jax.spaces.look import Look
from darts_jax.spaces.plan import Plan, thirds

#: Kinds of a cell's output: the concatenated channels of its output nodes, their mean, or its only output node.
OUTPUTS = ('concat', 'mean', 'last')
#: Kinds of a node's state: the sum of its incoming edges, or their mean.
MERGES = ('sum', 'mean')
#: Preparations of a convolutional cell's inputs: ReLU, 1×1 convolution to the cell's channels and BN; or none.
PREPARATIONS = ('projection', 'none')


@dataclasses.dataclass(frozen=True)
class Edge:
  """An edge into a node: the index of its source node, and the names of the operations that are mixed on it."""

  source: int
  operations: tuple[str, ...]

  def choices(self, *, keeps_none: bool) -> tuple[str, ...]:
    """The operations that the edge may have in an architecture, without `none` unless `keeps_none`."""
    return self.operations if keeps_none else tuple(each for each in self.operations if each != 'none')


@dataclasses.dataclass(frozen=True)
class CellSpec:
  """A cell with the candidate operations of each edge; hashable, so it can be a static argument of `jax.jit`.

  Edges are numbered node by node, in the order listed. Row `e` of mixing weights belongs to edge `e`, and column `o` to
  `operations[o]`.

  Attributes:
    nodes: the incoming edges of each intermediate node. The first intermediate node has index `num_inputs`.
    operations: names of the columns of mixing weights; contains every operation of every edge.
    num_inputs: number of input nodes, which come before the intermediate nodes.
    outputs: indices of the nodes from which the output is computed.
    output: kind of the output, one of `OUTPUTS`.
    kept: number of incoming edges that a node keeps in a discrete architecture; None for all of them.
    merge: kind of a node's state, one of `MERGES`.
    preparation: preparation of the inputs, one of `PREPARATIONS`.
    pools_normalised: whether BN follows pooling in a supernet [DARTS §A.1.1]; in a discrete network it never does.

  Raises:
    ValueError: an edge reads a node that is not earlier, an operation is listed twice or is not among `operations`, an
      output is not an intermediate node, or a field has a value that is not allowed.
  """

  nodes: tuple[tuple[Edge, ...], ...]
  operations: tuple[str, ...]
  num_inputs: int
  outputs: tuple[int, ...]
  output: str
  kept: int | None
  merge: str = 'sum'
  preparation: str = 'projection'
  pools_normalised: bool = True

  def __post_init__(self) -> None:
    for field, allowed in (('output', OUTPUTS), ('merge', MERGES), ('preparation', PREPARATIONS)):
      value = getattr(self, field)
      if value not in allowed:
        raise ValueError(f'{field}: {value!r} is not known; allowed are {", ".join(allowed)}')
    if len(self.nodes) > limits.NODES:
      raise ValueError(f'cell: {len(self.nodes)} nodes; allowed are up to {limits.NODES}')
    check_operations(self.operations, None, 'operations')
    for node, edges in enumerate(self.nodes, self.num_inputs):
      for edge in edges:
        check_source(edge.source, node, len(self.nodes) + self.num_inputs, 'cell')
        check_operations(edge.operations, self.operations, f'node {node}')
    check_outputs(self.outputs, self.num_inputs, len(self.nodes), 'outputs')
    if self.output == 'last' and len(self.outputs) != 1:
      raise ValueError(f'outputs: {list(self.outputs)} is not allowed; an output that is the last node has one')

  @property
  def num_edges(self) -> int:
    """Number of edges, and of rows of mixing weights."""
    return sum(len(edges) for edges in self.nodes)

  @property
  def edges(self) -> tuple[tuple[int, Edge], ...]:
    """`(target node, edge)` of every edge, in the order of the rows of mixing weights."""
    return tuple((node, edge) for node, edges in enumerate(self.nodes, self.num_inputs) for edge in edges)

  @property
  def rows(self) -> tuple[tuple[int, ...], ...]:
    """The rows of mixing weights of each intermediate node's incoming edges."""
    ends = [0, *itertools.accumulate(map(len, self.nodes))]
    return tuple(tuple(range(start, end)) for start, end in itertools.pairwise(ends))

  @property
  def num_kept(self) -> tuple[int, ...]:
    """The number of incoming edges that each intermediate node keeps in a discrete architecture."""
    return tuple(len(edges) if self.kept is None else self.kept for edges in self.nodes)

  @property
  def is_discrete(self) -> bool:
    """Whether every edge has a single operation."""
    return all(len(edge.operations) == 1 for _, edge in self.edges)

  @property
  def pairs(self) -> Pairs:
    """`(operation, source)` of every edge of a discrete cell, node by node, as papers publish cells."""
    assert self.is_discrete, self
    return tuple((edge.operations[0], edge.source) for _, edge in self.edges)

  def discrete(self, pairs: Sequence[Sequence[tuple[str, int]]], outputs: tuple[int, ...] | None = None) -> 'CellSpec':
    """A discrete cell with the other fields of this one.

    Args:
      pairs: the `(operation, source)` pairs of each node.
      outputs: indices of the output nodes; None for those of this cell.
    """
    nodes = tuple(tuple(Edge(source, (operation,)) for operation, source in node) for node in pairs)
    used = tuple(dict.fromkeys(operation for node in pairs for operation, _ in node))
    outputs = self.outputs if outputs is None else outputs
    return dataclasses.replace(self, nodes=nodes, operations=used, outputs=outputs)


def full_cell(operations: Sequence[str], num_nodes: int, *, num_inputs: int, output: str, kept: int | None) -> CellSpec:
  """The cell in which every node reads all earlier nodes through all operations [DARTS §2.1].

  Args:
    operations: candidate operations, the columns of α. `none` may be among them.
    num_nodes: number of intermediate nodes.
    num_inputs: number of input nodes.
    output: kind of the output, one of `OUTPUTS`; with `last` it is the last node, otherwise all intermediate nodes
      contribute.
    kept: number of incoming edges that a node keeps in a discrete architecture; None for all of them.

  Raises:
    ValueError: an operation is listed twice, only `none` is given, or `num_nodes` is out of range.
  """
  operations = tuple(operations)
  check_operations(operations, None, 'operations')
  if not set(operations) - {'none'}:
    raise ValueError(f"operations: {operations} has nothing to choose; list at least one operation besides 'none'")
  if not 1 <= num_nodes <= limits.NODES:
    raise ValueError(f'nodes: {num_nodes} is not allowed; a cell has 1 to {limits.NODES} intermediate nodes')
  nodes = tuple(tuple(Edge(source, operations) for source in range(i + num_inputs)) for i in range(num_nodes))
  last = num_nodes + num_inputs - 1
  outputs = (last,) if output == 'last' else tuple(range(num_inputs, last + 1))
  return CellSpec(nodes, operations, num_inputs, outputs, output, kept)


@dataclasses.dataclass(frozen=True)
class Genotype:
  """An architecture of any space of cells.

  Attributes:
    space: name of the space.
    cells: `(name, cell)` of every kind of cell, in the order of the space; all cells are discrete.

  Raises:
    ValueError: a cell is not discrete.
  """

  space: str
  cells: tuple[tuple[str, CellSpec], ...]

  def __post_init__(self) -> None:
    for name, cell in self.cells:
      if not cell.is_discrete:
        raise ValueError(f'{name}: an edge has more than one operation; a genotype has one an edge')

  def cell(self, name: str) -> CellSpec:
    """The discrete cell of that name."""
    return dict(self.cells)[name]


class CellSpace(Space[Genotype]):
  """A space whose architectures are cells. A subclass defines `cells`; all of its fields have defaults.

  Attributes:
    kind: adjective for its architectures in messages; if empty, the name of the space is used.
    task: name of the task of a search, if the config names none.
    defaults: defaults of config fields of a search that replace the usual ones in this space.
    evaluation: the config for training its architectures from scratch, by name or path.
    look: names and legend for drawings of its cells.
    identity: name of the operation that returns its input; logs count these, since degenerate searches choose many.
    known_operations: names that operations may have; None for any.
  """

  kind: ClassVar[str] = ''
  task: ClassVar[str] = 'images'
  defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
  evaluation: ClassVar[str] = 'cifar_eval'
  look: ClassVar[Look] = Look()
  identity: ClassVar[str] = 'skip_connect'
  known_operations: ClassVar[Collection[str] | None] = None

  @property
  @abc.abstractmethod
  def cells(self) -> Mapping[str, CellSpec]:
    """The searched cells by name, with all candidates on every edge."""

  @property
  def keeps_none(self) -> bool:
    """Whether edges of an architecture may have the operation `none`."""
    return False

  def plan(self, num_layers: int) -> Plan:
    """The layers of a network of this space, a supernet or the network of an architecture.

    By default it is the network of DARTS: cells of the first kind, except for two cells of the last kind at one and two
    thirds of the depth, which have stride 2 (see `thirds`).

    Args:
      num_layers: number of cells.

    Raises:
      ValueError: no network of the space has `num_layers` cells; the message begins with `layers`.
    """
    names = tuple(self.cells)
    return thirds(num_layers, names[0], names[-1])

  def judge(self, dataset: str) -> Callable[[Genotype], Mapping[str, float]] | None:
    """A function that looks up known measures of an architecture, such as its true accuracy; None by default.

    A search calls it after every epoch for the architecture that it would return, and logs the measures.

    Args:
      dataset: `config.data.name`.

    Raises:
      ValueError: a file named in the settings cannot be read; one line that begins with `config.space`.
    """
    del dataset
    return None

  def genotype(self, cells: Mapping[str, CellSpec]) -> Genotype:
    """The architecture with these discrete cells, by name."""
    return Genotype(self.name, tuple((name, cells[name]) for name in self.cells))

  def strongest(self, mixing: Mapping[str, ArrayLike]) -> Genotype:
    """The architecture with the strongest edges of every cell; see the function `strongest`."""
    found = {name: strongest(mixing[name], spec, keeps_none=self.keeps_none) for name, spec in self.cells.items()}
    return self.genotype(found)

  def sample(self, rng: np.random.Generator) -> Genotype:
    """Draws the sources that every node keeps, and an operation for each edge, uniformly and independently."""

    def cell(spec: CellSpec) -> CellSpec:
      pairs = []
      for edges, kept in zip(spec.nodes, spec.num_kept, strict=True):
        places = np.sort(rng.choice(len(edges), size=kept, replace=False))
        chosen = [edges[int(place)] for place in places]
        pairs.append([(_drawn(edge.choices(keeps_none=self.keeps_none), rng), edge.source) for edge in chosen])
      return spec.discrete(pairs)

    return self.genotype({name: cell(spec) for name, spec in self.cells.items()})

  def neighbours(self, arch: Genotype) -> Iterator[Genotype]:
    """Yields the architectures that have another operation on one edge, or another source of one edge.

    Raises:
      ValueError: the architecture is of another space; one line.
    """
    self.check_own(arch)
    return self._edits(arch)

  def check_own(self, arch: Genotype) -> None:
    """Raises a ValueError, one line, if an architecture does not belong to this space."""
    if not isinstance(arch, Genotype):
      raise ValueError(f'arch: {one_line(repr(arch))} is no genotype; allowed are those of the space {self.name}')
    if arch.space != self.name or [name for name, _ in arch.cells] != list(self.cells):
      raise ValueError(f'arch: a genotype of the space {arch.space}; allowed are those of the space {self.name}')
    for name, spec in self.cells.items():
      sources = [{edge.source for edge in edges} for edges in arch.cell(name).nodes]
      allowed = [{edge.source for edge in edges} for edges in spec.nodes]
      if len(sources) != len(allowed) or not all(map(set.issubset, sources, allowed)):
        raise ValueError(f'arch: its cell {name} has other nodes or edges than the cells of this space {self.name}')
      for node, edges in enumerate(spec.nodes):
        choices = {edge.source: edge.choices(keeps_none=self.keeps_none) for edge in edges}
        for edge in arch.cell(name).nodes[node]:
          [operation] = edge.operations
          if operation not in choices[edge.source]:
            raise ValueError(
              f'arch: its cell {name} has the operation {operation!r} on an edge whose candidates in the space'
              f' {self.name} are {", ".join(choices[edge.source])}'
            )

  def _edits(self, arch: Genotype) -> Iterator[Genotype]:
    found = dict(arch.cells)
    for name, spec in self.cells.items():
      nodes = found[name].nodes
      for number, edges in enumerate(nodes):
        candidates = {edge.source: edge.choices(keeps_none=self.keeps_none) for edge in spec.nodes[number]}
        for place, edge in enumerate(edges):
          [operation] = edge.operations
          others = [(other, edge.source) for other in candidates[edge.source] if other != operation]
          taken = {each.source for each in edges}
          others += [
            (operation, source)
            for source, allowed in candidates.items()
            if source not in taken and operation in allowed
          ]
          for other in others:
            pairs = [[(each.operations[0], each.source) for each in node] for node in nodes]
            pairs[number][place] = other
            yield self.genotype({**found, name: spec.discrete(pairs)})

  def key(self, arch: Genotype) -> str:
    """See `Space`: the edges of every node in sorted order. Cells that differ in the order of nodes have other keys."""
    cells = []
    for name, cell in arch.cells:
      nodes = ['+'.join(sorted(f'{edge.operations[0]}~{edge.source}' for edge in edges)) for edges in cell.nodes]
      cells.append(f'{name}:{"|".join(nodes)}:{",".join(map(str, sorted(cell.outputs)))}')
    return ';'.join(cells)

  def to_json(self, arch: Genotype) -> Any:
    """The name of the space, and for every cell the pairs of each node and the output nodes."""
    return {'space': self.name, 'cells': {name: listed(cell) for name, cell in arch.cells}}

  def from_json(self, values: Any) -> Genotype:
    """See `Space`; the cells may have another number of nodes than those of the space."""
    check_fields(values, ('space', 'cells'))
    check_fields(values['cells'], tuple(self.cells), 'the field cells')
    cells = {
      name: parse_listed(values['cells'][name], name, spec, self.known_operations) for name, spec in self.cells.items()
    }
    return self.genotype(cells)


def _drawn(choices: Sequence[str], rng: np.random.Generator) -> str:
  return choices[int(rng.integers(len(choices)))]
