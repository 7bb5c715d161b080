"""What is read from a working directory, in particular from one that a crash left behind."""

import dataclasses
import json
import math
import pathlib
import shutil

import numpy as np
import pytest

from darts_jax import spaces
from darts_jax.report import workdir
from darts_jax.spaces import recurrent


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
  assert (run.config, run.genotype, run.alphas, run.steps, run.status) == (None, None, None, (), 'not started')


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


def test_alphas_of_another_shape_are_told(search_folder):
  with np.load(search_folder / 'alphas.npz') as file:
    arrays = dict(file)
  np.savez(search_folder / 'alphas.npz', **{**arrays, 'normal': arrays['normal'][:, :13]})
  assert '[4, 13, 8]' in workdir.read(search_folder).problems['alphas.npz']


@pytest.mark.parametrize('temperature', [np.ones(3), np.array([1, 1, 1, 0.0]), np.array([1, 1, np.nan, 1])])
def test_temperatures_that_are_none_are_told(search_folder, temperature):
  with np.load(search_folder / 'alphas.npz') as file:
    arrays = dict(file)
  np.savez(search_folder / 'alphas.npz', **arrays, temperature=temperature)
  assert 'temperature' in workdir.read(search_folder).problems['alphas.npz']


def _alphas(values):
  values = np.asarray(values, float)[None]
  edges = {'normal': tuple((row, 9) for row in range(values.shape[1]))}
  return workdir.Alphas(np.array([0]), tuple('abcdefgh'[: values.shape[2]]), {'normal': values}, edges)


def test_mixing_weights_are_the_softmax_of_alpha():
  weights = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
  # softmax(log p + constant) = p, for any constant of an edge
  mixing = _alphas(np.log(weights) + np.array([[3.0], [1000.0]])).mixing('normal')
  np.testing.assert_allclose(mixing[0], weights, rtol=1e-12)


def test_pruned_operations_have_no_weight():
  infinity = math.inf
  mixing = _alphas([[0.0, -infinity, 0.0], [-infinity, -infinity, 5.0], [-infinity] * 3]).mixing('normal')
  np.testing.assert_array_equal(mixing[0], [[0.5, 0, 0.5], [0, 0, 1], [0, 0, 0]])


def test_snapshots_give_the_architectures_that_their_alpha_single_out(search_folder):
  alphas = workdir.read(search_folder).alphas
  published = spaces.published()
  for snapshot, name in enumerate(('PDARTS', 'DARTS_V1', 'DARTS_V2', 'DARTS_V2')):
    for cell in ('normal', 'reduce'):
      derived = workdir.kept_edges(alphas.genotype(snapshot), cell)
      assert derived == workdir.kept_edges(published[name], cell)


def test_snapshots_of_a_recurrent_search_give_the_architectures_that_their_alpha_single_out(recurrent_search_folder):
  alphas = workdir.read(recurrent_search_folder).alphas
  assert alphas.spec('recurrent') == spaces.Recurrent().cells['recurrent']
  derived = [alphas.genotype(snapshot) for snapshot in (0, 1, -1)]
  assert derived == [spaces.published()[name] for name in ('RNN_DARTS_V1', 'RNN_DARTS_V1', 'RNN_DARTS_V2')]


def test_decisions_are_read_off_what_is_pruned(deciding_search_folder, deciding_search):
  alphas = workdir.read(deciding_search_folder).alphas
  decisions = alphas.decisions()
  assert [dataclasses.astuple(decision) for decision in decisions] == deciding_search[1]
  for cell in ('normal', 'reduce'):
    states = alphas.decided(cell)
    made = [decision for decision in decisions if decision.cell == cell]
    for snapshot in range(18):
      until = [decision for decision in made if decision.snapshot <= snapshot]
      assert (states[snapshot] >= 0).sum() == len(until)
      assert (states[snapshot] == workdir.REMOVED).sum() == sum(len(decision.removed) for decision in until)
    # Two of every node's edges are left of 14.
    assert [(states[-1] >= 0).sum(), (states[-1] == workdir.REMOVED).sum()] == [8, 6]


def test_a_search_that_does_not_decide_has_no_decisions(search_folder):
  alphas = workdir.read(search_folder).alphas
  assert (alphas.scores, alphas.decides, alphas.decisions()) == ({}, False, ())
  assert (alphas.decided('normal') == workdir.UNDECIDED).all()


def test_where_there_is_one_operation_nothing_is_decided():
  assert not _alphas([[0.5], [0.0]]).decides


def test_decided_edges_stay_in_the_architecture(deciding_search_folder):
  run = workdir.read(deciding_search_folder)
  kept = [
    {cell: workdir.kept_edges(run.alphas.genotype(snapshot), cell) for cell in ('normal', 'reduce')}
    for snapshot in range(18)
  ]
  for decision in run.alphas.decisions():
    assert all((*decision.edge, decision.operation) in edges[decision.cell] for edges in kept[decision.snapshot :])
  assert run.alphas.genotype(-1) == run.genotype


