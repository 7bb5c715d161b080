"""The laboratory, by the command a user gives."""

import json
import math
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest

from configs import hypergradients
from darts_jax.commands.entry import launch
from darts_jax.commands.hypergradients import COMMAND
from darts_jax.hypergradient import BILEVEL
from darts_jax.laboratory.problems import Quadratic

ROOT = pathlib.Path(__file__).parents[2]
ESTIMATORS_SHOWN = ('first_order', 'finite_difference', 'exact', 'unrolled', 'neumann')
SMALL = (
  '--config=configs/hypergradients.py',
  "--config.precisions=('float32',)",
  '--config.batch_sizes=()',
  '--config.images=128',
  '--config.radii=3',
  '--config.search_steps=2',
  '--config.compare_every=2',
  '--config.unrolled_steps=(1,3)',
  '--config.repeats=1',
  '--config.reference_steps=2',
  '--config.search.batch_size=128',
  '--config.search.epochs=1',
  '--config.search.space.nodes=1',
  '--config.search.network.channels=2',
  "--config.search.space.operations=('none','skip_connect')",
)


class Finished(NamedTuple):
  workdir: pathlib.Path
  output: str
  results: dict[str, Any]


@pytest.fixture(scope='module')
def searched(tmp_path_factory, command) -> pathlib.Path:
  """Searches by two estimators, and nothing else."""
  workdir = tmp_path_factory.mktemp('laboratory') / 'searches'
  estimators = "--config.estimators=('first_order','finite_difference')"
  process = command('hypergradients', *SMALL, estimators, '--config.problems=()', '--search', f'--workdir={workdir}')
  assert process.returncode == 0, process.stderr
  return workdir


@pytest.fixture(scope='module')
def finished(searched, command) -> Finished:
  """Everything but searches, at the checkpoint of one."""
  workdir = searched.with_name('run')
  checkpoint = searched / 'searches' / 'finite_difference'
  process = command(
    'hypergradients',
    *SMALL,
    f'--config.estimators={ESTIMATORS_SHOWN}',
    f'--checkpoint={checkpoint}',
    f'--workdir={workdir}',
  )
  assert process.returncode == 0, process.stderr
  return Finished(workdir, process.stdout, json.loads((workdir / 'results.json').read_text()))


def test_writes_results_table_page_and_figures(finished):
  names = {path.name for path in finished.workdir.iterdir()}
  assert names == {'results.json', 'results.md', 'report.html', 'radius.png', 'estimators.png'}
  table = (finished.workdir / 'results.md').read_text()
  assert table in finished.output
  assert str(finished.workdir / 'report.html') in finished.output
  page = (finished.workdir / 'report.html').read_text()
  for name in ESTIMATORS_SHOWN:
    assert name in table
    assert name in page
  for name in ('radius.png', 'estimators.png'):
    assert (finished.workdir / name).read_bytes().startswith(b'\x89PNG')


def test_estimators_are_as_far_from_the_exact_gradient_as_they_should_be(finished):
  rows = {row['estimator']: row for row in finished.results['supernet']['rows']}
  assert list(rows) == list(ESTIMATORS_SHOWN)
  assert rows['first_order']['one_step']['term']['error'] == 1
  # Float32 against float64.
  assert 0 < rows['exact']['one_step']['term']['error'] < 1e-3
  assert 0 < rows['unrolled']['unrolled']['whole']['error'] < 1
  assert rows['exact']['one_step']['whole']['cosine'] == pytest.approx(1, abs=1e-6)
  fraction, norm = (finished.results['supernet'][key] for key in ('term_fraction', 'outer_norm'))
  assert 0 < fraction < math.inf
  assert 0 < norm < math.inf
  assert rows['finite_difference']['disagreement'] > 0
  assert rows['neumann']['residual'] > 0
  assert {row['forward'] for row in rows.values()} == {1, 4, 13}


def test_studies_have_their_points(finished):
  supernet = finished.results['supernet']
  assert supernet['unrolled']['steps'] == [1, 3]
  np.testing.assert_allclose(supernet['radius']['network']['float32']['radii'], [1e-7, 10**-3.5, 1])
  assert supernet['batches']['reference_images'] == 256
  assert [line['images'] for line in supernet['batches']['lines']] == [[128]] * 3
  quadratic = finished.results['quadratic']
  problem = Quadratic.random(20, 6, 100.0, seed=0)
  away = np.linalg.norm(problem.expected('first_order', {}) - problem.true_hypergradient())
  [row] = [row for row in quadratic['rows'] if (row['estimator'], row['precision']) == ('first_order', 'float64')]
  assert row['error'] < 1e-12
  assert row['distance'] == pytest.approx(away / np.linalg.norm(problem.true_hypergradient()))
  for row in finished.results['toy']['rows']:
    assert row['estimate'] == pytest.approx(row['expected'], rel=1e-9)


def test_state_is_that_of_the_checkpoint(finished, searched):
  supernet = finished.results['supernet']
  assert supernet['state'] == f'step 5 of {searched}/searches/finite_difference'
  assert supernet['along']['steps'] == [5, 7]


def test_searches_are_compared(searched):
  results = json.loads((searched / 'results.json').read_text())
  assert (results['supernet'], results['quadratic']) == (None, None)
  assert [row['estimator'] for row in results['search']] == ['first_order', 'finite_difference']
  for row in results['search']:
    assert row['seconds'] > 0
    assert 0 <= row['valid_accuracy'] <= 1
    assert row['edges'] == len(row['genotype']['normal']) + len(row['genotype']['reduce'])
  assert results['search'][0]['shared_edges'] == results['search'][0]['edges']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--config.estimators=("exakt",)',), "error: config.estimators: 'exakt' is not known; allowed are "),
    (
      ('--config.search.hypergradient=unrolled', '--config.search.hypergradient.steps=0'),
      'error: config.search.hypergradient.steps: 0 is not allowed',
    ),
    (('--checkpoint=nowhere',), 'error: --checkpoint: nowhere/config.json: cannot be read (No such file'),
    (('--serch',), "error: Unknown command line flag 'serch'"),
  ],
)
def test_errors_of_users_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(ROOT)
  own = '--config=configs/hypergradients.py', f'--workdir={tmp_path / "run"}'
  monkeypatch.setattr(sys, 'argv', ['hypergradients', *own, *arguments])
  with pytest.raises(SystemExit) as stopped:
    launch(COMMAND, 'hypergradients')
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith(message)
  assert error.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def test_every_estimator_is_in_the_default_config():
  assert hypergradients.get_config().estimators == BILEVEL
