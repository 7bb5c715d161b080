"""The spaces S1 to S4: their candidates, and what is read off weights where edges have candidates of their own."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar_robust_darts
from darts_jax import spaces
from darts_jax.data.images import load
from darts_jax.nets.conv import Supernet
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import Search, Searcher
from darts_jax.search.searched import NO_SUPERNET, Searched
from darts_jax.search.settings import read
from darts_jax.settings import build
from darts_jax.spaces.darts import CANDIDATES, Darts
from darts_jax.spaces.operations import OPERATIONS
from darts_jax.spaces.robust import Robust
from darts_jax.strategies import RELAXED
from darts_jax.strategies.sgas import Decision, Sgas

S1 = Robust('s1')


def test_s1_has_two_candidates_on_every_edge_of_a_cell_of_darts():
  whole = Darts().cells
  assert list(S1.cells) == list(whole)
  for name, spec in S1.cells.items():
    assert [(target, edge.source) for target, edge in spec.edges] == [
      (target, edge.source) for target, edge in whole[name].edges
    ]
    assert all(len(edge.operations) == 2 for _, edge in spec.edges)
    # The columns of α and the candidates have the order of DARTS.
    for operations in (spec.operations, *(edge.operations for _, edge in spec.edges)):
      assert list(operations) == [each for each in CANDIDATES if each in operations]
  normal, reduce = S1.cells.values()
  # Pools are nearly gone from the normal cell, and no edge into the second input of it has a separable convolution.
  assert [edge.operations for edge in normal.nodes[0]] == [
    ('skip_connect', 'dil_conv_3x3'),
    ('skip_connect', 'dil_conv_5x5'),
  ]
  assert sum('max_pool_3x3' in edge.operations for _, edge in normal.edges) == 2
  assert sum('max_pool_3x3' in edge.operations for _, edge in reduce.edges) == 8


@pytest.mark.parametrize(('subspace', 'count'), [('s1', 4), ('s2', 4), ('s3', 4), ('s4', 4)])
def test_numbers_of_architectures(subspace, count):
  """Two of 2, 3, 4 and 5 edges, and two operations besides `none` on either."""
  for spec in Robust(subspace).cells.values():
    found = 1
    for edges, kept in zip(spec.nodes, spec.num_kept, strict=True):
      pairs = [
        len(a.choices(keeps_none=False)) * len(b.choices(keeps_none=False))
        for i, a in enumerate(edges)
        for b in edges[:i]
      ]
      assert (kept, len(pairs)) == (2, math.comb(len(edges), 2))
      found *= sum(pairs)
    assert found == (1 * 3 * 6 * 10) * count**4


def test_files(tmp_path):
  arch = S1.sample(np.random.default_rng(0))
  spaces.save(arch, tmp_path / 'genotype.json')
  assert spaces.load(tmp_path / 'genotype.json') == arch
  assert json.loads((tmp_path / 'genotype.json').read_text())['space'] == 'robust'
  data = pathlib.Path(spaces.__file__).parent / 'robust_s1.json'
  assert 'arXiv 1909.09656' in json.loads(data.read_text())['source']


@pytest.mark.parametrize(
  ('space', 'message'),
  [
    ({'subspace': 's5'}, "config.space.subspace: 's5' is not known; "),
    ({'subspace': 's1', 'nodes': 3}, 'config.space.nodes: 3 is not allowed; cells of s1 have 4'),
  ],
)
def test_what_cannot_be_searched_is_one_line(space, message):
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    build(Search, {'space': {'name': 'robust', **space}})


@pytest.mark.parametrize('subspace', ['s1', 's2', 's3', 's4'])
def test_the_config_of_robust_darts_has_a_search_in_every_part(subspace):
  config = cifar_robust_darts.get_config()
  config.space.subspace = subspace
  config.strategy.drop_path = 0.2
  config.network.update(channels=2, layers=3)
  config.data.name = 'digits'
  searcher = Searcher.open(read(config), load('digits'), make_mesh(1))
  # The whole step is traced.
  halves = [searcher.settings.task.halves(load('digits'), searcher.settings, 0)]
  state, metrics = jax.eval_shape(searcher.run, searcher.template(), searcher.place(halves), np.int32(1))
  assert {name: each.shape for name, each in state.alphas.items()} == {
    name: (14, len(spec.operations)) for name, spec in Robust(subspace).cells.items()
  }
  assert 'second_order_fraction' in metrics


def test_an_operation_that_networks_do_not_have_is_one_line(monkeypatch):
  monkeypatch.delitem(OPERATIONS, 'noise')
  message = "config.space.name: 'robust' is not allowed; the task images has no operation 'noise', only none, "
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    build(Search, {'space': {'name': 'robust', 'subspace': 's4'}})


def masks(spec):
  return np.array([[name in edge.operations for name in spec.operations] for _, edge in spec.edges])


@pytest.mark.parametrize('name', ['darts', 'gdas', 'pc_darts', 'sgas', 'robust_darts'])
def test_operations_that_an_edge_does_not_have_are_never_chosen(name):
  """Although their α are the largest."""
  searched = Searched.start(RELAXED[name](), S1, (5, 10))
  arch = dict(searched.init(jax.random.key(0)))
  for kind, spec in S1.cells.items():
    arch[kind] = jnp.where(masks(spec), arch[kind], 50.0)
  for kind, weights in searched.mix(arch, 3, jax.random.key(1), 0).items():
    mask = masks(S1.cells[kind])
    assert not np.asarray(weights.operations)[~mask].any()
    np.testing.assert_allclose(np.sum(weights.operations, axis=1), 1, rtol=1e-6)
  found = searched.read(jax.device_get(arch))
  S1.check_own(found)
  for kind, spec in S1.cells.items():
    own = {(target, edge.source): edge.operations for target, edge in spec.edges}
    assert all(edge.operations[0] in own[target, edge.source] for target, edge in found.cell(kind).edges)


def test_scores_of_sgas_are_those_of_the_candidates_alone():
  space = Robust('s3', nodes=1)
  [name, _] = space.cells
  whole = Sgas().scores(dict.fromkeys(space.cells, np.log([[0.2, 0.2, 0.6], [0.5, 0.25, 0.25]])), space, {'past': {}})
  np.testing.assert_allclose(whole['importance'][name], [0.8, 0.5])
  arch = {kind: np.zeros((14, len(each.operations))) for kind, each in S1.cells.items()}
  # Probabilities of ¼ and ¾ on one edge, whatever the α of what it does not have.
  row, columns = 3, [S1.cells['normal'].operations.index(each) for each in ('skip_connect', 'sep_conv_3x3')]
  arch['normal'][row] = 9.0
  arch['normal'][row, columns] = np.log([0.25, 0.75])
  scores = Sgas(criterion=1).scores(arch, S1, {'past': {}})
  np.testing.assert_allclose(scores['importance']['normal'], 1, rtol=1e-14)
  entropy = -0.25 * np.log2(0.25) - 0.75 * np.log2(0.75)
  expected = np.where(np.arange(14) == row, 1 - entropy, 0)
  np.testing.assert_allclose(scores['certainty']['normal'], expected, atol=1e-14)


def test_sgas_decides_every_node_among_the_candidates_of_its_edges():
  strategy, rng = Sgas(criterion=2, warmup_epochs=0, decision_frequency=1), np.random.default_rng(0)
  memory = strategy.start()
  for epoch in range(8):
    arch = {name: rng.normal(size=(14, len(spec.operations))) for name, spec in S1.cells.items()}
    memory = strategy.turn(memory, arch, S1, epoch, NO_SUPERNET).memory
  for each in map(Decision._make, memory['decisions']):
    assert each.operation in S1.cells[each.cell].edges[each.edge][1].operations
  found = strategy.read(arch, S1, memory)
  for name, cell in strategy.cells(S1, memory).items():
    assert cell.pairs == found.cell(name).pairs


def test_alphas_of_decided_edges_stay_and_those_of_others_move():
  strategy = Sgas()
  memory = {'decisions': [Decision(0, 'normal', 3, 'sep_conv_3x3')], 'past': {}}
  before = {name: np.zeros((14, len(spec.operations))) for name, spec in S1.cells.items()}
  after = {name: value + 1 for name, value in before.items()}
  moved = strategy.project(before, after, S1, strategy.cells(S1, memory))
  assert np.flatnonzero(~np.asarray(moved['normal']).any(axis=1)).tolist() == [3]
  assert np.asarray(moved['reduce']).all()


def test_a_network_has_the_operations_of_each_edge_alone():
  """Numbers of weights by hand: C = 4, a filter of side k has k² weights a channel, a 1×1 convolution C²."""
  spec = S1.cells['normal']
  net = Supernet((('normal', spec), ('reduce', S1.cells['reduce'])), S1.plan(3), 4, 10, stem_multiplier=1)
  mixing = {name: jnp.full((14, len(each.operations)), 0.5) for name, each in S1.cells.items()}
  images = jnp.zeros((2, 8, 8, 1))
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), images, mixing, train=False))
  cell = {name: values for name, values in shapes['params']['cell0'].items() if name.startswith('node')}
  found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(cell))
  each = {
    'skip_connect': 0,
    'max_pool_3x3': 0,
    'sep_conv_3x3': 2 * (9 * 4 + 16),
    'dil_conv_3x3': 9 * 4 + 16,
    'dil_conv_5x5': 25 * 4 + 16,
  }
  assert found == sum(each[operation] for _, edge in spec.edges for operation in edge.operations)


def test_a_supernet_shrinks_to_the_weights_of_what_is_left():
  settings = build(
    Search,
    {
      'epochs': 3,
      'batch_size': 64,
      'space': {'name': 'robust', 'subspace': 's1'},
      'data': {'name': 'digits'},
      'network': {'channels': 2, 'layers': 3},
      'strategy': {'name': 'sgas', 'warmup_epochs': 0, 'batch_growth': 0},
      'hypergradient': 'first_order',
    },
  )
  whole = Searcher.open(settings, load('digits'), make_mesh(1))
  decisions = [Decision(0, 'normal', 3, 'skip_connect'), Decision(0, 'reduce', 1, 'max_pool_3x3')]
  smaller = whole.restage(whole.searched.recall({'decisions': decisions, 'past': {}}), 1)
  template = whole.template().weights
  before = template.replace(np.arange(template.vector.size))
  places = smaller.learner.inherited(before, whole.learner)
  assert len(places) == smaller.template().weights.vector.size
  # Gone are a separable convolution twice from the one normal cell, and a dilated one from both reduction cells.
  assert before.vector.size - len(places) == 2 * (9 * 2 + 2**2) + sum(9 * c + c**2 for c in (4, 8))
