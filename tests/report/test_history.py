"""What is read of the history of a search is what was written, and what does not fit is told in one line."""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from darts_jax import spaces
from darts_jax.report import history, workdir

CASES = pathlib.Path(__file__).parents[1] / 'cases'


@pytest.fixture
def arrays(deciding_search):
  return dict(deciding_search[0])


@pytest.fixture
def read(tmp_path):
  """Writes arrays to a file and reads its history."""

  def read(arrays):
    np.savez(tmp_path / 'alphas.npz', **arrays)
    return history.read(tmp_path / 'alphas.npz')

  return read


def test_what_was_written_is_read(arrays, read):
  found = read(arrays)
  assert (found.space, found.legend) == ('darts', 'The score is <made> up.')
  assert found.cells == spaces.Darts().cells
  np.testing.assert_array_equal(found.steps, 4 * np.arange(18))
  for cell in ('normal', 'reduce'):
    assert found.pairs(cell) == tuple(map(tuple, arrays[f'edges_{cell}'].tolist()))
    np.testing.assert_array_equal(found.mixing[cell], arrays[f'mixing_{cell}'])
    np.testing.assert_array_equal(found.left[cell], np.isfinite(arrays[cell]))
  assert list(found.scores) == ['importance', 'certainty', 'stability', 'score']
  np.testing.assert_array_equal(found.scores['certainty']['reduce'], arrays['certainty_reduce'])
  assert found.texts == tuple(arrays['genotype'].tolist())
  assert found.architectures == tuple(spaces.from_json(json.loads(text)) for text in found.texts)
  assert (found.edges, found.temperatures, found.doubts) == ({}, None, ('',) * 18)


def test_edge_weights_temperatures_and_doubts_are_read(arrays, read):
  weights, temperatures = np.random.default_rng(0).uniform(size=(18, 14)), np.linspace(4, 1, 18)
  doubts = np.array(['', *['it wavers'] * 17])
  found = read({**arrays, 'edge_weights_reduce': weights, 'temperature': temperatures, 'not_settled': doubts})
  np.testing.assert_array_equal(found.edges['reduce'], weights)
  assert list(found.edges) == ['reduce']
  np.testing.assert_array_equal(found.temperatures, temperatures)
  assert found.doubts == tuple(doubts.tolist())


def test_decisions_are_read_off_what_is_left(arrays, read, deciding_search):
  found = read(arrays)
  decisions = found.decisions()
  assert [dataclasses.astuple(decision) for decision in decisions] == deciding_search[1]
  for cell in ('normal', 'reduce'):
    states = found.decided(cell)
    made = [decision for decision in decisions if decision.cell == cell]
    for snapshot in range(18):
      until = [decision for decision in made if decision.snapshot <= snapshot]
      assert (states[snapshot] >= 0).sum() == len(until)
      assert (states[snapshot] == history.REMOVED).sum() == sum(len(decision.removed) for decision in until)
    # Two of every node's edges are left of 14.
    assert [(states[-1] >= 0).sum(), (states[-1] == history.REMOVED).sum()] == [8, 6]


def test_a_search_that_does_not_decide_has_no_decisions(search_folder):
  found = workdir.read(search_folder).history
  assert (found.scores, found.decides, found.decisions()) == ({}, False, ())
  assert (found.decided('normal') == history.UNDECIDED).all()


@pytest.mark.parametrize(('names', 'main'), [(['a', 'score', 'b'], 'score'), (['b', 'a'], 'b'), ([], None)])
def test_the_main_score_is_the_one_of_that_name_or_the_first(arrays, read, names, main):
  others = {name: values for name, values in arrays.items() if name != 'scores'}
  scores = {f'{name}_normal': np.full((18, 14), i / 2) for i, name in enumerate(names)}
  found = read({**others, **scores, **({'scores': np.array(names)} if names else {})})
  assert found.main_score('normal') == main


