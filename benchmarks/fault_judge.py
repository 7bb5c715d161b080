"""Judges the effect of a fault: how a command ended, and whether its working directory has the same results.

A disturbed run may end in two ways: with the results of an undisturbed run, or with exit code 2 and one line that
begins with `error:`. Lines may be missing in a log if an event in it says so. A reader may return, or raise a
ValueError that names the file. Everything else is a finding of one of four kinds, see `KINDS`.
"""

import json
import pathlib
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

#: lost: results differ or are missing. traceback: an error other than one clear line. silent: a loss or an unfit value
#: without any message. hang: no end, or unbounded memory.
KINDS = ('lost', 'traceback', 'silent', 'hang')

#: Files of a working directory that hold results.
RESULTS = (
  'metrics.jsonl',
  'alphas.npz',
  'genotype.json',
  'model.json',
  'config.json',
  'results.json',
  'trials.jsonl',
)

# Events that undamaged runs may have, too; their number and text depend on the time of a stop and on the machine.
_INCIDENTAL = ('compiled', 'resumed', 'interrupted', 'damaged_checkpoint')
# Fields that depend on the clock or on the path of the working directory, and checksums of such fields.
_OF_CLOCK_AND_PLACE = ('seconds', 'artefact', 'crc32')
_SHOWN = 160
#: Bytes of memory that are too many for reading a small file.
_TOO_MUCH = 2**30
#: Most characters of an error message.
_READABLE = 20_000


class Fault(NamedTuple):
  """A fault: one of `KINDS`, and a description that is equal for equal causes."""

  kind: str
  what: str


class Ended(NamedTuple):
  """The ending of a command.

  Attributes:
    code: exit code, negative for a signal; None if the command did not end and was killed.
    output: text of stdout.
    errors: text of stderr.
  """

  code: int | None
  output: str
  errors: str


def judge_end(ended: Ended, allowed: Collection[int], *, interrupted: bool = False) -> Fault | None:
  """The fault in the ending of a command, if any.

  Args:
    ended: the ending.
    allowed: allowed exit codes; with 2, there has to be exactly one error line.
    interrupted: whether the command was sent a SIGINT. Python then ends with the traceback of a KeyboardInterrupt if
      the command has not begun yet, which is no fault.
  """
  if ended.code is None:
    return Fault('hang', 'did not end in time')
  lines = ended.errors.splitlines()
  if interrupted and ended.code in (1, -signal.SIGINT) and 'KeyboardInterrupt' in ended.errors:
    return None
  if 'Traceback (most recent call last)' in ended.errors:
    return Fault('traceback', f'traceback: {lines[-1][:_SHOWN]}')
  complaints = [line for line in lines if line.startswith('error: ')]
  if ended.code == 2 and len(complaints) != 1:
    return Fault('traceback', f'exit code 2 with {len(complaints)} lines that begin with "error: "')
  if ended.code in allowed:
    return None
  if ended.code == 0:
    return Fault('silent', 'went on with exit code 0')
  said = f': {(complaints or lines)[-1][:_SHOWN]}' if lines else ''
  return Fault('traceback', f'exit code {ended.code}{said}')


def read_results(workdir: pathlib.Path) -> dict[str, Any]:
  """Reads the results in a working directory and its folders, without values that depend on the clock.

  Returns:
    Contents by path in the working directory: JSON values, the lines of a log, or the arrays of an `.npz` file. For a
    file that cannot be read, a text that says why.
  """
  found: dict[str, Any] = {}
  for path in sorted(workdir.rglob('*')):
    if path.name in RESULTS and 'checkpoints' not in path.relative_to(workdir).parts:
      try:
        found[str(path.relative_to(workdir))] = _read(path)
      except Exception as error:  # A damaged file makes its reader raise anything.
        found[str(path.relative_to(workdir))] = f'cannot be read ({type(error).__name__})'
  return found


def compare(reference: Mapping[str, Any], found: Mapping[str, Any], *, may_tell: bool) -> list[Fault]:
  """The differences between the results of a disturbed and an undisturbed run.

  Args:
    reference: results of the undisturbed run, by `read_results`.
    found: results of the disturbed run.
    may_tell: whether lines may be missing in a log if an event says so.
  """
  faults = []
  for name, wanted in reference.items():
    if name not in found:
      faults.append(Fault('lost', f'{_plain(name)} is missing'))
    elif isinstance(found[name], str):
      faults.append(Fault('lost', f'{_plain(name)} {found[name]}'))
    else:
      folder = name.rpartition('/')[0]
      log = f'{folder}/metrics.jsonl' if folder else 'metrics.jsonl'
      is_told = may_tell and _tells(reference.get(log), found.get(log))
      file = pathlib.PurePath(name).name
      if file == 'metrics.jsonl':
        faults += _compare_logs(_measured(wanted, wanted), _measured(found[name], wanted), is_told, may_tell)
      elif file == 'alphas.npz':
        faults += _compare_histories(wanted, found[name], is_told, may_tell)
      elif found[name] != wanted:
        faults.append(Fault('lost', f'{_plain(name)} differs'))
  return faults


def _plain(name: str) -> str:
  """The path of a file without the numbers of folders, so that equal faults have equal descriptions."""
  return '/'.join(part.rstrip('0123456789') if '.' not in part else part for part in name.split('/'))


