"""Compiles every program of the configs for accelerators without such a device, to check that they compile.

python -m benchmarks.accelerators [--chips=a100,h100x2,v5e,…] [--configs=cifar,cifar_eval,…]
    [--precisions=float32,bfloat16] [--defaults] [--set=network.channels=2 …]

A compiler that crashes ends its process, so every combination of config, chip and precision has its own process; a
crash is a row of the table, and the other combinations go on. Networks for images have three cells, the smallest number
with each kind of cell, since crashes depend on shapes and not on depth; all other settings are those of the config,
unless `--set` changes them. Programs are: the step and the evaluation of a search, the step of SGAS's supernet after
half of its decisions, the curvature of RobustDARTS, the step and the evaluation of a training, and, for a search on
images, the operations of one node of a reduction cell.
`--defaults` compiles with XLA's default options instead of the package's, as a user's own program does.

GPUs are those of `benchmarks.gpu`; `h100x2` are two that share a batch. v5e is a TPU, for which libtpu compiles. Any
CPU will do; the compilers are in the extra `accelerators`. The exit code is 1 if anything failed.
"""

import contextlib
import dataclasses
import gc
import importlib
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from benchmarks.command import exit_code

#: Folder in which `make` installs the compilers, outside of the import path of ordinary processes.
FOLDER = pathlib.Path(sys.prefix) / 'accelerators'
TPU = 'v5e'
#: All configs whose programs differ; every other config has the programs of one of these.
CONFIGS = (
  *('cifar', 'cifar_sgas', 'cifar_gdas', 'cifar_pc_darts', 'cifar_robust_darts', 'digits', 'mnist', 'ptb', 'text'),
  *('hypergradients', 'nasbench201_darts', 'nasbench201_darts_second', 'nasbench201_eval'),
  *('cifar_eval', 'digits_eval', 'imagenet_eval', 'ptb_eval', 'wikitext2_eval', 'text_eval'),
)
#: Number of cells of networks for images: the smallest with a cell of each kind.
LAYERS = 3
#: A cell with all operations of the benchmark. Other trainings on images use DARTS_V2.
NASBENCH201 = '|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|'


def add_compilers() -> None:
  """Adds the compilers to the import path; to be called before JAX looks for devices."""
  if FOLDER.is_dir() and str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))


