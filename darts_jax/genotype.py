"""What an architecture is: cell specs, genotypes, the published ones, and their JSON form.

A cell is a directed acyclic graph [DARTS §2.1]. Nodes 0 and 1 of a convolutional cell are its inputs, the outputs of
the two cells before it; every later node sums the edges that arrive at it; the output concatenates some of the nodes.
In a recurrent cell node 0 is the state made from input and previous state, an edge applies an activation, and the
output is the mean of some of the nodes.
One description serves a search and its result: a `CellSpec` lists the candidate operations of every
edge, all of them in a search space, one an edge in a discrete architecture, anything between in a search
that prunes. This module imports no JAX.

Sources: [DARTS] arXiv 1806.09055, [SGAS] arXiv 1912.00195, [NASNet] arXiv 1707.07012.
"""

import codecs
import dataclasses
import difflib
import functools
import itertools
import json
import os
import pathlib
import types
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from darts_jax import limits, notation
from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.files import one_line, parse_json, read_bytes, user_path

NUM_INPUTS = 2

#: The candidate operations of the convolutional search space, in the order of the columns of α [DARTS §3.1.1].
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
#: Every operation a convolutional cell may hold; published cells use two more than the search space has.
OPERATIONS = (*CANDIDATES, 'sep_conv_7x7', 'conv_7x1_1x7')
#: The activations of a recurrent cell, in the order of the columns of its α [DARTS §3.1.2].
ACTIVATIONS = ('none', 'tanh', 'relu', 'sigmoid', 'identity')

Pairs = tuple[tuple[str, int], ...]

# Of a file with a genotype: a log may be long, but not endless.
_MAX_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Edge:
  """An edge into a node: the node it leaves, and the operations that are mixed on it."""

  source: int
  operations: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CellSpec:
  """A cell with the candidate operations of each edge; hashable, so it can be a static argument of `jax.jit`.

  Edges are counted node by node, in the order listed; row `e` of an array of mixing weights belongs to edge
  `e`, and its columns to `operations`.

  Attributes:
    nodes: for each intermediate node its arriving edges. The first intermediate node has index `num_inputs`.
    concat: indices of the nodes that make up the cell's output: their channels are concatenated, their states averaged.
    operations: the names of the columns of mixing weights; contains every operation of every edge.
    num_inputs: 2 in a convolutional cell, 1 in a recurrent one, whose operations are activations.
  """

  nodes: tuple[tuple[Edge, ...], ...]
  concat: tuple[int, ...]
  operations: tuple[str, ...]
  num_inputs: int = NUM_INPUTS

  def __post_init__(self) -> None:
    _check_operations(self.operations, ACTIVATIONS if self.is_recurrent else OPERATIONS, 'operations')
    for i, edges in enumerate(self.nodes):
      for edge in edges:
        _check_source(edge.source, i + self.num_inputs, len(self.nodes) + self.num_inputs, 'cell')
        _check_operations(edge.operations, self.operations, f'node {i + self.num_inputs}')
    _check_concat(self.concat, self.num_inputs, len(self.nodes), 'concat')

  @property
  def is_recurrent(self) -> bool:
    """Whether it is a cell of a recurrent network."""
    return self.num_inputs == 1

  @property
  def num_kept(self) -> int:
    """Arriving edges that a node of a derived architecture keeps: 2, or 1 in a recurrent cell."""
    return 1 if self.is_recurrent else 2

  @property
  def num_edges(self) -> int:
    """Number of edges, the number of rows of mixing weights."""
    return sum(len(edges) for edges in self.nodes)

  @property
  def edges(self) -> tuple[tuple[int, Edge], ...]:
    """`(target node, edge)` of every edge, in the order of the rows of mixing weights."""
    return tuple((i + self.num_inputs, edge) for i, edges in enumerate(self.nodes) for edge in edges)

  @property
  def rows(self) -> tuple[tuple[int, ...], ...]:
    """For each intermediate node the rows of mixing weights that its edges have."""
    ends = [0, *itertools.accumulate(map(len, self.nodes))]
    return tuple(tuple(range(start, end)) for start, end in itertools.pairwise(ends))

  @property
  def is_discrete(self) -> bool:
    """Whether every edge has a single operation, so that nothing is left to mix."""
    return all(len(edge.operations) == 1 for _, edge in self.edges)


