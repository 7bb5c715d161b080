"""The logs of a run: `metrics.jsonl`, which programs read, and event files for TensorBoard."""

import contextlib
import json
import math
import operator
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.events import EventFile
from darts_jax.runtime.files import UnfitFile, as_unicode, parse_json, read_bytes, user_path

_NON_FINITE = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}
# Kinds of lines that have only numbers; and names that lines of a kind must have.
_MEASURED = ('step', 'epoch', 'test')
_NEEDED = {'epoch': ('epoch',), 'test': ('loss',), 'event': ('event',)}
# Floats represent all integers up to the first; the second is the largest float.
_MAX_COUNT, _MAX_NUMBER = 2**53, sys.float_info.max
#: Name of the log of a run.
FILE = 'metrics.jsonl'
# Seconds between flushes to the disk, each of which takes about as long as a small search step.
_TENSORBOARD_FLUSH = 10.0


class Opened(NamedTuple):
  """The result of opening a log.

  Attributes:
    last_step: last step in the log before it was opened; −1 if it had no lines.
    lines: the lines that are kept.
    brought_back: number of lines that were missing or damaged, and have been restored from the copy.
  """

  last_step: int
  lines: list[dict[str, Any]]
  brought_back: int


class Writer(Protocol):
  """An object that receives metrics as they are logged, such as an experiment tracker."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Receives the numbers of a step.

    Args:
      step: the step.
      values: numbers by name, such as `step/train_loss`, named as in TensorBoard.
    """
    ...


def check_writers(writers: Any) -> None:
  """Raises a ValueError unless these are objects with a method `write`."""
  if not isinstance(writers, Sequence) or not all(callable(getattr(each, 'write', None)) for each in writers):
    raise ValueError('writers: has to be a list of objects with a method write(step, values)')


class MetricsLogs:
  """The logs of one run, or of several searches side by side; a context manager. See `MetricsLog`."""

  def __init__(
    self,
    folders: Sequence[pathlib.Path],
    *,
    resume_step: int | None,
    saved: Sequence[bytes] | None = None,
    writers: Sequence[Writer] = (),
  ) -> None:
    """Opens the logs.

    Args:
      folders: folders of the logs; empty in processes that do not log.
      resume_step: see `MetricsLog`.
      saved: for each log, its content in a checkpoint, see `MetricsLog`; None without copies.
      writers: objects that receive all numbers that are logged from now on; with several folders, names begin with that
        of the folder.
    """
    self._names = [f'{folder.name}/' if len(folders) > 1 else '' for folder in folders]
    self._writers = writers
    copies = [None] * len(folders) if saved is None else saved
    with contextlib.ExitStack() as stack:
      self._logs = [
        stack.enter_context(MetricsLog(folder, resume_step=resume_step, saved=copy))
        for folder, copy in zip(folders, copies, strict=True)
      ]
      self._stack = stack.pop_all()

  @property
  def opened(self) -> list[Opened]:
    """The results of opening each log."""
    return [log.opened for log in self._logs]

  def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
    """Appends a line to every log; from values `[N]`, each log gets its own entry."""
    told: dict[str, float] = {}
    for i, log in enumerate(self._logs):
      own = {name: value[i] if np.ndim(value) else value for name, value in values.items()}
      log.write(kind, step, own)
      numbers = {name: value for name, value in own.items() if not isinstance(value, str)}
      told |= {f'{self._names[i]}{kind}/{name}': float(value) for name, value in numbers.items()}
    for writer in self._writers if told else ():
      writer.write(step, told)

  def go_back(self, step: int) -> None:
    """See `MetricsLog.go_back`."""
    for log in self._logs:
      log.go_back(step)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self._stack.close()