def environment() -> dict[str, str]:
  """Environment variables of a process that runs on the CPU and compiles for accelerators."""
  root = pathlib.Path(__file__).parents[1]
  path = os.pathsep.join(str(p) for p in (root, FOLDER, os.environ.get('PYTHONPATH', '')) if str(p))
  tpu = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v5litepod-8'}
  # Nothing runs on a TPU, so several processes may load libtpu.
  tpu['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
  return {**os.environ, **tpu, 'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '2'}


def missing(chip: str) -> str | None:
  """The package that is missing to compile for a chip; None if none is."""
  packages = ('libtpu',) if chip.startswith(TPU) else ('jax_cuda12_plugin', 'jax_cuda13_plugin')
  places = [
    FOLDER,
    *map(pathlib.Path, os.environ.get('PYTHONPATH', '').split(os.pathsep)),
    *map(pathlib.Path, sys.path),
  ]
  found = any((place / package).is_dir() for place in places for package in packages)
  return None if found else packages[0].replace('_', '-')


class Compiled(NamedTuple):
  """Result of the compilation of a program.

  Attributes:
    program: name of the program.
    error: the error in one line; empty if the program was compiled.
    seconds: time of the compilation.
    gathers: number of all-gathers in the program.
    counts: for a GPU, the number of kernels of every kind, and the waits of the host, as `benchmarks.gpu` counts them.
  """

  program: str
  error: str = ''
  seconds: float = 0.0
  gathers: int = 0
  counts: Mapping[str, int] = MappingProxyType({})

  def __str__(self) -> str:
    if self.error:
      return f'failed: {self.error}'
    counts = f'; {sum(self.counts.values()) - self.counts["waits"]} kernels' if self.counts else ''
    return f'compiled in {self.seconds:.0f} s{counts}'


def compile_apart(
  chip: str,
  config: str,
  *,
  precision: str = 'float32',
  defaults: bool = False,
  changes: Mapping[str, Any] | None = None,
  timeout: float | None = None,
) -> list[Compiled]:
  """Compiles the programs of a config in a separate process.

  Args:
    chip: a name in `benchmarks.gpu.CHIPS`, or a TPU; `h100x2` are two H100.
    config: name of a config file.
    precision: precision of all programs.
    defaults: whether XLA's default options are used instead of the package's.
    changes: values of fields of the config by name, such as `network.channels`.
    timeout: seconds after which the process is ended.

  Returns:
    One result for each program, and one for a crash.
  """
  order = {'chip': chip, 'config': config, 'precision': precision, 'defaults': defaults, 'changes': dict(changes or {})}
  command = [sys.executable, '-m', 'benchmarks.accelerators', '--child', json.dumps(order)]
  try:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, check=False)
  except subprocess.TimeoutExpired:
    return [Compiled('all', f'not compiled after {timeout} s')]
  results = []
  doing = 'what comes before the first program'
  for line in done.stdout.splitlines():
    with contextlib.suppress(ValueError):
      said = json.loads(line)
      doing = said['program']
      if 'seconds' in said:
        results.append(Compiled(**said))
        doing = f'what follows the {doing}'
  if done.returncode:
    how = f'signal {signal.Signals(-done.returncode).name}' if done.returncode < 0 else f'exit code {done.returncode}'
    telling = [line for line in done.stderr.splitlines() if 'Check failed' in line or 'Error' in line]
    results.append(Compiled(doing, f'{how}: {(telling or done.stderr.splitlines() or [""])[-1].strip()[:300]}'))
  return results


def _child(order: dict[str, Any]) -> None:
  """Compiles programs one after the other; prints, as JSON lines, the name before and the result after each."""
  import jax

  jax.config.update('jax_enable_compilation_cache', False)
  # A trace makes millions of objects that stay alive, so frequent garbage collections only cost time.
  gc.set_threshold(100_000, 20, 10)
  config, read = _settings(order)
  from benchmarks import gpu, pods
  from darts_jax.runtime import compilation

  chip, _, number = order['chip'].partition('x')
  options: dict[str, str] = {}
  if chip == TPU:
    mesh = pods.Slice(TPU, (1, int(number or 1))).mesh()
  else:
    mesh, options = gpu.mesh_of(chip, int(number or 1)), gpu.OFFLINE
  if order['defaults']:
    # Jitted functions of the package read their options from here.
    compilation.OPTIONS.clear()
  estimators = ('exact', 'exact_reverse') if order['config'] == 'hypergradients' else ()
  cell = NASBENCH201 if order['config'] == 'nasbench201_eval' else 'DARTS_V2'
  for name, jitted, args in _programs(config, read, mesh, cell, estimators):
    print(json.dumps({'program': name}), flush=True)
    start = time.monotonic()
    text = jitted.lower(*args).compile(compiler_options=options or None).as_text() or ''
    said: dict[str, Any] = {'program': name, 'seconds': time.monotonic() - start}
    said['gathers'] = len(re.findall(r' all-gather(?:-start)?\(', text))
    if chip != TPU:
      counts = gpu.GpuProgram(text).count()
      said['counts'] = {**counts.kernels, 'waits': counts.waits}
    print(json.dumps(said), flush=True)


def _settings(order: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
  """The config of an order, and the function that reads it."""
  from darts_jax.search.settings import read as read_search
  from darts_jax.settings import as_kind
  from darts_jax.training.tasks import read as read_training

  config = importlib.import_module(f'configs.{order["config"]}').get_config()
  if order['config'] == 'hypergradients':
    config = config.search
  if 'layers' in config.network:
    config.network.layers = LAYERS
  config.precision = order['precision']
  for field, value in order['changes'].items():
    *path, last = field.split('.')
    if field == 'hypergradient.name':
      config.hypergradient = ConfigDict(as_kind(config.hypergradient, value))
      continue
    node = config
    for name in path:
      node = node[name]
    node[last] = tuple(value) if isinstance(value, list) else value
  return config, read_training if order['config'].endswith('_eval') else read_search


def _programs(
  config: Any, read: Callable[[Any], Any], mesh: Any, cell: str, estimators: Sequence[str] = ()
) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
  """Yields name, jitted function and arguments (as shapes) of every program, by default for the config's estimator."""
  from darts_jax.tasks import ImageTask

  if 'hypergradient' not in config:
    yield from _training_programs(read(config), mesh, cell)
    return
  settings = read(config)
  for name in estimators or (settings.hypergradient.name,):
    settings = dataclasses.replace(settings, hypergradient=settings.hypergradient.other(name))
    found = _image_search(settings, mesh) if isinstance(settings.task, ImageTask) else _text_search(settings, mesh)
    for program, *rest in found:
      yield (f'{name}: {program}', *rest)


def _placed(tree: Any, shardings: Any) -> Any:
  """Shapes and dtypes of a tree of arrays, with shardings."""
  import jax

  def place(x: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(place, tree, jax.tree.broadcast(shardings, tree))


def _image_search(settings: Any, mesh: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
  import numpy as np

  from benchmarks.pods import data_template, shapes_only
  from darts_jax.runtime.mesh import replicated
  from darts_jax.search.searcher import Searcher
  from darts_jax.strategies.robust_darts import RobustDarts
  from darts_jax.strategies.sgas import Sgas

  # The compiler for TPUs takes most of its time for the sort of many image indices.
  images = shapes_only(settings, None, 10, 1_438 if settings.task.source == 'digits' else 50_000)
  data = data_template(images, settings, mesh)
  searcher = Searcher.open(settings, images, mesh)
  searched = searcher.searched
  steps = _placed(np.int32(0), replicated(mesh))
  yield 'reduction node', *_reduction_node(settings, mesh)
  yield 'search step', searcher.run, (searcher.template(), data, steps)
  yield 'evaluation', searcher.evaluate, (searcher.template(), data)
  if isinstance(settings.strategy, RobustDarts):
    yield 'curvature', searcher.curvature, (searcher.template(), data)
  if isinstance(settings.strategy, Sgas):
    generator = np.random.default_rng(0)
    epochs = settings.strategy.decision_epochs(searched.space)
    for epoch in epochs[: len(epochs) // 2]:
      alphas = {
        name: generator.normal(size=(cell.num_edges, len(cell.operations)))
        for name, cell in searched.space.cells.items()
      }
      searched, _ = searched.turn(alphas, epoch)
    smaller = searcher.restage(searched, 0)
    yield 'search step after half of the decisions', smaller.run, (smaller.template(), data, steps)


def _reduction_node(settings: Any, mesh: Any) -> tuple[Any, tuple[Any, ...]]:
  """The gradient, in weights and image, of the operations of one input of a reduction cell."""
  import jax
  import jax.numpy as jnp

  from darts_jax.nets.layers import evaluate
  from darts_jax.nets.operations import Operations
  from darts_jax.runtime.mesh import replicated
  from darts_jax.runtime.precision import precisely

  spec = next(iter(settings.space.cells.values()))
  edges = tuple((name, len(spec.nodes)) for name in spec.operations if name != 'none')
  node = Operations(edges, 2, False)
  x = jax.ShapeDtypeStruct((settings.batch_size, 16, 16, settings.task.network.channels), settings.precision)
  variables = jax.eval_shape(
    lambda key, x: node.init(key, jnp.zeros(x.shape, x.dtype), train=True), jax.random.key(0), x
  )

  def loss(params: Any, x: Any) -> Any:
    with precisely(settings.precision):
      found: Any = node.apply({'params': params}, x, train=True)
    return sum((jnp.sum(y.astype(jnp.float32) ** 2) for y in evaluate([*found.values()])), jnp.float32(0))

  gradient = jax.jit(jax.grad(loss, (0, 1)))
  return gradient, _placed((variables['params'], x), replicated(mesh))


def _text_search(settings: Any, mesh: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
  import numpy as np

  from darts_jax.runtime.mesh import replicated
  from darts_jax.search.searcher import Searcher

  task = settings.task
  corpus = _words(task.source, settings.batch_size * (8 * task.bptt + 1))
  searcher = Searcher.open(settings, corpus, mesh)
  halves = task.halves(corpus, settings, settings.seed)
  data = _placed(halves, searcher._places(searcher.learner.data_axes))
  yield 'search step', searcher.run, (searcher.template(), data, _placed(np.int32(0), replicated(mesh)))
  yield 'evaluation', searcher.evaluate, (searcher.template(), data)


def _words(name: str, count: int) -> Any:
  """Random words with a vocabulary of about the size of the text's."""
  from benchmarks.search_step import random_words

  size = {'ptb': 10_000, 'wikitext2': 33_278}.get(name, 1_340)
  return random_words(name, size, count)


def _training_programs(settings: Any, mesh: Any, cell: str) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
  import numpy as np

  from darts_jax import spaces
  from darts_jax.data.batches import Examples
  from darts_jax.runtime.mesh import batch_sharding, replicated
  from darts_jax.training import Model, Trainer, Training

  if not isinstance(settings, Training):
    yield from _language_programs(settings, mesh)
    return
  network = settings.network
  side, classes = {'digits': (8, 10), 'cifar10': (32, 10)}.get(settings.data.name, (224, 1000))
  channels = 1 if settings.data.name == 'digits' else 3
  some = (127.5,) * channels
  arch: Any = spaces.resolve(cell)
  model = Model(
    arch,
    *(network.channels, network.layers, classes, network.stem, network.auxiliary, network.auxiliary_norm),
    *(network.stem_multiplier, (side, side, channels), some, some),
  )
  size = settings.batch_size
  trainer = Trainer(settings, model, 50 * size, mesh)
  raw: Any = np.broadcast_to(np.uint8(0), (size, side, side, channels))
  labels: Any = np.broadcast_to(np.int32(0), size)
  batch, state = _placed(Examples(raw, labels), batch_sharding(mesh)), trainer.template()
  yield 'training step', trainer.raw_step, (state, batch)
  counts = _placed(np.broadcast_to(np.True_, size), replicated(mesh))
  yield 'evaluation', trainer.tally, (state, batch, counts)


def _language_programs(settings: Any, mesh: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
  import numpy as np

  from darts_jax import spaces
  from darts_jax.data.sequences import Text
  from darts_jax.runtime.mesh import replicated
  from darts_jax.training.language.model import RecurrentModel
  from darts_jax.training.language.texts import divide
  from darts_jax.training.language.trainer import LanguageTrainer

  corpus = _words(settings.data.name, settings.batch_size * (8 * settings.bptt + 1))
  parts = divide(corpus, settings)
  model: Any = RecurrentModel(spaces.resolve('RNN_DARTS_V2'), settings.network.width, corpus.vocabulary)
  trainer = LanguageTrainer(settings, model, mesh)
  same = replicated(mesh)
  text, valid = (_placed(Text.cut(parts.columns[p], parts.windows[p]), same) for p in ('train', 'valid'))
  yield 'training step', trainer.run, (trainer.template(), text, _placed(np.int32(0), same))
  yield 'evaluation', trainer.losses, (trainer.template(), valid)


def main() -> int:
  """Parses the command line; returns the exit code."""
  if sys.argv[1:2] == ['--child']:
    _child(json.loads(sys.argv[2]))
    return 0
  chips = flags.DEFINE_list('chips', ['a100', 'h100', 'h200', 'b200', TPU], 'GPUs of benchmarks.gpu, or v5e.')
  configs = flags.DEFINE_list('configs', list(CONFIGS), 'Names of files in configs/.')
  precisions = flags.DEFINE_list('precisions', ['float32', 'bfloat16'], 'Of all programs.')
  defaults = flags.DEFINE_bool('defaults', False, 'Whether to compile with the options of XLA.')
  changes = flags.DEFINE_multi_string('set', [], 'A field of all configs and a value, as in network.channels=2.')

  def compiled() -> int:
    flags.FLAGS(sys.argv)
    return run(chips.value, configs.value, precisions.value, defaults.value, dict(map(_change, changes.value)))

  return exit_code(compiled, __doc__)


def run(
  chips: Sequence[str], configs: Sequence[str], precisions: Sequence[str], defaults: bool, changes: Mapping[str, Any]
) -> int:
  """Compiles all combinations, prints the table and returns the exit code."""
  folder = pathlib.Path(__file__).parents[1] / 'configs'
  for config in configs:
    if not (folder / f'{config}.py').is_file():
      raise ValueError(f'--configs: {config!r}; allowed are {", ".join(CONFIGS)}')
  for precision in precisions:
    if precision not in ('float32', 'bfloat16'):
      raise ValueError(f'--precisions: {precision!r}; allowed are float32, bfloat16')
  for chip in chips:
    if package := missing(chip):
      raise ValueError(f'{package}: missing; pip install darts_jax[accelerators]')
  print('| chip | config | precision | program | result |\n| --- | --- | --- | --- | --- |', flush=True)
  failed = 0
  for chip, config, precision in itertools.product(chips, configs, precisions):
    for each in compile_apart(chip, config, precision=precision, defaults=defaults, changes=changes):
      print(f'| {chip} | {config} | {precision} | {each.program} | {each} |', flush=True)
      failed += bool(each.error)
  print(f'{failed} failed', flush=True)
  return int(failed > 0)


def _change(field: str) -> tuple[str, Any]:
  name, equals, value = field.partition('=')
  if not equals:
    raise ValueError(f'--set: {field!r}; a field and a value are to be given as in network.channels=2')
  try:
    return name, json.loads(value)
  except ValueError:
    return name, value


if __name__ == '__main__':
  sys.exit(main())
