"""Whole trainings that are stopped, and what they write."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

import darts_jax
from darts_jax import training
from darts_jax.data.images import load
from darts_jax.runtime import loop as loops
from darts_jax.runtime import metrics
from darts_jax.runtime.progress import Progress
from darts_jax.spaces import darts
from darts_jax.training import loop as training_loop

pytestmark = pytest.mark.usefixtures('undrawn', 'same_programs')

CELL = (('skip_connect', 0), ('avg_pool_3x3', 1))
GENOTYPE = darts.genotype(CELL, (2,), CELL, (2,))
# 1,438 training images, of which 144 are held out; 10 steps an epoch.
CONFIG = {
  'epochs': 3,
  'batch_size': 128,
  'log_every': 4,
  'data': {'name': 'digits'},
  'augment': {'crop_padding': 1, 'flip': False, 'cutout': 0},
  'network': {'channels': 4, 'layers': 3, 'auxiliary': False, 'drop_path': 0.1},
  'weights': {'learning_rate': 0.1},
}


@pytest.fixture(autouse=True)
def shared_cache(monkeypatch):
  """The compilation cache as the tests have set it up."""
  monkeypatch.setattr(training_loop, 'enable_cache', lambda: None)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uninterrupted')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training_loop, 'enable_cache', lambda: None)
    return workdir, training.run(CONFIG, workdir, GENOTYPE)


class Killed(BaseException):
  """What no part of the loop knows of."""


def test_killed_training_resumes_to_the_same_weights_and_log(tmp_path, monkeypatch, uninterrupted):
  workdir, result = uninterrupted
  monkeypatch.setattr(loops, '_SECONDS_A_CALL', 0.0)  # One step a call.
  update = Progress.update

  def killed_at(moment):
    def updated(self, step, values):
      update(self, step, values)
      if step == moment:
        raise Killed

    return updated

  for moment in (7, 13, 25):
    monkeypatch.setattr(Progress, 'update', killed_at(moment))
    with pytest.raises(Killed):
      training.run(CONFIG, tmp_path, GENOTYPE)
  monkeypatch.setattr(Progress, 'update', update)
  resumed = training.run(CONFIG, tmp_path, GENOTYPE)
  assert (resumed.finished, resumed.test_loss) == (True, result.test_loss)
  states = [training.load(folder).variables for folder in (workdir, tmp_path)]
  jax.tree.map(np.testing.assert_array_equal, *states)

  def logged(folder):
    lines = [line for line in metrics.read(folder) if line['kind'] in ('step', 'epoch', 'test')]
    timing = ('seconds', 'images_per_second')
    return [{name: value for name, value in line.items() if name not in timing} for line in lines]

  assert logged(workdir) == logged(tmp_path)


def test_what_a_training_writes(uninterrupted):
  workdir, result = uninterrupted
  assert {path.name for path in workdir.iterdir()} == {
    'config.json',
    'genotype.json',
    'model.json',
    'metrics.jsonl',
    'tensorboard',
    'checkpoints',
    'report.html',
  }
  lines = metrics.read(workdir)
  assert [line['step'] for line in lines if line['kind'] == 'step'] == [4, 8, 12, 16, 20, 24, 28]
  epochs = [line for line in lines if line['kind'] == 'epoch']
  assert [line['step'] for line in epochs] == [10, 20, 30]
  assert result.valid_accuracy == epochs[-1]['valid_accuracy']
  # The test images are read once, after everything else.
  (test,) = [i for i, line in enumerate(lines) if line['kind'] == 'test']
  assert test > max(i for i, line in enumerate(lines) if line['kind'] == 'epoch')
  # 4 stem channels a multiplier of 3, BN included; see the counts of published networks for the whole.
  model = json.loads((workdir / 'model.json').read_text())
  assert model['image_shape'] == [8, 8, 1]
  assert model['num_classes'] == 10


def test_arrays_train_as_the_dataset_that_they_are(tmp_path, uninterrupted):
  _, result = uninterrupted
  digits = load('digits')
  data, test = (digits.x_train, digits.y_train), (digits.x_test[..., 0], digits.y_test)
  found = training.run(CONFIG, tmp_path, GENOTYPE, data=data, test=test)
  assert (found.test_loss, found.valid_loss) == (result.test_loss, result.valid_loss)
  losses = [[epoch['train_loss'] for epoch in each.history] for each in (found, result)]
  assert losses[0] == losses[1]
  assert len(losses[0]) == 3


def test_a_training_goes_on_with_the_same_images_only(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {'x_train': rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), 'y_train': np.arange(40) % 3}
  path = tmp_path / 'mine.npz'
  np.savez(path, **arrays)
  config = {**CONFIG, 'epochs': 1, 'batch_size': 8, 'data': {'name': 'npz', 'path': str(path)}}
  run = tmp_path / 'run'
  assert math.isnan(training.run(config, run, GENOTYPE).test_accuracy)
  before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
  for name, value in (
    ('x_train', arrays['x_train'] // 2),
    ('y_train', (arrays['y_train'] + 1) % 3),
    ('y_train', np.arange(40) % 4),
  ):
    np.savez(path, **{**arrays, name: value})
    with pytest.raises(ValueError, match='holds a training with another config .*config.dataset'):
      training.run(config, run, GENOTYPE)
  assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_weights_from_elsewhere_are_not_trained_over(tmp_path, uninterrupted):
  workdir, _ = uninterrupted
  training.write(training.Model.read(workdir), training.load(workdir).variables, tmp_path)
  with pytest.raises(ValueError, match='--workdir: .* holds the weights of another network; choose another'):
    training.run(CONFIG, tmp_path, GENOTYPE)


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_loaded(tmp_path, uninterrupted):
  workdir, _ = uninterrupted
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'checkpoints' / '30' / 'manifest.json').write_text('{')
  with pytest.warns(UserWarning, match='checkpoints/30: .*; the network is that of step 20'):
    _, variables = training.load(tmp_path / 'run')
  weights = [np.asarray(tree['params']['classifier']) for tree in (variables, training.load(workdir).variables)]
  assert (weights[0] != weights[1]).any()


def test_a_training_killed_after_its_test_does_not_test_again(tmp_path, uninterrupted, monkeypatch):
  workdir, result = uninterrupted
  shutil.copytree(workdir, tmp_path / 'run')
  path = tmp_path / 'run' / 'metrics.jsonl'
  lines = path.read_text().splitlines()
  assert 'finished' in lines[-1]
  path.write_text('\n'.join(lines[:-1]) + '\n')
  monkeypatch.setattr(training_loop._Loop, '_measure', None)
  again = training.run(CONFIG, tmp_path / 'run', GENOTYPE)
  assert (again.finished, again.test_loss) == (True, result.test_loss)
  assert len(metrics.read(tmp_path / 'run')) == len(lines)


def test_a_finished_training_whose_test_was_lost_tests_again(tmp_path, uninterrupted, monkeypatch):
  workdir, result = uninterrupted
  shutil.copytree(workdir, tmp_path / 'run')
  path = tmp_path / 'run' / 'metrics.jsonl'
  path.write_text(''.join(line for line in path.read_text().splitlines(keepends=True) if '"test"' not in line))
  found = {'loss': result.test_loss, 'accuracy': result.test_accuracy}
  monkeypatch.setattr(training_loop._Loop, '_measure', lambda self, part, *_: found if part == 'test' else None)
  again = training.run(CONFIG, tmp_path / 'run', GENOTYPE)
  assert (again.finished, again.test_accuracy) == (True, result.test_accuracy)
  assert [line.get('event') for line in metrics.read(tmp_path / 'run')][-2:] == ['brought_back', None]


def test_a_signal_at_the_end_of_a_training_ends_a_sequence(tmp_path, monkeypatch, make_guard):
  requested = []

  def finish(self, state):
    # Too late to matter for this training.
    requested.append('SIGTERM')

  monkeypatch.setattr(training_loop, 'InterruptGuard', make_guard(lambda: requested[0] if requested else None))
  monkeypatch.setattr(training_loop._Loop, 'finish', finish)
  results = training.run_seeds({**CONFIG, 'epochs': 1}, tmp_path, GENOTYPE, 3)
  assert [(result.finished, result.interrupted) for result in results] == [(True, True)]


def test_load_names_what_is_missing(tmp_path, uninterrupted):
  workdir, _ = uninterrupted
  with pytest.raises(ValueError, match='model.json: cannot be read .* a training writes it into its workdir'):
    darts_jax.load(tmp_path)
  for name in ('model.json', 'config.json'):
    (tmp_path / name).write_text((workdir / name).read_text())
  with pytest.raises(ValueError, match='no checkpoint yet'):
    darts_jax.load(tmp_path)
  (tmp_path / 'model.json').write_text('{"channels": 4}')
  with pytest.raises(ValueError, match='model.json: no model'):
    darts_jax.load(tmp_path)


def test_a_network_that_diverged_in_its_last_step_has_no_accuracy(tmp_path):
  data = {'name': 'digits', 'validation_fraction': 0.0}
  config = {**CONFIG, 'epochs': 1, 'batch_size': 1432, 'data': data, 'weights': {'learning_rate': 3e38}}
  with pytest.raises(training.Diverged):
    training.run(config, tmp_path, GENOTYPE)
  assert not any(line['kind'] == 'test' for line in metrics.read(tmp_path))


def test_diverged_training_names_the_step_and_the_checkpoint(tmp_path):
  config = {
    **CONFIG,
    'weights': {'learning_rate': 1e30, 'clip_norm': 1e30},
    'network': {**CONFIG['network'], 'drop_path': 0.0},
  }
  with pytest.raises(training.Diverged, match='is not finite; there is no checkpoint yet'):
    training.run(config, tmp_path, GENOTYPE)
  assert 'not finite' in (tmp_path / 'report.html').read_text()
