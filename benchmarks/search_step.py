"""Measures a whole search step: the update of α and the update of the weights.

python -m benchmarks.search_step --config=configs/cifar.py [--config.batch_size=16]
    [--estimators=first_order,finite_difference,exact] [--repeats=5] [--json=FILE]

Images and words are random, in the shape of the config's dataset, so no data is needed. For each estimator the table
gives:

- the seconds to trace and compile the step with an empty cache, and to trace it and load it from the cache;
- seconds of a step: median, fastest and slowest of `--repeats` calls after a warm-up call. A call makes several steps,
  as in a search, and its time is divided by their number; estimators are called in turns;
- the processor time of Python's thread as a fraction of the time of a step;
- images or tokens of the training half per second;
- temporary memory as XLA reports it;
- the floating-point operations of a step's gradients;
- the roofline: the least time in which this machine could do a step's operations or move its bytes, whichever is
  longer, as a fraction of the measured time. The machine's rates are measured in the same run, by a product of matrices
  and by copies of 4 MB, about the size of an operation's output. Bytes are those of the compiled program if every
  kernel reads its operands once and writes its result; loop bodies are counted once, and the sum is scaled as the
  operations are.

Below the table are ratios to the finite difference, if that is among the estimators: the median over neighbouring
calls.

The JSON file holds an object keyed by estimator, each with `compile_s, load_s, step_s, step_s_min, step_s_max, python,
images_per_s (or tokens_per_s), temp_bytes, flops, bytes, roofline`.
"""

import dataclasses
import functools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax
from ml_collections import config_flags

from benchmarks.command import exit_code, output_file
from benchmarks.hlo import num_bytes
from darts_jax.data.corpus import Corpus
from darts_jax.data.images import Images
from darts_jax.hypergradient import BILEVEL, Derivative, derivative
from darts_jax.runtime.compilation import compile_with_report, temporary_cache
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search, check_alone, placed_task, read
from darts_jax.search.step import BatchLoss
from darts_jax.tasks import TextTask
from darts_jax.tasks.text import TextBatch

#: Number of steps in a call. A search makes one call for all steps between two lines of its log, so memory is allocated
#: anew only in the first of many steps.
_STEPS = 4

#: Image shape and number of classes of the datasets whose shape is known without reading them.
_SHAPES = {
  'digits': ((8, 8, 1), 10),
  'mnist': ((28, 28, 1), 10),
  'cifar10': ((32, 32, 3), 10),
  'cifar100': ((32, 32, 3), 100),
}


def random_images(name: str, num_images: int) -> Images:
  """A dataset of random images and labels in the shape of a known dataset."""
  if name not in _SHAPES:
    raise ValueError(f'config.data.name: {name!r} has no fixed shape; allowed are {", ".join(_SHAPES)}')
  shape, num_classes = _SHAPES[name]
  generator = np.random.default_rng(0)
  images = generator.integers(0, 256, (num_images, *shape), np.uint8)
  labels = generator.integers(0, num_classes, num_images).astype(np.int32)
  channels = shape[-1]
  return Images(name, images, labels, None, None, num_classes, (127.5,) * channels, (73.6,) * channels)


#: Vocabulary sizes of the corpora for which they are known without reading them.
_VOCABULARIES = {'ptb': 10_000, 'wikitext2': 33_278}


def random_corpus(name: str, num_tokens: int) -> Corpus:
  """A corpus of random words with the vocabulary size of a known corpus; each of its texts has `num_tokens` tokens."""
  if name not in _VOCABULARIES:
    raise ValueError(f'config.data.name: {name!r} has no fixed vocabulary; allowed are {", ".join(_VOCABULARIES)}')
  return random_words(name, _VOCABULARIES[name], num_tokens)


def random_words(name: str, size: int, num_tokens: int) -> Corpus:
  """A corpus of random words with a vocabulary of `size` words; each of its texts has `num_tokens` tokens."""
  tokens = np.random.default_rng(0).integers(0, size, (3, num_tokens)).astype(np.int32)
  return Corpus(name, tuple(map(str, range(size))), *tokens)


