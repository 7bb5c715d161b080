"""Checks the installation: devices, versions, memory, the compilation cache, extras, and whether a step compiles."""

import importlib.metadata
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax import __version__
from darts_jax.commands.entry import Command
from darts_jax.runtime.compilation import cache_folder
from darts_jax.runtime.files import one_line
from darts_jax.runtime.platforms import check_devices
from darts_jax.runtime.terminal import show

# A module of each extra, by whose presence it is told.
_EXTRAS = {'tfds': 'tensorflow_datasets', 'stream': 'grain', 'export': 'onnxruntime'}
# Rows of the matrices of a product; large enough to keep every device busy, at most 0.1 s on a core.
_ROWS = 2048
_GIB = 2**30
# A search whose step compiles in seconds, with a convolution and a strided edge.
_TINY = {
  'data': {'name': 'digits'},
  'augment': {'crop_padding': 1},
  'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'sep_conv_3x3')},
  'network': {'channels': 4, 'layers': 3},
}


def run() -> int:
  """Prints what was found, one line each; returns 1 if something does not work, otherwise 0."""
  failed = False
  for name, check in _CHECKS.items():
    try:
      for line in check():
        show(f'{name:12}{line}')
        name = ''
    except Exception as error:  # Whatever is wrong with an installation is told in a line.
      failed = True
      reason = one_line(error)
      show(f'{name:12}FAILED: {type(error).__name__}{": " if reason else ""}{reason}')
      if check is _devices:
        break  # Without devices nothing else can be tried.
  return int(failed)


def _versions() -> Iterator[str]:
  yield f'{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}, {platform.machine()}'
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
  yield ', '.join(f'{package} {importlib.metadata.version(package)}' for package in packages)


def _devices() -> Iterator[str]:
  check_devices()
  kinds = [device.device_kind for device in jax.devices()]
  yield ', '.join(f'{kinds.count(kind)} × {kind}' for kind in dict.fromkeys(kinds))
  found = jax.devices()[0].memory_stats() or {}
  if 'bytes_limit' in found:
    yield f'{found["bytes_limit"] / _GIB:.1f} GiB of memory each for JAX'


def _host() -> Iterator[str]:
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / _GIB
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  yield f'{cores} cores, {memory:.0f} GiB of memory'


def _cache() -> Iterator[str]:
  folder = cache_folder()
  place = next(each for each in (folder, *folder.parents) if each.exists())
  try:
    with tempfile.TemporaryFile(dir=place):
      pass
  except OSError as error:
    reason = f'{folder}: cannot be written ({error.strerror}), so that every process compiles its programs again'
    raise ValueError(reason) from error
  sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
  yield f'{folder}, {sum(sizes) / 2**20:.0f} MiB'


def _extras() -> Iterator[str]:
  found = {name: importlib.util.find_spec(module) is not None for name, module in _EXTRAS.items()}
  yield ', '.join(f'{name} {"is there" if there else "is not there"}' for name, there in found.items())


def _product() -> Iterator[str]:
  x = jnp.ones((_ROWS, _ROWS), jnp.float32)
  multiply = jax.jit(jnp.matmul)
  multiply(x, x).block_until_ready()
  start = time.perf_counter()
  for _ in range(3):
    product = multiply(x, x)
  product.block_until_ready()
  seconds = (time.perf_counter() - start) / 3
  yield f'{2 * _ROWS**3 / seconds / 1e9:,.0f} GFLOP/s in float32 ({_ROWS} × {_ROWS} matrices)'


def _step() -> Iterator[str]:
  # These take a second to import.
  from darts_jax.data.images import load
  from darts_jax.runtime.mesh import make_mesh
  from darts_jax.search import Search, Searcher
  from darts_jax.settings import build

  start = time.perf_counter()
  mesh = make_mesh()
  settings = build(Search, _TINY | {'batch_size': 8 * mesh.size})
  images = load('digits')
  searcher = Searcher.open(settings, images, mesh)
  data = searcher.place([settings.task.halves(images, settings, settings.seed)])
  state, _ = searcher.run(searcher.init(searcher.keys()), data, np.int32(1))
  if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.alphas)):
    raise ArithmeticError('a search step gives architecture parameters that are not finite')
  yield f'compiled and run in {time.perf_counter() - start:.0f} s, on {mesh.size} device{"s" * (mesh.size > 1)}'


_CHECKS: dict[str, Callable[[], Iterator[str]]] = {
  'darts-jax': _versions,
  'devices': _devices,
  'host': _host,
  'cache': _cache,
  'extras': _extras,
  'product': _product,
  'search step': _step,
}

COMMAND = Command(run, '', '', config='none')