def test_an_edge_that_had_one_candidate_from_the_start_is_not_decided(arrays, read):
  topology = json.loads(str(arrays['topology']))
  topology['cells']['normal']['nodes'][0][0][1] = ['skip_connect']
  left = arrays['left_normal'].copy()
  left[:, 0] = [name == 'skip_connect' for name in spaces.Darts().operations]
  found = read({**arrays, 'topology': np.array(json.dumps(topology)), 'left_normal': left})
  assert (found.decided('normal')[:, 0] == history.UNDECIDED).all()
  assert (found.decided('normal')[-1, 1:] != history.UNDECIDED).all()


def test_the_cell_of_a_snapshot_has_what_is_left(arrays, read):
  found = read(arrays)
  assert found.cell('normal', 0) == spaces.Darts().cells['normal']
  assert found.cell('normal', -1).nodes == found.architectures[-1].cell('normal').nodes
  counts = [len(edge.operations) for _, edge in found.cell('reduce', 8).edges]
  removed = [edge for decision in found.decisions()[:8] if decision.cell == 'reduce' for edge in decision.removed]
  assert sorted(counts) == [1] * 4 + [8] * (14 - 4 - len(removed))


def test_operations_that_were_pruned_are_left_out_of_the_cell(arrays, read):
  left = arrays['left_normal'].copy()
  left[0, 3] = [name in ('none', 'max_pool_3x3') for name in spaces.Darts().operations]
  found = read({**arrays, 'left_normal': left})
  assert [edge.operations for _, edge in found.cell('normal', 0).edges][3] == ('none', 'max_pool_3x3')
  assert found.decided('normal')[0, 3] == history.UNDECIDED


def test_kept_edges_of_the_normal_cell_of_darts_v1():
  s, k = 'sep_conv_3x3', 'skip_connect'
  assert history.kept_edges(spaces.published()['DARTS_V1'], 'normal') == {
    (0, 2, s),
    (1, 2, s),
    (0, 3, k),
    (1, 3, s),
    (0, 4, k),
    (1, 4, s),
    (0, 5, s),
    (2, 5, k),
  }
  assert history.kept_edges(spaces.published()['DARTS_V1'], 'recurrent') == set()
  assert (5, 8, 'relu') in history.kept_edges(spaces.published()['RNN_DARTS_V2'], 'recurrent')


@pytest.mark.parametrize(
  ('name', 'change', 'said'),
  [
    ('step', lambda steps: steps[::-1], 'step: not the ascending steps'),
    ('step', lambda steps: steps.astype(float), 'step is float64[18]; the other arrays ask for whole numbers[N]'),
    ('step', lambda steps: steps.astype(np.uint64) + 2**63, 'step: not the ascending steps'),
    ('step', lambda steps: np.arange(20_002), 'step: 20,002 snapshots; there are up to 20,001'),
    ('mixing_normal', lambda mixing: mixing.astype(complex), 'mixing_normal is complex128'),
    ('mixing_reduce', lambda mixing: mixing[..., :-1], 'ask for floats[18, 14, 8]'),
    ('left_reduce', lambda left: left.astype(int), 'ask for truth values[18, 14, 8]'),
    ('score_normal', lambda scores: scores[:, 1:], 'score_normal is float64[18, 13]; the other arrays ask for'),
    ('scores', lambda names: np.array(['$x$']), "'$x$' cannot be drawn"),
    ('scores', lambda names: np.array(['s'] * 51), 'scores: 51 scores; there are up to 50'),
    ('genotype', lambda texts: texts[1:], 'genotype is <U'),
    ('genotype', lambda texts: np.array(['{'] * 18), 'not JSON'),
    ('cells', lambda texts: np.array(['{}'] * 18), 'normal: missing; an architecture has the fields normal, reduce'),
    ('not_settled', lambda texts: np.zeros(18), 'not_settled is float64[18]'),
  ],
  ids=range(14),
)
def test_arrays_that_do_not_fit_are_told(arrays, read, name, change, said):
  with pytest.raises(ValueError, match=rf'^[^\n]*{re.escape(said)}[^\n]*$'):
    read({**arrays, name: change(arrays[name])})


