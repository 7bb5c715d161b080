"""Reads a run's working directory: what its files hold, and for every other file why it holds nothing."""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from darts_jax import limits, spaces
from darts_jax.runtime.files import read_json_lines, read_npz, read_object
from darts_jax.spaces import CellSpace, CellSpec, Doubts, Edge, Genotype
from darts_jax.spaces.checks import check_operations

Record = Mapping[str, Any]

# Strategies whose architectures are derived here, from what their files say; None of files that name none.
_RULES = ('darts', 'sgas', None)
#: What an edge is (see `Alphas.decided`) that no operation was decided for.
UNDECIDED, REMOVED = -1, -2
#: Steps and epochs are below the first whole number that a float cannot tell from the next.
_MAX_COUNT = 2**53
#: Metrics that are larger are shown as infinite.
_MAX_SHOWN = 1e100
#: What dtypes of some kinds are called.
_DTYPES = {'iu': 'whole numbers', 'f': 'floats', 'U': 'texts'}
#: What edges are decided by [SGAS §3]: the score, and the criteria that it is the product of.
SCORES = ('score', 'importance', 'certainty', 'stability')


@dataclasses.dataclass(frozen=True)
class Decision:
  """An edge that a search fixed to one operation [SGAS §3].

  Attributes:
    snapshot: the first snapshot in which it is fixed.
    cell: the cell type.
    edge: (source, target).
    operation: what it was fixed to.
    score: its score then; None if scores were not written.
    removed: (source, target) of the edges into the same node that are gone from the same snapshot on.
  """

  snapshot: int
  cell: str
  edge: tuple[int, int]
  operation: str
  score: float | None
  removed: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Alphas:
  """Architecture parameters over a search, as `alphas.npz` holds them.

  Attributes:
    steps: `[T]` int, the step of each snapshot, ascending.
    operations: names of the `O` columns.
    alphas: by kind of cell, `[T, E, O]` raw α; −∞ stands for a pruned operation.
    edges: likewise, `(source, target)` of the `E` rows.
    scores: by name, of `SCORES`, and cell type, `[T, E]` float: what the decision of a snapshot, if it had one, was
      made by. It means nothing on edges decided or removed at an earlier one. Empty for a search that does not decide.
    temperatures: `[T]`, what the supernet divides α by before it takes the softmax; None for 1 throughout.
    strategy: of the search; None if it is not known.
  """

  steps: np.ndarray
  operations: tuple[str, ...]
  alphas: Mapping[str, np.ndarray]
  edges: Mapping[str, tuple[tuple[int, int], ...]]
  scores: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
  temperatures: np.ndarray | None = None
  strategy: str | None = None

  @functools.cached_property
  def decides(self) -> bool:
    """Whether edges are decided one after the other [SGAS §3]: there are scores, or edges decided or removed."""
    return bool(self.scores) or any((self.decided(cell) != UNDECIDED).any() for cell in self.alphas)

  def decided(self, cell: str) -> np.ndarray:
    """`[T, E]` int, what α say that edges are: the column of the operation left, or `UNDECIDED`, or `REMOVED`.

    A decided edge has a single operation that is not pruned, a removed one none.
    """
    return self._states[cell]

  @functools.cached_property
  def _states(self) -> dict[str, np.ndarray]:
    found = {}
    for cell, alphas in self.alphas.items():
      left = ~np.isneginf(alphas)
      count = left.sum(axis=-1)
      fixed = (count == 1) & (len(self.operations) > 1)
      found[cell] = np.where(count == 0, REMOVED, np.where(fixed, left.argmax(axis=-1), UNDECIDED))
    return found

  def decisions(self) -> tuple[Decision, ...]:
    """What was decided, in the order of snapshots; in one snapshot cell by cell, in the order of edges."""
    return self._decisions

  @functools.cached_property
  def _decisions(self) -> tuple[Decision, ...]:
    found = []
    for cell, edges in self.edges.items():
      states = self.decided(cell)
      settled = states != UNDECIDED
      since = {int(row): int(settled[:, row].argmax()) for row in np.flatnonzero(settled.any(axis=0))}
      gone = [(when, edges[row]) for row, when in since.items() if states[when, row] == REMOVED]
      scores = self.scores.get('score', {}).get(cell)
      for row, snapshot in since.items():
        if states[snapshot, row] != REMOVED:
          operation = self.operations[states[snapshot, row]]
          score = None if scores is None else float(scores[snapshot, row])
          removed = tuple(edge for when, edge in gone if when == snapshot and edge[1] == edges[row][1])
          found.append(Decision(snapshot, cell, edges[row], operation, score, removed))
    return tuple(sorted(found, key=lambda decision: decision.snapshot))

  def mixing(self, cell: str) -> np.ndarray:
    """`[T, E, O]` mixing weights of the supernet, the softmax of each edge's α at the temperature of the snapshot.

    They are zero on an edge whose operations are all pruned.
    """
    if self.temperatures is None:
      return self.preferences(cell)
    return _softmax(self.alphas[cell] / self.temperatures[:, None, None])

  def preferences(self, cell: str, snapshot: int | None = None) -> np.ndarray:
    """The same at a temperature of 1, at which architectures are derived and edges decided; `[E, O]` of a snapshot."""
    return _softmax(self.alphas[cell] if snapshot is None else self.alphas[cell][snapshot])

  def spec(self, cell: str) -> CellSpec:
    """The searched cell.

    Raises:
      ValueError: no space has such a cell, an operation is not one of it, or the edges make no cell.
    """
    space = self._space(cell)
    check_operations(self.operations, space.known_operations, 'operations')
    usual = space.cells[cell]
    num_inputs = usual.num_inputs
    targets = [target for _, target in self.edges[cell]]
    if sorted(targets) != targets or min(targets) < num_inputs:
      raise ValueError(f'edges_{cell}: targets {targets} do not list intermediate nodes in their order')
    nodes = tuple(
      tuple(Edge(source, self.operations) for source, target in self.edges[cell] if target == node)
      for node in range(num_inputs, max(targets) + 1)
    )
    outputs = (max(targets),) if usual.output == 'last' else tuple(range(num_inputs, max(targets) + 1))
    return dataclasses.replace(usual, nodes=nodes, operations=self.operations, outputs=outputs)

  def cell(self, cell: str, snapshot: int) -> CellSpec:
    """The cell at a snapshot: decided edges with their operation, undecided ones with every candidate, no removed ones.

    Raises:
      ValueError: as `spec`.
    """
    spec = self.spec(cell)
    nodes: list[list[Edge]] = [[] for _ in spec.nodes]
    for (target, edge), state in zip(spec.edges, self.decided(cell)[snapshot], strict=True):
      if state != REMOVED:
        operations = edge.operations if state == UNDECIDED else (self.operations[state],)
        nodes[target - spec.num_inputs].append(Edge(edge.source, operations))
    return dataclasses.replace(spec, nodes=tuple(map(tuple, nodes)))

  def _space(self, cell: str) -> CellSpace:
    found = spaces.space_with(cell)
    if found is None:
      raise ValueError(f'cell {cell}: no search space has one of this name; import the module that defines it')
    return found

  @property
  def space(self) -> CellSpace:
    """The space that has these kinds of cells, with its default settings; a ValueError if there is none."""
    space = self._space(next(iter(self.alphas)))
    if not set(space.cells) <= set(self.alphas):
      wanted = ' and a '.join(space.cells)
      raise ValueError(f'cells {", ".join(self.alphas)}: an architecture is derived from a {wanted} cell')
    return space

  def genotype(self, snapshot: int) -> Genotype:
    """The architecture that the α of one snapshot stand for, by the rule of [DARTS §2.4].

    If the search decides, at this snapshot or at another, it is the one that it would end with if it ended here
    [SGAS §3]: the decided edges, and at nodes that are short of them, the undecided ones of the largest importance with
    their best operation. The importance of an edge is the weight of its operations other than `none`.

    Raises:
      ValueError: they are not the cells of a space, no architecture can be derived, or the strategy has another rule.
    """
    if self.strategy not in _RULES:
      raise ValueError(f'the report does not know the rule of {self.strategy}')
    space, found = self.space, {}
    for cell in space.cells:
      mixing, spec = self.preferences(cell, snapshot), self.spec(cell)
      if self.decides:
        states = self.decided(cell)[snapshot]
        decided = {row: self.operations[state] for row, state in enumerate(states) if state >= 0}
        found[cell] = spaces.complete(mixing, spec, decided)
      else:
        found[cell] = spaces.strongest(mixing, spec, keeps_none=space.keeps_none)
    return space.genotype(found)

  def doubts(self) -> Doubts | None:
    """What of the latest architecture is in doubt by how far α moved since the snapshot before.

    None if edges are decided one after the other, there is one snapshot alone, or no architecture can be derived here.
    """
    if self.decides or len(self.steps) < 2 or self.strategy not in _RULES:
      return None
    before, after = ({cell: self.preferences(cell, i) for cell in self.alphas} for i in (-2, -1))
    try:
      cells = {cell: self.spec(cell) for cell in self.alphas}
      return spaces.doubts(before, after, cells, keeps_none=self.space.keeps_none)
    except ValueError:
      return None


