"""The criteria of SGAS against formulas, and what follows from its decisions; see test_parity.py for published ones."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax import spaces
from darts_jax.relaxation import softmax
from darts_jax.search import Search
from darts_jax.search.darts import Darts
from darts_jax.search.loop import make_strategy
from darts_jax.search.settings import Greed
from darts_jax.search.sgas import Decision, Sgas
from darts_jax.settings import build
from darts_jax.spaces import CellSpace, Edge

SPACE = spaces.Darts()


# One node with two edges, whose weights are as chosen.
ONE_NODE = spaces.Darts(1, ('none', 'skip_connect', 'max_pool_3x3'))


def of_weights(*weights):
  return dict.fromkeys(ONE_NODE.cells, np.log(np.array(weights)))


FIRST = of_weights((0.5, 0.25, 0.25), (0.2, 0.6, 0.2))
SECOND = of_weights((0.1, 0.09, 0.81), (0.5, 0.25, 0.25))


def test_criteria_by_hand():
  strategy = Sgas(ONE_NODE, Greed(2, warmup_epochs=9))
  scores = strategy.scores(FIRST)
  entropy = -0.75 * np.log2(0.75) - 0.25 * np.log2(0.25)
  np.testing.assert_allclose(scores['importance']['normal'], [0.5, 0.8], rtol=1e-14)
  np.testing.assert_allclose(scores['certainty']['normal'], [0, 1 - entropy], atol=1e-15)
  # Without a past, nothing is stable; and what is the same for all edges counts as nothing.
  np.testing.assert_array_equal(scores['stability']['normal'], [0, 0])
  np.testing.assert_array_equal(scores['score']['normal'], [0, 0])
  assert dataclasses.replace(strategy, greed=Greed(1)).scores(FIRST)['score']['normal'].tolist() == [0, 1]

  second = strategy.turn(FIRST, 0).strategy.scores(SECOND)
  # (0.1, 0.9) with (0.5, 0.5), and (0.5, 0.5) with (0.75, 0.25).
  np.testing.assert_allclose(second['stability']['reduce'], [0.1 + 0.5, 0.5 + 0.25], rtol=1e-14)


def test_the_past_is_an_average_of_the_latest_epochs():
  alphas = [FIRST, SECOND, SECOND, FIRST]
  for history, expected in ((1, [1.0, 1.0]), (2, [1.0, 1.0]), (3, [(0.6 + 2) / 3, (0.75 + 2) / 3])):
    strategy = Sgas(ONE_NODE, Greed(2, warmup_epochs=9, history=history))
    for epoch in range(3):
      strategy = strategy.turn(alphas[epoch], epoch).strategy
    assert len(strategy.past['normal']) == history
    np.testing.assert_allclose(strategy.scores(SECOND)['stability']['normal'], expected, rtol=1e-14)


def decide(*decisions):
  return Sgas(spaces.Darts(2), decisions=tuple(Decision(0, *decision) for decision in decisions))


def test_a_node_with_two_decided_edges_loses_the_others():
  strategy = decide(('normal', 0, 'skip_connect'), ('normal', 4, 'sep_conv_3x3'), ('normal', 2, 'max_pool_3x3'))
  everything = SPACE.operations
  assert strategy.specs['normal'].nodes == (
    (Edge(0, ('skip_connect',)), Edge(1, everything)),
    (Edge(0, ('max_pool_3x3',)), Edge(2, ('sep_conv_3x3',))),
  )
  assert strategy.specs['reduce'] == spaces.Darts(2).cells['reduce']
  assert strategy.active['normal'].tolist() == [False, True, False, False, False]
  assert strategy.active['reduce'].all()


def test_decided_edges_have_their_operation_whole_and_nothing_depends_on_their_alphas():
  strategy = decide(('normal', 0, 'skip_connect'), ('normal', 4, 'sep_conv_3x3'), ('normal', 2, 'max_pool_3x3'))
  alphas = strategy.init(jax.random.key(0))
  whole = Darts(strategy.space, strategy.init_scale)
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, alphas, whole.init(jax.random.key(0)))))

  def relax(alphas):
    return strategy.relax(alphas, jax.random.key(1), jnp.int32(0))

  mixing = relax(alphas)
  columns = [
    strategy.space.cells['normal'].operations.index(name) for name in ('skip_connect', 'max_pool_3x3', 'sep_conv_3x3')
  ]
  np.testing.assert_array_equal(mixing['normal'][np.array([0, 2, 3])], np.eye(8)[columns])
  np.testing.assert_array_equal(mixing['normal'][1], softmax(alphas['normal'])[1])
  np.testing.assert_array_equal(mixing['reduce'], softmax(alphas['reduce']))
  slope = jax.jacrev(relax)(alphas)['normal']['normal']
  assert (np.abs(slope).sum(axis=(0, 1, 3)) > 0).tolist() == strategy.active['normal'].tolist()


def test_the_schedule_of_the_paper():
  strategy = make_strategy(build(Search, {'strategy': 'sgas'}))
  assert list(strategy.decision_epochs) == [9, 14, 19, 24, 29, 34, 39, 44]
  batches = [64 + strategy.growth(epoch) for epoch in range(50)]
  expected = [64] * 10 + [size for size in range(72, 121, 8) for _ in range(5)] + [128] * 5
  assert batches == expected
  assert strategy.stages(50) == 9
  # A decision after the last epoch has nothing left to train.
  assert [strategy.stages(epochs) for epochs in (9, 10, 11, 45, 46)] == [1, 1, 2, 8, 9]


@pytest.mark.parametrize(('decisions', 'total'), [(0, 8), (3, 3)])
def test_everything_or_as_many_as_asked_for_is_decided(decisions, total):
  rng = np.random.default_rng(0)
  strategy = Sgas(SPACE, Greed(2, 1, 2, decisions=decisions))
  seen = []
  for epoch in range(30):
    alphas = {name: rng.normal(size=(14, 8)) for name in strategy.space.cells}
    turn = strategy.turn(alphas, epoch)
    strategy = turn.strategy
    assert len(turn.messages) == 2 * (epoch % 2 == 1 and epoch < 2 * total)
    seen.append(len(strategy.decisions))
  assert seen[-1] == 2 * total
  assert strategy.specs['normal'].is_discrete == (total == 8)
  genotype = strategy.derive(alphas)
  # What has been decided stays, and no node is short of edges.
  for decision in strategy.decisions:
    target, edge = SPACE.cells[decision.cell].edges[decision.edge]
    pairs = genotype.cell(decision.cell).pairs[2 * (target - 2) : 2 * (target - 1)]
    assert (decision.operation, edge.source) in pairs


def test_what_it_has_learnt_comes_back_from_json():
  rng = np.random.default_rng(1)
  strategy = Sgas(SPACE, Greed(2, 1, 1))
  series = [{name: rng.normal(size=(14, 8)).astype(np.float32) for name in strategy.space.cells} for _ in range(9)]
  for epoch, alphas in enumerate(series):
    memory = json.loads(json.dumps(strategy.memory))
    again = Sgas(strategy.space, strategy.greed).recall(memory)
    assert again.decisions == strategy.decisions
    for name in strategy.past:
      for found, expected in itertools.zip_longest(again.past[name], strategy.past[name]):
        np.testing.assert_array_equal(found, expected, strict=True)
    assert again.turn(alphas, epoch).messages == strategy.turn(alphas, epoch).messages
    strategy = strategy.turn(alphas, epoch).strategy


def test_a_recurrent_node_keeps_one_edge():
  strategy = Sgas(spaces.Recurrent(3), Greed(1, 0, 1))
  rng = np.random.default_rng(0)
  for epoch in range(3):
    alphas = {'recurrent': rng.normal(size=(6, 5))}
    strategy = strategy.turn(alphas, epoch).strategy
  assert strategy.specs['recurrent'].is_discrete
  assert len(strategy.specs['recurrent'].edges) == 3
  genotype = strategy.derive(alphas)
  assert genotype.cell('recurrent') == dataclasses.replace(
    strategy.specs['recurrent'], operations=genotype.cell('recurrent').operations
  )


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'sgas': {'decision_frequency': 0}}, r'config.sgas.decision_frequency: 0 is not allowed; it has to be ≥ 1'),
    ({'sgas': {'history': 0}}, r'config.sgas.history: 0 is not allowed; it has to be ≥ 1'),
    ({'sgas': {'criterion': 3}}, r'config.sgas.criterion: 3 is not known; allowed are 1, 2'),
    ({'sgas': {'warmup_epochs': -1}}, r'config.sgas.warmup_epochs: -1 is not allowed; it has to be ≥ 0'),
    ({'sgas': {'decisions': 9}}, r'config.sgas.decisions: 9 is not allowed; a normal cell keeps 8 edges'),
    (
      {'network': {'operations': ('none', 'skip_connect')}},
      r'config.network.operations: none, skip_connect leave nothing to decide',
    ),
    ({'strategy': 'sgs'}, r"config.strategy: 'sgs' is not known; did you mean 'sgas'"),
  ],
)
def test_settings_that_cannot_be_searched_with(config, message):
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    make_strategy(build(Search, {'strategy': 'sgas', **config}))


def test_a_cell_that_has_been_decided_is_refused():
  @dataclasses.dataclass(frozen=True)
  class Decided(CellSpace):
    @property
    def cells(self):
      whole = ONE_NODE.cells['normal']
      nodes = (tuple(Edge(source, ('skip_connect',)) for source in range(2)),)
      return {'normal': whole, 'reduce': dataclasses.replace(whole, nodes=nodes)}

  with pytest.raises(ValueError, match='^cell reduce: some edges have lost operations; SGAS begins'):
    Sgas(Decided())
