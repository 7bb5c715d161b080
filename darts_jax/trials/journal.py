"""`trials.jsonl`: all proposals of a run, and all outcomes in the order in which the strategy was told.

The first line is `{"event": "run", "config": …}` with the settings of space, strategy, evaluator and loop on which the
result depends. Every further line is `{"event": "ask", "number": …, "arch": …, "parent": …, "budget": …}` or
`{"event": "tell", "number": …, "status": …, "reward": …, …}` with the other fields of an outcome. Lines are strict
JSON; floats that are not finite are the texts `nan`, `inf` and `-inf`. The last field of a line, `crc32`, is the
checksum of the JSON of the other fields. A strategy is a deterministic function of its keys and outcomes, so a run is
resumed by replaying its journal.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Self

from darts_jax.runtime.durable import sync_to_disk, write_whole
from darts_jax.runtime.files import UnfitFile, one_line, parse_json, read_bytes, user_path
from darts_jax.settings import as_config, differences
from darts_jax.spaces.base import Space
from darts_jax.strategies.sampled import Outcome, Proposal

#: Name of the file.
FILE = 'trials.jsonl'

_TEXTS = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}
_STATUSES = ('done', 'failed', 'stopped')
_CHECKSUM = 'crc32'


class Journal:
  """The journal of a run, open for writing; a context manager.

  Attributes:
    path: path of the file.
    config: the config in the first line when the file was opened, or the one that `begin` wrote; None if there is none.
    lines: the lines of proposals and outcomes that the file had when it was opened.
  """

  def __init__(self, folder: str | os.PathLike[str]) -> None:
    """Opens the journal or starts a new one; removes a last line that was not written completely.

    Args:
      folder: folder of `trials.jsonl`; it is created if it does not exist.

    Raises:
      ValueError: the file cannot be written, or is no journal; the message names the file and its line.
    """
    self.path = user_path(folder, 'journal') / FILE
    with self._errors_named():
      self.path.parent.mkdir(parents=True, exist_ok=True)
      rows = _rows(self.path)
      lines = list(_parsed(rows, self.path))
      write_whole(self.path, b''.join(row + b'\n' for row in rows[: len(lines)]))
      self._file = self.path.open('ab')
      sync_to_disk([self.path.parent])
    self.config: Mapping[str, Any] | None = lines[0]['config'] if lines and lines[0]['event'] == 'run' else None
    self.lines = lines if self.config is None else lines[1:]
    # All lines of the file to be, after `cut` and before `settle`.
    self._rewritten: list[Mapping[str, Any]] | None = None

  def begin(self, config: Mapping[str, Any]) -> None:
    """Writes the first line of a new journal, or checks that an existing journal is of the same run.

    Args:
      config: JSON values on which the result of the run depends.

    Raises:
      ValueError: the journal is of another run; one line that names the file and the fields.
    """
    if self.config is None and not self.lines:
      self._write({'event': 'run', 'config': config})
      self.config = config
    elif self.config is None:
      raise ValueError(f'{self.path}: line 1 does not say what run this is the journal of; give another folder')
    elif changed := differences(self.config, config):
      raise ValueError(f'{self.path}: of another run: {one_line(", ".join(changed))}; give another folder')

  def ask(self, proposal: Proposal, space: Space[Any]) -> None:
    """Appends a proposal."""
    self._write(ask_line(proposal, space))

  def tell(self, outcome: Outcome) -> None:
    """Appends an outcome and syncs the file to the disk."""
    self._write(tell_line(outcome))
    if self._rewritten is None:
      with self._errors_named():
        os.fsync(self._file.fileno())

  def cut(self, count: int) -> None:
    """Drops all but the first `count` of `lines`; the file stays as it is until `settle`."""
    self.lines = self.lines[:count]
    self._rewritten = [{'event': 'run', 'config': self.config}, *self.lines]

  def settle(self) -> None:
    """After `cut`, replaces the file by the lines that were kept and those written since; otherwise does nothing."""
    if self._rewritten is None:
      return
    self._file.close()
    with self._errors_named():
      write_whole(self.path, b''.join(map(signed, self._rewritten)))
      self._file = self.path.open('ab')
    self._rewritten = None

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _write(self, line: Mapping[str, Any]) -> None:
    if self._rewritten is not None:
      self._rewritten.append(line)
      return
    with self._errors_named():
      self._file.write(signed(line))
      self._file.flush()

  @contextlib.contextmanager
  def _errors_named(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise ValueError(f'{self.path}: cannot be written ({error.strerror or error})') from error


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of proposals and outcomes of a journal, which may be in use; an incomplete last line is left out.

  Raises:
    ValueError: as `Journal`.
  """
  return [line for line in _parsed(_rows(path), path) if line['event'] != 'run']


