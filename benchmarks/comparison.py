"""Times the package's search step and a plain one, in turns."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from darts_jax.runtime.compilation import compiler_options

#: A function and its arguments.
Step = tuple[Callable[..., Any], tuple[Any, ...]]


def compare_steps(steps: Mapping[str, Step], repeats: int) -> None:
  """Measures and prints a table, and the ratio of the medians.

  Args:
    steps: `'package'` and `'plain'`: a function that returns anything and then a dictionary of metrics, and its
      arguments.
    repeats: number of timed steps of each.

  Raises:
    AssertionError: the losses of both steps differ; `train_loss` is computed after the update of α.
  """
  programs: dict[str, Any] = {}
  compile_seconds: dict[str, float] = {}
  for name, (function, args) in steps.items():
    start = time.perf_counter()
    programs[name] = jax.jit(function, compiler_options=compiler_options()).lower(*args).compile()
    compile_seconds[name] = time.perf_counter() - start
    print(f'{name}: compiled in {compile_seconds[name]:.1f} s', file=sys.stderr, flush=True)
  found = {name: jax.device_get(program(*steps[name][1])[1]) for name, program in programs.items()}
  for metric in ('train_loss', 'valid_loss'):
    np.testing.assert_allclose(found['plain'][metric], found['package'][metric], rtol=1e-4)
  seconds: dict[str, list[float]] = {name: [] for name in programs}
  for _ in range(repeats):
    for name, program in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program(*steps[name][1]))
      seconds[name].append(time.perf_counter() - start)
  print('| step | compile s | step s (median) | fastest – slowest |\n| --- | --- | --- | --- |')
  for name, times in seconds.items():
    middle = f'{compile_seconds[name]:.1f} | {statistics.median(times):.3f}'
    print(f'| {name} | {middle} | {min(times):.3f} – {max(times):.3f} |')
  print(f'package / plain: {statistics.median(seconds["package"]) / statistics.median(seconds["plain"]):.2f}')
