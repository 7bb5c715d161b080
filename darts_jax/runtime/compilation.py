"""Compiling once: the persistent cache of compiled programs, and a count of compilations."""

import contextlib
import dataclasses
import functools
import gc
import logging
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from darts_jax.runtime.files import user_path
from darts_jax.runtime.platforms import GPUS

_COMPILE_EVENT = '/jax/core/compile/backend_compile_duration'
_CACHE_OPTIONS = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
_HIT_EVENT = '/jax/compilation_cache/cache_hits'


def enable_cache(directory: str | pathlib.Path | None = None) -> None:
  """Keeps programs that took a second or more to compile on disk, for later processes to load.

  If the folder cannot be written, a warning is logged and programs are compiled anew in every process.

  Args:
    directory: created if missing. None: the one already set in JAX (`JAX_COMPILATION_CACHE_DIR`), else
      `~/.cache/darts_jax/xla`. Cached programs are run as they are, so others must not be able to write there.
  """
  directory = directory or jax.config.values['jax_compilation_cache_dir'] or '~/.cache/darts_jax/xla'
  try:
    folder = user_path(directory, 'JAX_COMPILATION_CACHE_DIR')
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except (OSError, ValueError) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    logging.getLogger(__name__).warning('%s: no compilation cache there: %s', directory, reason)
    jax.config.update('jax_compilation_cache_dir', None)
  else:
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  # JAX would stay with the folder it had at its first compilation.
  compilation_cache.reset_cache()


@contextlib.contextmanager
def temporary_cache() -> Iterator[None]:
  """Within, programs are cached in a new folder, which is removed at the end."""
  before = {name: jax.config.values[name] for name in _CACHE_OPTIONS}
  try:
    with tempfile.TemporaryDirectory() as folder:
      enable_cache(folder)
      yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


@dataclasses.dataclass
class CompilationCounter:
  """Numbers of programs that were made ready to run.

  Attributes:
    count: programs that JAX asked its backend for. 0 means that everything had been compiled before.
    cache_hits: those among them that were loaded from the persistent cache instead of compiled.
  """

  count: int = 0
  cache_hits: int = 0


@contextlib.contextmanager
def count_compilations() -> Iterator[CompilationCounter]:
  """Counts the compilations of the whole process, all threads, while the context lasts."""
  counter = CompilationCounter()

  def on_duration(event: str, duration_secs: float, **kwargs: Any) -> None:
    counter.count += event == _COMPILE_EVENT

  def on_event(event: str, **kwargs: Any) -> None:
    counter.cache_hits += event == _HIT_EVENT

  jax.monitoring.register_event_duration_secs_listener(on_duration)
  jax.monitoring.register_event_listener(on_event)
  try:
    yield counter
  finally:
    jax.monitoring.unregister_event_duration_listener(on_duration)
    jax.monitoring.unregister_event_listener(on_event)


class Compilation(NamedTuple):
  """A compiled function, the seconds that tracing and compiling took, and whether the cache had it."""

  compiled: jax.stages.Compiled
  seconds: float
  cached: bool


#: Passes of XLA that find nothing to do in the loops of these programs, but go through all of them time and again.
_FRUITLESS_PASSES = (
  'hlo-verifier',
  'simplify-while-loops',
  'while-loop-invariant-code-motion',
  'while-loop-trip-count-annotator',
)


#: Options of large programs by platform, see `compiler_options`.
OPTIONS = {
  'cpu': {'xla_disable_hlo_passes': ','.join(_FRUITLESS_PASSES), 'xla_cpu_experimental_ynn_fusion_type': ''},
  'gpu': {'xla_gpu_enable_triton_gemm': 'False'},
  'tpu': {'xla_tpu_scoped_vmem_limit_kib': '8192', 'xla_tpu_enable_deduplicated_calls': 'true'},
}


@functools.cache
def compiler_options(mesh: Mesh | None = None) -> dict[str, str]:
  """Options to compile large programs with (`jax.jit(…, compiler_options=…)`).

  On CPU: without some passes, which take a third of the time and change nothing; and without the library that XLA has
  for products of matrices and sums, since XLA loads a stored program with a search through all of it for every call of
  that library, which makes thousands of them slower to load than to compile.

  On GPUs: products of matrices by cuBLAS. XLA would make kernels of its own for them, with what they read as a part; on
  strided slices of an image that another operation reads, too, JAX 0.10 and 0.11 end the process then. Each of these
  kernels would be compiled in many variants and timed, and a step has a hundred and more, with shapes that are the same
  from cell to cell.

  On TPUs: kernels with half of the on-chip memory that XLA gives each by default, and one copy of equal kernels. The
  more a kernel has, the larger is the part of its work that XLA unrolls, and nearly all of the time of a compilation
  goes into these instructions; and arrays that stay on the chip between kernels have the other half.

  None elsewhere; options that XLA does not know are left out.

  Args:
    mesh: of the devices that the program is for; None for the first device of the default backend.
  """
  platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  options = OPTIONS.get('gpu' if platform in GPUS else platform, {})
  return {name: value for name, value in options.items() if _is_known(name, value, mesh)}


def _is_known(option: str, value: str, mesh: Mesh | None) -> bool:
  # Compilers know the options of their own platform, and not all those of others.
  same = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  try:
    jax.jit(lambda: 0, out_shardings=same).lower().compile(compiler_options={option: value})
  except jax.errors.JaxRuntimeError:
    return False
  return True


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
  """Within, Python does not look for cycles: tracing makes millions of objects that stay, looked at time and again."""
  enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if enabled:
      gc.enable()


def compile_with_report(
  jitted: jax.stages.Wrapped, *args: Any, options: Mapping[str, str] | None = None
) -> Compilation:
  """Traces and compiles a jitted function ahead of time.

  Args:
    jitted: a function wrapped by `jax.jit`.
    *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.
    options: of the compiler, besides those of the function.
  """
  start = time.monotonic()
  with _without_garbage_collection():
    lowered = jitted.lower(*args)
  with count_compilations() as counter:
    compiled = lowered.compile(compiler_options=dict(options) if options else None)
  return Compilation(compiled, time.monotonic() - start, counter.cache_hits > 0)
