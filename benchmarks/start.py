"""Measures the time from the command of a search to its first step, with an empty and a full compilation cache.

python -m benchmarks.start --config=configs/cifar.py [--repeats=3] [--config.data.dir=DIR] [--config.batch_size=16]

Runs `python -m experiments.search` with the same config, once with an empty compilation cache and then `--repeats`
times with the cache that the first run has filled, each in a temporary working directory, and stops it by SIGTERM after
the first step. The table gives the median seconds from the start of the process until the search step begins to be
compiled (or loaded), until the first step begins, and until the first step is logged.
"""

import collections
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from absl import flags

from benchmarks.command import exit_code

#: Texts in the output of a search that mark these times, in order.
_MOMENTS = {'compiling': 'compiling the search step', 'begins': 'search step ', 'done': 'train_loss'}


#: Seconds after which a search is killed if it has not made a step.
_LIMIT = 3600


def start_once(arguments: list[str], folder: pathlib.Path) -> tuple[bool, dict[str, float]]:
  """Starts a search and stops it after a step.

  Args:
    arguments: arguments of `experiments.search`.
    folder: folder for its working directory, which is deleted, and its compilation cache, which is kept.

  Returns:
    Whether the step was loaded from the cache, and the seconds until each of `_MOMENTS`.

  Raises:
    ValueError: the search ended before its first step.
  """
  with tempfile.TemporaryDirectory(dir=folder) as workdir:
    command = [
      sys.executable,
      '-m',
      'experiments.search',
      *arguments,
      '--config.log_every=1',
      f'--workdir={workdir}/run',
    ]
    environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache')}
    start, seconds, cached = time.perf_counter(), dict[str, float](), False
    last = collections.deque[str](maxlen=1)
    with subprocess.Popen(
      command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as search:
      assert search.stderr is not None
      limit = threading.Timer(_LIMIT, search.kill)
      limit.start()
      try:
        waiting = iter(_MOMENTS.items())
        name, words = next(waiting)
        for line in search.stderr:
          last.append(line.strip())
          if words in line:
            seconds[name] = time.perf_counter() - start
            cached |= 'loaded from the compilation cache' in line
            name, words = next(waiting, ('', ''))
            if not words:
              break
        search.send_signal(signal.SIGTERM)
        # The search saves a checkpoint before it ends, and prints messages that have to be read.
        search.stderr.read()
      finally:
        limit.cancel()
    if len(seconds) < len(_MOMENTS):
      raise ValueError(f'the search ended: {" ".join(last)}')
  return cached, seconds


def run(arguments: list[str], repeats: int) -> None:
  """Measures and prints the table."""
  with tempfile.TemporaryDirectory() as folder:
    cached, cold = start_once(arguments, pathlib.Path(folder))
    if cached:
      raise ValueError('the compilation cache was not empty; nothing was measured')
    warm = []
    for _ in range(repeats):
      cached, seconds = start_once(arguments, pathlib.Path(folder))
      if not cached:
        raise ValueError('the compilation cache did not work; nothing was measured')
      warm.append(seconds)
  print('| cache | to compilation s | to the first step s | first step done s |\n| --- | --- | --- | --- |')
  for name, starts in {'empty': [cold], 'full': warm}.items():
    times = [statistics.median(each[moment] for each in starts) for moment in _MOMENTS]
    print(f'| {name} | {" | ".join(f"{each:.1f}" for each in times)} |')


def main() -> int:
  """Parses the command line; returns the exit code."""
  repeats = flags.DEFINE_integer('repeats', 3, 'Starts with a full cache.', lower_bound=1)

  def measured() -> None:
    # All other flags belong to the search, which checks them.
    arguments = flags.FLAGS(sys.argv, known_only=True)[1:]
    run(arguments, repeats.value)

  return exit_code(measured, __doc__)


if __name__ == '__main__':
  sys.exit(main())
