"""The published code of relaxed strategies and this one compute the same; and the command that says so notices more."""

import json
import pathlib

import numpy as np
import pytest

from benchmarks import parity

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
GDAS, PC_DARTS = GOLDENS / 'gdas.npz', GOLDENS / 'pc_darts.npz'
GENOTYPES = GOLDENS / 'pc_darts_genotypes.json'
CURVATURE, CURVATURES = GOLDENS / 'robustdarts.npz', GOLDENS / 'robustdarts.json'


@pytest.fixture(autouse=True)
def double_precision(x64):
  """Tolerances are those of float64."""


def load(path):
  with np.load(path) as archive:
    return {name: archive[name] for name in archive.files}


def test_gdas_draws_and_their_gradients(check):
  names = check(parity.compare(GDAS))
  results = {name for name in load(GDAS) if name[0].isdigit() and not name.endswith('/gumbel')}
  # Of arrays that are stacked here there are fewer.
  assert {name.split('/dw')[0] + '/dw' * ('/dw' in name) for name in names} == {
    name.split('/dw')[0] + '/dw' * ('/dw' in name) for name in results
  }


def test_results_of_gdas_that_differ_are_noticed(tmp_path, capsys):
  values = load(GDAS)
  changed = ['0/dalpha_none', '1/dhard_released', '1/dw/stem.0.weight', '1/logits', '2/loss', '2/hardwts']
  for name in changed:
    # Everywhere else in the array it is the same.
    values[name][(-1,) * values[name].ndim] += 1e-5 * np.abs(values[name]).max()
  values['0/index'][0] += 1
  values['2/unused_weights'] = values['2/unused_weights'][1:]
  path = tmp_path / 'wrong.npz'
  np.savez(path, **values)
  assert parity.main([str(path)]) == 1
  found = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()}
  wrong = {name for name, error in found.items() if error > 1e-9}
  assert wrong == {*changed, '1/dw/stem', '0/index', '2/unused_weights'} - {'1/dw/stem.0.weight'}


def test_a_supernet_of_pc_darts(check):
  names = check(parity.compare(PC_DARTS))
  inputs = ('w/', 'alphas_', 'betas_', 'meta', 'x', 'y')
  results = {name.split('/')[0] for name in load(PC_DARTS) if not name.startswith(inputs)}
  # Its running statistics are none that a search could have.
  assert {name.split('/')[0] for name in names} == results - {'logits_eval'}
  assert len([name for name in names if name.startswith('shuffle/')]) == 5


def test_results_of_pc_darts_that_differ_are_noticed(tmp_path, capsys):
  values = load(PC_DARTS)
  changed = ['logits_train', 'dbetas_reduce', 'dalphas_normal', 'dw/stem.0.weight', 'edge_normal/output']
  for name in changed:
    # Everywhere else in the array it is the same.
    values[name][(-1,) * values[name].ndim] += 1e-5 * np.abs(values[name]).max()
  values['shuffle/12_3'][:2] = values['shuffle/12_3'][1::-1]
  path = tmp_path / 'wrong.npz'
  np.savez(path, **values)
  assert parity.main([str(path)]) == 1
  found = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()}
  wrong = {name for name, error in found.items() if error > 1e-9}
  assert wrong == {*changed[:3], 'dw/stem', 'edge_normal', 'shuffle/12_3'}


def test_architectures_of_pc_darts(check, tmp_path, capsys):
  assert check(parity.compare(GENOTYPES)) == [f'genotype_{i}' for i in range(40)]
  case = json.loads(GENOTYPES.read_text())[0]
  case['betas_normal'] = case['betas_normal'][::-1]
  path = tmp_path / 'wrong.json'
  path.write_text(json.dumps([case]))
  assert parity.main([str(path)]) == 1
  assert capsys.readouterr().out == 'genotype_0 1.000e+00\n'


def test_the_curvature_of_a_supernet_and_what_differs_is_noticed(tmp_path):
  values = load(CURVATURE)
  # The eigenvalues are compared with those in the file, which stay.
  values['hessian'][3, 100] += 1e-5 * np.abs(values['hessian']).max()
  values['dominant'] = values['max_abs']
  path = tmp_path / 'wrong.npz'
  np.savez(path, **values)
  results = list(parity.compare(path))
  names = ['loss', 'dalphas_normal', 'dalphas_reduce', 'hessian', 'eigenvalues', 'max_abs', 'dominant']
  assert [name for name, _, _ in results] == names
  assert {name for name, error, tolerance in results if not error <= tolerance} == {'hessian', 'dominant'}


def test_where_searches_stop_by_their_curvatures(check, tmp_path, capsys):
  assert sorted(check(parity.compare(CURVATURES))) == sorted(
    f'{what}_{i}' for i in range(30) for what in ('decision', 'means')
  )
  cases = json.loads(CURVATURES.read_text())
  assert sum(case['decided_at'] is not None for case in cases['rows']) == 14
  cases['rows'][2]['stop_epoch'] += 2
  cases['rows'][3]['local_avg'][5] *= 1.001
  path = tmp_path / 'wrong.json'
  path.write_text(json.dumps(cases))
  assert parity.main([str(path)]) == 1
  found = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()}
  assert {name for name, error in found.items() if error > 1e-9} == {'decision_2', 'means_3'}