# Of the edges into node 3, those from 0 and 2 are the most important, and those from 1 and 2 have the largest weights.
_WEIGHTS = ((0.2, 0.3, 0.5), (0.5, 0.3, 0.2), (0.1, 0.46, 0.44), (0.4, 0.05, 0.55), (0.3, 0.1, 0.6))
_SKIP, _REMOVED = (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)


def _two_nodes(changes, **fields):
  weights = np.array(_WEIGHTS)
  for row, values in changes.items():
    weights[row] = values
  with np.errstate(divide='ignore'):
    alphas = np.log(weights)[None]
  cells, edges = ('normal', 'reduce'), ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
  operations = ('none', 'skip_connect', 'sep_conv_3x3')
  return workdir.Alphas(np.array([0]), operations, dict.fromkeys(cells, alphas), dict.fromkeys(cells, edges), **fields)


@pytest.mark.parametrize(
  ('changes', 'fields', 'expected'),
  [
    ({}, {}, (('sep_conv_3x3', 2), ('sep_conv_3x3', 1))),
    ({}, {'scores': {'score': {'normal': np.zeros((1, 5))}}}, (('skip_connect', 0), ('sep_conv_3x3', 2))),
    ({3: _SKIP}, {}, (('skip_connect', 0), ('skip_connect', 1))),
    ({3: _SKIP, 2: _REMOVED}, {}, (('skip_connect', 1), ('sep_conv_3x3', 2))),
    ({3: _SKIP, 2: _SKIP, 4: _REMOVED}, {}, (('skip_connect', 0), ('skip_connect', 1))),
  ],
  ids=['DARTS', 'nothing decided yet', 'one decided', 'one decided, one removed', 'two decided'],
)
def test_a_node_keeps_decided_edges_and_then_the_most_important(changes, fields, expected):
  derived = _two_nodes(changes, **fields).genotype(0)
  assert [name for name, _ in derived.cells] == ['normal', 'reduce']
  for _, cell in derived.cells:
    assert cell.pairs == (('sep_conv_3x3', 0), ('skip_connect', 1), *expected)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({2: _REMOVED, 3: _REMOVED}, 'node 3: 0 edges are decided and 1 undecided; 2 have to be kept'),
    ({2: _SKIP, 3: _SKIP, 4: _SKIP}, 'node 3: 3 edges are decided and 0 undecided; 2 have to be kept'),
    ({2: _SKIP, 3: (math.nan, 1.0, 1.0)}, 'not finite'),
  ],
)
def test_decisions_that_make_no_architecture_are_told(changes, message):
  with pytest.raises(ValueError, match=message):
    _two_nodes(changes).genotype(0)


def test_nodes_of_a_recurrent_cell_keep_one_edge():
  undecided, tanh, removed = [3.0, 1.0, 2.0], [-math.inf, 0.0, -math.inf], [-math.inf] * 3
  alphas = np.array([[undecided, tanh, removed, removed, tanh, removed]])
  edges = {'recurrent': ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))}
  search = workdir.Alphas(np.array([0]), ('none', 'tanh', 'relu'), {'recurrent': alphas}, edges)
  assert search.genotype(0) == recurrent.genotype((('relu', 0), ('tanh', 0), ('tanh', 1)), (1, 2, 3))
  assert search.decisions() == (
    workdir.Decision(0, 'recurrent', (0, 2), 'tanh', None, ((1, 2),)),
    workdir.Decision(0, 'recurrent', (1, 3), 'tanh', None, ((0, 3), (2, 3))),
  )


def test_the_cell_of_a_snapshot_has_what_is_left(deciding_search_folder):
  alphas = workdir.read(deciding_search_folder).alphas
  assert alphas.cell('normal', 0) == spaces.Darts().cells['normal']
  assert alphas.cell('normal', -1).nodes == alphas.genotype(-1).cell('normal').nodes
  counts = [len(edge.operations) for _, edge in alphas.cell('reduce', 8).edges]
  removed = [edge for decision in alphas.decisions()[:8] if decision.cell == 'reduce' for edge in decision.removed]
  assert sorted(counts) == [1] * 4 + [8] * (14 - 4 - len(removed))


@pytest.mark.parametrize('name', ['score_normal', 'stability_reduce'])
def test_scores_of_another_shape_are_told(deciding_search_folder, deciding_search, name):
  arrays = deciding_search[0]
  np.savez(deciding_search_folder / 'alphas.npz', **{**arrays, name: arrays[name][:, 1:]})
  problem = workdir.read(deciding_search_folder).problems['alphas.npz']
  assert problem.endswith(f'{name} is float64[18, 13]; the other arrays ask for floats[18, 14]')