@pytest.mark.parametrize('name', ['step', 'mixing_normal', 'left_reduce', 'genotype', 'cells', 'not_settled'])
def test_arrays_that_are_missing_are_named(arrays, read, name):
  del arrays[name]
  with pytest.raises(ValueError, match=f'^array {name} is missing$'):
    read(arrays)


def _cell(**changes):
  nodes = [[[0, ['a', 'b']], [1, ['a', 'b']]]]
  fields = {'operations': ['a', 'b'], 'num_inputs': 2, 'outputs': [2], 'output': 'concat', 'kept': 1}
  return {'nodes': nodes, **fields, **changes}


@pytest.mark.parametrize(
  ('topology', 'said'),
  [
    ([], 'topology is an object with fields, not list'),
    ({'space': 'x', 'legend': ''}, 'cells: missing; topology has the fields space, legend, cells'),
    ({'x': {}}, 'the cell x has the fields'),
    ({}, 'topology: cells: not an object with a field for each kind of cell'),
    ({str(i): _cell() for i in range(11)}, 'topology: 11 kinds of cells; there are up to 10'),
    ({'x': _cell(num_inputs=10**9)}, 'x: num_inputs: 1000000000 is not allowed; allowed are 0 to 20'),
    ({'x': _cell(kept=True)}, 'x: kept: True is not allowed'),
    ({'x': _cell(nodes=[[[0, 'a']]])}, 'x: nodes: not a list of nodes, each a list of [source, operations]'),
    ({'x': _cell(nodes=[[[2, ['a']]]])}, 'x: cell: node 2 reads node 2, which closes a cycle'),
    ({'x': _cell(nodes=[[[0, ['c']]]])}, "x: node 2: 'c' is not an operation"),
    ({'x': _cell(nodes=[[[0, []]]])}, 'x: node 2: no operation is listed'),
    ({'x': _cell(nodes=[[]])}, 'topology: x: it has no edges'),
    ({'x': _cell(nodes=[[[0, ['a']]] * 231])}, 'topology: x: 231 edges; there are up to 230'),
    ({'x': _cell(operations='ab')}, 'x: operations: not a list of names'),
    ({'x': _cell(operations=['a', 'b', '\n'])}, 'cannot be drawn; a name has 1 to 100 printable letters'),
    (
      {'x': _cell(nodes=[[[0, ['a']]]], operations=['a', *(f'b{i}' for i in range(100))])},
      'topology: x: 101 operations; there are up to 100',
    ),
    ({'x': _cell(outputs=[7])}, 'x: outputs: [7] is not allowed'),
    ({'x': _cell(output='product')}, "x: output: 'product' is not known"),
    ({'': _cell()}, "'' cannot be drawn"),
  ],
  ids=range(19),
)
def test_a_topology_that_is_none_is_told(arrays, read, topology, said):
  if isinstance(topology, dict) and 'space' not in topology:
    topology = {'space': 'x', 'legend': '', 'cells': topology}
  with pytest.raises(ValueError, match=rf'^[^\n]*{re.escape(said)}[^\n]*$'):
    read({**arrays, 'topology': np.array(json.dumps(topology))})


def test_a_file_of_an_earlier_version_is_named_as_such(search_folder):
  with np.load(search_folder / 'alphas.npz') as file:
    old = {name: file[name] for name in ('step', 'epoch', 'operations', 'normal', 'edges_normal')}
  np.savez(search_folder / 'alphas.npz', **old)
  run = workdir.read(search_folder)
  assert run.history is None
  assert run.problems == {
    'alphas.npz': 'alphas.npz cannot be read: an earlier version wrote it, without the mixing weights and architectures'
    ' that are drawn here'
  }


def test_a_file_that_was_cut_is_told(tmp_path):
  shutil.copy(CASES / 'alphas_truncated.npz', tmp_path / 'alphas.npz')
  run = workdir.read(tmp_path)
  assert run.history is None
  assert run.problems['alphas.npz'].startswith('alphas.npz cannot be read: not a whole npz file: ')


def test_no_damage_is_raised(deciding_search_folder, complaints):
  assert complaints(lambda path: workdir.read(path.parent), deciding_search_folder / 'alphas.npz', 150) == []