def open_search(settings: Search, num_devices: int | None = None) -> tuple[Searcher, Any, int, str]:
  """Opens a search on random data.

  Args:
    settings: settings of the search.
    num_devices: number of devices; all by default.

  Returns:
    The compiled functions of the search, its data, the number of examples of a step, and the name of their unit.
  """
  check_alone(settings)
  mesh, size, task = make_mesh(num_devices), settings.batch_size, settings.task
  found: Any
  if isinstance(task, TextTask):
    # Every step of the benchmark reads a whole sequence.
    task = dataclasses.replace(task, short_fraction=0.0)
    settings = dataclasses.replace(settings, task=task)
    found, examples = random_corpus(task.source, size * (8 * task.bptt + 1)), size * task.bptt
  else:
    placed_task(settings)
    found, examples = random_images(task.source, 4 * size), size
  searcher = Searcher.open(settings, found, mesh)
  return searcher, searcher.place([task.halves(found, settings, settings.seed)]), examples, task.unit


class Rates(NamedTuple):
  """Rates of the machine: floating-point operations and bytes a second."""

  flops: float
  bytes: float


def measure_rates(side: int = 2048, copied: int = 2**20) -> Rates:
  """Measures the rates of a float32 product of square matrices and of a copy of `copied` numbers (read and written)."""

  def fastest(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    function = jax.jit(function)
    jax.block_until_ready(function(x))
    seconds = []
    for _ in range(5):
      start = time.perf_counter()
      jax.block_until_ready(function(x))
      seconds.append(time.perf_counter() - start)
    return min(seconds)

  product = fastest(lambda x: jnp.matmul(x, x, precision='highest'), jnp.ones((side, side)))
  # Many copies in a call, since memory has to be mapped when it is first used.
  times = 256
  copy = fastest(lambda x: lax.fori_loop(0, times, lambda _, x: x + 1, x), jnp.ones(copied)) / times
  return Rates(2 * side**3 / product, 8 * copied / copy)


_SHAPE = re.compile(r'\b([a-z]+\d+|pred)\[([\d,]*)\]')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(?:,|$)')
#: Operations that move no bytes: control flow, views, and constants.
_MOVES_NOTHING = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'broadcast')


def count_bytes(program: str) -> int:
  """Bytes that the kernels of a compiled program (HLO text) read and write; the body of a loop counts once."""
  fused = set(re.findall(r'(?:calls|to_apply)=%?([\w.\-]+)', program))
  sizes: dict[str, int] = {}
  total = 0
  inside = False
  for line in program.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      inside = line.removeprefix('ENTRY ').lstrip('%').split(' ', 1)[0] not in fused
    elif inside and (match := _INSTRUCTION.match(line)):
      name, shape, operation, operands = match.groups()
      sizes[name] = sum(num_bytes(*part) for part in _SHAPE.findall(shape))
      if operation not in _MOVES_NOTHING:
        total += sizes[name] + sum(sizes.get(operand, 0) for operand in re.findall(r'%([\w.\-]+)', operands))
  return total


def count_operations(settings: Search) -> float:
  """Floating-point operations of all gradients of a step, from their programs before XLA optimises them."""
  searcher, data, _, _ = open_search(settings, 1)
  state = searcher.init(jax.random.key(settings.seed))
  batch = jax.jit(searcher.batches)(state, data).train
  times = 1
  if isinstance(batch, TextBatch):
    # XLA counts the body of the loop over time steps once, so one time step is counted and multiplied.
    times = data.train.capacity
    one = jax.tree.map(lambda x: x[:1] if x.ndim else jnp.int32(1), batch.sequences)
    batch = batch._replace(sequences=one)

  def loss(weights: jax.Array, alphas: Any) -> jax.Array:
    return BatchLoss.at(state, searcher.learner.objective, searcher.searched, searcher.settings.precision)(
      weights, alphas, batch
    )[0]

  def flops(function: Callable[..., Any]) -> float:
    cost = jax.jit(function).lower(state.weights.vector, state.alphas).cost_analysis()
    assert cost is not None
    return float(cost['flops'])

  @functools.cache
  def operations(what: Derivative, weights_wanted: bool) -> float:
    return flops(lambda weights, alphas: derivative(what, loss, weights, alphas, weights, weights_wanted))

  passes = searcher.settings.hypergradient.estimator().passes
  return times * (operations('gradient', True) + sum(operations(each.derivative, each.weights) for each in passes))