@pytest.mark.parametrize(('cell', 'edges'), [('normal', ((0, 1), (1, 2))), ('recurrent', ((0, 0), (0, 1)))])
def test_edges_into_an_input_make_no_cell(cell, edges):
  alphas = workdir.Alphas(np.array([0]), ('none',), {cell: np.zeros((1, 2, 1))}, {cell: edges})
  with pytest.raises(ValueError, match=f'edges_{cell}: targets .* do not list intermediate nodes in their order'):
    alphas.spec(cell)


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


def test_kept_edges_of_the_normal_cell_of_darts_v1():
  s, k = 'sep_conv_3x3', 'skip_connect'
  assert workdir.kept_edges(spaces.published()['DARTS_V1'], 'normal') == {
    (0, 2, s),
    (1, 2, s),
    (0, 3, k),
    (1, 3, s),
    (0, 4, k),
    (1, 4, s),
    (0, 5, s),
    (2, 5, k),
  }
  assert workdir.kept_edges(spaces.published()['DARTS_V1'], 'recurrent') == set()
  assert (5, 8, 'relu') in workdir.kept_edges(spaces.published()['RNN_DARTS_V2'], 'recurrent')


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


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('step', lambda steps: steps[::-1]),
    ('step', lambda steps: steps.astype(float)),
    ('step', lambda steps: steps.astype(np.uint64) + 2**63),
    ('operations', lambda names: np.arange(len(names))),
    ('normal', lambda alphas: alphas.astype(complex)),
    ('reduce', lambda alphas: alphas[..., :-1]),
    ('edges_normal', lambda edges: edges + 2**31),
    ('edges_normal', lambda edges: edges[:, ::-1]),
    ('edges_reduce', lambda edges: edges[:0]),
  ],
  ids=range(9),
)
def test_alphas_that_are_none(deciding_search_folder, deciding_search, name, change):
  arrays = deciding_search[0]
  np.savez(deciding_search_folder / 'alphas.npz', **{**arrays, name: change(arrays[name])})
  run = workdir.read(deciding_search_folder)
  assert run.alphas is None
  assert name in run.problems['alphas.npz']


@pytest.mark.parametrize(
  ('shape', 'said'),
  [
    ((20_002, 2, 1), 'step: 20,002 snapshots; there are up to 20,001'),
    ((1, 231, 1), 'edges_normal: 231 edges; there are up to 230'),
    ((1, 2, 101), 'operations: 101 operations; there are up to 100'),
    ((1, 2, 1), 'edges_…: 11 kinds of cells; there are up to 10'),
  ],
)
def test_alphas_of_more_than_any_search_has_are_told(tmp_path, shape, said):
  snapshots, edges, operations = shape
  arrays = {
    'step': np.arange(snapshots),
    'operations': np.array([f'o{i}' for i in range(operations)]),
    'edges_normal': np.array([(0, 2)] * edges),
    'normal': np.zeros(shape),
  }
  if 'kinds' in said:
    arrays |= {f'edges_{i}': arrays['edges_normal'] for i in range(10)}
  np.savez(tmp_path / 'alphas.npz', **arrays)
  assert said in workdir.read(tmp_path).problems['alphas.npz']


def test_an_architecture_is_derived_from_its_own_snapshot_alone(monkeypatch, search_folder):
  alphas = workdir.read(search_folder).alphas
  assert not alphas.decides
  shapes = []
  softmax = workdir._softmax
  monkeypatch.setattr(workdir, '_softmax', lambda values: shapes.append(values.shape) or softmax(values))
  alphas.genotype(1)
  assert shapes == [values.shape[1:] for values in alphas.alphas.values()]


def test_alphas_that_were_cut_are_told(tmp_path):
  shutil.copy(pathlib.Path(__file__).parents[1] / 'cases' / 'alphas_truncated.npz', tmp_path / 'alphas.npz')
  run = workdir.read(tmp_path)
  assert run.alphas is None
  assert run.problems['alphas.npz'].startswith('alphas.npz cannot be read: not a whole npz file: ')


@pytest.mark.parametrize(('strategy', 'known'), [('darts', True), ({'name': 'sgas'}, True), ({'name': 'mine'}, False)])
def test_architectures_are_derived_by_rules_that_are_known(tmp_path, strategy, known):
  (tmp_path / 'config.json').write_text(json.dumps({'strategy': strategy}))
  edges = np.array([(0, 2), (1, 2)])
  alphas = {cell: np.zeros((2, 2, 2)) for cell in ('normal', 'reduce')}
  named = {f'edges_{cell}': edges for cell in alphas}
  operations = np.array(['none', 'skip_connect'])
  np.savez(tmp_path / 'alphas.npz', step=np.arange(2), epoch=np.arange(2), operations=operations, **alphas, **named)
  found = workdir.read(tmp_path).alphas
  assert (found.doubts() is not None) == known
  if known:
    assert found.genotype(-1).cell('normal').pairs == (('skip_connect', 0), ('skip_connect', 1))
  else:
    with pytest.raises(ValueError, match='^the report does not know the rule of mine$'):
      found.genotype(-1)
