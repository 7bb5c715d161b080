"""A whole search, by the command a user gives."""

import json
import pathlib
import re
from typing import NamedTuple

import numpy as np
import pytest

from configs import digits
from darts_jax import spaces
from darts_jax.runtime import metrics
from darts_jax.search import Search
from darts_jax.settings import as_config, build
from darts_jax.spaces import Darts, Genotype

pytestmark = pytest.mark.usefixtures('same_programs')

ROOT = pathlib.Path(__file__).parents[2]
EPOCHS, STEPS = 6, 22
OPERATIONS = digits.get_config().space.operations
SPACE = Darts(1, OPERATIONS)


class Finished(NamedTuple):
  workdir: pathlib.Path
  output: list[str]
  errors: list[str]


@pytest.fixture(scope='module')
def finished(tmp_path_factory, command) -> Finished:
  """One node a cell."""
  workdir = tmp_path_factory.mktemp('command') / 'run'
  arguments = [
    '--config=configs/digits.py',
    f'--workdir={workdir}',
    f'--config.epochs={EPOCHS}',
    '--config.augment.crop_padding=0',
    '--config.space.nodes=1',
  ]
  # Its 132 steps take longer than their compilation otherwise.
  process = command('search', *arguments, optimised=True)
  assert process.returncode == 0, process.stderr
  return Finished(workdir, process.stdout.splitlines(), process.stderr.splitlines())


def alphas(finished: Finished) -> dict[str, np.ndarray]:
  with np.load(finished.workdir / 'alphas.npz', allow_pickle=False) as file:
    return {name: file[name] for name in file.files}


def derive(values: dict[str, np.ndarray], snapshot: int) -> Genotype:
  exponentials = {name: np.exp(values[name][snapshot]) for name in SPACE.cells}
  mixing = {name: value / value.sum(axis=1, keepdims=True) for name, value in exponentials.items()}
  return SPACE.strongest(mixing)


def test_supernet_learns_the_digits(finished):
  epochs = [line for line in metrics.read(finished.workdir) if line['kind'] == 'epoch']
  assert [line['epoch'] for line in epochs] == list(range(EPOCHS))
  assert epochs[-1]['valid_accuracy'] >= 0.95
  # A chance guess among ten classes costs ln 10.
  assert epochs[0]['train_loss'] > 0.5 * np.log(10)
  assert epochs[-1]['valid_loss'] < 0.1 * np.log(10)


def test_alphas_find_an_architecture(finished):
  values = alphas(finished)
  assert derive(values, -1) != derive(values, 0)
  for name in SPACE.cells:
    first, last = values[name][0], values[name][-1]
    # They start at a thousandth of a standard normal; decay alone would take them to zero and no further.
    assert np.abs(first).max() < 5e-3
    assert np.abs(last).max() > 0.05
  norms = [line['alphas_gradient_norm'] for line in metrics.read(finished.workdir) if line['kind'] == 'step']
  assert min(norms) > 1e-3


def test_output_is_the_result(finished):
  found = spaces.load(finished.workdir / 'genotype.json')
  accuracy = [line for line in metrics.read(finished.workdir) if line['kind'] == 'epoch'][-1]['valid_accuracy']
  assert finished.output == [
    f'genotype: {spaces.to_json(found)}',
    f'validation accuracy in the supernet: {accuracy:.2%}',
    f'report: {finished.workdir / "report.html"}',
  ]


def test_progress_is_plain_lines_where_there_is_no_terminal(finished):
  assert finished.errors[0].startswith('digits: A search on')
  assert finished.errors[0].endswith(
    ' Cost: about a minute on 2 CPU cores, half of it compilation, and as much for the comparison; no download.'
  )
  assert finished.errors[1:3] == ['devices: 1 × cpu', 'compiling the search step (exact) ...']
  assert re.fullmatch(r'search step (compiled|loaded from the compilation cache) in \d+\.\d s', finished.errors[3])
  total = EPOCHS * STEPS
  last = rf'search digits {total}/{total} \(100%\), .* s/step, 00:00 left, train_loss [\d.]+, valid_loss [\d.]+'
  # So short a search may end with a warning.
  assert re.fullmatch(last, [line for line in finished.errors if not line.startswith('warning: ')][-1])
  assert not any('\r' in line or '\x1b' in line for line in finished.errors)