@dataclasses.dataclass(frozen=True)
class Run:
  """A search or a training as its files tell it.

  Attributes:
    path: the working directory.
    config: the nested settings; None without a readable `config.json`.
    steps: records of kind `step`, ascending by step; of a step that was repeated after a resume, the last one.
    epochs: records of kind `epoch`, likewise.
    events: records of kind `event`, as written.
    tests: records of kind `test`, as written.
    status: `'not started'`, `'running'` (as far as files can tell), `'stopped'` or `'finished'`.
    genotype: what `genotype.json` holds, if it is there.
    alphas: what `alphas.npz` holds, if it is there.
    problems: by file name, one line that says why a file or a part of it is not shown.
  """

  path: pathlib.Path
  config: Mapping[str, Any] | None
  steps: tuple[Record, ...]
  epochs: tuple[Record, ...]
  events: tuple[Record, ...]
  tests: tuple[Record, ...]
  status: str
  genotype: Genotype | None
  alphas: Alphas | None
  problems: Mapping[str, str]

  def setting(self, *names: str) -> Any:
    """The least nested setting called by the first of `names` that exists; the `name` of one that is a group."""
    for name in names:
      level: list[Any] = [self.config]
      while level:
        level = [values for values in level if isinstance(values, Mapping)]
        for values in level:
          value = values.get(name)
          value = value.get('name') if isinstance(value, Mapping) else value
          if value is not None:
            return value
        level = [value for values in level for value in values.values()]
    return None

  @property
  def is_training(self) -> bool:
    """Whether an architecture is trained, which is a part of the settings then, and not searched."""
    return self.config is not None and 'genotype' in self.config

  @property
  def reads_text(self) -> bool:
    """Whether it is about a language model; by the settings, or without them by what else is there."""
    task, space = self.setting('task'), self.setting('space')
    if task is not None:
      return bool(task == 'text')
    if space is not None:
      # Of an earlier version.
      return any(each.kind == space and each.task == 'text' for each in spaces.SPACES.values())
    cells = [*(dict(self.genotype.cells) if self.genotype else ()), *(self.alphas.edges if self.alphas else ())]
    found = map(spaces.space_with, cells)
    return any(space is not None and space.task == 'text' for space in found)

  @property
  def dataset(self) -> Any:
    """What the data is: the name of the dataset, or where it lies if the name says only how it is stored."""
    group = (self.config or {}).get('data')
    if not isinstance(group, Mapping):
      return self.setting('data')
    name = group.get('name')
    where = {'image_folder': 'dir', 'files': 'dir', 'tfds': 'dataset', 'npz': 'path'}.get(str(name))
    return (group.get(where) if where else None) or name

  @property
  def num_epochs(self) -> int | None:
    """The number of epochs the run is meant to have."""
    value = self.setting('num_epochs', 'epochs')
    return value if _is_count(value) else None

  @property
  def time_unit(self) -> str:
    """What `times` counts: `'epoch'`, or `'step'` before the first epoch has ended."""
    return 'epoch' if self.epochs else 'step'

  def times(self, steps: Sequence[int] | np.ndarray) -> np.ndarray:
    """`[N]` float: when steps happened, in epochs completed, or in steps before the first epoch has ended."""
    steps = np.asarray(steps, float)
    if not self.epochs:
      return steps
    ends = np.array([0.0, *(float(record['step']) for record in self.epochs)])
    counts = np.array([0.0, *(record['epoch'] + 1.0 for record in self.epochs)])
    beyond = np.maximum(steps - ends[-1], 0.0) * counts[-1] / max(ends[-1], 1.0)
    return np.interp(steps, ends, counts) + beyond


