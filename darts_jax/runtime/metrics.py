"""The metrics of a run: JSON lines for programs, TensorBoard events for people."""

import contextlib
import json
import math
import operator
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from darts_jax.runtime.events import EventFile
from darts_jax.runtime.files import UnfitFile, read_json_lines, user_path

_NON_FINITE = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}
# Seconds; writing to the disk takes about as long as a small search step.
_TENSORBOARD_FLUSH = 10.0


class MetricsLogs:
  """The logs of runs side by side, see `MetricsLog`, or of one; a context manager."""

  def __init__(self, folders: Sequence[pathlib.Path], *, resume_step: int | None) -> None:
    """Opens the logs, one in each folder. There may be none."""
    with contextlib.ExitStack() as stack:
      self._logs = [stack.enter_context(MetricsLog(folder, resume_step=resume_step)) for folder in folders]
      self._stack = stack.pop_all()

  def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
    """Appends a line to every log; of values `[N]` each gets its own."""
    for i, log in enumerate(self._logs):
      log.write(kind, step, {name: value[i] if np.ndim(value) else value for name, value in values.items()})

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self._stack.close()


class MetricsLog:
  """Writes `metrics.jsonl` and TensorBoard events; a context manager. One process of a run may have one."""

  def __init__(self, workdir: str | pathlib.Path, *, resume_step: int | None) -> None:
    """Opens the log.

    Args:
      workdir: gets `metrics.jsonl` and `tensorboard/`.
      resume_step: the step of the checkpoint that the run goes on from; what was logged after it is dropped, because
        it will be logged again. None: a run from the start, which drops all there is.

    Raises:
      ValueError: `workdir` cannot be written, or its log is not one.
    """
    self._path = _path(workdir)
    with _errors_named(self._path):
      kept = [] if resume_step is None else [line for line in _lines(self._path) if line['step'] <= resume_step]
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

    The line is strict JSON, `{"kind": kind, "step": step, **values}`; floats that are not finite become the texts
    `nan`, `inf` and `-inf`. Numbers also become TensorBoard scalars `kind/name`.

    Args:
      kind: what is measured, such as `'train'`.
      step: the step it belongs to.
      values: Python numbers, NumPy or JAX scalars, or text.

    Raises:
      ValueError: a name is `kind` or `step`, a value is neither number nor text, or the disk is full.
    """
    step = operator.index(step)
    plain = {name: _plain(name, value) for name, value in values.items()}
    line = {'kind': kind, 'step': step, **{name: _finite_or_text(value) for name, value in plain.items()}}
    scalars = [(f'{kind}/{name}', value) for name, value in plain.items() if not isinstance(value, str)]
    with _errors_named(self._path):
      self._file.write(json.dumps(line, allow_nan=False) + '\n')
      self._file.flush()
      if scalars:
        self._events.scalars(step, scalars)
      if time.monotonic() - self._flushed > _TENSORBOARD_FLUSH:
        self._events.flush()
        self._flushed = time.monotonic()

  def close(self) -> None:
    """Writes out what TensorBoard has not got yet and closes the files."""
    with _errors_named(self._path):
      self._file.close()
      self._events.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()


def read(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """All complete lines of a run's `metrics.jsonl`, in the order written.

  The texts `nan`, `inf` and `-inf` are read as the floats they stand for. A last line that was cut off when the run
  was killed is left out.

  Raises:
    ValueError: there is no log, or one of its lines is not a JSON object with a step.
  """
  path = _path(workdir)
  if not path.is_file():
    raise ValueError(f'{path}: no such file; a run writes it into its workdir')
  return [
    {name: _NON_FINITE.get(value, value) if isinstance(value, str) else value for name, value in line.items()}
    for line in _lines(path)
  ]


def _path(workdir: str | pathlib.Path) -> pathlib.Path:
  return user_path(workdir, 'workdir') / 'metrics.jsonl'


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.is_file():
    return []
  rows = read_json_lines(path)
  lines = []
  for i, line in enumerate(rows):
    if isinstance(line, UnfitFile) or not _is_line(line):
      if i == len(rows) - 1:
        break
      reason = line if isinstance(line, UnfitFile) else 'not a JSON object with a kind and a step'
      raise ValueError(f'{path}: line {i + 1} is damaged: {reason}')
    lines.append(line)
  return lines


def _is_line(line: Any) -> bool:
  return isinstance(line, dict) and isinstance(line.get('kind'), str) and type(line.get('step')) is int


def _replace(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
  temporary = path.with_name(path.name + '.tmp')
  with temporary.open('w', encoding='utf-8') as file:
    file.writelines(json.dumps(line, allow_nan=False) + '\n' for line in lines)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def _plain(name: str, value: Any) -> float | int | str:
  if name in ('kind', 'step'):
    raise ValueError(f'metric {name!r}: this name is taken by the line itself')
  # NumPy and JAX scalars have `item`, and give the Python number.
  plain = value.item() if getattr(value, 'shape', None) == () else value
  if not isinstance(plain, float | int | str):
    raise ValueError(f'metric {name!r}: {value!r} is neither a number nor text')
  return plain


def _finite_or_text(value: float | int | str) -> float | int | str:
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _errors_named(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise ValueError(f'{path.parent}: metrics cannot be written: {error.strerror or error}') from error
