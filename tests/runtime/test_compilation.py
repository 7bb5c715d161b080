import gc
import json
import logging
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import darts_jax.runtime.compilation
from darts_jax.runtime.compilation import (
  compile_with_report,
  compiler_options,
  count_compilations,
  enable_cache,
  temporary_cache,
)

OPTIONS = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')


@pytest.fixture(autouse=True)
def cache_as_before():
  before = {name: jax.config.values[name] for name in OPTIONS}
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def cache(tmp_path):
  """A folder in which programs of any compilation time are cached."""
  enable_cache(tmp_path / 'cache')
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  return tmp_path / 'cache'


def cached_programs(folder):
  return [path for path in folder.iterdir() if path.name.startswith('jit_polynomial')]


def polynomial():
  """A new function object each time, which JAX has to trace and compile again."""

  def polynomial(x):
    return 3 * x**2 + 1

  return jax.jit(polynomial)


def test_counter_counts_programs_not_calls():
  function = polynomial()
  x, longer = jnp.arange(3.0), jnp.arange(4.0)
  with count_compilations() as counter:
    function(x)
    assert counter.count == 1
    function(x + 0)
    before = counter.count
    function(x)
    assert counter.count == before
    function(longer)
    assert counter.count == before + 1
  function(jnp.arange(5.0))
  assert counter.count == before + 1
  assert counter.cache_hits == 0


def test_second_process_would_find_the_program(cache):
  x = jnp.arange(3.0)
  first = compile_with_report(polynomial(), x)
  assert not first.cached
  assert cached_programs(cache) != []
  with count_compilations() as counter:
    compiled, seconds, cached = compile_with_report(polynomial(), jax.ShapeDtypeStruct((3,), jnp.float32))
  assert cached
  assert (counter.count, counter.cache_hits) == (1, 1)
  assert seconds > 0
  np.testing.assert_array_equal(compiled(x), [1.0, 4.0, 13.0])


def test_folder_can_be_changed_after_the_first_compilation(cache, tmp_path):
  polynomial()(jnp.arange(3.0))
  enable_cache(tmp_path / 'other')
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  polynomial()(jnp.arange(4.0))
  assert cached_programs(tmp_path / 'other') != []


def test_programs_that_compile_in_no_time_are_not_kept(tmp_path):
  enable_cache(tmp_path / 'cache')
  polynomial()(jnp.arange(3.0))
  assert list((tmp_path / 'cache').iterdir()) == []


def test_only_the_user_can_write_what_will_be_run(tmp_path):
  enable_cache(tmp_path / 'cache')
  assert (tmp_path / 'cache').stat().st_mode & 0o077 == 0


def test_cache_that_cannot_be_written_is_one_warning(tmp_path, caplog):
  (tmp_path / 'file').write_text('')
  with caplog.at_level(logging.WARNING):
    enable_cache(tmp_path / 'file' / 'cache')
  assert [record.getMessage() for record in caplog.records] == [
    f'{tmp_path / "file" / "cache"}: no compilation cache there: Not a directory'
  ]
  np.testing.assert_array_equal(polynomial()(jnp.arange(3.0)), [1.0, 4.0, 13.0])


WHICH_FOLDER = """
import json, jax
from darts_jax.runtime.compilation import enable_cache
enable_cache()
default = jax.config.values['jax_compilation_cache_dir']
enable_cache('~/mine')
print(json.dumps([default, jax.config.values['jax_compilation_cache_dir']]))
"""


@pytest.mark.parametrize('chosen', [None, 'from-environment'])
def test_folder_is_the_argument_else_the_environment_else_the_default(tmp_path, chosen):
  environment = os.environ | {
    'PYTHONPATH': str(pathlib.Path(darts_jax.runtime.compilation.__file__).parents[2]),
    'JAX_PLATFORMS': 'cpu',
    'HOME': str(tmp_path),
  }
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  if chosen:
    environment['JAX_COMPILATION_CACHE_DIR'] = str(tmp_path / chosen)
  output = subprocess.run(
    [sys.executable, '-c', WHICH_FOLDER], env=environment, capture_output=True, text=True, check=True
  ).stdout
  expected = tmp_path / (chosen or '.cache/darts_jax/xla')
  assert json.loads(output) == [str(expected), str(tmp_path / 'mine')]
  assert expected.is_dir()


def test_temporary_cache_works_and_leaves_nothing_behind(cache):
  x = jnp.arange(3.0)
  with temporary_cache():
    folder = pathlib.Path(jax.config.values['jax_compilation_cache_dir'])
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    assert not compile_with_report(polynomial(), x).cached
    assert compile_with_report(polynomial(), x).cached
  assert not folder.exists()
  assert cached_programs(cache) == []
  assert not compile_with_report(polynomial(), x).cached
  assert cached_programs(cache) != []


def test_products_of_matrices_and_sums_are_no_calls_that_slow_loading_down():
  def function(x):
    return x @ x + jnp.sum(x**2) - 64 * 64

  x = jnp.ones((64, 64))
  compiled = jax.jit(function, compiler_options=compiler_options()).lower(x).compile()
  assert ' dot(' in compiled.as_text().split('ENTRY')[1]
  assert 'ynn' not in compiled.as_text()
  assert compiled(x)[0, 0] == 64


def test_options_are_those_of_the_devices_and_not_of_the_default_backend(monkeypatch):
  mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  assert compiler_options(mesh) == compiler_options()
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  compiler_options.cache_clear()
  assert 'xla_disable_hlo_passes' in compiler_options(mesh)
  compiler_options.cache_clear()


@pytest.mark.parametrize('options', [{}, compiler_options()], ids=['all', 'ours'])
def test_passes_over_loops_are_left_out(options):
  """By name; if XLA renames them, they are made again."""

  def function(x):
    return jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) + jnp.exp(x), x)

  text = jax.jit(function, compiler_options=options).lower(jnp.ones(8)).compile().as_text()
  # Two of the passes count the turns of a loop, and take what is the same in all of them out of it.
  assert ('known_trip_count' in text) == (not options)


def test_unknown_options_are_left_out(monkeypatch):
  def refuse(*args, **kwargs):
    raise jax.errors.JaxRuntimeError('INVALID_ARGUMENT: No such compile option')

  monkeypatch.setattr(jax.stages.Lowered, 'compile', refuse)
  compiler_options.cache_clear()
  try:
    assert compiler_options() == {}
  finally:
    compiler_options.cache_clear()


@pytest.mark.parametrize('enabled', [True, False])
def test_garbage_collection_is_as_before(enabled):
  seen = []

  @jax.jit
  def function(x):
    seen.append(gc.isenabled())
    return x

  was = gc.isenabled()
  (gc.enable if enabled else gc.disable)()
  try:
    compile_with_report(function, jnp.ones(()))
    assert seen == [False]
    assert gc.isenabled() == enabled
  finally:
    (gc.enable if was else gc.disable)()