def describe(settings: Any) -> dict[str, Any]:
  """JSON values that identify a space, strategy or evaluator: the name of its class, and its fields."""
  fields = as_config(settings) if dataclasses.is_dataclass(settings) else {}
  return {'class': type(settings).__name__, **_storable(fields)}


def signed(line: Mapping[str, Any]) -> bytes:
  """A line as bytes of the file, with its checksum and the line break."""
  return json.dumps({**line, _CHECKSUM: _checksum(line)}, allow_nan=False).encode() + b'\n'


def ask_line(proposal: Proposal, space: Space[Any]) -> dict[str, Any]:
  """The line of a proposal."""
  return {
    'event': 'ask',
    'number': proposal.number,
    'arch': space.to_json(proposal.arch),
    'parent': proposal.parent,
    'budget': proposal.budget,
  }


def tell_line(outcome: Outcome) -> dict[str, Any]:
  """The line of an outcome."""
  return {
    'event': 'tell',
    'number': outcome.proposal.number,
    'status': outcome.status,
    'reward': _plain(outcome.reward),
    'measures': {name: _plain(value) for name, value in outcome.measures.items()},
    'test': {name: _plain(value) for name, value in outcome.test.items()},
    'curve': [_plain(value) for value in outcome.curve],
    'seconds': _plain(outcome.seconds),
    'artefact': outcome.artefact,
    'failure': outcome.failure,
  }


def outcome_of(line: Mapping[str, Any], proposal: Proposal) -> Outcome:
  """The outcome of a proposal from its line.

  Raises:
    UnfitFile: the line describes no outcome.
  """
  if line.get('status') not in _STATUSES:
    raise UnfitFile(f'status: {line.get("status")!r} is not known; allowed are {", ".join(_STATUSES)}')
  try:
    found = Outcome(
      proposal,
      line['status'],
      _number(line['reward']),
      {name: _number(value) for name, value in line['measures'].items()},
      {name: _number(value) for name, value in line['test'].items()},
      tuple(_number(value) for value in line['curve']),
      _number(line['seconds']),
      line['artefact'],
      line['failure'],
    )
  except (AttributeError, KeyError, TypeError) as error:
    raise UnfitFile('not the outcome of an evaluation') from error
  if not isinstance(found.failure, str) or not isinstance(found.artefact, str | None):
    raise UnfitFile('not the outcome of an evaluation')
  if found.status != 'failed' and not math.isfinite(found.reward):
    raise UnfitFile(f'reward: {found.reward} is not a finite number')
  return found


def _rows(path: pathlib.Path) -> list[bytes]:
  rows = read_bytes(path).split(b'\n') if path.exists() else [b'']
  # Complete lines end with a line break; the rest behind the last one is an incomplete line.
  return rows[:-1]


def _parsed(rows: list[bytes], path: pathlib.Path) -> Iterator[dict[str, Any]]:
  for i, row in enumerate(rows):
    try:
      line = parse_json(row)
      if isinstance(line, dict) and line.pop(_CHECKSUM, None) != _checksum(line):
        raise UnfitFile('its checksum is of another line')
      if not isinstance(line, dict) or not (_is_run(line, i) or _is_numbered(line)):
        raise UnfitFile('neither a proposal nor an outcome')
    except UnfitFile as error:
      # After a loss of power the disk may hold only a part of the last line.
      if i == len(rows) - 1:
        return
      raise ValueError(f'{path}: line {i + 1} is damaged: {error}') from error
    yield line


def _checksum(line: Mapping[str, Any]) -> int:
  # The checksum is of the values, so that white space in a line does not matter.
  return zlib.crc32(json.dumps(line).encode())


def _is_run(line: Mapping[str, Any], place: int) -> bool:
  return place == 0 and line.get('event') == 'run' and isinstance(line.get('config'), dict)


def _is_numbered(line: Mapping[str, Any]) -> bool:
  return line.get('event') in ('ask', 'tell') and type(line.get('number')) is int


def _storable(value: Any) -> Any:
  """A setting as JSON values; a value that JSON does not have becomes the name of its type."""
  if isinstance(value, Mapping):
    return {str(name): _storable(each) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [_storable(each) for each in value]
  if isinstance(value, str | int | None):
    return value
  if isinstance(value, float):
    return _plain(value)
  return str(value) if isinstance(value, os.PathLike) else type(value).__name__


def _plain(value: float) -> float | str:
  # JSON does not take scalars of NumPy and JAX.
  value = float(value)
  return value if math.isfinite(value) else str(value)


def _number(value: Any) -> float:
  if isinstance(value, bool) or not isinstance(_TEXTS.get(value, value), int | float):
    raise UnfitFile(f'{value!r} is not a number')
  return float(_TEXTS.get(value, value))