class Program(NamedTuple):
  """A compiled search step.

  Attributes:
    name: name of the estimator.
    call: takes `_STEPS` steps from a state; returns the new state and sums of metrics.
    state: state of a search before its first step.
    examples: number of examples of the training half in a step.
    unit: name of the examples' unit.
    known: results that need no run, keys as in the JSON file.
  """

  name: str
  call: Callable[[Any], tuple[Any, Any]]
  state: Any
  examples: int
  unit: str
  known: dict[str, float]


def prepare(settings: Search) -> Program:
  """Compiles a search step, with an empty compilation cache and from a full one."""
  searcher, data, examples, unit = open_search(settings)
  state = searcher.init(jax.random.key(settings.seed))
  flops = count_operations(settings)
  steps = jnp.int32(_STEPS)
  with temporary_cache():
    # Compilation times include tracing, so cached traces are dropped.
    jax.clear_caches()
    cold = compile_with_report(searcher.run, state, data, steps)
    jax.clear_caches()
    warm = compile_with_report(searcher.run, state, data, steps)
  name = settings.hypergradient.name
  if cold.cached or not warm.cached:
    raise ValueError(f'the compilation cache did not work for {name}; nothing was measured')
  compiled = warm.compiled
  cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
  assert cost is not None
  assert memory is not None
  known = {
    'compile_s': cold.seconds,
    'load_s': warm.seconds,
    'temp_bytes': memory.temp_size_in_bytes,
    'flops': flops,
    'bytes': count_bytes(compiled.as_text() or '') * flops / cost['flops'],
  }
  return Program(name, lambda state: compiled(state, data, steps), state, examples, unit, known)


class Seconds(NamedTuple):
  """Mean times of a step in a call.

  Attributes:
    step: wall-clock time.
    python: processor time of Python's thread.
  """

  step: float
  python: float


def time_in_turns(programs: Sequence[Program], repeats: int) -> dict[str, list[Seconds]]:
  """Calls all programs in turns, `repeats` times each, after a warm-up call of each.

  The speed of a machine may change from minute to minute, so that times measured minutes apart cannot be compared.
  """
  states = {program.name: program.state for program in programs}
  found: dict[str, list[Seconds]] = {program.name: [] for program in programs}
  for _ in range(repeats + 1):
    for program in programs:
      name = program.name
      start, thread_start = time.perf_counter(), time.thread_time()
      states[name], sums = jax.block_until_ready(program.call(states[name]))
      step = (time.perf_counter() - start) / _STEPS
      found[name].append(Seconds(step, (time.thread_time() - thread_start) / _STEPS))
      if int(sums['steps']) != _STEPS:
        raise ValueError(f'the search of {name} diverged; nothing was measured')
  return {name: seconds[1:] for name, seconds in found.items()}


def summarise(program: Program, seconds: Sequence[Seconds], rates: Rates) -> dict[str, float]:
  """The results of a program, keys as in the JSON file."""
  steps = [each.step for each in seconds]
  median = statistics.median(steps)
  least = max(program.known['flops'] / rates.flops, program.known['bytes'] / rates.bytes)
  return program.known | {
    'step_s': median,
    'step_s_min': min(steps),
    'step_s_max': max(steps),
    'python': statistics.median(each.python for each in seconds) / median,
    f'{program.unit}_per_s': program.examples / median,
    'roofline': least / median,
  }


