"""Fault injection: kills runs, damages their files, changes their data, and gives every reader hostile input.

python -m benchmarks.faults --minutes=20 [--seed=0] [--json=FILE] [--jobs=2] [--only=CASE]

For `--minutes`, it tries cases of six kinds, each kind with its share of the time, and then finishes the cases that
have begun:

- kill: small runs of every kind get SIGKILL, SIGTERM or SIGINT at random times, two to four times each, and are resumed
  until they are done. Genotype, α and logs have to be bit-equal to those of an undisturbed run.
- damage: a file in the working directory of a finished or stopped run is deleted, emptied, cut or changed; then the
  report is written and the same command started again. It has to give the same results, or one error line; if lines of
  a log are lost, an event in the log has to say so. Without its `config.json`, a run must not go on with another seed.
- data: other labels, more images or another pixel under the same path, between two starts of a run, have to be refused
  in one line.
- writers: of two processes in one working directory, the second one has to end with one line and must not disturb the
  first.
- input: damaged and hostile files of every format, in a process with little memory, have to be read or refused in one
  line.
- setting: values far out of range, for every setting of every config, have to be refused in one line, unless one can
  compute with them.

The table counts cases and findings: lost results; errors other than one line that begins with `error:`; losses without
a message; hangs and unbounded memory. Every finding is listed with the name of its case, for `--only`. The exit code is
1 if there are any. Everything is written into a temporary folder.
"""

import collections
import contextlib
import itertools
import json
import math
import pathlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple

from absl import flags

from benchmarks import fault_inputs, fault_runs
from benchmarks.command import exit_code
from benchmarks.fault_judge import KINDS, Fault

_HEADINGS = ('lost results', 'tracebacks', 'silent losses', 'hangs, memory')
# Shares of the time by kind of case.
_SHARES = {'kill': 0.44, 'damage': 0.2, 'data': 0.08, 'writers': 0.08, 'input': 0.16, 'setting': 0.04}
# Number of inputs or settings in a turn.
_BATCH = 25


class Found(NamedTuple):
  """A finding: the name of the case, and the fault."""

  case: str
  fault: Fault


class Tally:
  """Counts cases and findings; thread-safe."""

  def __init__(self) -> None:
    """Makes an empty tally."""
    self._lock = threading.Lock()
    self._tried: collections.Counter[str] = collections.Counter()
    self._found: list[Found] = []

  def add(self, case: str, tried: int, faults: list[Fault]) -> None:
    """Adds the result of a case: the number of faults injected, and the findings."""
    with self._lock:
      self._tried[_row(case)] += tried
      self._found += [Found(case, fault) for fault in faults]

  @property
  def is_clean(self) -> bool:
    """Whether nothing was found."""
    return not self._found

  def rows(self) -> list[tuple[str, list[int]]]:
    """For every kind of case, the number tried and the numbers of findings by `KINDS`; the last row has the sums."""
    counts = collections.Counter((_row(case), fault.kind) for case, fault in self._found)
    # Cases that fail before anything is tried have a row, too.
    names = sorted({*self._tried, *(name for name, _ in counts)})
    rows = [(name, [self._tried[name], *(counts[name, kind] for kind in KINDS)]) for name in names]
    return [*rows, ('all', [sum(column) for column in zip(*(row for _, row in rows), strict=True)] or [0] * 5)]

  def findings(self) -> list[tuple[Found, int]]:
    """One example of every finding, and the number of equal findings."""
    groups: dict[tuple[str, Fault], list[Found]] = {}
    for found in self._found:
      groups.setdefault((_row(found.case), found.fault), []).append(found)
    return [(group[0], len(group)) for _, group in sorted(groups.items())]


def _row(case: str) -> str:
  return ' '.join(case.split(':')[:2]) if not case.startswith('setting') else 'setting'