def search_space(operations: Sequence[str] = CANDIDATES, num_nodes: int = 4) -> CellSpec:
  """The cell in which every node reads all earlier ones through all `operations` [DARTS §2.1].

  Args:
    operations: candidate operations, the columns of α. `none` may be among them.
    num_nodes: number of intermediate nodes; 4 in the paper, which gives 2+3+4+5 = 14 edges.

  Raises:
    ValueError: an operation is unknown or listed twice, only `none` is given, or `num_nodes` < 1.
  """
  return _full_space(operations, num_nodes, NUM_INPUTS)


def recurrent_search_space(activations: Sequence[str] = ACTIVATIONS, num_nodes: int = 8) -> CellSpec:
  """The recurrent cell in which every node reads all earlier states through all `activations` [DARTS §3.1.2].

  Args:
    activations: candidates, the columns of α. `none` may be among them.
    num_nodes: number of intermediate nodes; 8 in the paper, which gives 1+2+…+8 = 36 edges.

  Raises:
    ValueError: as `search_space`.
  """
  return _full_space(activations, num_nodes, 1)


def _full_space(operations: Sequence[str], num_nodes: int, num_inputs: int) -> CellSpec:
  operations = tuple(operations)
  _check_operations(operations, ACTIVATIONS if num_inputs == 1 else OPERATIONS, 'operations')
  if not set(operations) - {'none'}:
    raise ValueError(f"operations: {operations} has nothing to choose; list at least one operation besides 'none'")
  if num_nodes < 1:
    raise ValueError(f'num_nodes: {num_nodes} is not allowed; a cell has at least 1 intermediate node')
  if num_nodes > limits.NODES:
    raise ValueError(f'num_nodes: {num_nodes} is not allowed; a cell has up to {limits.NODES} intermediate nodes')
  nodes = tuple(tuple(Edge(source, operations) for source in range(i + num_inputs)) for i in range(num_nodes))
  return CellSpec(nodes, tuple(range(num_inputs, num_nodes + num_inputs)), operations, num_inputs)


