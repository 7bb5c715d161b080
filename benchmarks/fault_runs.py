"""Fault injection into real runs: kills, damaged files, changed data, and two processes in one working directory.

Every case has a name by which it can be repeated: kind, run and details, separated by colons.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.fault_judge import RESULTS, Ended, Fault, compare, judge_end, read_results

#: Root of the repository, in which commands are run.
ROOT = pathlib.Path(__file__).parent.parent

#: Ways to damage a file.
MODES = ('deleted', 'emptied', 'cut', 'flipped', 'replaced')
#: Ways to change data under the same path.
CHANGES = ('labels', 'added', 'pixel')

# Time limits in seconds. The first run of a kind compiles, and a signal during compilation waits for its end.
_LIMIT, _PATIENCE = 900.0, 240.0
_POLL = 0.005
# SIGKILL leaves no time to react; the other two can be handled.
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Exit codes that are allowed after a signal: finished before it (0), handled (130), or killed before handlers are set.
_STOPPED = {
  signal.SIGKILL: (0, -signal.SIGKILL),
  signal.SIGTERM: (0, 130, -signal.SIGTERM),
  signal.SIGINT: (0, 130, -signal.SIGINT),
}

_CELL = [['skip_connect', 0], ['max_pool_3x3', 1]]
_GENOTYPE = {'normal': _CELL, 'normal_concat': [2], 'reduce': _CELL, 'reduce_concat': [2]}
_IMAGES = ('--config.data.name=npz', '--config.data.path={data}/images.npz', '--config.log_every=2')
_TEXT = ('--config.data.name=files', '--config.data.dir={data}', '--config.log_every=2')
_OPERATIONS = "('none','skip_connect','max_pool_3x3')"
_SUPERNET = ('network.channels=2', 'network.layers=3', 'space.nodes=1', f'space.operations={_OPERATIONS}')
_SEARCH = (
  *(f'--config.{field}' for field in _SUPERNET),
  '--config.batch_size=8',
  '--config.hypergradient.name=first_order',
)
_SMALL_TEXT = ('--config.network.width=8', '--config.batch_size=4', '--config.epochs=4')
_SELECTION = (
  *('searches=2', 'selection_epochs=2', 'trainings=1', 'random_architectures=1', 'random_candidates=1'),
  *(f'search.{field}' for field in (*_SUPERNET, 'batch_size=8', 'epochs=3', 'log_every=2')),
  *(f'training.{field}' for field in ('network.channels=2', 'network.layers=3', 'batch_size=8', 'epochs=3')),
  *(f'{part}.data.{field}' for part in ('search', 'training') for field in ('name=npz', 'path={data}/images.npz')),
)
_TRIALS = (
  *('trials=2', 'space.nodes=1', f'space.operations={_OPERATIONS}'),
  *(f'evaluator.{field}' for field in ('network.channels=2', 'network.layers=3', 'batch_size=8', 'epochs=3')),
  *(f'evaluator.{field}' for field in ('log_every=2', 'data.name=npz', 'data.path={data}/images.npz')),
)
#: Arguments of the commands that are disturbed, by name: a small run of every kind.
RUNS = {
  'images': ('search', '--config=configs/digits.py', *_IMAGES, *_SEARCH, '--config.epochs=6'),
  'text': (
    *('search', '--config=configs/text.py', *_TEXT, *_SMALL_TEXT),
    *('--config.task.bptt=5', '--config.space.nodes=2'),
  ),
  'training': (
    *('train', '--config=configs/digits_eval.py', '--genotype={data}/genotype.json', *_IMAGES),
    *('--config.network.channels=2', '--config.network.layers=3', '--config.batch_size=8', '--config.epochs=6'),
  ),
  'sgas': (
    *('search', '--config=configs/digits_sgas.py', *_IMAGES, *_SEARCH, '--config.space.nodes=2'),
    *('--config.strategy.decisions=2', '--config.epochs=5'),
  ),
  'side_by_side': (
    *('search', '--config=configs/digits.py', *_IMAGES, *_SEARCH),
    *('--config.epochs=4', '--config.mesh.seed=2'),
  ),
  'trials': ('search', '--config=configs/digits_random.py', *(f'--config.{field}' for field in _TRIALS)),
  'selection': ('select', '--config=configs/digits_select.py', *(f'--config.{field}' for field in _SELECTION)),
  'language': (
    *('train', '--config=configs/text_eval.py', '--genotype=RNN_DARTS_V2', *_TEXT, *_SMALL_TEXT),
    '--config.bptt=5',
  ),
}
_ON_TEXT = ('text', 'language')
_SEED = {'selection': '--config.search.seed=7'}


@dataclasses.dataclass(frozen=True)
class Reference:
  """An undisturbed run.

  Attributes:
    workdir: its working directory.
    results: its results, see `read_results`.
    lines: number of lines of all its logs.
    seconds: its time with a warm compilation cache.
  """

  workdir: pathlib.Path
  results: dict[str, Any]
  lines: int
  seconds: float


class Unusable(Exception):
  """An undisturbed run fails; the argument is the fault."""


class Command:
  """A running command, whose output goes to files."""

  def __init__(self, arguments: Sequence[str], folder: pathlib.Path, environment: dict[str, str]) -> None:
    """Starts `python -m` with arguments; its output is written into the folder."""
    self._files = [folder / f'{time.monotonic_ns()}.{name}' for name in ('out', 'err')]
    with self._files[0].open('wb') as out, self._files[1].open('wb') as err:
      self.process = subprocess.Popen(
        [sys.executable, '-m', *arguments],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
      )

  @property
  def is_running(self) -> bool:
    """Whether the command has not ended."""
    return self.process.poll() is None

  def send(self, number: int) -> None:
    """Sends the command a signal, if it has not ended."""
    with contextlib.suppress(ProcessLookupError):
      self.process.send_signal(number)

  def kill(self) -> None:
    """Kills the command and all of its child processes, if it has not ended."""
    if self.is_running:
      os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()

  def end(self, limit: float) -> Ended:
    """Waits for the end of the command, and kills it after `limit` seconds; returns its ending."""
    code: int | None
    try:
      code = self.process.wait(limit)
    except subprocess.TimeoutExpired:
      self.kill()
      code = None
    out, err = (file.read_text(errors='replace') for file in self._files)
    for file in self._files:
      file.unlink()
    return Ended(code, out, err)


class Workshop:
  """A temporary folder with small data and undisturbed runs, and the processes that are running."""

  def __init__(self, folder: pathlib.Path, seed: int, look: Callable[[pathlib.Path], Fault | None]) -> None:
    """Writes the data.

    Args:
      folder: an empty folder.
      seed: seed of everything random.
      look: writes the report of a working directory and reads its architecture; returns the fault, if any.
    """
    self._folder = folder
    self._seed = seed
    self._look = look
    self._references: dict[str, Reference | Fault] = {}
    self._half_way: dict[str, pathlib.Path] = {}
    self._locks = {name: threading.RLock() for name in RUNS}
    self._count = 0
    self._count_lock = threading.Lock()
    self._running: set[Command] = set()
    self._closed = False
    self._data = self.new_folder('data')
    write_data(self._data)
    self._environment = {
      **os.environ,
      'PYTHONPATH': os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))),
      'JAX_COMPILATION_CACHE_DIR': str(self.new_folder('cache')),
      'JAX_PLATFORMS': 'cpu',
    }

  def new_folder(self, name: str) -> pathlib.Path:
    """Makes a new empty folder."""
    with self._count_lock:
      self._count += 1
      number = self._count
    path = self._folder / f'{name}_{number}'
    path.mkdir(parents=True)
    return path

  def close(self) -> None:
    """Ends all processes, and prevents new ones."""
    self._closed = True
    for command in list(self._running):
      command.kill()

  @contextlib.contextmanager
  def started(self, run: str, workdir: pathlib.Path, *more: str, data: pathlib.Path | None = None) -> Iterator[Command]:
    """A context with the command of a run, which is killed at the end if it is still running."""
    if self._closed:
      raise InterruptedError
    experiment, *arguments = (argument.format(data=data or self._data) for argument in RUNS[run])
    environment = self._environment
    if run == 'side_by_side':
      # The two searches side by side need two devices.
      environment = environment | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
    command = Command(
      [f'experiments.{experiment}', *arguments, f'--workdir={workdir}', *more], self._folder, environment
    )
    self._running.add(command)
    try:
      yield command
    finally:
      command.kill()
      self._running.discard(command)

  def finish(self, run: str, workdir: pathlib.Path, *more: str, data: pathlib.Path | None = None) -> Ended:
    """Starts or resumes a run, and waits for its end."""
    with self.started(run, workdir, *more, data=data) as command:
      return command.end(_LIMIT)

  def stop(
    self, run: str, workdir: pathlib.Path, number: int, lines: int, pause: float, data: pathlib.Path | None = None
  ) -> tuple[bool, Fault | None]:
    """Starts or resumes a run, and stops it by a signal.

    Args:
      run: name of the run.
      workdir: its working directory.
      number: number of the signal.
      lines: number of lines in the run's logs to wait for.
      pause: seconds to wait after that.
      data: folder of the data; by default that of the workshop.

    Returns:
      Whether the signal came before the run's end; and the fault in its ending, if any.
    """
    with self.started(run, workdir, data=data) as command:
      _await_lines(command, workdir, lines)
      # The pause makes the time of the signal independent of log lines.
      time.sleep(pause)
      came = command.is_running
      command.send(number)
      ended = command.end(_PATIENCE)
      return came, judge_end(ended, _STOPPED[signal.Signals(number)], interrupted=number == signal.SIGINT)

  def reference(self, run: str) -> Reference:
    """The undisturbed run, done twice to check that results are reproducible.

    Raises:
      Unusable: the run fails, or the results differ.
    """
    with self._locks[run]:
      if run not in self._references:
        self._references[run] = self._refer(run)
      found = self._references[run]
    if isinstance(found, Fault):
      raise Unusable(found)
    return found

  def _refer(self, run: str) -> Reference | Fault:
    results, workdir, seconds = [], self._folder, 0.0
    for _ in range(2):
      workdir, start = self.new_folder(run), time.monotonic()
      ended = self.finish(run, workdir)
      seconds = time.monotonic() - start
      fault = judge_end(ended, (0,))
      if fault is not None:
        return fault._replace(what=f'undisturbed: {fault.what}')
      results.append(read_results(workdir))
    for fault in compare(*results, may_tell=False):
      return fault._replace(what=f'undisturbed, a second time: {fault.what}')
    return Reference(workdir, results[1], count_lines(workdir), seconds)

  def state(self, run: str, name: str) -> pathlib.Path:
    """A new copy of a run's working directory in the state `finished`, or `half-way` after some epochs."""
    reference = self.reference(run)
    source = reference.workdir
    if name == 'half-way':
      with self._locks[run]:
        if run not in self._half_way:
          self._half_way[run] = self._stop_half_way(run, reference)
        source = self._half_way[run]
    return pathlib.Path(shutil.copytree(source, self.new_folder(run), dirs_exist_ok=True))

  def _stop_half_way(self, run: str, reference: Reference) -> pathlib.Path:
    for part in (0.5, 0.35, 0.2, 0.0):
      workdir = self.new_folder(run)
      came, fault = self.stop(run, workdir, signal.SIGTERM, max(1, int(part * reference.lines)), 0.0)
      if fault is not None:
        raise Unusable(fault)
      if came and any(path.is_dir() for path in workdir.rglob('checkpoints')):
        return workdir
    raise Unusable(Fault('lost', 'could not be stopped half-way'))

  # Cases.

  def try_case(self, name: str) -> tuple[int, list[Fault]]:
    """Tries the case of a name.

    Returns:
      The number of faults injected, and the findings.

    Raises:
      ValueError: there is no such case.
    """
    kind, _, rest = name.partition(':')
    run, *details = rest.split(':')
    kinds: dict[str, Callable[..., tuple[int, list[Fault]]]] = {
      'kill': self._kill,
      'damage': self._damage,
      'data': self._change_data,
      'writers': self._write_twice,
    }
    lengths = {'kill': 1, 'damage': 3, 'data': 1, 'writers': 0}
    if kind not in kinds or run not in RUNS or len(details) != lengths[kind]:
      raise ValueError(f'--only: {name}: no such case')
    try:
      return kinds[kind](run, *details)
    except Unusable as error:
      return 0, [error.args[0]]

  def _kill(self, run: str, number: str) -> tuple[int, list[Fault]]:
    """Stops a run two to four times by random signals, then lets it finish."""
    reference = self.reference(run)
    draw = np.random.default_rng([self._seed, zlib.crc32(run.encode()), int(number)])
    workdir, kills, faults = self.new_folder(run), 0, []
    for _ in range(int(draw.integers(2, 5))):
      chosen = _SIGNALS[draw.integers(3)]
      if draw.random() < 0.7:
        # Early stops are more likely, so that there is something left to disturb.
        done = count_lines(workdir)
        lines = done + int(max(0, reference.lines - done) * draw.random() ** 2)
        came, fault = self.stop(run, workdir, chosen, lines, float(draw.uniform(0, 0.3)))
      else:
        came, fault = self.stop(run, workdir, chosen, 0, float(draw.uniform(0, reference.seconds)))
      kills += came
      faults += [] if fault is None else [fault._replace(what=f'{chosen.name}: {fault.what}')]
      if not came:
        break
    faults += self._judge(reference, workdir, self.finish(run, workdir), (0,), may_tell=False)
    shutil.rmtree(workdir)
    return kills, faults

  def _judge(
    self, reference: Reference, workdir: pathlib.Path, ended: Ended, allowed: tuple[int, ...], *, may_tell: bool
  ) -> list[Fault]:
    fault = judge_end(ended, allowed)
    if fault is not None:
      return [fault]
    return compare(reference.results, read_results(workdir), may_tell=may_tell) if ended.code == 0 else []

  def damages(self, run: str, state: str) -> list[str]:
    """Names of the files that can be damaged; parts of names that differ from run to run are `*`."""
    workdir = self.state(run, state)
    paths = [path.relative_to(workdir) for path in workdir.rglob('*') if path.is_file()]
    shutil.rmtree(workdir)
    names = [re.sub(r'[0-9a-f]{32}|events\.out.*', '*', str(path)) for path in paths if path.suffix != '.html']
    return sorted(set(names), key=lambda name: (name.count('/'), name))

  def _damage(self, run: str, state: str, file: str, mode: str) -> tuple[int, list[Fault]]:
    """Damages a file, writes the report, and starts the command again, with another seed if `mode` says so."""
    reference = self.reference(run)
    workdir = self.state(run, state)
    path = next(iter(sorted(workdir.glob(file))), None)
    if path is None:
      raise ValueError(f'--only: {file}: no such file')
    damage(path, mode.removesuffix('+seed'), np.random.default_rng([self._seed, zlib.crc32(f'{run}{file}'.encode())]))
    faults = []
    looked = self._look(workdir)
    if looked is not None:
      faults.append(looked._replace(what=f'report or description: {looked.what}'))
    if mode.endswith('+seed'):
      ended = self.finish(run, workdir, _SEED.get(run, '--config.seed=7'))
      fault = judge_end(ended, (2,))
      faults += [] if fault is None else [fault._replace(what=f'another seed: {fault.what}')]
    else:
      ended = self.finish(run, workdir)
      faults += self._judge(reference, workdir, ended, (0, 2), may_tell=True)
    shutil.rmtree(workdir)
    return 1, [fault._replace(what=f'{path.name} {mode}: {fault.what}') for fault in faults]

  def _change_data(self, run: str, change: str) -> tuple[int, list[Fault]]:
    """Stops a run, changes its data, and starts it again."""
    reference = self.reference(run)
    for part in (0.5, 0.2, 0.0):
      data, workdir = self.new_folder('data'), self.new_folder(run)
      write_data(data)
      came, fault = self.stop(run, workdir, signal.SIGTERM, max(1, int(part * reference.lines)), 0.0, data)
      if fault is not None:
        return 1, [fault]
      if came:
        break
    write_data(data, change)
    fault = judge_end(self.finish(run, workdir, data=data), (2,))
    shutil.rmtree(workdir)
    return 1, [] if fault is None else [fault._replace(what=f'{change}: {fault.what}')]

  def _write_twice(self, run: str) -> tuple[int, list[Fault]]:
    """Starts a run in the working directory of another one, which is paused for that time."""
    reference = self.reference(run)
    workdir = self.new_folder(run)
    with self.started(run, workdir) as first:
      _await_lines(first, workdir, reference.lines // 3)
      first.send(signal.SIGSTOP)
      with self.started(run, workdir) as second:
        fault = judge_end(second.end(_PATIENCE), (2,))
      first.send(signal.SIGCONT)
      faults = [] if fault is None else [fault._replace(what=f'the second process: {fault.what}')]
      found = self._judge(reference, workdir, first.end(_LIMIT), (0,), may_tell=False)
    shutil.rmtree(workdir)
    return 1, [*faults, *(each._replace(what=f'the first process: {each.what}') for each in found)]


def _await_lines(command: Command, workdir: pathlib.Path, lines: int) -> None:
  """Waits until the logs of a run have `lines` lines, or it has ended."""
  limit = time.monotonic() + _LIMIT
  # The log is the only sign of progress that a running command gives.
  while command.is_running and count_lines(workdir) < lines and time.monotonic() < limit:
    time.sleep(_POLL)


def count_lines(workdir: pathlib.Path) -> int:
  """The number of lines of all logs of a run so far."""
  count = 0
  for folder, names, files in os.walk(workdir):
    names[:] = [name for name in names if name not in ('checkpoints', 'tensorboard')]
    if 'metrics.jsonl' in files:
      with contextlib.suppress(OSError):
        count += (pathlib.Path(folder) / 'metrics.jsonl').read_bytes().count(b'\n')
  return count


def write_data(folder: pathlib.Path, change: str = '') -> None:
  """Writes small images, text and an architecture into a folder, changed by one of `CHANGES` if given."""
  draw = np.random.default_rng(0)
  labels = np.arange(96, dtype=np.int32) % 3
  images = (draw.integers(0, 128, (96, 8, 8, 1)) + 40 * labels[:, None, None, None]).astype(np.uint8)
  words = draw.integers(0, 40, 720)
  if change == 'labels':
    labels[:48] = (labels[:48] + 1) % 3
    words[100] = (words[100] + 1) % 40
  elif change == 'pixel':
    images[5, 4, 4, 0] ^= 1
    words[101] = (words[101] + 1) % 40
  elif change == 'added':
    images, labels = np.concatenate([images, images[:48] // 2]), np.concatenate([labels, labels[:48]])
    words = np.concatenate([words, words[:80]])
  np.savez(folder / 'images.npz', x_train=images, y_train=labels, x_test=images[:24], y_test=labels[:24])
  # The training text begins with all words, so that a change of the text does not change the vocabulary.
  text = [f'w{word}' for word in [*range(40), *words]]
  parts = {'train': text[:-240], 'valid': text[-240:-120], 'test': text[-120:]}
  for name, tokens in parts.items():
    lines = [' '.join(tokens[start : start + 12]) for start in range(0, len(tokens), 12)]
    (folder / f'{name}.txt').write_text('\n'.join(lines) + '\n')
  (folder / 'genotype.json').write_text(json.dumps(_GENOTYPE))


def damage(path: pathlib.Path, mode: str, draw: np.random.Generator) -> None:
  """Damages a file in one of `MODES`."""
  content = bytearray(path.read_bytes())
  if mode == 'deleted':
    path.unlink()
    return
  if mode == 'emptied':
    content.clear()
  elif mode == 'cut':
    del content[len(content) // 2 :]
  elif mode == 'flipped':
    for place in draw.integers(0, max(1, len(content)), 3) if content else ():
      content[place] ^= 1 << int(draw.integers(8))
  elif mode == 'replaced':
    others = {'.json': (b'{}', b'[]', b'null', b'{"step": 1}'), '.jsonl': (b'{"kind": "step", "step": 2}\n', b'[]\n')}
    choices = others.get(path.suffix, (bytes(len(content)), b'{}'))
    content = bytearray(choices[draw.integers(len(choices))])
  else:
    raise ValueError(f'--only: {mode}: no such damage; allowed: {", ".join(MODES)}')
  path.write_bytes(content)


def kill_names() -> Iterator[str]:
  """Yields names of cases of kills, endlessly."""
  number = 0
  while True:
    yield from (f'kill:{run}:{number}' for run in RUNS)
    number += 1


def data_names() -> Iterator[str]:
  """Yields names of all cases of changed data."""
  yield from (
    f'data:{run}:{change}' for change in CHANGES for run in RUNS if not (run in _ON_TEXT and change == 'pixel')
  )


def writer_names() -> Iterator[str]:
  """Yields names of cases of two writers, endlessly."""
  while True:
    yield from (f'writers:{run}' for run in RUNS)


def damage_names(workshop: Workshop, seed: int) -> Iterator[str]:
  """Yields names of cases of damage: first those that are hardest to detect, then random ones."""
  yield from (f'damage:images:half-way:{file}' for file in ('metrics.jsonl:deleted', 'alphas.npz:cut'))
  yield from (f'damage:images:half-way:config.json:{mode}' for mode in ('deleted+seed', 'cut'))
  yield from (f'damage:images:finished:{file}' for file in ('genotype.json:cut', 'metrics.jsonl:cut'))
  yield from ('damage:selection:finished:results.json:replaced', 'damage:training:finished:model.json:replaced')
  draw = np.random.default_rng([seed, 1])
  runs = list(RUNS)
  files: dict[tuple[str, str], list[str]] = {}
  for number in range(10**6):
    run, state = runs[number % len(runs)], ('half-way', 'finished')[int(draw.integers(2))]
    try:
      if (run, state) not in files:
        files[run, state] = workshop.damages(run, state)
    except Unusable:
      # The case will report why the run is unusable.
      files[run, state] = ['config.json']
    names = files[run, state]
    results = [name for name in names if pathlib.PurePath(name).name in RESULTS]
    chosen = results if results and draw.random() < 0.6 else names
    file = chosen[draw.integers(len(chosen))]
    # Selections and searches by proposals have no checkpoint that knows their config.
    modes = (*MODES, 'deleted+seed') if file == 'config.json' and run not in ('selection', 'trials') else MODES
    yield f'damage:{run}:{state}:{file}:{modes[draw.integers(len(modes))]}'
