"""Reads the history of a search, `alphas.npz`: mixing weights and architectures in snapshots over time."""

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from darts_jax import limits
from darts_jax.runtime.files import one_line, parse_json, read_npz
from darts_jax.spaces import CellSpec, Edge, Genotype
from darts_jax.spaces.checks import check_fields
from darts_jax.spaces.topology import cell_from_json, cells_from_json

#: States of an edge (see `History.decided`): several operations left, and no operation left.
UNDECIDED, REMOVED = -1, -2
#: Limit of steps and epochs: every whole number below it has an exact float.
MAX_COUNT = 2**53
# Name of the score by which edges are decided, if there are several scores.
_MAIN = 'score'
# Most scores, and most characters of a name, for which drawings have room.
_MAX_SCORES, _MAX_NAME = 50, 100
# Names of kinds of dtypes, for messages.
_DTYPES = {'iu': 'whole numbers', 'f': 'floats', 'U': 'texts', 'b': 'truth values'}


@dataclasses.dataclass(frozen=True)
class Decision:
  """The decision of an edge: a search left it with one operation.

  Attributes:
    snapshot: index of the first snapshot in which the edge is decided.
    cell: the kind of cell.
    edge: (source, target).
    operation: the operation that is left.
    score: the edge's main score in that snapshot; None if there is none.
    removed: (source, target) of the edges into the same node that were removed in the same snapshot.
  """

  snapshot: int
  cell: str
  edge: tuple[int, int]
  operation: str
  score: float | None
  removed: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class History:
  """A search in `T` snapshots, as the search wrote them (see `darts_jax.search.records`).

  Attributes:
    steps: `[T]` int, the step of each snapshot, ascending.
    space: name of the searched space.
    legend: text that explains scores and decisions.
    cells: the searched cells by kind, with `E` edges and `O` operations each.
    mixing: by kind of cell, `[T, E, O]` mixing weights.
    left: by kind of cell, `[T, E, O]` bool, whether the supernet still had an operation.
    architectures: `[T]`, the architectures that the search would have returned.
    texts: `[T]`, these architectures as JSON texts in the form of the space.
    doubts: `[T]`, texts about anything ambiguous in the choice of the architecture; empty if nothing was.
    edges: by kind of cell, `[T, E]` weights of edges; kinds of cells without such weights are missing.
    scores: by name and kind of cell, `[T, E]` scores of edges before the decisions of the snapshot; meaningless for
      edges decided or removed in an earlier snapshot.
    temperatures: `[T]` temperatures; None if it was 1 throughout.
  """

  steps: np.ndarray
  space: str
  legend: str
  cells: Mapping[str, CellSpec]
  mixing: Mapping[str, np.ndarray]
  left: Mapping[str, np.ndarray]
  architectures: tuple[Genotype, ...]
  texts: tuple[str, ...]
  doubts: tuple[str, ...]
  edges: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  scores: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
  temperatures: np.ndarray | None = None

  def pairs(self, cell: str) -> tuple[tuple[int, int], ...]:
    """(source, target) of the `E` edges of a cell."""
    return tuple((edge.source, target) for target, edge in self.cells[cell].edges)

  def decided(self, cell: str) -> np.ndarray:
    """`[T, E]` int: index of the operation of decided edges, `UNDECIDED` or `REMOVED` for other edges."""
    return self._states[cell]

  @functools.cached_property
  def _states(self) -> dict[str, np.ndarray]:
    found = {}
    for cell, left in self.left.items():
      count = left.sum(axis=-1)
      fixed = (count == 1) & [len(edge.operations) > 1 for _, edge in self.cells[cell].edges]
      found[cell] = np.where(count == 0, REMOVED, np.where(fixed, left.argmax(axis=-1), UNDECIDED))
    return found

  @functools.cached_property
  def decides(self) -> bool:
    """Whether any edge is decided or removed in any snapshot."""
    return any((states != UNDECIDED).any() for states in self._states.values())

  def main_score(self, cell: str) -> str | None:
    """The name of the score by which edges of a cell are decided; None if there are no scores."""
    names = [name for name, cells in self.scores.items() if cell in cells]
    return _MAIN if _MAIN in names else next(iter(names), None)

  def decisions(self) -> tuple[Decision, ...]:
    """All decisions, ordered by snapshot, then by cell, then by edge."""
    return self._decisions

  @functools.cached_property
  def _decisions(self) -> tuple[Decision, ...]:
    found = []
    for cell, spec in self.cells.items():
      states, edges = self.decided(cell), self.pairs(cell)
      settled = states != UNDECIDED
      since = {int(row): int(settled[:, row].argmax()) for row in np.flatnonzero(settled.any(axis=0))}
      gone = [(when, edges[row]) for row, when in since.items() if states[when, row] == REMOVED]
      name = self.main_score(cell)
      scores = None if name is None else self.scores[name][cell]
      for row, snapshot in since.items():
        if states[snapshot, row] != REMOVED:
          operation = spec.operations[states[snapshot, row]]
          score = None if scores is None or not np.isfinite(scores[snapshot, row]) else float(scores[snapshot, row])
          removed = tuple(edge for when, edge in gone if when == snapshot and edge[1] == edges[row][1])
          found.append(Decision(snapshot, cell, edges[row], operation, score, removed))
    return tuple(sorted(found, key=lambda decision: decision.snapshot))

  def cell(self, cell: str, snapshot: int) -> CellSpec:
    """The cell of the supernet at a snapshot: edges with the operations that are left, without removed edges."""
    spec, left = self.cells[cell], self.left[cell][snapshot]
    nodes: list[list[Edge]] = [[] for _ in spec.nodes]
    for (target, edge), row in zip(spec.edges, left, strict=True):
      operations = tuple(name for name, there in zip(spec.operations, row, strict=True) if there)
      if operations:
        nodes[target - spec.num_inputs].append(Edge(edge.source, operations))
    return dataclasses.replace(spec, nodes=tuple(map(tuple, nodes)))