@dataclasses.dataclass(frozen=True)
class Genotype:
  """A convolutional architecture: two cells, in the form the field publishes them.

  Attributes:
    normal: `(operation, source)` pairs of the normal cell, two a node, node by node.
    normal_concat: nodes whose channels the normal cell concatenates.
    reduce: the same for the reduction cell.
    reduce_concat: the same for the reduction cell.

  Raises:
    ValueError: an operation is unknown, a pair reads a node that is not earlier, a node has one pair only or two of
      `none`, or a concatenated node does not exist.
  """

  normal: Pairs
  normal_concat: tuple[int, ...]
  reduce: Pairs
  reduce_concat: tuple[int, ...]

  def __post_init__(self) -> None:
    for name in ('normal', 'reduce'):
      pairs = getattr(self, name)
      if not pairs or len(pairs) % 2:
        raise ValueError(f'{name}: {len(pairs)} pairs; a cell lists two (operation, source) pairs a node')
      _check_pairs(pairs, 2, NUM_INPUTS, OPERATIONS, name)
      for i in range(0, len(pairs), 2):
        if pairs[i][0] == pairs[i + 1][0] == 'none':
          raise ValueError(f"{name}: node {i // 2 + NUM_INPUTS}: both operations are 'none'; one of them may be")
      _check_concat(getattr(self, f'{name}_concat'), NUM_INPUTS, len(pairs) // 2, f'{name}_concat')

  def cell(self, name: str) -> CellSpec:
    """The discrete `CellSpec` of the cell called `name`, `'normal'` or `'reduce'`."""
    pairs: Pairs = getattr(self, name)
    edges = [Edge(source, (operation,)) for operation, source in pairs]
    nodes = tuple(tuple(edges[i : i + 2]) for i in range(0, len(edges), 2))
    return CellSpec(nodes, getattr(self, f'{name}_concat'), tuple(dict.fromkeys(o for o, _ in pairs)))


@dataclasses.dataclass(frozen=True)
class RecurrentGenotype:
  """A recurrent architecture [DARTS §2.1]: node `i`, counted from 1, applies an activation to one earlier state.

  Attributes:
    recurrent: `(activation, source)` pairs, one a node; source 0 is the state made from the input.
    concat: the nodes that are averaged into the output.

  Raises:
    ValueError: as `Genotype`.
  """

  recurrent: Pairs
  concat: tuple[int, ...]

  def __post_init__(self) -> None:
    if not self.recurrent:
      raise ValueError('recurrent: 0 pairs; a cell lists one (activation, source) pair a node')
    # A node without an activation would be a state of zeros.
    _check_pairs(self.recurrent, 1, 1, ACTIVATIONS[1:], 'recurrent')
    _check_concat(self.concat, 1, len(self.recurrent), 'concat')

  def cell(self, name: str = 'recurrent') -> CellSpec:
    """The discrete `CellSpec` of its one cell, which is called `'recurrent'`."""
    assert name == 'recurrent', name
    nodes = tuple((Edge(source, (activation,)),) for activation, source in self.recurrent)
    return CellSpec(nodes, self.concat, tuple(dict.fromkeys(a for a, _ in self.recurrent)), 1)


AnyGenotype = Genotype | RecurrentGenotype


def to_dict(genotype: AnyGenotype) -> dict[str, Any]:
  """The genotype as JSON values: lists of `[operation, source]` and lists of nodes."""
  return json.loads(json.dumps(dataclasses.asdict(genotype)))


def from_dict(values: Any) -> AnyGenotype:
  """A genotype from JSON values, convolutional or recurrent by its fields.

  Raises:
    ValueError: a field is missing, unknown or of the wrong form, or the genotype is not a valid one.
  """
  if not isinstance(values, Mapping):
    raise ValueError(f'a genotype is an object with fields, not {type(values).__name__}')
  kind = RecurrentGenotype if 'recurrent' in values else Genotype
  names = [field.name for field in dataclasses.fields(kind)]
  for name in names:
    if name not in values:
      raise ValueError(f'{name}: missing; a genotype has the fields {", ".join(names)}')
  for name in values:
    if name not in names:
      raise ValueError(f'{name!r}: unknown field; a genotype has the fields {", ".join(names)}')
  fields: dict[str, Any] = {
    name: (_parse_nodes if name.endswith('concat') else _parse_pairs)(values[name], name) for name in names
  }
  return kind(**fields)


def save(genotype: AnyGenotype, path: str | os.PathLike[str]) -> None:
  """Writes a genotype as JSON; the file is complete or absent, never half-written."""
  write_whole(pathlib.Path(path), (json.dumps(to_dict(genotype)) + '\n').encode())


def to_text(genotype: AnyGenotype) -> str:
  """The line by which programs of the field print a genotype: `Genotype(normal=[('skip_connect', 0), …], …)`."""
  return notation.to_text(to_dict(genotype))


def load(path: str | os.PathLike[str]) -> AnyGenotype:
  """Reads a genotype from a file: JSON, or any text, such as the log of a search, of which the last one is taken.

  Of JSON it is the whole, or what lies below `genotype`; in a text it is printed as `to_text` does, on one line or
  several, or as a dictionary; see `darts_jax.notation`.

  Raises:
    ValueError: the file is missing or unreadable, or holds no valid genotype; one line naming it.
  """
  path = user_path(path, 'genotype')
  content = read_bytes(path, _MAX_BYTES)
  try:
    return from_dict(_fields_of(_decoded(content)))
  except ValueError as error:
    raise ValueError(f'{path}: {one_line(error)}') from error


def _decoded(content: bytes) -> str:
  """The text of a file; some programs begin it with a byte order mark, or write it in UTF-16."""
  is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  return content.decode('utf-16' if is_utf16 else 'utf-8-sig', errors='replace')


def _fields_of(text: str) -> Any:
  """The values that `from_dict` takes, of JSON or of a text with a genotype in it."""
  try:
    values = parse_json(text.encode())
  except ValueError as not_json:
    try:
      return notation.parse(text)
    except ValueError as error:
      raise ValueError(f'not JSON ({not_json}); {error}') from error
  return values['genotype'] if isinstance(values, dict) and isinstance(values.get('genotype'), dict) else values


@functools.cache
def published() -> Mapping[str, AnyGenotype]:
  """The published genotypes by name; their sources and figures are in the README's table."""
  text = resources.files('darts_jax').joinpath('published_genotypes.json').read_text()
  return types.MappingProxyType({name: from_dict(values) for name, values in json.loads(text).items()})


def resolve(name_or_path: str) -> AnyGenotype:
  """The published genotype of that name, the one that the text itself is (see `to_text`), or that in a file (`load`).

  Raises:
    ValueError: there is none, or it is not valid.
  """
  if name_or_path in published():
    return published()[name_or_path]
  if notation.is_printed(name_or_path):
    try:
      return from_dict(_fields_of(name_or_path))
    except ValueError as error:
      raise ValueError(f'genotype: {one_line(error)}') from error
  if not user_path(name_or_path, 'genotype').exists():
    raise ValueError(
      f'genotype: {name_or_path!r} is neither a file nor a published architecture;'
      f' {_suggest(name_or_path, published())}'
    )
  return load(name_or_path)


def _suggest(name: str, allowed: Sequence[str] | Mapping[str, Any]) -> str:
  close = difflib.get_close_matches(str(name), list(allowed), 1)
  return f'did you mean {close[0]!r}?' if close else f'allowed are {", ".join(allowed)}'


def _check_operations(operations: Sequence[str], allowed: Sequence[str], where: str) -> None:
  if not operations:
    raise ValueError(f'{where}: no operation is listed; allowed are {", ".join(allowed)}')
  for operation in operations:
    if operation not in allowed:
      raise ValueError(f'{where}: {operation!r} is not an operation; {_suggest(operation, allowed)}')
  if len(set(operations)) < len(operations):
    raise ValueError(f'{where}: an operation is listed twice in {tuple(operations)}')


def _check_source(source: int, node: int, num_nodes: int, where: str) -> None:
  if not 0 <= source < num_nodes:
    raise ValueError(f'{where}: node {node} reads node {source}, which does not exist; allowed are 0 to {node - 1}')
  if source >= node:
    raise ValueError(f'{where}: node {node} reads node {source}, which closes a cycle; allowed are 0 to {node - 1}')


def _check_pairs(pairs: Pairs, per_node: int, num_inputs: int, allowed: Sequence[str], where: str) -> None:
  num_nodes = len(pairs) // per_node + num_inputs
  if num_nodes - num_inputs > limits.NODES:
    raise ValueError(f'{where}: {num_nodes - num_inputs} nodes; allowed are up to {limits.NODES}')
  for i, (operation, source) in enumerate(pairs):
    node = i // per_node + num_inputs
    if operation not in allowed:
      raise ValueError(f'{where}: node {node}: {operation!r} is not an operation; {_suggest(operation, allowed)}')
    _check_source(source, node, num_nodes, where)


def _check_concat(concat: Sequence[int], first: int, num_nodes: int, where: str) -> None:
  allowed = range(first, first + num_nodes)
  if not concat or len(set(concat)) < len(concat) or any(node not in allowed for node in concat):
    raise ValueError(
      f'{where}: {list(concat)} is not allowed; list each node once, from {first} to {first + num_nodes - 1}'
    )


def _is_index(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _parse_nodes(values: Any, where: str) -> tuple[int, ...]:
  if not isinstance(values, list | tuple) or not all(map(_is_index, values)):
    raise ValueError(f'{where}: {values!r} is not a list of node indices')
  return tuple(values)


def _parse_pairs(values: Any, where: str) -> Pairs:
  if not isinstance(values, list | tuple):
    raise ValueError(f'{where}: {values!r} is not a list of [operation, source] pairs')
  # Some list the pairs of every node in a list of their own.
  if values and all(
    isinstance(node, list | tuple) and not any(isinstance(item, str) for item in node) for node in values
  ):
    first, per_node = (1, 1) if where == 'recurrent' else (NUM_INPUTS, 2)
    for i, node in enumerate(values):
      if len(node) != per_node:
        raise ValueError(f'{where}: node {i + first} has {len(node)} pairs; {per_node} are needed')
    values = [pair for node in values for pair in node]
  for pair in values:
    if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) and _is_index(pair[1])):
      raise ValueError(f'{where}: {pair!r} is not an [operation, source] pair')
  return tuple((pair[0], pair[1]) for pair in values)
