"""Spaces whose architectures are cells: edges, cell specs, genotypes, and how a genotype is read off mixing weights.

A cell is a directed acyclic graph [DARTS §2.1]. Its first nodes are its inputs; every later node sums the edges that
arrive at it; the output is made of some of the nodes. One type describes a search space and its result: a `CellSpec`
lists the candidate operations of every edge, all of them in a search space, one in a discrete architecture, and
anything between in a search that prunes.

Sources: [DARTS] arXiv 1806.09055, [SGAS] arXiv 1912.00195.
"""

import abc
import dataclasses
import difflib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from darts_jax import limits
from darts_jax.spaces.base import Space

#: How the output of a cell is made of its nodes: by concatenating channels, by their mean, or it is the one node.
OUTPUTS = ('concat', 'mean', 'last')

Pairs = tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Edge:
  """An edge into a node: the node it leaves, and the operations that are mixed on it."""

  source: int
  operations: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CellSpec:
  """A cell with the candidate operations of each edge; hashable, so it can be a static argument of `jax.jit`.

  Edges are counted node by node, in the order listed; row `e` of an array of mixing weights belongs to edge `e`, and
  its columns to `operations`.

  Attributes:
    nodes: for each intermediate node its arriving edges. The first intermediate node has index `num_inputs`.
    operations: the names of the columns of mixing weights; contains every operation of every edge.
    num_inputs: the nodes before the first intermediate one, which are the cell's inputs.
    outputs: indices of the nodes that make up the cell's output.
    output: how they do, one of `OUTPUTS`.
    kept: the arriving edges that a node keeps in a discrete architecture; None for all of them.

  Raises:
    ValueError: an edge reads a node that is not earlier, an operation is listed twice or is not among `operations`, or
      an output is not an intermediate node.
  """

  nodes: tuple[tuple[Edge, ...], ...]
  operations: tuple[str, ...]
  num_inputs: int
  outputs: tuple[int, ...]
  output: str
  kept: int | None

  def __post_init__(self) -> None:
    if self.output not in OUTPUTS:
      raise ValueError(f'output: {self.output!r} is not known; allowed are {", ".join(OUTPUTS)}')
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
    """Number of edges, the number of rows of mixing weights."""
    return sum(len(edges) for edges in self.nodes)

  @property
  def edges(self) -> tuple[tuple[int, Edge], ...]:
    """`(target node, edge)` of every edge, in the order of the rows of mixing weights."""
    return tuple((node, edge) for node, edges in enumerate(self.nodes, self.num_inputs) for edge in edges)

  @property
  def rows(self) -> tuple[tuple[int, ...], ...]:
    """For each intermediate node the rows of mixing weights that its edges have."""
    ends = [0, *itertools.accumulate(map(len, self.nodes))]
    return tuple(tuple(range(start, end)) for start, end in itertools.pairwise(ends))

  @property
  def num_kept(self) -> tuple[int, ...]:
    """For each intermediate node the arriving edges that it keeps in a discrete architecture."""
    return tuple(len(edges) if self.kept is None else self.kept for edges in self.nodes)

  @property
  def is_discrete(self) -> bool:
    """Whether every edge has a single operation, so that nothing is left to mix."""
    return all(len(edge.operations) == 1 for _, edge in self.edges)

  @property
  def pairs(self) -> Pairs:
    """`(operation, source)` of every edge of a discrete cell, node by node, as the field publishes cells."""
    assert self.is_discrete, self
    return tuple((edge.operations[0], edge.source) for _, edge in self.edges)

  def discrete(self, pairs: Sequence[Sequence[tuple[str, int]]]) -> 'CellSpec':
    """The discrete cell with these `(operation, source)` pairs of each node, and everything else as here."""
    nodes = tuple(tuple(Edge(source, (operation,)) for operation, source in node) for node in pairs)
    used = tuple(dict.fromkeys(operation for node in pairs for operation, _ in node))
    return dataclasses.replace(self, nodes=nodes, operations=used)