def _read(path: pathlib.Path) -> Any:
  if path.suffix == '.npz':
    with np.load(path) as arrays:
      return {name: arrays[name] for name in arrays.files}
  if path.suffix == '.jsonl':
    return [_without_times(json.loads(line)) for line in path.read_text().splitlines()]
  return _without_times(json.loads(path.read_text()))


def _without_times(value: Any) -> Any:
  if isinstance(value, dict):
    return {
      name: _without_times(item)
      for name, item in value.items()
      if name not in _OF_CLOCK_AND_PLACE and not name.endswith('_per_second')
    }
  return [_without_times(item) for item in value] if isinstance(value, list) else value


def _events(lines: Any) -> set[str]:
  return {line['event'] for line in lines if 'event' in line} if isinstance(lines, list) else set()


def _tells(reference: Any, found: Any) -> bool:
  """Whether a log has an event that no undamaged run has."""
  return bool(_events(found) - _events(reference) - set(_INCIDENTAL))


def _measured(lines: Sequence[Any], reference: Sequence[Any]) -> list[Any]:
  """The lines that do not depend on the time at which the run was stopped."""
  known = _events(reference) - set(_INCIDENTAL)
  return [line for line in lines if line.get('kind') != 'event' or line.get('event') in known]


def _compare_logs(wanted: list[Any], found: list[Any], is_told: bool, may_tell: bool) -> Iterator[Fault]:
  if found == wanted:
    return
  # Lines by kind, step, event and message.
  known, there = ({_key(line): line for line in lines} for lines in (wanted, found))
  missing = [key for key in known if key not in there]
  other = [name for key in known.keys() & there.keys() for name in _differing(known[key], there[key])]
  if other or there.keys() - known.keys():
    yield Fault('lost', f'metrics.jsonl has other values or lines ({", ".join(sorted(set(other))[:3])})')
  if missing and not may_tell:
    yield Fault('lost', f'metrics.jsonl lacks lines of kind {missing[0][0]}')
  elif missing and not is_told:
    yield Fault('silent', 'metrics.jsonl lacks lines, and no event says so')
  if [_key(line) for line in found] != [key for key in known if key in there]:
    yield Fault('lost', 'metrics.jsonl has lines twice or in another order')


def _key(line: Any) -> tuple[Any, ...]:
  # Decisions of the same step differ in their messages.
  return tuple(str(line.get(name)) for name in ('kind', 'step', 'event', 'message'))


def _differing(a: Any, b: Any) -> list[str]:
  return [name for name in {**a, **b} if a.get(name) != b.get(name)]


def _compare_histories(
  wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], is_told: bool, may_tell: bool
) -> Iterator[Fault]:
  if wanted.keys() == found.keys() and all(_same(wanted[name], found[name]) for name in wanted):
    return
  alphas = [name for name, array in wanted.items() if array.ndim == 3]
  if not {'step', *alphas} <= found.keys():
    yield Fault('lost', 'alphas.npz lacks arrays')
    return
  rows, there = ({int(step): row for row, step in enumerate(each['step'])} for each in (wanted, found))
  last = max(rows)
  if last not in there or any(not _same(wanted[name][rows[last]], found[name][there[last]]) for name in alphas):
    yield Fault('lost', 'alphas.npz: the last α differ')
  elif any(not _same(wanted[name][rows[s]], found[name][there[s]]) for name in alphas for s in rows.keys() & there):
    yield Fault('lost', 'alphas.npz: α of a step differ')
  elif not may_tell:
    yield Fault('lost', 'alphas.npz: the history differs')
  elif not is_told:
    yield Fault('silent', 'alphas.npz lacks steps or scores, and no event says so')


def _same(a: np.ndarray, b: np.ndarray) -> bool:
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def judge_read(read: Callable[[], object], names: tuple[str, ...]) -> Fault | None:
  """Calls a reader, which has to return or to raise a ValueError that names the file; returns the fault, if any.

  Args:
    read: the reader.
    names: names of the file or its folder, of which an error has to contain one; empty for no such check.
  """
  before = _peak()
  try:
    read()
  except ValueError as error:
    if asks_for_memory(error):
      return Fault('hang', 'asks for more memory than there is')
    if names and not any(name in str(error) for name in names):
      return Fault('traceback', f'no word on the file: {where(error)}')
    if names and len(str(error)) > _READABLE:
      return Fault('traceback', f'an error of more than {_READABLE} characters: {where(error)}')
  except MemoryError:
    return Fault('hang', 'asks for more memory than there is')
  except Exception as error:  # Any other exception is a finding.
    return Fault('traceback', where(error))
  grown = _peak() - before
  return Fault('hang', f'takes {_TOO_MUCH >> 30} GiB of memory or more') if grown > _TOO_MUCH else None


def asks_for_memory(error: BaseException | None) -> bool:
  """Whether an exception, or a cause or context of it, is a MemoryError."""
  while error is not None:
    if isinstance(error, MemoryError):
      return True
    error = error.__cause__ or error.__context__
  return False


def where(error: BaseException) -> str:
  """The class of an exception, and the place in the project where it was raised."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = [frame for frame in frames if '/darts_jax/' in frame.filename or '/experiments/' in frame.filename]
  frame = (ours or frames)[-1]
  said = str(error) if isinstance(error, AssertionError) else ''
  return f'{type(error).__name__} in {pathlib.Path(frame.filename).name}, {frame.name} {said}'.strip()


def _peak() -> int:
  """The peak memory of the process so far, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
