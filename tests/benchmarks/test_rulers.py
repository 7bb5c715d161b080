"""The rulers' figures are those of the golden file, and the command says what is and what is not within them."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import rulers
from benchmarks.rulers import RULERS, Figure, Measured, Ruler
from darts_jax.strategies.random_search import RandomSearch

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
SIZE = 15_625


@pytest.mark.parametrize(('name', 'key'), [('random_search', 'random'), ('regularized_evolution', 're_20_5')])
def test_figures_are_those_of_the_golden_file(name, key):
  golden = json.loads((GOLDENS / 'rulers_nb201.json').read_text())['results'][key]
  expected = (golden[str(rulers.TRIALS)]['test_mean'], golden[str(rulers.TRIALS)]['test_std'], golden['runs'])
  np.testing.assert_allclose(RULERS[name].figure, expected, rtol=1e-7)


def test_differences_are_held_against_three_standard_errors():
  accuracies = [93.0, 94.0, 95.0, 94.0]
  found = Measured(accuracies, Figure(93.5, 0.4, 200))
  assert found.mean == 94
  assert found.std == pytest.approx(math.sqrt(2 / 3))
  assert found.difference == 0.5
  assert found.allowed == pytest.approx(3 * math.sqrt(2 / 3 / 4 + 0.16 / 200))
  assert found.agrees
  for mean, agrees in ((94 - found.allowed, True), (94 + found.allowed, True), (94 + 1.01 * found.allowed, False)):
    assert Measured(accuracies, Figure(mean, 0.4, 200)).agrees == agrees


@pytest.fixture(scope='module')
def folder(tmp_path_factory, write_table):
  """A table in which the accuracies of all kinds are the ranks of the architectures."""
  folder = tmp_path_factory.mktemp('table')
  ranks = np.random.default_rng(0).permutation(SIZE) + 1
  write_table(folder, *[100 * ranks / SIZE] * 3)
  return folder


def best_of_a_hundred():
  """Mean and standard deviation, in percent, of the highest rank of 100 draws with replacement."""
  ranks = np.arange(1, SIZE + 1) / SIZE
  probabilities = ranks**100 - (ranks - 1 / SIZE) ** 100
  mean = 100 * probabilities @ ranks
  return mean, math.sqrt(1e4 * probabilities @ ranks**2 - mean**2)


def test_random_search_is_within_its_closed_form(folder, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(rulers, 'RULERS', {'random_search': Ruler(RandomSearch(), Figure(*best_of_a_hundred(), 10**9))})
  output = tmp_path / 'results.json'
  assert rulers.compare(str(folder), 20, output) == 0
  result = json.loads(output.read_text())['random_search']
  assert len(result['test_accuracies']) == 20
  assert result['mean'] == pytest.approx(np.mean(result['test_accuracies']))
  assert abs(result['difference']) <= result['allowed']
  assert result['figure_mean'] == pytest.approx(100 * (1 - 1 / 101), abs=0.01)
  row = capsys.readouterr().out.splitlines()[2]
  assert row.startswith(f'| random_search | 20 | {result["mean"]:.3f} | {result["std"]:.3f} | 99.0')


def test_a_strategy_that_differs_is_named(folder, capsys):
  # The ranks are not the accuracies of the benchmark.
  assert rulers.compare(str(folder), 2, None) == 1
  errors = capsys.readouterr().err.splitlines()
  assert errors == [f'{name}: differs by more than three standard errors' for name in RULERS]


def test_results_that_could_not_be_written_stop_the_command_before_it_reads_the_table(tmp_path):
  command = [sys.executable, '-m', 'benchmarks.rulers', f'--table={tmp_path}', f'--json={tmp_path}/none/results.json']
  done = subprocess.run(command, check=False, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (2, '')
  message = f'error: --json: {tmp_path}/none is not a folder; make it, or give a file in one that exists\n'
  assert done.stderr == message