def full_cell(operations: Sequence[str], num_nodes: int, *, num_inputs: int, output: str, kept: int | None) -> CellSpec:
  """The cell in which every node reads all earlier ones through all operations [DARTS §2.1].

  Args:
    operations: candidate operations, the columns of α. `none` may be among them.
    num_nodes: number of intermediate nodes.
    num_inputs: see `CellSpec`; likewise the others. The output is made of all intermediate nodes, or is the last one.
    output: see `CellSpec`.
    kept: see `CellSpec`.

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
    cells: its kinds of cells by name, in the order of the space, each discrete.

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
  """A space whose architectures are cells. A subclass says which, and how files write them."""

  @property
  @abc.abstractmethod
  def cells(self) -> Mapping[str, CellSpec]:
    """The searched cells by name, with all candidates on every edge."""

  @property
  def keeps_none(self) -> bool:
    """Whether an edge of an architecture may have the operation `none`."""
    return False

  def genotype(self, cells: Mapping[str, CellSpec]) -> Genotype:
    """The architecture of these discrete cells."""
    return Genotype(self.name, tuple((name, cells[name]) for name in self.cells))

  def strongest(self, mixing: Mapping[str, ArrayLike]) -> Genotype:
    """The architecture of the strongest edges of every cell; see the function `strongest`."""
    found = {name: strongest(mixing[name], spec, keeps_none=self.keeps_none) for name, spec in self.cells.items()}
    return self.genotype(found)

  def sample(self, rng: np.random.Generator) -> Genotype:
    """Draws for every node the sources that it keeps, and an operation for each, uniformly and independently."""

    def cell(spec: CellSpec) -> CellSpec:
      pairs = []
      for edges, kept in zip(spec.nodes, spec.num_kept, strict=True):
        places = np.sort(rng.choice(len(edges), size=kept, replace=False))
        chosen = [edges[int(place)] for place in places]
        pairs.append([(_drawn(self._choices(edge), rng), edge.source) for edge in chosen])
      return spec.discrete(pairs)

    return self.genotype({name: cell(spec) for name, spec in self.cells.items()})

  def neighbours(self, arch: Genotype) -> Iterator[Genotype]:
    """All architectures that have another operation on one edge, or in which one edge has another source."""
    found = dict(arch.cells)
    for name, spec in self.cells.items():
      nodes = found[name].nodes
      for number, edges in enumerate(nodes):
        candidates = {edge.source: self._choices(edge) for edge in spec.nodes[number]}
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
    """Kinds of cells with the edges of every node in one order; cells whose nodes are numbered otherwise differ."""
    cells = []
    for name, cell in arch.cells:
      nodes = ['+'.join(sorted(f'{edge.operations[0]}~{edge.source}' for edge in edges)) for edges in cell.nodes]
      cells.append(f'{name}:{"|".join(nodes)}:{",".join(map(str, sorted(cell.outputs)))}')
    return ';'.join(cells)

  def _choices(self, edge: Edge) -> tuple[str, ...]:
    return edge.operations if self.keeps_none else tuple(each for each in edge.operations if each != 'none')


def _drawn(choices: Sequence[str], rng: np.random.Generator) -> str:
  return choices[int(rng.integers(len(choices)))]


def strongest(mixing: ArrayLike, spec: CellSpec, *, keeps_none: bool = False) -> CellSpec:
  """The discrete cell that mixing weights stand for [DARTS §2.4].

  The strength of an edge is the largest mixing weight among its candidates. Every node keeps its strongest edges,
  strongest first, each with its best operation; a node that keeps all of its edges leaves them in their order. Ties go
  to the smaller index.

  Args:
    mixing: `[E, O]` mixing weights (not α), rows and columns as `spec` has edges and operations.
    spec: the searched cell.
    keeps_none: whether `none` is a candidate, too.

  Raises:
    ValueError: `mixing` has another shape, is not finite, or a node has too few edges to keep.
  """
  mixing = _checked(mixing, spec)
  nodes: list[list[tuple[str, int]]] = []
  for node, (rows, kept) in enumerate(zip(spec.rows, spec.num_kept, strict=True), spec.num_inputs):
    candidates = []
    for row in rows:
      edge = spec.edges[row][1]
      allowed = [operation for operation in edge.operations if keeps_none or operation != 'none']
      weights = [mixing[row, spec.operations.index(operation)] for operation in allowed]
      if allowed:
        best = int(np.argmax(weights))
        candidates.append((weights[best], allowed[best], edge.source))
    if len(candidates) < kept:
      raise ValueError(f'node {node}: {len(candidates)} edges to choose from; {kept} have to be kept')
    # sorted() is stable, so equally strong edges stay in the order of their index.
    ordered = candidates if spec.kept is None else sorted(candidates, key=lambda candidate: -candidate[0])
    nodes.append([(operation, source) for _, operation, source in ordered[:kept]])
  return spec.discrete(nodes)


def undecided_edges(spec: CellSpec, decided: Collection[int]) -> np.ndarray:
  """`[E]` bool: edges that are left to decide; a node with as many decided edges as it keeps has none.

  Args:
    spec: the searched cell.
    decided: rows of mixing weights that are decided edges.
  """
  undecided = np.zeros(spec.num_edges, bool)
  for rows, kept in zip(spec.rows, spec.num_kept, strict=True):
    if sum(row in decided for row in rows) < kept:
      undecided[[row for row in rows if row not in decided]] = True
  return undecided


def complete(mixing: ArrayLike, spec: CellSpec, decided: Mapping[int, str]) -> CellSpec:
  """The discrete cell that a sequence of decisions ends with if it has to end here [SGAS §3].

  Nodes that are short of decided edges take the most important undecided ones, each with its best operation other than
  `none`. The importance of an edge is the mixing weight of all its operations other than `none`. Ties go to the smaller
  index. The edges of a node are in the order of `spec`.

  Args:
    mixing: `[E, O]` mixing weights, rows and columns as `spec` has edges and operations.
    spec: the searched cell, before any decision.
    decided: by row, the operations of decided edges.

  Raises:
    ValueError: `mixing` has another shape, is not finite, or a node has too many decided edges, or too few edges at
      all.
  """
  mixing = _checked(mixing, spec)
  real = [column for column, operation in enumerate(spec.operations) if operation != 'none']
  importance = mixing[:, real].sum(axis=-1)
  undecided = undecided_edges(spec, decided)
  nodes: list[list[tuple[str, int]]] = []
  for node, (rows, kept) in enumerate(zip(spec.rows, spec.num_kept, strict=True), spec.num_inputs):
    fixed = [row for row in rows if row in decided]
    # sorted() is stable, so equally important edges stay in the order of their index. One without any weight is gone.
    others = sorted((row for row in rows if undecided[row] and importance[row]), key=lambda row: -importance[row])
    chosen = sorted([*fixed, *others[: max(kept - len(fixed), 0)]])
    if len(chosen) != kept:
      raise ValueError(
        f'node {node}: {len(fixed)} edges are decided and {len(others)} undecided; {kept} have to be kept'
      )
    best = {row: spec.operations[real[int(np.argmax(mixing[row, real]))]] for row in chosen}
    nodes.append([(decided.get(row, best[row]), spec.edges[row][1].source) for row in chosen])
  return spec.discrete(nodes)


def _checked(mixing: ArrayLike, spec: CellSpec) -> np.ndarray:
  mixing = np.asarray(mixing)
  if mixing.shape != (spec.num_edges, len(spec.operations)):
    raise ValueError(
      f'mixing: shape {mixing.shape} does not fit a cell with {spec.num_edges} edges'
      f' and {len(spec.operations)} operations'
    )
  if not np.isfinite(mixing).all():
    raise ValueError('mixing: holds values that are not finite, so no architecture can be derived')
  return mixing


class Doubts(NamedTuple):
  """What of a genotype would be otherwise if mixing weights moved once more as far as they just did.

  Attributes:
    kept: edges of the genotype.
    edges: those of them that another edge into the same node could replace.
    operations: edges of the genotype whose operation another one could replace.
  """

  kept: int
  edges: int
  operations: int

  @property
  def message(self) -> str | None:
    """One line, if there are any."""
    if not self.edges and not self.operations:
      return None
    return (
      f'the genotype is not settled: {self.edges} of its {self.kept} edges and {self.operations} of their operations'
      ' would be others if α moved once more as far as in the last epoch; a longer search tells more'
    )


def suggest(name: str, allowed: Sequence[str] | Mapping[str, object]) -> str:
  """The end of a message about an unknown name: the closest allowed one, or all of them."""
  close = difflib.get_close_matches(str(name), list(allowed), 1)
  return f'did you mean {close[0]!r}?' if close else f'allowed are {", ".join(allowed)}'


def check_operations(operations: Sequence[str], allowed: Sequence[str] | None, where: str) -> None:
  """Raises a ValueError unless there are operations, each listed once and, if `allowed` is given, one of these."""
  if not operations:
    raise ValueError(f'{where}: no operation is listed; allowed are {", ".join(allowed or ("names of operations",))}')
  for operation in operations:
    if allowed is not None and operation not in allowed:
      raise ValueError(f'{where}: {operation!r} is not an operation; {suggest(operation, allowed)}')
  if len(set(operations)) < len(operations):
    raise ValueError(f'{where}: an operation is listed twice in {tuple(operations)}')


def check_source(source: int, node: int, num_nodes: int, where: str) -> None:
  """Raises a ValueError unless a node of a cell may read another one."""
  if not 0 <= source < num_nodes:
    raise ValueError(f'{where}: node {node} reads node {source}, which does not exist; allowed are 0 to {node - 1}')
  if source >= node:
    raise ValueError(f'{where}: node {node} reads node {source}, which closes a cycle; allowed are 0 to {node - 1}')


def check_outputs(outputs: Sequence[int], first: int, num_nodes: int, where: str) -> None:
  """Raises a ValueError unless these are intermediate nodes, each once; the first of which is `first`."""
  allowed = range(first, first + num_nodes)
  if not outputs or len(set(outputs)) < len(outputs) or any(node not in allowed for node in outputs):
    raise ValueError(
      f'{where}: {list(outputs)} is not allowed; list each node once, from {first} to {first + num_nodes - 1}'
    )
