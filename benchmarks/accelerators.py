"""Compiles every program of the configs for accelerators that are not there, to see that it can be done.

python -m benchmarks.accelerators [--chips=a100,h100,h200,b200,v5e] [--configs=configs/cifar.py,…]
    [--precisions=float32,bfloat16] [--defaults] [--set=network.channels=2,…]

Where a compiler meets a fault of its own it ends the process, so every config, chip and precision has one to itself,
and a process that was ended is a row of the table and no end of the rest. Networks of images have three cells, the
fewest with each kind of cell, since such faults follow from shapes and not from depth; everything else is as the config
says, unless `--set` changes it. Programs are the step and the evaluation of a search, the step of SGAS's supernet
after half of its decisions, the step and the evaluation of a training, and for a search of images the operations of one
node of a reduction cell by themselves.
`--defaults` compiles with XLA's default options and not with the package's, as a user's own program does.

GPUs are those of `benchmarks.gpu`, v5e is a TPU, for which there is libtpu. Any CPU will do; the compilers are in the
extra `accelerators`. The exit code is 1 if anything failed.
"""

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

#: Where `make` puts compilers, away from what every process finds.
FOLDER = pathlib.Path(sys.prefix) / 'accelerators'
TPU = 'v5e'
#: All configs with programs of their own; the others search or train like one of these.
CONFIGS = (
  *('cifar', 'cifar_sgas', 'digits', 'mnist', 'ptb', 'text', 'hypergradients'),
  *('cifar_eval', 'digits_eval', 'imagenet_eval', 'ptb_eval', 'wikitext2_eval', 'text_eval'),
)
#: A network of images has at least one cell of each kind.
LAYERS = 3


def add_compilers() -> None:
  """Lets this process find the compilers; JAX looks for them when it is first asked for devices."""
  if FOLDER.is_dir() and str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))


