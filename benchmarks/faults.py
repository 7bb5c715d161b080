"""Looks for faults: kills runs, damages their files, changes their data, and feeds every reader with hostile input.

python -m benchmarks.faults --minutes=20 [--seed=0] [--json=FILE] [--jobs=2] [--only=CASE]

For so many minutes, and then to the end of what has been begun, it tries in turns, each with its share of the time:

- kill: real runs of every kind, the smallest there are, are sent SIGKILL, SIGTERM or SIGINT at random moments, two to
  four times each, and resumed until they are done. Their genotype, α and logs have to be, bit for bit, those of a run
  that nobody disturbed.
- damage: a file of a working directory, of a finished run or a stopped one, is deleted, emptied, cut, or its content
  changed; then the report is made and the same command started again. The same results, or one line, are allowed; a log
  that has become shorter has to say so. Without its `config.json` a run must not go on with another seed.
- data: other labels, more images or another pixel under the same path, between two starts of a run: one line.
- writers: two processes in one working directory: the second one ends with one line, the first one is not disturbed.
- input: damaged and hostile files of every format, in a process with little memory: read, or refused in one line.
- setting: every setting of every config, far out of range: refused in one line, or a number that can be computed with.

The table counts what was tried and what was found: results lost; endings that are no one line that begins with
`error:`; results that changed and nobody was told; no end, or memory without bounds. Every finding is listed with the
case that shows it, for `--only`. The exit code is 1 if there is any. Everything is written into a temporary folder.
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
# Of the time, by kind of case.
_SHARES = {'kill': 0.44, 'damage': 0.2, 'data': 0.08, 'writers': 0.08, 'input': 0.16, 'setting': 0.04}
# Inputs that are tried one after the other.
_BATCH = 25


class Found(NamedTuple):
  """A finding: the case that shows it, and what it is."""

  case: str
  fault: Fault


class Tally:
  """Counts what was tried and found; several threads may use it."""

  def __init__(self) -> None:
    """Nothing was tried yet."""
    self._lock = threading.Lock()
    self._tried: collections.Counter[str] = collections.Counter()
    self._found: list[Found] = []

  def add(self, case: str, tried: int, faults: list[Fault]) -> None:
    """Adds what a case has come to."""
    with self._lock:
      self._tried[_row(case)] += tried
      self._found += [Found(case, fault) for fault in faults]

  @property
  def is_clean(self) -> bool:
    """Whether nothing was found."""
    return not self._found

  def rows(self) -> list[tuple[str, list[int]]]:
    """Of every kind of case how many were tried, and how many findings of each kind there are; last, their sums."""
    counts = collections.Counter((_row(case), fault.kind) for case, fault in self._found)
    # What fails before it is tried is a row, too.
    names = sorted({*self._tried, *(name for name, _ in counts)})
    rows = [(name, [self._tried[name], *(counts[name, kind] for kind in KINDS)]) for name in names]
    return [*rows, ('all', [sum(column) for column in zip(*(row for _, row in rows), strict=True)] or [0] * 5)]

  def findings(self) -> list[tuple[Found, int]]:
    """One of every finding, and how many there are like it."""
    groups: dict[tuple[str, Fault], list[Found]] = {}
    for found in self._found:
      groups.setdefault((_row(found.case), found.fault), []).append(found)
    return [(group[0], len(group)) for _, group in sorted(groups.items())]


def _row(case: str) -> str:
  return ' '.join(case.split(':')[:2]) if not case.startswith('setting') else 'setting'


class Campaign:
  """Cases of all kinds in turns, on several threads."""

  def __init__(self, folder: pathlib.Path, seed: int) -> None:
    """Starts nothing yet; the folder is empty."""
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
    """That of this thread."""
    if not hasattr(self._local, 'child'):
      self._local.child = fault_inputs.Child()
      self._children.append(self._local.child)
    child: fault_inputs.Child = self._local.child
    return child

  def try_case(self, case: str) -> None:
    """Tries a case by its name."""
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
    """Tries cases for so long, and to the end of those that have been begun."""
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
        # What others are at will have taken time.
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
        except Exception as error:  # The other cases are none the worse for it.
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
  """Ends the program as Ctrl+C does, so that nothing is left running."""
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
