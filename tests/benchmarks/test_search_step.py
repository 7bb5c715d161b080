"""The benchmark's results are consistent with each other; their size is for people to judge."""

import json

import pytest

from benchmarks import search_step
from configs import digits


@pytest.fixture
def config():
  config = digits.get_config()
  config.batch_size = 8
  config.network.channels = 2
  config.network.nodes = 1
  config.network.operations = ('none', 'skip_connect', 'dil_conv_3x3')
  return config


def test_results_are_consistent_and_written_as_json(config, tmp_path, capsys):
  path = tmp_path / 'results.json'
  search_step.run(config, ['first_order'], 3, str(path))
  [(name, result)] = json.loads(path.read_text()).items()
  assert name == 'first_order'
  assert set(result) == {
    'compile_s',
    'step_s',
    'step_s_min',
    'step_s_max',
    'images_per_s',
    'temp_bytes',
    'flops',
    'bytes',
    'roofline',
  }
  assert 0 < result['step_s_min'] <= result['step_s'] <= result['step_s_max']
  assert result['images_per_s'] == pytest.approx(8 / result['step_s'])
  # The images of a batch alone, float32, have to be held.
  assert result['temp_bytes'] > 8 * 8 * 8 * 4
  # The stem's 3×3 convolution, one channel to six, of eight 8×8 images is computed in both gradients.
  assert result['flops'] > 2 * 2 * 9 * 6 * 64 * 8
  # Every operation of a tiny network waits for memory, and no machine is faster than its own rates.
  assert result['bytes'] > result['flops']
  assert 0 < result['roofline'] < 1
  assert 'first_order' in capsys.readouterr().out


def test_unknown_estimator_is_refused_before_anything_runs(config):
  with pytest.raises(ValueError, match='^--estimators: third_order; allowed are first_order'):
    search_step.run(config, ['third_order'], 1, None)