def environment() -> dict[str, str]:
  """Of a process that compiles for accelerators: it runs on the CPU and finds the compilers."""
  root = pathlib.Path(__file__).parents[1]
  path = os.pathsep.join(str(p) for p in (root, FOLDER, os.environ.get('PYTHONPATH', '')) if str(p))
  tpu = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v5litepod-8'}
  # Nothing runs on a TPU, so that several processes may compile for one.
  tpu['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
  return {**os.environ, **tpu, 'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '2'}


def missing(chip: str) -> str | None:
  """What has to be installed to compile for a chip; None if nothing has."""
  packages = ('libtpu',) if chip == TPU else ('jax_cuda12_plugin', 'jax_cuda13_plugin')
  places = [
    FOLDER,
    *map(pathlib.Path, os.environ.get('PYTHONPATH', '').split(os.pathsep)),
    *map(pathlib.Path, sys.path),
  ]
  found = any((place / package).is_dir() for place in places for package in packages)
  return None if found else packages[0].replace('_', '-')


def compile_apart(
  chip: str,
  config: str,
  *,
  precision: str = 'float32',
  defaults: bool = False,
  changes: Mapping[str, Any] | None = None,
  timeout: float | None = None,
) -> dict[str, str]:
  """Compiles the programs of a config in a process of their own.

  Returns:
    By program `compiled` and the seconds, or what went wrong, in one line.
  """
  order = {'chip': chip, 'config': config, 'precision': precision, 'defaults': defaults, 'changes': dict(changes or {})}
  command = [sys.executable, '-m', 'benchmarks.accelerators', '--child', json.dumps(order)]
  try:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, check=False)
  except subprocess.TimeoutExpired:
    return {'all': f'failed: not compiled after {timeout} s'}
  results: dict[str, str] = {}
  started = 'all'
  for line in done.stdout.splitlines():
    with contextlib.suppress(ValueError):
      said = json.loads(line)
      started = said['program']
      results[started] = said.get('result', 'started')
  if done.returncode:
    how = f'signal {signal.Signals(-done.returncode).name}' if done.returncode < 0 else f'exit code {done.returncode}'
    telling = [line for line in done.stderr.splitlines() if 'Check failed' in line or 'Error' in line]
    results[started] = f'failed: {how}: {(telling or done.stderr.splitlines() or [""])[-1].strip()[:300]}'
  return results


def _child(order: dict[str, Any]) -> None:
  """Compiles the programs of an order, one after the other; says of each when it begins and when it is done."""
  import jax

  jax.config.update('jax_enable_compilation_cache', False)
  from benchmarks import gpu, pods
  from darts_jax.runtime.compilation import compiler_options

  chip = order['chip']
  mesh = pods.Slice(TPU, (1, 1)).mesh() if chip == TPU else gpu.mesh_of(chip)
  options: dict[str, str] = {} if chip == TPU else dict(gpu.OFFLINE)
  if chip != TPU and not order['defaults']:
    options |= compiler_options('cuda')
  for name, jitted, args in _programs(order, mesh):
    print(json.dumps({'program': name}), flush=True)
    start = time.monotonic()
    jitted.lower(*args).compile(compiler_options=options or None)
    print(json.dumps({'program': name, 'result': f'compiled in {time.monotonic() - start:.0f} s'}), flush=True)


def _settings(order: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
  """The config of an order, and what reads it."""
  from darts_jax.search.settings import read as read_search
  from darts_jax.training.spaces import read as read_training

  config = importlib.import_module(f'configs.{order["config"]}').get_config()
  if order['config'] == 'hypergradients':
    config = config.search
  if 'layers' in config.network:
    config.network.layers = LAYERS
  config.precision = order['precision']
  for field, value in order['changes'].items():
    *path, last = field.split('.')
    node = config
    for name in path:
      node = node[name]
    node[last] = tuple(value) if isinstance(value, list) else value
  return config, read_training if order['config'].endswith('_eval') else read_search


def _programs(order: dict[str, Any], mesh: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
  """Name, jitted function and arguments, which are shapes, of every program."""
  from darts_jax.search.settings import Search

  config, read = _settings(order)
  if order['config'].endswith('_eval'):
    yield from _training_programs(read(config), mesh)
    return
  names = ('exact', 'exact_reverse') if order['config'] == 'hypergradients' else (config.hypergradient.name,)
  for name in names:
    config.hypergradient.name = name
    settings = read(config)
    found = _image_search(settings, mesh) if isinstance(settings, Search) else _text_search(settings, mesh)
    for program, *rest in found:
      yield (f'{name}: {program}', *rest)


def _placed(tree: Any, shardings: Any) -> Any:
  """Shapes of arrays where they are to lie."""
  import jax

  def place(x: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(place, tree, jax.tree.broadcast(shardings, tree))


def _image_search(settings: Any, mesh: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
  import numpy as np

  from benchmarks.pods import data_template, shapes_only
  from darts_jax.runtime.mesh import replicated
  from darts_jax.search.images import ImageSearcher
  from darts_jax.search.loop import make_strategy
  from darts_jax.search.sgas import Sgas

  images = shapes_only(settings, None, 10, 50_000)
  data = data_template(images, settings, mesh)
  strategy: Any = make_strategy(settings)
  searcher = ImageSearcher(settings, strategy, images, mesh)
  steps = _placed(np.int32(0), replicated(mesh))
  yield 'reduction node', *_reduction_node(settings, mesh)
  yield 'search step', searcher.run, (searcher.template(), data, steps)
  yield 'evaluation', searcher.evaluate, (searcher.template(), data)
  if isinstance(strategy, Sgas):
    generator = np.random.default_rng(0)
    for epoch in strategy.decision_epochs[: len(strategy.decision_epochs) // 2]:
      shape = (strategy.space['normal'].num_edges, len(settings.network.operations))
      strategy = strategy.turn({name: generator.normal(size=shape) for name in strategy.space}, epoch).strategy
    smaller = searcher.restage(strategy, 0)
    yield 'search step after half of the decisions', smaller.run, (smaller.template(), data, steps)


def _reduction_node(settings: Any, mesh: Any) -> tuple[Any, tuple[Any, ...]]:
  """The operations of an input of a reduction cell by themselves, and their gradient in weights and image."""
  import jax
  import jax.numpy as jnp

  from darts_jax.nets.layers import evaluate
  from darts_jax.nets.operations import Operations
  from darts_jax.runtime.mesh import replicated
  from darts_jax.runtime.precision import precisely

  network = settings.network
  edges = tuple((name, network.nodes) for name in network.operations if name != 'none')
  node = Operations(edges, 2, False)
  x = jax.ShapeDtypeStruct((settings.batch_size, 16, 16, network.channels), settings.precision)
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
  from darts_jax.search.loop import make_strategy
  from darts_jax.search.text import TextSearcher, texts

  corpus = _words(settings)
  searcher = TextSearcher(settings, make_strategy(settings), corpus, mesh)
  data = _placed(texts(corpus, settings), searcher._places(searcher.data_axes))
  yield 'search step', searcher.run, (searcher.template(), data, _placed(np.int32(0), replicated(mesh)))
  yield 'evaluation', searcher.evaluate, (searcher.template(), data)


def _words(settings: Any) -> Any:
  """Noise with about as many different words as the text has."""
  from benchmarks.search_step import random_words

  size = {'ptb': 10_000, 'wikitext2': 33_278}.get(settings.data.name, 1_340)
  return random_words(settings.data.name, size, settings.batch_size * (8 * settings.bptt + 1))


def _training_programs(settings: Any, mesh: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
  import numpy as np

  from darts_jax import genotype
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
  cell: Any = genotype.resolve('DARTS_V2')
  model = Model(
    cell,
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

  from darts_jax import genotype
  from darts_jax.data.sequences import Text
  from darts_jax.runtime.mesh import replicated
  from darts_jax.training.language.model import RecurrentModel
  from darts_jax.training.language.texts import divide
  from darts_jax.training.language.trainer import LanguageTrainer

  corpus = _words(settings)
  parts = divide(corpus, settings)
  model: Any = RecurrentModel(genotype.resolve('RNN_DARTS_V2'), settings.network.width, corpus.vocabulary)  # type: ignore[arg-type]
  trainer = LanguageTrainer(settings, model, mesh)
  same = replicated(mesh)
  text, valid = (_placed(Text.cut(parts.columns[p], parts.windows[p]), same) for p in ('train', 'valid'))
  yield 'training step', trainer.run, (trainer.template(), text, _placed(np.int32(0), same))
  yield 'evaluation', trainer.losses, (trainer.template(), valid)


def main() -> int:
  """Parses the command line; returns the exit code."""
  if '-h' in sys.argv or '--help' in sys.argv:
    print(__doc__)
    return 0
  parser = argparse.ArgumentParser(add_help=False)
  parser.add_argument('--chips', default='a100,h100,h200,b200,v5e')
  parser.add_argument('--configs', default=','.join(CONFIGS))
  parser.add_argument('--precisions', default='float32,bfloat16')
  parser.add_argument('--defaults', action='store_true')
  parser.add_argument('--set', default='')
  parser.add_argument('--child')
  order = parser.parse_args()
  if order.child:
    _child(json.loads(order.child))
    return 0
  changes = dict(_change(field) for field in order.set.split(',') if field)
  print('| chip | config | precision | program | result |\n| --- | --- | --- | --- | --- |', flush=True)
  failed = 0
  for chip in order.chips.split(','):
    if package := missing(chip):
      print(f'error: {package}: missing; pip install darts_jax[accelerators]', file=sys.stderr)
      return 2
    for config in order.configs.split(','):
      name = pathlib.Path(config).stem
      for precision in order.precisions.split(','):
        results = compile_apart(chip, name, precision=precision, defaults=order.defaults, changes=changes)
        for program, result in results.items():
          print(f'| {chip} | {name} | {precision} | {program} | {result} |', flush=True)
          failed += not result.startswith('compiled')
  print(f'{failed} failed', flush=True)
  return int(failed > 0)


def _change(field: str) -> tuple[str, Any]:
  name, _, value = field.partition('=')
  try:
    return name, json.loads(value)
  except ValueError:
    return name, value


if __name__ == '__main__':
  sys.exit(main())
