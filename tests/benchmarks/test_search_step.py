"""The benchmark's results are consistent with each other; their size is for people to judge."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import search_step
from configs import digits


@pytest.fixture
def config():
  config = digits.get_config()
  config.batch_size = 8
  config.network.channels = 2
  config.space.nodes = 1
  config.space.operations = ('none', 'skip_connect', 'dil_conv_3x3')
  return config


def test_results_are_consistent_and_written_as_json(config, tmp_path, capsys):
  path = tmp_path / 'results.json'
  search_step.run(config, ['first_order'], 3, str(path))
  [(name, result)] = json.loads(path.read_text()).items()
  assert name == 'first_order'
  assert set(result) == {
    'compile_s',
    'load_s',
    'step_s',
    'step_s_min',
    'step_s_max',
    'python',
    'images_per_s',
    'temp_bytes',
    'flops',
    'bytes',
    'roofline',
  }
  assert result['load_s'] > 0
  assert 0 < result['step_s_min'] <= result['step_s'] <= result['step_s_max']
  assert 0 < result['python'] < 1
  assert result['images_per_s'] == pytest.approx(8 / result['step_s'])
  # The images of a batch alone, float32, have to be held.
  assert result['temp_bytes'] > 8 * 8 * 8 * 4
  # The stem's 3×3 convolution, one channel to six, of eight 8×8 images is computed in both gradients.
  assert result['flops'] > 2 * 2 * 9 * 6 * 64 * 8
  # The images are read at least once in both gradients, and no machine is faster than its own rates.
  assert result['bytes'] > 2 * 8 * 8 * 8 * 4
  assert 0 < result['roofline'] < 1
  assert 'first_order' in capsys.readouterr().out


def test_estimators_take_turns_from_one_state_to_the_next():
  calls = []

  def program(name):
    def call(state):
      calls.append((name, state))
      return state + 1, {'steps': 4}

    return search_step.Program(name, call, 0, 8, 'images', {})

  seconds = search_step.time_in_turns([program('exact'), program('finite_difference')], 2)
  assert calls == [(name, i) for i in range(3) for name in ('exact', 'finite_difference')]
  # The first call of each is not counted.
  assert {name: len(each) for name, each in seconds.items()} == {'exact': 2, 'finite_difference': 2}


def test_ratios_are_those_of_neighbouring_calls(capsys):
  steps = {'exact': (2.0, 9.0, 3.0), 'finite_difference': (1.0, 3.0, 2.0)}
  seconds = {name: [search_step.Seconds(step, 0.0) for step in each] for name, each in steps.items()}
  results = {'exact': {'temp_bytes': 3.0}, 'finite_difference': {'temp_bytes': 4.0}}
  search_step.print_ratios(results, seconds)
  expected = 'exact ÷ finite_difference: 2.00 (1.50 – 3.00) of the time, 0.75 of the temporary memory\n'
  assert capsys.readouterr().out == expected
  search_step.print_ratios({'exact': results['exact']}, seconds)
  assert capsys.readouterr().out == ''


def test_unknown_estimator_is_refused_before_anything_runs(config):
  with pytest.raises(ValueError, match='^--estimators: third_order; allowed are first_order'):
    search_step.run(config, ['third_order'], 1, None)


def test_bytes_are_what_kernels_read_and_write():
  compiled = jax.jit(lambda x, y: jnp.tanh(x @ y)).lower(jnp.ones((8, 4)), jnp.ones((4, 16))).compile()
  product, tanh = 4 * (8 * 4 + 4 * 16 + 8 * 16), 4 * 2 * 8 * 16
  assert search_step.count_bytes(compiled.as_text()) == product + tanh
  compiled = jax.jit(lambda x: jax.lax.fori_loop(0, 5, lambda _, x: x * x, x)).lower(jnp.ones(1000)).compile()
  # The body once and not five times, and perhaps a copy of the argument.
  assert 8000 <= search_step.count_bytes(compiled.as_text()) < 3 * 8000
