"""The published PyTorch code and this one compute the same; and the command that says so can say otherwise."""

import json
import pathlib

import jax
import numpy as np
import pytest

from benchmarks import parity

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
SEARCH = GOLDENS / 'cnn_search_tiny.npz'
GENOTYPES = GOLDENS / 'cnn_genotype_parse.json'
RECURRENT_SEARCH = GOLDENS / 'rnn_search_tiny.npz'
RECURRENT_NETWORK = GOLDENS / 'rnn_eval_darts_v2.npz'
DECISIONS = GOLDENS / 'sgas_decisions.json'
RECURRENT_GENOTYPES = GOLDENS / 'rnn_genotype_parse.json'


@pytest.fixture(autouse=True)
def double_precision(x64):
  """Tolerances are those of float64."""


def load(path=SEARCH):
  with np.load(path) as archive:
    return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize('part', ['forward', 'hypergradients', 'finite_difference'])
def test_reference_results_are_reproduced(check, part):
  names = check(parity.compare_search(parity.SearchFile(load()), [part]))
  expected = {
    'forward': {'param_count', 'logits_eval', 'logits_train', 'loss_train'},
    'hypergradients': {'first_order_normal', 'first_order_reduce', 'exact_normal', 'exact_reduce'},
    'finite_difference': {'fd_normal', 'fd_reduce', 'unrolled_loss', 'step_alphas_normal', 'step_grad_norm'},
  }
  assert expected[part] <= set(names)
  if part == 'finite_difference':
    assert sum(name.startswith('step_w/') for name in names) == len(
      jax.tree.leaves(parity.SearchFile(load()).state.weights.tree)
    )


@pytest.mark.parametrize('name', ['cnn_eval_darts_v2', 'cnn_eval_imagenet_darts_v2'])
def test_reference_networks_are_reproduced(check, name):
  names = check(parity.compare(GOLDENS / f'{name}.npz'))
  with np.load(GOLDENS / f'{name}.npz') as archive:
    results = [key for key in archive.files if key.startswith('logits')]
  assert sorted(names) == sorted([*results, 'param_count', 'param_count_no_aux'])


@pytest.fixture(scope='module')
def recurrent_step():
  """The whole steps of the reference's batches, by their estimator."""
  steps = {}

  def step(file, estimator):
    if estimator.name not in steps:
      steps[estimator.name] = original(file, estimator)
    return steps[estimator.name]

  original = parity.RecurrentFile.step
  return step


def results(values, *inputs):
  """What is in a file besides weights, what is given, and what is said about it."""
  return {name for name in values if not name.startswith('w/')} - {*inputs, 'meta'}


def test_recurrent_reference_results_are_reproduced(check, monkeypatch, recurrent_step):
  monkeypatch.setattr(parity.RecurrentFile, 'step', recurrent_step)
  names = check(parity.compare(RECURRENT_SEARCH))
  inputs = (f'{name}_{half}' for name in 'xyh' for half in ('train', 'valid'))
  assert set(names) == results(load(RECURRENT_SEARCH), 'alphas', *inputs) == set(parity.RECURRENT_RESULTS)
  assert len(names) == len(set(names))


def test_recurrent_reference_network_is_reproduced(check):
  names = check(parity.compare(RECURRENT_NETWORK))
  assert set(names) == results(load(RECURRENT_NETWORK), 'x', 'h')


def test_every_recurrent_result_that_differs_is_noticed(tmp_path, capsys, monkeypatch, recurrent_step):
  # What is computed stays as it is, as results are no part of it.
  monkeypatch.setattr(parity.RecurrentFile, 'step', recurrent_step)
  values = load(RECURRENT_SEARCH)
  for name in parity.RECURRENT_RESULTS:
    if name != 'genotype':
      # Everywhere else in the array it is the same.
      values[name][(-1,) * values[name].ndim] += 1e-5 * np.abs(values[name]).max()
  genotype = json.loads(str(values['genotype']))
  genotype['recurrent'][3][1] = (genotype['recurrent'][3][1] + 1) % 4
  path = tmp_path / 'wrong.npz'
  np.savez(path, **values | {'genotype': json.dumps(genotype)})
  assert parity.main([str(path)]) == 1
  found = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()}
  assert found.pop('genotype') == 1
  assert found == pytest.approx(dict.fromkeys(set(parity.RECURRENT_RESULTS) - {'genotype'}, 1e-5), rel=1e-3)


@pytest.mark.parametrize('name', ['w/rnns.0._Ws.7', 'w/rnns.0.bn.running_var', 'x_train', 'alphas'])
def test_another_recurrent_network_computes_something_else(name):
  values = load(RECURRENT_SEARCH)
  # Of the eighth node, the last weight; a word; α of its last edge.
  values[name][(-1,) * values[name].ndim] += 1 if name == 'x_train' else 1e-4
  compared = parity.compare_recurrent_search(parity.RecurrentFile(values))
  (trained, error, tolerance), (evaluated, other_error, _) = next(compared), next(compared)
  assert (trained, evaluated) == ('log_prob_train', 'log_prob_eval')
  assert max(error, other_error) > tolerance