class Campaign:
  """Runs cases of all kinds in turns, on several threads."""

  def __init__(self, folder: pathlib.Path, seed: int) -> None:
    """Prepares a campaign in an empty folder; starts no process."""
    self.tally = Tally()
    self._seed = seed
    self._local = threading.local()
    self._children: list[fault_inputs.Child] = []
    self._workshop = fault_runs.Workshop(folder, seed, lambda workdir: self._child.ask(str(workdir)))
    self._names: dict[str, Iterator[str]] = {
      'kill': fault_runs.kill_names(),
      'damage': fault_runs.damage_names(self._workshop, seed),
      'data': fault_runs.data_names(),
      'writers': fault_runs.writer_names(),
      'input': _input_names(),
      'setting': (f'setting:{number}' for number in itertools.count()),
    }
    self._spent = dict.fromkeys(_SHARES, 0.0)
    self._busy: collections.Counter[str] = collections.Counter()
    self._drawing = {kind: threading.Lock() for kind in _SHARES}
    self._lock = threading.Lock()
    self._closed = threading.Event()

  @property
  def _child(self) -> fault_inputs.Child:
    """The client of this thread."""
    if not hasattr(self._local, 'child'):
      self._local.child = fault_inputs.Child()
      self._children.append(self._local.child)
    child: fault_inputs.Child = self._local.child
    return child

  def try_case(self, case: str) -> None:
    """Tries the case of a name; raises a ValueError if there is none."""
    kind, *details = case.split(':')
    if kind in ('input', 'setting'):
      name, number = details if kind == 'input' and len(details) == 2 else (kind, details[-1])
      if not number.isdecimal() or name not in (*fault_inputs.KINDS_OF_INPUTS, 'setting'):
        raise ValueError(f'--only: {case}: no such case')
      fault = self._child.ask([name, self._seed, int(number)])
      self.tally.add(case, 1, [] if fault is None else [fault])
    else:
      self.tally.add(case, *self._workshop.try_case(case))

  def run(self, seconds: float, jobs: int) -> None:
    """Tries cases for `seconds` on `jobs` threads, and finishes those that have begun."""
    deadline = time.monotonic() + seconds
    threads = [threading.Thread(target=self._work, args=(deadline,)) for _ in range(jobs)]
    for thread in threads:
      thread.start()
    try:
      for thread in threads:
        thread.join()
    except BaseException:
      self.close()
      for thread in threads:
        thread.join()
      raise

  def close(self) -> None:
    """Ends all processes."""
    self._closed.set()
    self._workshop.close()
    for child in self._children:
      child.close()

  def _work(self, deadline: float) -> None:
    while time.monotonic() < deadline and not self._closed.is_set():
      with self._lock:
        # Cases in progress are counted as 30 s each, until their times are known.
        kind = min(_SHARES, key=lambda each: (self._spent[each] + 30 * self._busy[each]) / _SHARES[each])
        self._busy[kind] += 1
      start = time.monotonic()
      goes_on = self._turn(kind, deadline)
      with self._lock:
        self._busy[kind] -= 1
        self._spent[kind] += time.monotonic() - start if goes_on else math.inf

  def _turn(self, kind: str, deadline: float) -> bool:
    """Tries the next cases of a kind; returns whether there are any."""
    with self._drawing[kind]:
      names = list(itertools.islice(self._names[kind], _BATCH if kind in ('input', 'setting') else 1))
    for name in names:
      if time.monotonic() < deadline and not self._closed.is_set():
        try:
          self.try_case(name)
        except Exception as error:  # An error of the campaign is a finding, and the other cases go on.
          self.tally.add(name, 0, [Fault('traceback', f'the campaign itself: {type(error).__name__}: {error}')])
    return bool(names)


def _input_names() -> Iterator[str]:
  for number in itertools.count():
    for kind in fault_inputs.KINDS_OF_INPUTS:
      if kind != 'path' or number < fault_inputs.NUM_PATHS:
        yield f'input:{kind}:{number}'


def show(tally: Tally) -> None:
  """Prints the table and the findings."""
  print(f'| kind | tried | {" | ".join(_HEADINGS)} |\n| --- | {" | ".join(["---"] * (1 + len(KINDS)))} |')
  for name, counts in tally.rows():
    print(f'| {name} | {" | ".join(f"{count:,}" for count in counts)} |')
  for found, count in tally.findings():
    print(f'\n{found.fault.kind}: {found.fault.what}\n  {count} times; --only={found.case}')


def to_dict(tally: Tally) -> dict[str, object]:
  """The table and the findings as JSON values."""
  return {
    'rows': {name: dict(zip(('tried', *KINDS), counts, strict=True)) for name, counts in tally.rows()},
    'findings': [
      {'case': found.case, 'kind': found.fault.kind, 'what': found.fault.what, 'count': count}
      for found, count in tally.findings()
    ],
  }


def _stop(number: int, frame: FrameType | None) -> None:
  """Handles SIGTERM like Ctrl+C, so that child processes are ended, too."""
  raise KeyboardInterrupt


def run(minutes: float, seed: int, jobs: int, only: str | None, write: Callable[[Tally], None]) -> int:
  """Runs a campaign, or a single case; returns the exit code."""
  signal.signal(signal.SIGTERM, _stop)
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    campaign = Campaign(pathlib.Path(folder), seed)
    with contextlib.closing(campaign):
      if only:
        campaign.try_case(only)
      else:
        campaign.run(60 * minutes, jobs)
  write(campaign.tally)
  return 0 if campaign.tally.is_clean else 1


def main() -> int:
  """Parses the command line; returns the exit code."""
  minutes = flags.DEFINE_float('minutes', 20.0, 'How long to look for faults.', lower_bound=0)
  seed = flags.DEFINE_integer('seed', 0, 'Of everything random.', lower_bound=0)
  jobs = flags.DEFINE_integer('jobs', 2, 'Cases that are tried at the same time.', lower_bound=1)
  only = flags.DEFINE_string('only', None, 'The name of a single case to try.')
  path = flags.DEFINE_string('json', None, 'A file for the table and the findings.')

  def write(tally: Tally) -> None:
    show(tally)
    if path.value:
      pathlib.Path(path.value).write_text(json.dumps(to_dict(tally), indent=1) + '\n')

  def measured() -> int:
    rest = flags.FLAGS(sys.argv)[1:]
    if rest:
      raise ValueError(f'{rest[0]}: unexpected argument')
    return run(minutes.value, seed.value, jobs.value, only.value, write)

  return exit_code(measured, __doc__)


if __name__ == '__main__':
  sys.exit(main())
