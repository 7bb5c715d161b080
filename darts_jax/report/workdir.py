"""Reads the files of a run's working directory; a missing or broken file gives a message instead of an error."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from darts_jax import spaces
from darts_jax.report import history
from darts_jax.report.history import MAX_COUNT, History
from darts_jax.runtime.files import read_json_lines, read_object
from darts_jax.spaces import Genotype

Record = Mapping[str, Any]

#: Events of a search that goes on from an earlier step, or returns the architecture of an earlier step.
WENT_BACK = ('went_back', 'stopped_early')

#: Metrics above this number are shown as infinite.
_MAX_SHOWN = 1e100


@dataclasses.dataclass(frozen=True)
class Run:
  """A search or a training, from the files of its working directory.

  Attributes:
    path: the working directory.
    config: the nested settings; None without a readable `config.json`.
    steps: records of kind `step`, ascending by step; the last record of a step that was repeated after a resume.
    epochs: records of kind `epoch`, ascending by epoch; the last record of a repeated epoch.
    events: records of kind `event`, in the order of the log.
    tests: records of kind `test`, in the order of the log.
    status: `'not started'`, `'running'` (as far as files can tell), `'stopped'` or `'finished'`.
    genotype: content of `genotype.json`, if it can be read.
    history: content of `alphas.npz`, if it can be read.
    problems: by file name, one line that says why a file or a part of it is not shown.
    comparison: content of `comparison.json` if it can be read, the found architecture against random ones.
    left_behind: for each time that a search went back to an earlier epoch, or returned its architecture, the records of
      kind `epoch` of all later epochs.
  """

  path: pathlib.Path
  config: Mapping[str, Any] | None
  steps: tuple[Record, ...]
  epochs: tuple[Record, ...]
  events: tuple[Record, ...]
  tests: tuple[Record, ...]
  status: str
  genotype: Genotype | None
  history: History | None
  problems: Mapping[str, str]
  comparison: Mapping[str, Any] | None = None
  left_behind: tuple[tuple[Record, ...], ...] = ()

  def setting(self, *names: str) -> Any:
    """The value of the first of `names` that is a setting, at the least nested place; for a group, its `name`."""
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
    """Whether the run is a training, whose settings include the architecture."""
    return self.config is not None and 'genotype' in self.config

  @property
  def reads_text(self) -> bool:
    """Whether the run is about a language model, by its settings or, without them, by its other files."""
    task, space = self.setting('task'), self.setting('space')
    if task is not None:
      return bool(task == 'text')
    if space is not None and space not in spaces.SPACES:
      # Earlier versions wrote the kind of the space.
      return any(each.kind == space and each.task == 'text' for each in spaces.SPACES.values())
    return self.space in spaces.SPACES and spaces.SPACES[self.space].task == 'text'

  @property
  def space(self) -> str:
    """The name of the space of the architectures; empty if no file has it."""
    found = self.history or self.genotype
    return found.space if found is not None else ''

  @property
  def dataset(self) -> Any:
    """The name of the dataset, or its path if the name in the settings is that of a file format."""
    group = (self.config or {}).get('data')
    if not isinstance(group, Mapping):
      return self.setting('data')
    name = group.get('name')
    where = {'image_folder': 'dir', 'files': 'dir', 'tfds': 'dataset', 'npz': 'path'}.get(str(name))
    return (group.get(where) if where else None) or name

  @property
  def num_epochs(self) -> int | None:
    """The number of epochs in the settings; None if they have none."""
    value = self.setting('num_epochs', 'epochs')
    return value if _is_count(value) else None

  @property
  def time_unit(self) -> str:
    """The unit of `times`: `'epoch'`, or `'step'` before the first epoch has ended."""
    return 'epoch' if self.epochs else 'step'

  def times(self, steps: Sequence[int] | np.ndarray) -> np.ndarray:
    """Converts `[N]` steps to `[N]` times: epochs completed, or steps before the first epoch has ended."""
    steps = np.asarray(steps, float)
    if not self.epochs:
      return steps
    ends = np.array([0.0, *(float(record['step']) for record in self.epochs)])
    counts = np.array([0.0, *(record['epoch'] + 1.0 for record in self.epochs)])
    beyond = np.maximum(steps - ends[-1], 0.0) * counts[-1] / max(ends[-1], 1.0)
    return np.interp(steps, ends, counts) + beyond


def number(value: Any) -> float | None:
  """A metric as a float, which may be non-finite or written as a string; None if it is no number."""
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    return None
  try:
    found = float(value)
  except (ValueError, OverflowError):
    return None
  # Matplotlib cannot make ticks for larger numbers.
  return math.copysign(math.inf, found) if abs(found) > _MAX_SHOWN else found


def series(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
  """`[N]` steps and `[N]` values of a metric, from the records that have it; values may be non-finite."""
  pairs = [(record['step'], number(record.get(name))) for record in records]
  pairs = [(step, value) for step, value in pairs if value is not None]
  return np.array([step for step, _ in pairs], int), np.array([value for _, value in pairs], float)


def last(records: Sequence[Record], name: str) -> float | None:
  """The last finite value of a metric; None if there is none."""
  values = [value for record in records if (value := number(record.get(name))) is not None and math.isfinite(value)]
  return values[-1] if values else None


def read(path: pathlib.Path) -> Run:
  """Reads `config.json`, `metrics.jsonl`, `genotype.json` and `alphas.npz`; missing or broken files raise nothing."""
  problems: dict[str, str] = {}
  readers: dict[str, Callable[[pathlib.Path], Any]] = {
    'config.json': read_object,
    'metrics.jsonl': _read_metrics,
    'genotype.json': spaces.load,
    'alphas.npz': history.read,
    'comparison.json': _read_comparison,
  }
  contents: dict[str, Any] = {}
  for name, reader in readers.items():
    contents[name] = None
    try:
      if (path / name).exists():
        contents[name] = reader(path / name)
      elif name != 'comparison.json':  # Most searches are not compared.
        problems[name] = f'{name} is not there (yet).'
    except (OSError, ValueError) as error:
      problems[name] = f'{name} cannot be read: {str(error).removeprefix(f"{path / name}: ")}'
  records, num_broken = contents['metrics.jsonl'] or ([], 0)
  if num_broken:
    problems['metrics.jsonl'] = f'{num_broken} broken lines of metrics.jsonl are left out.'
  records, left_behind = _split(records)
  return Run(
    path=path,
    config=contents['config.json'],
    steps=_latest(records, 'step'),
    epochs=_latest(records, 'epoch'),
    events=tuple(record for record in records if record['kind'] == 'event'),
    tests=tuple(record for record in records if record['kind'] == 'test'),
    status=_status(records),
    genotype=contents['genotype.json'],
    history=contents['alphas.npz'],
    comparison=contents['comparison.json'],
    problems=problems,
    left_behind=left_behind,
  )


def returned_to(record: Record) -> int | None:
  """The earlier step to which a search returned by a record of an event in `WENT_BACK`; None for other records."""
  step = record.get('to_step') if record.get('event') in WENT_BACK else None
  return step if _is_count(step) else None


def _split(records: Sequence[Record]) -> tuple[list[Record], tuple[tuple[Record, ...], ...]]:
  """Splits records into those that are still valid, and the epochs that the search left behind (see `Run`)."""
  kept: list[Record] = []
  left_behind = []
  for record in records:
    step = returned_to(record)
    if step is not None:
      later = [each['kind'] in ('step', 'epoch') and each['step'] > step for each in kept]
      left_behind.append(_latest(list(itertools.compress(kept, later)), 'epoch'))
      kept = [each for each, is_later in zip(kept, later, strict=True) if not is_later]
    kept.append(record)
  return kept, tuple(left_behind)


def _read_metrics(path: pathlib.Path) -> tuple[list[Record], int]:
  lines = read_json_lines(path)
  records: list[Record] = []
  num_broken = 0
  for i, record in enumerate(lines):
    if _is_record(record):
      records.append(record)
    # A crash may leave the last line broken, which is no error; any other broken line is reported.
    elif i < len(lines) - 1:
      num_broken += 1
  return records, num_broken


def _read_comparison(path: pathlib.Path) -> Mapping[str, Any]:
  content = read_object(path)
  rows = content.get('rows')
  if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get('name'), str) for row in rows):
    raise ValueError(f'{path}: rows: not a list of architectures')
  return content


def _is_record(record: Any) -> TypeGuard[Record]:
  needed = {'step': ('step',), 'epoch': ('step', 'epoch'), 'event': ('step', 'event'), 'test': ('step',)}
  if not isinstance(record, dict) or not isinstance(record.get('kind'), str) or record['kind'] not in needed:
    return False
  return all(
    isinstance(record.get(name), str) if name == 'event' else _is_count(record.get(name))
    for name in needed[record['kind']]
  )


def _is_count(value: Any) -> TypeGuard[int]:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT


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
