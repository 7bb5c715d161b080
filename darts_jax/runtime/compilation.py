"""Compilation: the persistent cache of compiled programs, compiler options, and a counter of compilations."""

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
  """Caches programs that take a second or more to compile on disk, so that later processes can load them.

  If the folder cannot be written, a warning is logged and every process compiles its programs again.

  Args:
    directory: folder of the cache, created if missing. By default the one set in JAX (`JAX_COMPILATION_CACHE_DIR`),
      else `~/.cache/darts_jax/xla`. Cached programs are executed without any check, so that only the user may have
      permission to write there.
  """
  directory = directory or _default_folder()
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
  # Otherwise JAX would keep using the folder that was set at its first compilation.
  compilation_cache.reset_cache()


def cache_folder() -> pathlib.Path:
  """The folder in which `enable_cache` would cache programs; raises a ValueError if that is no path."""
  return user_path(_default_folder(), 'JAX_COMPILATION_CACHE_DIR')


def _default_folder() -> str:
  return str(jax.config.values['jax_compilation_cache_dir'] or '~/.cache/darts_jax/xla')


@contextlib.contextmanager
def temporary_cache() -> Iterator[None]:
  """Context in which programs are cached in a new folder, which is removed at the end."""
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
  """Counts of compiled programs.

  Attributes:
    count: programs that were compiled, or loaded from the persistent cache. 0 if all had been compiled before.
    cache_hits: programs among them that were loaded from the persistent cache.
  """

  count: int = 0
  cache_hits: int = 0


@contextlib.contextmanager
def count_compilations() -> Iterator[CompilationCounter]:
  """Context that counts the compilations of the whole process, in all threads."""
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
  """A compiled function, the seconds of tracing and compiling, and whether it came from the persistent cache."""

  compiled: jax.stages.Compiled
  seconds: float
  cached: bool


#: Passes of XLA that change nothing in these programs, but traverse all of their loops many times.
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
  """Compiler options for large programs (`jax.jit(…, compiler_options=…)`).

  On CPU: without some passes that take a third of the compilation time and change nothing; and without XLA's library
  for matrix products and sums. When XLA loads a cached program, it searches the whole program for every call of that
  library, so that a program with thousands of calls takes longer to load than to compile.

  On GPUs: matrix products by cuBLAS. XLA would otherwise generate Triton kernels into which it fuses the producers of
  their operands. If these are strided slices of an image that another operation reads, too, JAX 0.10 and 0.11 abort the
  process. XLA also compiles and times each of these kernels in many variants, and a step has more than a hundred.

  On TPUs: half of the default on-chip memory per kernel, and one copy of equal kernels. With more memory per kernel,
  XLA unrolls a larger part of its work, and nearly all of the compilation time goes into these instructions; arrays
  that stay on the chip between kernels can use the other half.

  On other platforms: no options. Options that XLA does not know are left out.

  Args:
    mesh: mesh of the program's devices; None for the first device of the default backend.
  """
  platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  options = OPTIONS.get('gpu' if platform in GPUS else platform, {})
  return {name: value for name, value in options.items() if _is_known(name, value, mesh)}


def _is_known(option: str, value: str, mesh: Mesh | None) -> bool:
  # Each platform has a compiler of its own, which does not know all options of the others.
  same = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  try:
    jax.jit(lambda: 0, out_shardings=same).lower().compile(compiler_options={option: value})
  except jax.errors.JaxRuntimeError:
    return False
  return True


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
  """Context without garbage collection, which would scan the millions of objects that tracing creates repeatedly."""
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
    options: compiler options in addition to those of the function.
  """
  start = time.monotonic()
  with _without_garbage_collection():
    lowered = jitted.lower(*args)
  with count_compilations() as counter:
    compiled = lowered.compile(compiler_options=dict(options) if options else None)
  return Compilation(compiled, time.monotonic() - start, counter.cache_hits > 0)
