"""Measures a whole search step: the update of α and the update of the weights.

python -m benchmarks.search_step --config=configs/cifar.py [--config.batch_size=16]
    [--estimators=first_order,finite_difference,exact] [--repeats=5] [--json=FILE]

Images are random, in the shape of the config's dataset, so no data is needed. For each estimator the table gives: the
seconds to trace and compile the step without a cache; median, fastest and slowest of `--repeats` calls after one for
warming up, divided by the steps in a call, which are several as in a search; images of the weights' half per second;
temporary memory and floating-point operations as XLA states them (XLA counts the body of a loop once, so the operations
are a lower bound). The JSON file holds an object keyed by estimator, each with `compile_s, step_s, step_s_min,
step_s_max, images_per_s, temp_bytes, flops`.
"""

import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from darts_jax.data.images import Images
from darts_jax.hypergradient import ESTIMATORS
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search.loop import make_strategy
from darts_jax.search.settings import Search
from darts_jax.search.step import Searcher, place
from darts_jax.settings import build

#: Steps in a call. A search makes one call for all steps between two lines of its log, so that memory is new to the
#: process only in the first of many steps.
_STEPS = 4

#: Image shape and classes of the datasets whose shape is known without reading them.
_SHAPES = {
  'digits': ((8, 8, 1), 10),
  'mnist': ((28, 28, 1), 10),
  'cifar10': ((32, 32, 3), 10),
  'cifar100': ((32, 32, 3), 100),
}


def random_images(name: str, num_images: int) -> Images:
  """Noise in the shape of a dataset."""
  if name not in _SHAPES:
    raise ValueError(f'config.data.name: {name!r} has no fixed shape; allowed are {", ".join(_SHAPES)}')
  shape, num_classes = _SHAPES[name]
  generator = np.random.default_rng(0)
  images = generator.integers(0, 256, (num_images, *shape), np.uint8)
  labels = generator.integers(0, num_classes, num_images).astype(np.int32)
  channels = shape[-1]
  return Images(name, images, labels, None, None, num_classes, (127.5,) * channels, (73.6,) * channels)


def measure(settings: Search, repeats: int) -> dict[str, float]:
  """Compiles a search step and times it; keys as in the JSON file."""
  images = random_images(settings.data.name, 4 * settings.batch_size)
  mesh = make_mesh()
  searcher = Searcher(settings, make_strategy(settings), images, mesh)
  data = place(images, settings, mesh)
  state = searcher.init(jax.random.key(settings.seed))
  steps = jnp.int32(_STEPS)
  start = time.perf_counter()
  compiled = searcher.run.lower(state, data, steps).compile()
  compile_seconds = time.perf_counter() - start
  seconds = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    state, sums = jax.block_until_ready(compiled(state, data, steps))
    seconds.append((time.perf_counter() - start) / _STEPS)
  if int(sums['steps']) != _STEPS:
    raise ValueError(f'the search of {settings.hypergradient.name} diverged; nothing was measured')
  seconds = seconds[1:]
  cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
  assert cost is not None
  assert memory is not None
  median = statistics.median(seconds)
  return {
    'compile_s': compile_seconds,
    'step_s': median,
    'step_s_min': min(seconds),
    'step_s_max': max(seconds),
    'images_per_s': settings.batch_size / median,
    'temp_bytes': memory.temp_size_in_bytes,
    'flops': cost.get('flops', float('nan')),
  }


def table(results: dict[str, dict[str, float]]) -> str:
  """The results as a Markdown table."""
  lines = [
    '| estimator | compile s | step s (median) | fastest – slowest | images/s | temporary MB | GFLOP |',
    '|---|---|---|---|---|---|---|',
  ]
  for name, r in results.items():
    lines.append(
      f'| {name} | {r["compile_s"]:.1f} | {r["step_s"]:.3f} | {r["step_s_min"]:.3f} – {r["step_s_max"]:.3f} '
      f'| {r["images_per_s"]:.1f} | {r["temp_bytes"] / 1e6:.0f} | {r["flops"] / 1e9:.1f} |'
    )
  return '\n'.join(lines)


def run(config: Any, names: list[str], repeats: int, path: str | None) -> None:
  """Measures every estimator, prints the table and writes the JSON file."""
  unknown = [name for name in names if name not in ESTIMATORS]
  if unknown or not names:
    raise ValueError(f'--estimators: {", ".join(unknown) or "none given"}; allowed are {", ".join(ESTIMATORS)}')
  device = jax.devices()[0]
  print(f'{jax.device_count()} × {device.device_kind} ({device.platform}), jax {jax.__version__}', flush=True)
  results = {}
  for name in names:
    config.hypergradient.name = name
    results[name] = measure(build(Search, config), repeats)
    print(f'{name}: {json.dumps(results[name])}', file=sys.stderr, flush=True)
    jax.clear_caches()
  print(table(results))
  if path:
    pathlib.Path(path).write_text(json.dumps(results, indent=2) + '\n')


def main() -> int:
  """Parses the command line; returns the exit code."""
  config = config_flags.DEFINE_config_file('config', None, 'Path of the config file.')
  names = flags.DEFINE_list('estimators', list(ESTIMATORS), 'Estimators to measure.')
  repeats = flags.DEFINE_integer('repeats', 5, 'Timed calls of several steps.', lower_bound=1)
  path = flags.DEFINE_string('json', None, 'Where to write the results as JSON.')
  try:
    flags.FLAGS(sys.argv)
    if config.value is None:
      raise ValueError('--config: missing; for example --config=configs/cifar.py')
    # Seconds to compile are to be those of a first run.
    jax.config.update('jax_enable_compilation_cache', False)
    run(config.value, names.value, repeats.value, path.value)
  except (ValueError, flags.Error, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