def kept_edges(genotype: Genotype | None, cell: str) -> set[tuple[int, int, str]]:
  """(source, target, operation) of the edges of a cell; empty if the architecture does not have the cell."""
  if genotype is None or cell not in dict(genotype.cells):
    return set()
  return {(edge.source, node, edge.operations[0]) for node, edge in genotype.cell(cell).edges}


def read(path: pathlib.Path) -> History:
  """Reads `alphas.npz`.

  Raises:
    ValueError: the file cannot be read, an array is missing or unfit, or an earlier version wrote it; one line.
  """
  arrays = _Arrays(read_npz(path))
  if 'topology' not in arrays.found:
    raise ValueError('an earlier version wrote it, without the mixing weights and architectures that are drawn here')
  topology = parse_json(str(arrays.get('topology', 'U', ())).encode())
  check_fields(topology, ('space', 'legend', 'cells'), 'topology')
  if not isinstance(topology['cells'], Mapping) or not topology['cells']:
    raise ValueError('topology: cells: not an object with a field for each kind of cell')
  _check_count('topology', len(topology['cells']), limits.CELLS, 'kinds of cells')
  cells = {name: cell_from_json(values, name) for name, values in topology['cells'].items()}
  for name, spec in cells.items():
    _check_names(name, *spec.operations)
    _check_count(f'topology: {name}', spec.num_edges, limits.EDGES, 'edges')
    _check_count(f'topology: {name}', len(spec.operations), limits.OPERATIONS, 'operations')
    if not spec.num_edges:
      raise ValueError(f'topology: {name}: it has no edges')
  space = str(topology['space'])
  steps = arrays.get('step', 'iu', (None,))
  count = len(steps)
  _check_count('step', count, limits.EPOCHS + 1, 'snapshots')
  if steps[0] < 0 or steps[-1] >= MAX_COUNT or (np.diff(steps.astype(np.int64)) < 0).any():
    raise ValueError('step: not the ascending steps of snapshots')
  shapes = {name: (count, spec.num_edges, len(spec.operations)) for name, spec in cells.items()}
  texts = {name: arrays.texts(name, count) for name in ('genotype', 'cells', 'not_settled')}
  for text in set(texts['genotype']):
    parse_json(text.encode())
  # Each distinct text is parsed once, since most snapshots repeat the architecture before.
  known = {text: _read_architecture(text, space, cells) for text in set(texts['cells'])}
  return History(
    steps=steps.astype(int),
    space=space,
    legend=str(topology['legend']),
    cells=cells,
    mixing={name: arrays.floats(f'mixing_{name}', shape) for name, shape in shapes.items()},
    left={name: arrays.get(f'left_{name}', 'b', shape) for name, shape in shapes.items()},
    architectures=tuple(known[text] for text in texts['cells']),
    texts=texts['genotype'],
    doubts=texts['not_settled'],
    edges={
      name: arrays.floats(f'edge_weights_{name}', shape[:2])
      for name, shape in shapes.items()
      if f'edge_weights_{name}' in arrays.found
    },
    scores=_read_scores(arrays, {name: shape[:2] for name, shape in shapes.items()}),
    temperatures=arrays.floats('temperature', (count,)) if 'temperature' in arrays.found else None,
  )