def test_reference_decisions_are_reproduced(tmp_path, capsys):
  cases = json.loads(DECISIONS.read_text())
  assert parity.main([str(DECISIONS)]) == 0
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  # Of 17 epochs both cells and the architecture, of two searches; and what they end with.
  assert len(lines) == 2 * (17 * 3 + 1) == len(dict(lines))
  assert {error for _, error in lines} == {'0.000e+00'}
  # By the other criterion, or with a shorter memory, something else is decided.
  for i, change in ((0, {'criterion': 2}), (1, {'history_size': 1}), (1, {'warmup': 2})):
    changed = [dict(case) for case in cases]
    changed[i].update(change)
    path = tmp_path / 'wrong.json'
    path.write_text(json.dumps(changed))
    assert parity.main([str(path)]) == 1
    wrong = {line.split()[0].split('_')[1] for line in capsys.readouterr().out.splitlines() if '1.0' in line}
    assert wrong == {str(i)}


def test_recurrent_reference_genotypes_are_reproduced(tmp_path, capsys):
  cases = json.loads(RECURRENT_GENOTYPES.read_text())
  assert parity.main([str(RECURRENT_GENOTYPES)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines == [f'genotype_{i} 0.000e+00' for i in range(len(cases))]
  pair = cases[4]['genotype']['recurrent'][5]
  pair[0] = 'tanh' if pair[0] != 'tanh' else 'relu'
  path = tmp_path / 'wrong.json'
  path.write_text(json.dumps(cases))
  assert parity.main([str(path)]) == 1
  assert [line.split()[1] for line in capsys.readouterr().out.splitlines()].count('1.000e+00') == 1


@pytest.mark.parametrize('lost', ['w/rnns.0._Ws.3', 'w/decoder.bias', 'alphas', 'h_train', 'first_order', 'meta'])
def test_a_recurrent_file_with_something_missing_is_refused(tmp_path, capsys, monkeypatch, lost):
  # Without results there is nothing to compute.
  monkeypatch.setattr(parity, 'relative_error', lambda ours, theirs: 0.0)
  monkeypatch.setattr(parity.RecurrentFile, 'step', lambda *args: (None, parity.StepInfo({}, {'recurrent': None})))
  values = load(RECURRENT_SEARCH)
  del values[lost]
  path = tmp_path / 'incomplete.npz'
  np.savez(path, **values)
  assert parity.main([str(path)]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert lost.removeprefix('w/') in error


def test_every_result_in_the_file_is_compared():
  inputs = ('w/', 'momentum/', 'x_', 'y_', 'alphas_', 'meta', 'step_w/')
  results = {name for name in load() if not name.startswith(inputs)}
  assert results == set(parity.RESULTS)


def test_reference_genotypes_are_reproduced(capsys):
  assert parity.main([str(GENOTYPES)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines == [f'genotype_{i} 0.000e+00' for i in range(20)]


def test_precision_is_that_of_the_comparison_alone(capsys):
  with jax.enable_x64(False):
    assert parity.main([str(GENOTYPES)]) == 0
    assert not jax.config.jax_enable_x64


def test_a_wrong_genotype_is_noticed(tmp_path, capsys):
  cases = json.loads(GENOTYPES.read_text())[:3]
  cases[1]['genotype']['normal'][0][0] = 'none'
  path = tmp_path / 'wrong.json'
  path.write_text(json.dumps(cases))
  assert parity.main([str(path)]) == 1
  assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ['0.000e+00', '1.000e+00', '0.000e+00']


def test_nan_is_not_within_tolerance():
  assert not parity.relative_error(np.array([np.nan]), np.array([1.0])) <= parity.TOLERANCE


@pytest.mark.parametrize(
  ('name', 'content', 'said'),
  [
    ('missing.npz', None, 'No such file'),
    ('text.npz', b'hello', ''),
    ('truncated.npz', SEARCH.read_bytes()[:5000], ''),
    ('broken.json', b'[{', ''),
    ('other.json', b'{"a": 1}', 'not a list of'),
  ],
)
def test_unreadable_files_are_one_line_and_exit_code_2(tmp_path, capsys, name, content, said):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  assert parity.main([str(path)]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert str(path) in error
  assert said in error


@pytest.mark.parametrize(
  'lost', ['w/cells.1._ops.3._ops.5.op.2.weight', 'alphas_reduce', 'momentum/stem.0.weight', 'meta']
)
def test_a_file_with_something_missing_is_refused(tmp_path, capsys, lost):
  values = load()
  del values[lost]
  path = tmp_path / 'incomplete.npz'
  np.savez(path, **values)
  assert parity.main([str(path)]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert lost.split('/')[-1] in error


def test_a_tensor_too_many_or_of_another_shape_is_refused(tmp_path, capsys):
  path = tmp_path / 'wrong.npz'
  np.savez(path, **load(), **{'w/cells.9.extra': np.zeros(3)})
  assert parity.main([str(path)]) == 2
  assert 'cells.9.extra' in capsys.readouterr().err
  np.savez(path, **{**load(), 'w/classifier.bias': np.zeros(7)})
  assert parity.main([str(path)]) == 2
  assert 'classifier_bias' in capsys.readouterr().err
