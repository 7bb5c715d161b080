"""The published code of NAS-Bench-201 and this one compute the same; and the command that says so can say otherwise."""

import json
import pathlib

import numpy as np
import pytest

from benchmarks import nasbench201_parity, parity

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
NETWORKS, SUPERNET, COUNTS = (GOLDENS / f'nb201_{name}' for name in ('eval.npz', 'search.npz', 'params.json'))


NO_GRADIENT = '0/grad/cells.3.conv_b.op.2.bias'


@pytest.fixture(autouse=True)
def double_precision(x64):
  """Tolerances are those of float64."""


def load(path):
  with np.load(path) as archive:
    return {name: archive[name] for name in archive.files}


def test_discrete_networks(check):
  """A cell with all operations, one without a path from its input to its output, all identities, and one more."""
  names = check(parity.compare(NETWORKS))
  values = load(NETWORKS)
  for i in range(4):
    own = [name.split('/', 1)[1] for name in names if name.startswith(f'{i}/')]
    # Of arrays that are stacked here there are fewer.
    assert {name.split('/')[0] for name in own} == {
      name.split('/')[1] for name in values if name.startswith(f'{i}/')
    } - {'w'}


def test_supernet(check):
  names = check(parity.compare(SUPERNET))
  results = {name.split('/')[0] for name in load(SUPERNET)}
  inputs = {'w', 'momentum', 'alpha', 'meta', 'x_train', 'y_train', 'x_valid', 'y_valid'}
  assert {name.split('/')[0] for name in names} == results - inputs


def test_numbers_of_weights_and_multiply_adds(check):
  file = json.loads(COUNTS.read_text())
  rows = file['rows'][:3] + file['rows'][3::12]
  names = check(nasbench201_parity.compare_counts({**file, 'rows': rows}))
  assert len(names) == 8 * len(rows)


def test_counts_that_differ_are_noticed(tmp_path, capsys):
  file = json.loads(COUNTS.read_text())
  row = file['rows'][0]
  changed = {name: value + 1 for name, value in row.items() if name.startswith(('params', 'flops'))}
  path = tmp_path / 'wrong.json'
  path.write_text(json.dumps({**file, 'rows': [row | changed | {'valid': False, 'unique_zero': '#'}]}))
  assert parity.main([str(path)]) == 1
  assert {line.split()[1] for line in capsys.readouterr().out.splitlines()} == {'1.000e+00'}


def test_every_result_that_differs_is_noticed(tmp_path, capsys):
  """Of the cell of identities, each array of which is one here, too."""
  values = load(NETWORKS)
  meta = json.loads(str(values['meta']))
  own = {name.replace('2/', '0/', 1): value for name, value in values.items() if name.startswith('2/')}
  for name, value in own.items():
    if not name.startswith('0/w/'):
      # Everywhere else in the array it is the same. A bias before the last BN has no gradient but rounding.
      value[(-1,) * value.ndim] += 1e-5 * np.abs(value).max() if name != NO_GRADIENT else 1e-11
  path = tmp_path / 'wrong.npz'
  np.savez(path, x=values['x'], y=values['y'], meta=json.dumps(meta | {'archs': meta['archs'][2:3]}), **own)
  assert parity.main([str(path)]) == 1
  found = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()}
  assert len(found) == sum(not name.startswith('0/w/') for name in own)
  # Of 1e-11, after 1e-12 is taken off, relative to that.
  assert found.pop('0/grad/residual3/bn1/bias') == pytest.approx(0.9)
  assert found == pytest.approx(dict.fromkeys(found, 1e-5), rel=1e-3)


@pytest.mark.parametrize('lost', ['w/cells.0.edges.2<-1.3.op.1.bias', 'alpha', 'meta', 'loss_valid'])
def test_a_file_with_something_missing_is_refused(tmp_path, capsys, monkeypatch, lost):
  # Without results there is nothing to compute.
  monkeypatch.setattr(nasbench201_parity.jax, 'jit', lambda function: lambda *args: (((0, (0, 0)), (0, 0)), 0)[0])
  monkeypatch.setattr(nasbench201_parity, 'error_beyond_rounding', lambda ours, theirs: 0.0)
  monkeypatch.setattr(nasbench201_parity, 'compare_trees', lambda *args: iter(()))
  values = load(SUPERNET)
  del values[lost]
  path = tmp_path / 'incomplete.npz'
  np.savez(path, **values)
  assert parity.main([str(path)]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert lost.removeprefix('w/').removesuffix('.bias') in error


def test_edges_in_another_order_are_refused(tmp_path, capsys):
  values = load(SUPERNET)
  meta = json.loads(str(values['meta']))
  values['meta'] = json.dumps(meta | {'edges': meta['edges'][::-1]})
  path = tmp_path / 'other.npz'
  np.savez(path, **values)
  assert parity.main([str(path)]) == 2
  assert 'meta: ops and edges are not none, skip_connect' in capsys.readouterr().err


def test_rounding_alone_is_no_error_and_nan_is_one():
  error = nasbench201_parity.error_beyond_rounding
  assert error(np.full(3, 1e-13), np.zeros(3)) == 0
  assert error(np.full(3, 1e-11), np.zeros(3)) > 1
  assert error(np.array([2.0, 1.0]), np.array([2.0, 1.1])) == pytest.approx(0.05)
  assert not error(np.array([np.nan]), np.ones(1)) <= 1e-9
  with pytest.raises(ValueError, match=r'shape \(2,\) computed, \(1,\) found'):
    error(np.ones(2), np.ones(1))