def table(results: dict[str, dict[str, float]]) -> str:
  """The results as a Markdown table."""
  unit = 'tokens' if any('tokens_per_s' in r for r in results.values()) else 'images'
  titles = ('estimator', 'compile s', 'load s', 'step s (median)', 'fastest – slowest', 'Python', f'{unit}/s')
  rows: list[tuple[str, ...]] = [(*titles, 'temporary MB', 'GFLOP', 'roofline')]
  rows.append(('---',) * len(rows[0]))
  for name, r in results.items():
    rows.append(
      (
        name,
        f'{r["compile_s"]:.1f}',
        f'{r["load_s"]:.1f}',
        f'{r["step_s"]:.3f}',
        f'{r["step_s_min"]:.3f} – {r["step_s_max"]:.3f}',
        f'{r["python"]:.2%}',
        f'{r[f"{unit}_per_s"]:.1f}',
        f'{r["temp_bytes"] / 1e6:.0f}',
        f'{r["flops"] / 1e9:.1f}',
        f'{r["roofline"]:.1%}',
      )
    )
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def print_ratios(results: dict[str, dict[str, float]], seconds: dict[str, list[Seconds]]) -> None:
  """Prints the time and memory of estimators relative to the finite difference, if that was measured, too."""
  base = 'finite_difference'
  others = [name for name in results if name != base] if base in results else []
  for name in others:
    times = [one.step / other.step for one, other in zip(seconds[name], seconds[base], strict=True)]
    memory = results[name]['temp_bytes'] / results[base]['temp_bytes']
    print(
      f'{name} ÷ {base}: {statistics.median(times):.2f} ({min(times):.2f} – {max(times):.2f}) of the time,'
      f' {memory:.2f} of the temporary memory'
    )


def run(config: Any, names: list[str], repeats: int, path: str | None) -> None:
  """Measures every estimator, prints the table and writes the JSON file."""
  unknown = [name for name in names if name not in BILEVEL]
  if unknown or not names:
    raise ValueError(f'--estimators: {", ".join(unknown) or "none given"}; allowed are {", ".join(BILEVEL)}')
  output = output_file(path, '--json')
  device = jax.devices()[0]
  print(f'{jax.device_count()} × {device.device_kind} ({device.platform}), jax {jax.__version__}', flush=True)
  rates = measure_rates()
  print(f'{rates.flops / 1e9:.0f} GFLOP/s in a product of matrices, {rates.bytes / 1e9:.1f} GB/s in a copy', flush=True)
  programs = []
  for name in names:
    settings = read(config)
    chosen = settings.hypergradient.other(name)
    programs.append(prepare(dataclasses.replace(settings, hypergradient=chosen)))
    print(f'{name}: {json.dumps(programs[-1].known)}', file=sys.stderr, flush=True)
    jax.clear_caches()
  seconds = time_in_turns(programs, repeats)
  results = {program.name: summarise(program, seconds[program.name], rates) for program in programs}
  print(table(results))
  print_ratios(results, seconds)
  if output is not None:
    output.write_text(json.dumps(results, indent=2) + '\n')


def main() -> int:
  """Parses the command line; returns the exit code."""
  config = config_flags.DEFINE_config_file('config', None, 'Path of the config file.')
  names = flags.DEFINE_list('estimators', list(BILEVEL), 'Estimators to measure.')
  repeats = flags.DEFINE_integer('repeats', 5, 'Timed calls of several steps.', lower_bound=1)
  path = flags.DEFINE_string('json', None, 'Where to write the results as JSON.')

  def measured() -> None:
    flags.FLAGS(sys.argv)
    if config.value is None:
      raise ValueError('--config: missing; for example --config=configs/cifar.py')
    run(config.value, names.value, repeats.value, path.value)

  return exit_code(measured, __doc__)


if __name__ == '__main__':
  sys.exit(main())