class MetricsLog:
  """Writes `metrics.jsonl` and TensorBoard events; a context manager. Only one process of a run may open it.

  Attributes:
    opened: the result of opening the log.
  """

  def __init__(self, workdir: str | pathlib.Path, *, resume_step: int | None, saved: bytes | None = None) -> None:
    """Opens the log.

    Args:
      workdir: folder that gets `metrics.jsonl` and `tensorboard/`.
      resume_step: step of the checkpoint from which the run resumes; later lines are dropped, because they will be
        logged again. None for a run from the start, which drops all lines.
      saved: content of the log when that checkpoint was saved, empty if not known. Lines that the log lacks are
        restored from it, and damaged lines are dropped. Its lines of later steps, from before the run went back to an
        earlier step, stay.

    Raises:
      ValueError: `workdir` cannot be written; or its log is damaged, and there is no copy.
    """
    self._path = _path(workdir)
    with _errors_named(self._path):
      found = _lines(self._path, lenient=resume_step is None or saved is not None)
      wanted = _parsed(saved or b'', self._path, lenient=True)
      intact = len(wanted) if found[: len(wanted)] == wanted else 0
      kept = [] if resume_step is None else found[:intact] + _up_to(resume_step, found[intact:], wanted[intact:])
      brought_back = 0
      if kept[: len(wanted)] != wanted:
        known, there = ({json.dumps(line, sort_keys=True): line for line in lines} for lines in (wanted, kept))
        brought_back = len(known.keys() - there.keys())
        # Lines that are not in the copy stay, such as events that were logged after the checkpoint, at its step.
        kept = [*wanted, *(line for text, line in there.items() if text not in known)]
      self.opened = Opened(max((line['step'] for line in found), default=-1), kept, brought_back)
      tensorboard = self._path.parent / 'tensorboard'
      tensorboard.mkdir(parents=True, exist_ok=True)
      _replace(self._path, kept)
      self._file = self._path.open('a', encoding='utf-8')
      self._events = EventFile(tensorboard)
      self._events.start(0 if resume_step is None else resume_step + 1)
      self._events.flush()
    self._flushed = time.monotonic()

  def write(self, kind: str, step: int, values: Mapping[str, float | int | str]) -> None:
    """Appends one line and flushes it.

    The line is strict JSON, `{"kind": kind, "step": step, **values}`. Floats that are not finite become the strings
    `nan`, `inf` and `-inf`, and strings are escaped where they are not Unicode. Numbers also become TensorBoard scalars
    `kind/name`.

    Args:
      kind: kind of the line, such as `'epoch'`.
      step: step of the line.
      values: Python numbers, NumPy or JAX scalars, or strings, by name.

    Raises:
      ValueError: a name is `kind` or `step`, a value is neither a number nor a string, a value that lines of this kind
        need is missing or has another type, or the log cannot be written.
    """
    step = operator.index(step)
    plain = {name: _plain(name, value) for name, value in values.items()}
    line = {'kind': kind, 'step': step, **{name: _finite_or_text(value) for name, value in plain.items()}}
    if not _is_line(line):
      raise ValueError(f'metrics of kind {kind!r} at step {step}: {line} could not be read again')
    scalars = [(f'{kind}/{name}', value) for name, value in plain.items() if not isinstance(value, str)]
    with _errors_named(self._path):
      self._file.write(json.dumps(line, allow_nan=False) + '\n')
      self._file.flush()
      if scalars:
        self._events.scalars(step, scalars)
      if time.monotonic() - self._flushed > _TENSORBOARD_FLUSH:
        self._events.flush()
        self._flushed = time.monotonic()

  def go_back(self, step: int) -> None:
    """Tells TensorBoard that the run goes back to an earlier step; the lines of later steps stay in the log."""
    with _errors_named(self._path):
      self._events.start(step + 1)
      self._events.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    with _errors_named(self._path):
      self._file.close()
      self._events.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()


