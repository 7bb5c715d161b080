"""Tries damaged and hostile files for every reader, and settings out of range, in a process with little memory.

`python -m benchmarks.fault_inputs` serves requests of `benchmarks.faults`, one JSON value a line; `Child` is the
client. Every input is a function of a seed and a number, so that it can be reproduced.
"""

import contextlib
import functools
import importlib
import json
import os
import pathlib
import queue
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable

import numpy as np

from benchmarks.fault_formats import FORMATS, Format, describe, find, page
from benchmarks.fault_judge import Fault, judge_read, where
from benchmarks.fault_mutants import mutate_bytes, mutate_json
from benchmarks.fault_settings import try_setting

_ROOT = pathlib.Path(__file__).parent.parent
#: Bytes that the process may use in addition to its memory after all imports.
_MEMORY = 3 * 2**30
#: Seconds to wait for an input, and for the start of the process.
_LIMIT, _START_LIMIT = 30.0, 300.0


def _try_format(form: Format, folder: pathlib.Path, draw: np.random.Generator) -> Fault | None:
  seeds = form.seeds()
  content = seeds[draw.integers(len(seeds))]
  mutate = form.mutate if draw.random() < 0.9 else mutate_bytes
  (folder / form.name).write_bytes(mutate(content, draw))
  return judge_read(lambda: form.read(folder), (str(folder), form.name) if form.is_named else ())


def _try_checkpoint(folder: pathlib.Path, draw: np.random.Generator) -> Fault | None:
  """Damages a file of a checkpoint; it has to be refused, or to give the saved state."""
  make = find('darts_jax.runtime.checkpoint:Checkpoints')
  state = {'w': np.arange(6, dtype=np.float32).reshape(2, 3), 'n': np.array([3])}
  make(folder / 'checkpoints').save(3, state, {'epoch': 1, 'sums': {'loss': 0.5}})
  paths = sorted(path for path in (folder / 'checkpoints').rglob('*') if path.is_file())
  path = paths[draw.integers(len(paths))]
  mutate = mutate_json if path.suffix == '.json' and draw.random() < 0.7 else mutate_bytes
  damaged = mutate(path.read_bytes(), draw)
  if damaged == path.read_bytes():
    return None
  path.write_bytes(damaged)
  faults = []

  def restore() -> None:
    found = make(folder / 'checkpoints').restore(state)
    if found is not None and any((found.state[name] != value).any() for name, value in state.items()):
      faults.append(Fault('silent', f'{path.name}: another state than was saved'))
    if found is not None and found.metadata != {'epoch': 1, 'sums': {'loss': 0.5}}:
      faults.append(Fault('silent', f'{path.name}: other metadata than were saved'))

  return judge_read(restore, (str(folder),)) or next(iter(faults), None)


# Hostile paths in place of a file or folder: names in the test's folder, and paths outside of it.
_MADE = ('pipe', 'loop', 'deep.json', '.', 'missing/file', 'x' * 300, 'zero\0byte', '\udcff')
_GIVEN = ('/dev/zero', '/dev/full', '~nosuchuser/x', 'gs://bucket/x', '', '/proc/self/mem', '/' * 5000)


def _paths(folder: pathlib.Path) -> list[str]:
  os.mkfifo(folder / 'pipe')
  (folder / 'loop').symlink_to(folder / 'loop')
  (folder / 'deep.json').write_bytes(b'[' * 10**6)
  return [*(f'{folder}/{name}' for name in _MADE), *_GIVEN]


def _call(place: str, *args: object) -> object:
  """Imports and calls the function `place`, see `find`."""
  return find(place)(*args)


_PATH_READERS: dict[str, Callable[[str], object]] = {
  'genotype': functools.partial(_call, 'darts_jax.spaces:resolve'),
  'weights': functools.partial(_call, 'darts_jax.interop.tensors:read'),
  'npz': lambda path: find('darts_jax.data.images:load')('npz', path=path),
  'mnist': lambda path: find('darts_jax.data.images:load')('mnist', directory=path),
  'text': lambda path: find('darts_jax.data.text:load')('files', path),
  'image_folder': functools.partial(_call, 'darts_jax.data.records:image_folder'),
  'network': functools.partial(_call, 'darts_jax:load'),
  'describe': lambda path: describe(pathlib.Path(path)),
}


#: Number of different inputs of kind `path`.
NUM_PATHS = len((*_MADE, *_GIVEN)) * len(_PATH_READERS)