def test_directory_holds_the_run(finished):
  assert {path.name for path in finished.workdir.iterdir()} == {
    'alphas.npz',
    'checkpoints',
    'config.json',
    'genotype.json',
    'metrics.jsonl',
    'report.html',
    'tensorboard',
  }
  expected = digits.get_config()
  expected.epochs, expected.augment.crop_padding, expected.space.nodes = EPOCHS, 0, 1
  config = json.loads((finished.workdir / 'config.json').read_text())
  assert config.pop('dataset')['images'] == 1438
  assert config == json.loads(json.dumps(as_config(build(Search, expected))))
  # The last three.
  checkpoints = [STEPS * epoch for epoch in range(EPOCHS - 2, EPOCHS + 1)]
  assert sorted(int(path.name) for path in (finished.workdir / 'checkpoints').iterdir()) == checkpoints
  assert [path.name[:6] for path in (finished.workdir / 'tensorboard').iterdir()] == ['events']


def test_alphas_are_kept_for_every_epoch(finished):
  values = alphas(finished)
  assert values['step'].tolist() == [STEPS * epoch for epoch in range(EPOCHS + 1)]
  assert values['epoch'].tolist() == list(range(EPOCHS + 1))
  assert tuple(values['operations']) == OPERATIONS
  for name in SPACE.cells:
    assert values[name].shape == (EPOCHS + 1, 2, len(OPERATIONS))
    assert values[f'edges_{name}'].tolist() == [[0, 2], [1, 2]]
  assert spaces.load(finished.workdir / 'genotype.json') == derive(values, -1)


def test_log_holds_every_measure(finished):
  log = metrics.read(finished.workdir)
  measures = {
    'train_loss',
    'train_accuracy',
    'valid_loss',
    'valid_accuracy',
    'weights_gradient_norm',
    'alphas_gradient_norm',
    'learning_rate',
    'clipped',
    'second_order_fraction',
    'entropy_normal',
    'entropy_reduce',
    'skip_connections',
    'images_per_second',
  }
  steps = [line for line in log if line['kind'] == 'step']
  assert [line['step'] for line in steps] == list(range(10, EPOCHS * STEPS + 1, 10))
  assert all(line.keys() == measures | {'kind', 'step', 'epoch'} for line in steps)
  epochs = [line for line in log if line['kind'] == 'epoch']
  assert [line['step'] for line in epochs] == [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
  assert all(line.keys() == measures | {'kind', 'step', 'epoch', 'seconds'} for line in epochs)
  # Mixing weights are close to uniform at first, and separate.
  for name in ('entropy_normal', 'entropy_reduce'):
    assert 0.9 * np.log(len(OPERATIONS)) < steps[0][name] < np.log(len(OPERATIONS))
    assert epochs[-1][name] < 0.9 * steps[0][name]
  # The cosine of [DARTS §A.1] from 0.05 to 0.001, constant within an epoch.
  rates = [0.001 + 0.049 * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2 for epoch in range(EPOCHS)]
  np.testing.assert_allclose([line['learning_rate'] for line in epochs], rates, rtol=1e-6)
  assert log[-1] == {
    'kind': 'event',
    'step': EPOCHS * STEPS,
    'event': 'finished',
    'message': f'{EPOCHS} epochs done',
  }


def test_report_shows_the_result(finished):
  page = (finished.workdir / 'report.html').read_text()
  assert page.startswith('<!doctype html>') or page.startswith('<!DOCTYPE html>')
  for operation, _ in spaces.load(finished.workdir / 'genotype.json').cell('normal').pairs:
    assert operation in page