def read(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """Reads all complete lines of a run's `metrics.jsonl`, in the order in which they were written.

  The strings `nan`, `inf` and `-inf` are read as floats. A last line that is incomplete, because the run was killed, is
  left out.

  Raises:
    ValueError: there is no log, or a line is not one that `MetricsLog.write` writes.
  """
  path = _path(workdir)
  if not path.is_file():
    raise ValueError(f'{path}: no such file; a run writes it into its workdir')
  return [
    {name: _NON_FINITE.get(value, value) if isinstance(value, str) else value for name, value in line.items()}
    for line in _lines(path)
  ]


def epochs(workdir: str | pathlib.Path) -> tuple[Mapping[str, Any], ...]:
  """The lines of a run's log that are about epochs, in their order; of an epoch that was done again the last line.

  Raises:
    ValueError: as `read`.
  """
  lines = {line['epoch']: line for line in read(workdir) if line['kind'] == 'epoch'}
  return tuple(lines[epoch] for epoch in sorted(lines))


def _up_to(step: int, lines: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The lines up to a step, and later lines that are also in `others`."""
  known = {json.dumps(line, sort_keys=True) for line in others}
  return [line for line in lines if line['step'] <= step or json.dumps(line, sort_keys=True) in known]


def _path(workdir: str | pathlib.Path) -> pathlib.Path:
  return user_path(workdir, 'workdir') / FILE


def _lines(path: pathlib.Path, *, lenient: bool = False) -> list[dict[str, Any]]:
  return _parsed(read_bytes(path), path, lenient=lenient) if path.is_file() else []


def _parsed(content: bytes, path: pathlib.Path, *, lenient: bool) -> list[dict[str, Any]]:
  """Parses the lines of a log; skips damaged lines if `lenient`, otherwise only a damaged last line."""
  rows = content.splitlines()
  lines = []
  for i, row in enumerate(rows):
    try:
      line = parse_json(row)
      if not _is_line(line):
        raise UnfitFile('not a JSON object of finite numbers and texts, with what a line of its kind holds')
    except UnfitFile as error:
      if lenient or i == len(rows) - 1:
        continue
      raise ValueError(f'{path}: line {i + 1} is damaged: {error}') from error
    lines.append(line)
  return lines


def _is_line(line: Any) -> bool:
  """Whether a JSON value is a line that `MetricsLog.write` could have written."""
  if not isinstance(line, dict) or not isinstance(line.get('kind'), str) or not _is_count(line.get('step')):
    return False
  kind = line['kind']
  if any(name not in line for name in _NEEDED.get(kind, ())) or not _is_count(line.get('epoch', 0)):
    return False
  if kind == 'event' and not all(isinstance(line.get(name, ''), str) for name in ('event', 'message')):
    return False
  values = [value for name, value in line.items() if name != 'kind']
  return all(_is_number(value) or (isinstance(value, str) and kind not in _MEASURED) for value in values)


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value < _MAX_COUNT


def _is_number(value: Any) -> bool:
  # Floats that are not finite are written as strings.
  return value in _NON_FINITE if isinstance(value, str) else type(value) in (int, float) and abs(value) <= _MAX_NUMBER


def _replace(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
  write_whole(path, ''.join(json.dumps(line, allow_nan=False) + '\n' for line in lines).encode())


def _plain(name: str, value: Any) -> float | int | str:
  if name in ('kind', 'step'):
    raise ValueError(f'metric {name!r}: this name is taken by the line itself')
  # The method `item` of NumPy and JAX scalars returns a Python number.
  plain = value.item() if getattr(value, 'shape', None) == () else value
  if not isinstance(plain, float | int | str):
    raise ValueError(f'metric {name!r}: {value!r} is neither a number nor text')
  if isinstance(plain, bool):
    return int(plain)
  return as_unicode(plain) if isinstance(plain, str) else plain


def _finite_or_text(value: float | int | str) -> float | int | str:
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _errors_named(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise ValueError(f'{path.parent}: metrics cannot be written: {error.strerror or error}') from error
