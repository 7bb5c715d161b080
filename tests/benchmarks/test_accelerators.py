"""Programs compile for accelerators that are not there, each in a process of its own, which a compiler may end."""

import os
import subprocess
import sys

import pytest

from benchmarks.accelerators import Compiled, compile_apart, environment, missing, run

#: As small as can be with every kind of cell.
TINY = {
  'network.channels': 4,
  'space.nodes': 1,
  'batch_size': 8,
  'hypergradient.name': 'first_order',
}
TRAINING = {'network.channels': 4, 'batch_size': 8}


def on(chip, *others):
  """Parameters of a test for a chip; there are wheels of the compilers for Linux on x86-64 alone."""
  package = missing(chip)
  return pytest.param(
    chip, *others, marks=pytest.mark.skipif(package is not None, reason=f'{package} is not installed')
  )


@pytest.fixture
def compiled(monkeypatch):
  """Compiles every program, by name; none may fail."""
  # Threads would compile the same kernels apart from each other, in a third more time of the processors.
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_force_compilation_parallelism=1'
  monkeypatch.setenv('XLA_FLAGS', flags)
  return every_program


def every_program(chip, config, **how):
  # A compiler that hangs is a failure, too.
  results = compile_apart(chip, config, timeout=900, **how)
  assert not [f'{each.program}: {each}' for each in results if each.error]
  return {each.program: each for each in results}


# NVIDIA's last three generations and a TPU; of precisions, options and operations those that others leave out. All have
# a step of 2 by a `skip_connect` beside one by a convolution, which is what compilers have aborted on.
# On the TPU those of DARTS_V2 are compiled below.
@pytest.mark.parametrize(
  ('chip', 'precision', 'defaults', 'operations'),
  [
    on('a100', 'float32', True, ('max_pool_3x3', 'skip_connect', 'sep_conv_5x5')),
    on('h100', 'bfloat16', False, ('none', 'avg_pool_3x3', 'skip_connect', 'dil_conv_3x3', 'dil_conv_5x5')),
    on('b200', 'float32', False, ('none', 'skip_connect', 'sep_conv_3x3')),
    on('v5e', 'float32', False, ('none', 'avg_pool_3x3', 'skip_connect', 'sep_conv_5x5', 'dil_conv_5x5')),
  ],
)
def test_search_step_and_evaluation_compile(compiled, chip, precision, defaults, operations):
  changes = TINY | {'space.operations': operations}
  results = compiled(chip, 'digits', precision=precision, defaults=defaults, changes=changes)
  assert [*results] == [f'first_order: {name}' for name in ('reduction node', 'search step', 'evaluation')]
  if chip == 'v5e':
    return
  counts = results['first_order: search step'].counts
  assert counts['waits'] == 0
  assert 'grouped convolution' not in counts
  # With the package's options products are calls of cuBLAS.
  assert ('product in a fusion' in counts) == defaults


@pytest.mark.parametrize('chip', [on('h100'), on('v5e')])
def test_options_of_the_platform_are_those_that_its_compiler_knows(chip):
  mesh = 'pods.Slice("v5e", (1, 1)).mesh()' if chip == 'v5e' else f'gpu.mesh_of("{chip}")'
  program = (
    'from benchmarks import gpu, pods; from darts_jax.runtime import compilation;'
    ' [options.update(xla_of_a_later_one="1") for options in compilation.OPTIONS.values()];'
    f' print(sorted(compilation.compiler_options({mesh})))'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], env=environment(), capture_output=True, text=True, timeout=300, check=True
  )
  assert (
    done.stdout.splitlines()[-1]
    == {
      'h100': "['xla_gpu_enable_triton_gemm']",
      'v5e': "['xla_tpu_enable_deduplicated_calls', 'xla_tpu_scoped_vmem_limit_kib']",
    }[chip]
  )


# Two GPUs that share a batch exchange sums, and no images.
@pytest.mark.parametrize('chip', [on('h100x2'), on('v5e')])
def test_training_step_and_evaluation_compile(compiled, chip):
  results = compiled(chip, 'digits_eval', changes=TRAINING)
  assert [*results] == ['training step', 'evaluation']
  assert [each.gathers for each in results.values()] == [0, 0]


def test_compiler_that_ends_its_process_is_a_result(tmp_path, monkeypatch):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'fatal.py').write_text(
    'import os, sys\ndef get_config():\n  print("F0000 Check failed: 256 vs. 32", file=sys.stderr)\n  os.abort()\n'
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  [result] = compile_apart('v5e', 'fatal')
  assert result.program == 'what comes before the first program'
  assert str(result) == 'failed: signal SIGABRT: F0000 Check failed: 256 vs. 32'


def test_one_that_takes_too_long_is_another():
  assert compile_apart('v5e', 'digits', timeout=0.01) == [Compiled('all', 'not compiled after 0.01 s')]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((['h100'], ['cifer'], ['float32']), "--configs: 'cifer'; allowed are cifar, "),
    ((['h100'], ['cifar'], ['float16']), "--precisions: 'float16'; allowed are float32, bfloat16"),
  ],
)
def test_wrong_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    run(*arguments, False, {})
