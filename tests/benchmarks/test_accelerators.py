"""Programs compile for accelerators that are not there, each in a process of its own, which a compiler may end."""

import pytest

from benchmarks.accelerators import compile_apart, missing

OPERATIONS = (
  *('none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect'),
  *('sep_conv_3x3', 'sep_conv_5x5', 'dil_conv_3x3', 'dil_conv_5x5'),
)
#: As small as can be with every operation and every kind of cell.
TINY = {
  'network.channels': 4,
  'network.nodes': 1,
  'network.operations': OPERATIONS,
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


def assert_compiled(results, *programs):
  assert [*results] == [*programs]
  assert all(result.startswith('compiled') for result in results.values()), results


# NVIDIA's last three generations and a TPU; of precisions and options those that others leave out.
@pytest.mark.parametrize(
  ('chip', 'precision', 'defaults'),
  [
    on('a100', 'float32', True),
    on('h100', 'bfloat16', True),
    on('b200', 'float32', False),
    on('v5e', 'float32', False),
  ],
)
def test_search_step_and_evaluation_compile(chip, precision, defaults):
  results = compile_apart(chip, 'digits', precision=precision, defaults=defaults, changes=TINY)
  names = ('reduction node', 'search step', 'evaluation')
  assert_compiled(results, *[f'first_order: {name}' for name in names])


@pytest.mark.parametrize('chip', [on('h100'), on('v5e')])
def test_training_step_and_evaluation_compile(chip):
  assert_compiled(compile_apart(chip, 'digits_eval', changes=TRAINING), 'training step', 'evaluation')


def test_compiler_that_ends_its_process_is_a_result(tmp_path, monkeypatch):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'fatal.py').write_text(
    'import os, sys\ndef get_config():\n  print("F0000 Check failed: 256 vs. 32", file=sys.stderr)\n  os.abort()\n'
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  [(program, result)] = compile_apart('v5e', 'fatal').items()
  assert program == 'all'
  assert result == 'failed: signal SIGABRT: F0000 Check failed: 256 vs. 32'


def test_one_that_takes_too_long_is_another():
  assert compile_apart('v5e', 'digits', timeout=0.01) == {'all': 'failed: not compiled after 0.01 s'}
