"""What is read from a working directory, in particular from one that a crash left behind."""

import json
import math

import numpy as np
import pytest

from darts_jax import spaces
from darts_jax.report import workdir


def _write(folder, *records):
  lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
  (folder / 'metrics.jsonl').write_text('\n'.join(lines))


def _step(step, **values):
  return {'kind': 'step', 'step': step, 'epoch': 0, **values}


def _event(event, step=1):
  return {'kind': 'event', 'step': step, 'event': event, 'message': ''}


def test_a_whole_search_is_read(search_folder):
  run = workdir.read(search_folder)
  assert run.problems == {}
  assert run.genotype == spaces.published()['DARTS_V2']
  assert [record['step'] for record in run.steps] == list(range(1, 13))
  assert [record['step'] for record in run.epochs] == [4, 8, 12]
  assert (run.num_epochs, run.status) == (3, 'finished')


def test_of_an_empty_folder_every_file_is_missed(tmp_path):
  run = workdir.read(tmp_path)
  assert set(run.problems) == {'config.json', 'metrics.jsonl', 'genotype.json', 'alphas.npz'}
  assert (run.config, run.genotype, run.history, run.steps, run.status) == (None, None, None, (), 'not started')


def test_a_last_line_cut_by_a_crash_is_no_news(tmp_path):
  _write(tmp_path, _step(1, train_loss=2.5), '{"kind": "step", "step": 2, "train_lo')
  run = workdir.read(tmp_path)
  assert [record['step'] for record in run.steps] == [1]
  assert 'metrics.jsonl' not in run.problems


def test_a_broken_line_elsewhere_is_counted(tmp_path):
  _write(tmp_path, '{"kind": "step", "st{"kind": "step"}', '[1]', _step(3))
  run = workdir.read(tmp_path)
  assert [record['step'] for record in run.steps] == [3]
  assert run.problems['metrics.jsonl'].startswith('2 broken lines')


def test_a_repeated_step_counts_as_it_was_last(tmp_path):
  _write(tmp_path, _step(1, train_loss=1.0), _step(2, train_loss=7.0), _step(2, train_loss=3.0))
  steps, values = workdir.series(workdir.read(tmp_path).steps, 'train_loss')
  assert (list(steps), list(values)) == ([1, 2], [1.0, 3.0])


def test_both_spellings_of_non_finite_numbers_are_read(tmp_path):
  _write(
    tmp_path,
    '{"kind": "step", "step": 1, "x": NaN}',
    '{"kind": "step", "step": 2, "x": -Infinity}',
    _step(3, x='nan'),
    _step(4, x='inf'),
    _step(5, x=True),
    _step(6),
    _step(7, x=0.5),
  )
  run = workdir.read(tmp_path)
  steps, values = workdir.series(run.steps, 'x')
  assert list(steps) == [1, 2, 3, 4, 7]
  np.testing.assert_array_equal(values, [math.nan, -math.inf, math.nan, math.inf, 0.5])
  assert workdir.last(run.steps[:4], 'x') is None
  assert workdir.last(run.steps, 'x') == 0.5


@pytest.mark.parametrize(
  ('records', 'status'),
  [
    ([_event('compiled', 0)], 'running'),
    ([_step(1)], 'running'),
    ([_step(1), _event('interrupted')], 'stopped'),
    ([_step(1), _event('interrupted'), _event('resumed')], 'running'),
    ([_step(1), _event('non_finite')], 'stopped'),
    ([_step(1), _event('non_finite'), _step(2)], 'running'),
    ([_step(1), _event('finished')], 'finished'),
    ([_step(1), _event('interrupted'), _event('damaged_checkpoint')], 'stopped'),
  ],
  ids=str,
)
def test_status_is_that_after_the_last_line(tmp_path, records, status):
  _write(tmp_path, *records)
  assert workdir.read(tmp_path).status == status