def number(value: Any) -> float | None:
  """A metric as a float, non-finite ones (also when written as strings) included; None if it is no number."""
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    return None
  try:
    found = float(value)
  except (ValueError, OverflowError):
    return None
  # Axes cannot be divided into steps up there.
  return math.copysign(math.inf, found) if abs(found) > _MAX_SHOWN else found


def series(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
  """`[N]` steps and `[N]` values of one metric, from the records that have it; values may be non-finite."""
  pairs = [(record['step'], number(record.get(name))) for record in records]
  pairs = [(step, value) for step, value in pairs if value is not None]
  return np.array([step for step, _ in pairs], int), np.array([value for _, value in pairs], float)


def last(records: Sequence[Record], name: str) -> float | None:
  """The last finite value of a metric, None if there is none."""
  values = [value for record in records if (value := number(record.get(name))) is not None and math.isfinite(value)]
  return values[-1] if values else None


def kept_edges(genotype: Genotype | None, cell: str) -> set[tuple[int, int, str]]:
  """(source, target, operation) of the edges of a cell; none of a cell that the architecture does not have."""
  if genotype is None or cell not in dict(genotype.cells):
    return set()
  return {(edge.source, node, edge.operations[0]) for node, edge in genotype.cell(cell).edges}


def read(path: pathlib.Path) -> Run:
  """Reads what is there of `config.json`, `metrics.jsonl`, `genotype.json` and `alphas.npz`; raises for none of it."""
  problems: dict[str, str] = {}
  readers: dict[str, Callable[[pathlib.Path], Any]] = {
    'config.json': read_object,
    'metrics.jsonl': _read_metrics,
    'genotype.json': spaces.load,
    'alphas.npz': _read_alphas,
  }
  contents: dict[str, Any] = {}
  for name, reader in readers.items():
    contents[name] = None
    try:
      if (path / name).exists():
        contents[name] = reader(path / name)
      else:
        problems[name] = f'{name} is not there (yet).'
    except (OSError, ValueError) as error:
      problems[name] = f'{name} cannot be read: {str(error).removeprefix(f"{path / name}: ")}'
  records, num_broken = contents['metrics.jsonl'] or ([], 0)
  if num_broken:
    problems['metrics.jsonl'] = f'{num_broken} broken lines of metrics.jsonl are left out.'
  config, alphas = contents['config.json'], contents['alphas.npz']
  if alphas is not None and config is not None:
    strategy = config.get('strategy')
    alphas = dataclasses.replace(alphas, strategy=strategy.get('name') if isinstance(strategy, Mapping) else strategy)
  return Run(
    path=path,
    config=config,
    steps=_latest(records, 'step'),
    epochs=_latest(records, 'epoch'),
    events=tuple(record for record in records if record['kind'] == 'event'),
    tests=tuple(record for record in records if record['kind'] == 'test'),
    status=_status(records),
    genotype=contents['genotype.json'],
    alphas=alphas,
    problems=problems,
  )


def _softmax(alphas: np.ndarray) -> np.ndarray:
  """Over the last axis; zeros where all are −∞."""
  largest = alphas.max(axis=-1, keepdims=True)
  with np.errstate(invalid='ignore'):  # +∞ gives NaN, which is what it means
    weights = np.exp(alphas - np.where(np.isneginf(largest), 0.0, largest))
  total = weights.sum(axis=-1, keepdims=True)
  return weights / np.where(total == 0.0, 1.0, total)


def _read_metrics(path: pathlib.Path) -> tuple[list[Record], int]:
  lines = read_json_lines(path)
  records: list[Record] = []
  num_broken = 0
  for i, record in enumerate(lines):
    if _is_record(record):
      records.append(record)
    # A crash cuts the line it is writing; that is no news. Anywhere else it is.
    elif i < len(lines) - 1:
      num_broken += 1
  return records, num_broken


def _is_record(record: Any) -> TypeGuard[Record]:
  needed = {'step': ('step',), 'epoch': ('step', 'epoch'), 'event': ('step', 'event'), 'test': ('step',)}
  if not isinstance(record, dict) or not isinstance(record.get('kind'), str) or record['kind'] not in needed:
    return False
  return all(
    isinstance(record.get(name), str) if name == 'event' else _is_count(record.get(name))
    for name in needed[record['kind']]
  )


def _is_count(value: Any) -> TypeGuard[int]:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


def _latest(records: Sequence[Record], kind: str) -> tuple[Record, ...]:
  by_time = {record[kind]: record for record in records if record['kind'] == kind}
  return tuple(by_time[time] for time in sorted(by_time))


def _status(records: Sequence[Record]) -> str:
  after = {
    'finished': 'finished',
    'interrupted': 'stopped',
    'non_finite': 'stopped',
    'failed': 'stopped',
    'damaged_checkpoint': None,
    'brought_back': None,
    'incomplete_log': None,
  }
  status = 'not started'
  for record in records:
    status = after.get(record['event'] if record['kind'] == 'event' else '', 'running') or status
  return status


def _read_alphas(path: pathlib.Path) -> Alphas:
  arrays = read_npz(path)

  def array(name: str, kinds: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """One of them; `kinds` of dtypes and a shape, where None is any positive number, are what it has to have."""
    found = arrays.get(name)
    if found is None:
      raise ValueError(f'array {name} is missing')
    is_fit = len(found.shape) == len(shape) and all(
      length == size or (size is None and length) for length, size in zip(found.shape, shape, strict=True)
    )
    if found.dtype.kind not in kinds or not is_fit:
      wanted = f'[{", ".join("N" if size is None else str(size) for size in shape)}]'
      raise ValueError(f'{name} is {found.dtype}{list(found.shape)}; the other arrays ask for {_DTYPES[kinds]}{wanted}')
    return found

  def check_count(name: str, count: int, most: int, what: str) -> None:
    if count > most:
      raise ValueError(f'{name}: {count:,} {what}; there are up to {most:,}')

  steps = array('step', 'iu', (None,))
  check_count('step', len(steps), limits.EPOCHS + 1, 'snapshots')
  if steps[0] < 0 or steps[-1] >= _MAX_COUNT or (np.diff(steps.astype(np.int64)) < 0).any():
    raise ValueError('step: not the ascending steps of snapshots')
  operations = tuple(str(name) for name in array('operations', 'U', (None,)))
  check_count('operations', len(operations), limits.OPERATIONS, 'operations')
  cells = [name.removeprefix('edges_') for name in arrays if name.startswith('edges_')]
  if not cells:
    raise ValueError('it holds no snapshot of a cell')
  check_count('edges_…', len(cells), limits.CELLS, 'kinds of cells')
  rows = {cell: array(f'edges_{cell}', 'iu', (None, 2)) for cell in cells}
  for cell, pairs in rows.items():
    check_count(f'edges_{cell}', len(pairs), limits.EDGES, 'edges')
  edges = {cell: tuple((int(source), int(target)) for source, target in pairs) for cell, pairs in rows.items()}
  for cell, of_cell in edges.items():
    # No cell has more than two inputs.
    if not all(0 <= source < target < 2 + limits.NODES for source, target in of_cell):
      raise ValueError(f'edges_{cell}: not the edges of a cell')
  shapes = {cell: (len(steps), len(edges[cell])) for cell in cells}
  alphas = {cell: array(cell, 'f', (*shapes[cell], len(operations))).astype(float) for cell in cells}
  scores: dict[str, dict[str, np.ndarray]] = {}
  for score, cell in itertools.product(SCORES, cells):
    name = f'{score}_{cell}'
    if name in arrays:
      scores.setdefault(score, {})[cell] = array(name, 'f', shapes[cell]).astype(float)
  temperatures = array('temperature', 'f', (len(steps),)).astype(float) if 'temperature' in arrays else None
  if temperatures is not None and not np.all(temperatures > 0):
    raise ValueError('temperature: not a positive number for each step')
  return Alphas(steps.astype(int), operations, alphas, edges, scores, temperatures)