def _read_architecture(text: str, space: str, cells: Mapping[str, CellSpec]) -> Genotype:
  found = cells_from_json(parse_json(text.encode()), space, cells)
  for name, cell in found.cells:
    _check_count(f'cells: {name}', cell.num_edges, limits.EDGES, 'edges')
  return found


def _read_scores(arrays: '_Arrays', shapes: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, np.ndarray]]:
  names = [str(name) for name in arrays.get('scores', 'U', (None,))] if 'scores' in arrays.found else []
  _check_names(*names)
  _check_count('scores', len(names), _MAX_SCORES, 'scores')
  return {
    score: {
      name: arrays.floats(f'{score}_{name}', shape)
      for name, shape in shapes.items()
      if f'{score}_{name}' in arrays.found
    }
    for score in names
  }


class _Arrays:
  """The arrays of the file; each is checked when it is read."""

  def __init__(self, found: Mapping[str, np.ndarray]) -> None:
    self.found: Collection[str] = found.keys()
    self._arrays = found

  def get(self, name: str, kinds: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array; raises a ValueError unless its dtype is of `kinds` and its shape is `shape` (None: any length > 0)."""
    found = self._arrays.get(name)
    if found is None:
      raise ValueError(f'array {name} is missing')
    is_fit = len(found.shape) == len(shape) and all(
      length == size or (size is None and length) for length, size in zip(found.shape, shape, strict=True)
    )
    if found.dtype.kind not in kinds or not is_fit:
      wanted = f'[{", ".join("N" if size is None else str(size) for size in shape)}]'
      raise ValueError(f'{name} is {found.dtype}{list(found.shape)}; the other arrays ask for {_DTYPES[kinds]}{wanted}')
    return found

  def floats(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of floats, in double precision."""
    return self.get(name, 'f', shape).astype(float)

  def texts(self, name: str, count: int) -> tuple[str, ...]:
    """An array of `count` texts."""
    return tuple(map(str, self.get(name, 'U', (count,))))


def _check_count(name: str, count: int, most: int, what: str) -> None:
  if count > most:
    raise ValueError(f'{name}: {count:,} {what}; there are up to {most:,}')


def _check_names(*names: Any) -> None:
  """Raises a ValueError unless names of cells, operations and scores can be written into a drawing."""
  for name in names:
    # Matplotlib parses text between two "$" as a formula.
    if not name or not name.isprintable() or '$' in name or len(name) > _MAX_NAME:
      raise ValueError(f'{one_line(repr(name))} cannot be drawn; a name has 1 to {_MAX_NAME} printable letters, no $')