def test_times_are_epochs_completed_once_one_has_ended(tmp_path):
  _write(tmp_path, _step(5))
  early = workdir.read(tmp_path)
  assert early.time_unit == 'step'
  np.testing.assert_array_equal(early.times([0, 5]), [0, 5])
  _write(tmp_path, *({'kind': 'epoch', 'step': 10 * (epoch + 1), 'epoch': epoch} for epoch in range(2)))
  late = workdir.read(tmp_path)
  assert late.time_unit == 'epoch'
  np.testing.assert_allclose(late.times([0, 5, 10, 18, 20, 25]), [0, 0.5, 1, 1.8, 2, 2.5])


def test_settings_are_found_where_they_are_least_nested(tmp_path):
  config = {'data': {'dataset': {'name': 'MNIST', 'seed': 1}}, 'seed': 4, 'search': {'estimator': 'exact', 'epochs': 9}}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  run = workdir.read(tmp_path)
  assert run.setting('dataset') == 'MNIST'
  assert run.setting('seed') == 4
  assert run.setting('hypergradient', 'estimator') == 'exact'
  assert run.setting('absent') is None
  assert run.num_epochs == 9


@pytest.mark.parametrize('name', ['config.json', 'genotype.json', 'alphas.npz'])
@pytest.mark.parametrize('content', [b'', b'{"normal": [[', b'PK\x03\x04 cut', b'[]', b'\xff\xfe'], ids=repr)
def test_broken_files_are_told_and_the_others_read(search_folder, name, content):
  (search_folder / name).write_bytes(content)
  run = workdir.read(search_folder)
  assert list(run.problems) == [name]
  assert run.problems[name].startswith(f'{name} cannot be read: ')
  assert '\n' not in run.problems[name]


def test_a_convolutional_search_reads_no_text(search_folder):
  assert not workdir.read(search_folder).reads_text


@pytest.mark.parametrize('left', ['config.json', 'genotype.json', 'alphas.npz'])
def test_every_file_of_a_recurrent_search_says_that_it_reads_text(recurrent_search_folder, left):
  for name in {'config.json', 'genotype.json', 'alphas.npz'} - {left}:
    (recurrent_search_folder / name).unlink()
  assert workdir.read(recurrent_search_folder).reads_text


@pytest.mark.parametrize(
  ('data', 'said'),
  [
    ({'name': 'ptb', 'dir': 'data'}, 'ptb'),
    ({'name': 'files', 'dir': '/texts'}, '/texts'),
    ({'name': 'npz', 'path': 'my.npz', 'dir': 'data'}, 'my.npz'),
    ({'name': 'tfds', 'dataset': 'birds', 'dir': 'data'}, 'birds'),
    ({'name': 'image_folder', 'dir': ''}, 'image_folder'),
    ({}, None),
  ],
)
def test_data_is_called_by_what_it_is_and_not_by_how_it_is_stored(tmp_path, data, said):
  (tmp_path / 'config.json').write_text(json.dumps({'data': data, 'dataset': 'a fingerprint'}))
  assert workdir.read(tmp_path).dataset == said


@pytest.mark.parametrize('name', ['config.json', 'metrics.jsonl', 'genotype.json', 'alphas.npz'])
def test_no_damage_is_raised(search_folder, complaints, name):
  assert complaints(lambda path: workdir.read(path.parent), search_folder / name, 150) == []


def test_records_with_values_of_other_types_are_left_out(tmp_path):
  huge = 10**400
  _write(
    tmp_path,
    {'kind': [], 'step': 1},
    {'kind': 'step', 'step': huge},
    {'kind': 'epoch', 'step': 1, 'epoch': -1},
    {'kind': 'event', 'step': 1, 'event': {}},
    {'kind': 'step', 'step': 2, 'event': [], 'x': 1e308, 'y': huge},
    '[' * 5000,
    _step(3, x=1.0),
  )
  (tmp_path / 'config.json').write_text(json.dumps({'epochs': huge}))
  run = workdir.read(tmp_path)
  assert [record['step'] for record in run.steps] == [2, 3]
  assert run.problems['metrics.jsonl'].startswith('5 broken lines')
  assert (run.status, run.num_epochs) == ('running', None)
  np.testing.assert_array_equal(workdir.series(run.steps, 'x')[1], [math.inf, 1.0])
  np.testing.assert_array_equal(workdir.series(run.steps, 'y')[0], [])