def _try_path(folder: pathlib.Path, number: int) -> Fault | None:
  """Gives a hostile path to a reader."""
  paths = _paths(folder)
  path = paths[number % len(paths)]
  reader = list(_PATH_READERS)[number // len(paths) % len(_PATH_READERS)]
  fault = judge_read(lambda: _PATH_READERS[reader](path), ())
  shown = path.removeprefix(f'{folder}/').replace('\0', '\\0')[:20]
  return fault and fault._replace(what=f'{reader} of {shown!r}: {fault.what}')


def _limit_memory() -> None:
  """Limits the memory that is allocated from here on; only Linux reports the present size, on which this depends."""
  status = pathlib.Path('/proc/self/status')
  if status.exists():
    [size] = [int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith('VmSize:')]
    limit = 1024 * size + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def try_input(kind: str, seed: int, number: int) -> Fault | None:
  """Tries one input.

  Args:
    kind: a key of `FORMATS`, or `checkpoint`, `path` or `setting`.
    seed: seed of the campaign.
    number: number of the input.

  Returns:
    The fault, if any.
  """
  draw = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if kind == 'setting':
      return try_setting(seed, number)
    if kind == 'path':
      return _try_path(folder, number)
    return _try_checkpoint(folder, draw) if kind == 'checkpoint' else _try_format(FORMATS[kind], folder, draw)


#: All kinds of inputs but settings.
KINDS_OF_INPUTS = (*FORMATS, 'checkpoint', 'path')


def look(folder: pathlib.Path) -> Fault | None:
  """Writes the report of a working directory and reads its architecture; returns the fault, if any."""
  fault = judge_read(lambda: page(folder), ())
  path = folder / 'genotype.json'
  if fault is None and path.exists():
    fault = judge_read(lambda: find('darts_jax.spaces:resolve')(str(path)), (str(path),))
  return fault


def serve() -> None:
  """Answers requests, one JSON value a line each: `[kind, seed, number]`, or the path of a working directory."""
  # Redirect stdout, so that output of libraries does not mix with the answers.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  for module in ('darts_jax', 'darts_jax.report', 'darts_jax.selection', 'darts_jax.nets', 'PIL.Image'):
    importlib.import_module(module)
  importlib.import_module('jax').devices()
  warnings.simplefilter('ignore')
  _limit_memory()
  print(file=answers, flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    try:
      fault = look(pathlib.Path(request)) if isinstance(request, str) else try_input(*request)
    except Exception as error:  # An error of this module is a finding, too.
      fault = Fault('traceback', f'outside of a reader: {where(error)}')
    print(json.dumps(fault), file=answers, flush=True)


class Child:
  """Client of `serve`: its process is started again whenever an input has ended it."""

  def __init__(self) -> None:
    """Makes a client without a process; the first request starts it."""
    self._process: subprocess.Popen[str] | None = None
    self._answers: queue.Queue[str | None] = queue.Queue()

  def ask(self, request: object) -> Fault | None:
    """Sends a request; returns the fault, if any."""
    process = self._process or self._start()
    assert process.stdin is not None
    try:
      process.stdin.write(json.dumps(request) + '\n')
      process.stdin.flush()
      answer = self._answers.get(timeout=_LIMIT)
    except queue.Empty:
      self.close()
      return Fault('hang', f'no end within {_LIMIT:g} s')
    except OSError:
      answer = None
    if answer is None:
      code = process.wait()
      self.close()
      name = signal.Signals(-code).name if code < 0 else f'exit code {code}'
      return Fault('traceback', f'ends the process ({name})')
    fault = json.loads(answer)
    return None if fault is None else Fault(*fault)

  def _start(self) -> 'subprocess.Popen[str]':
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(_ROOT)}
    process = subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.fault_inputs'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      cwd=_ROOT,
      env=environment,
      start_new_session=True,
    )
    answers: queue.Queue[str | None] = queue.Queue()
    self._answers = answers

    def read() -> None:
      assert process.stdout is not None
      for line in process.stdout:
        answers.put(line)
      answers.put(None)

    self._reader = threading.Thread(target=read, daemon=True)
    self._reader.start()
    self._process = process
    try:
      begun = answers.get(timeout=_START_LIMIT)
    except queue.Empty:
      begun = None
    if begun is None:
      self.close()
      raise ValueError('benchmarks.fault_inputs did not start')
    return process

  def close(self) -> None:
    """Ends the process."""
    process, self._process = self._process, None
    if process is not None:
      process.kill()
      with process, contextlib.suppress(BrokenPipeError):  # The process may not have read the last request.
        self._reader.join()


if __name__ == '__main__':
  serve()
