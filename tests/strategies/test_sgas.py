"""The criteria of SGAS against formulas, and what follows from its decisions; see test_parity.py for published ones."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.search.searched import NO_SUPERNET
from darts_jax.spaces.cells import Edge
from darts_jax.spaces.darts import CANDIDATES
from darts_jax.spaces.darts import Darts as DartsSpace
from darts_jax.spaces.recurrent import Recurrent
from darts_jax.strategies.darts import Darts
from darts_jax.strategies.relaxed import ALPHAS, Stage, Time
from darts_jax.strategies.sgas import Decision, Sgas

SPACE = DartsSpace()
# One node with two edges, whose weights are as chosen.
ONE_NODE = DartsSpace(1, ('none', 'skip_connect', 'max_pool_3x3'))
TWO_NODES = DartsSpace(2)


def of_weights(*weights):
  return dict.fromkeys(ONE_NODE.cells, np.log(np.array(weights)))


FIRST = of_weights((0.5, 0.25, 0.25), (0.2, 0.6, 0.2))
SECOND = of_weights((0.1, 0.09, 0.81), (0.5, 0.25, 0.25))


def test_criteria_by_hand():
  strategy = Sgas(criterion=2, warmup_epochs=9)
  memory = strategy.start()
  scores = strategy.scores(FIRST, ONE_NODE, memory)
  entropy = -0.75 * np.log2(0.75) - 0.25 * np.log2(0.25)
  np.testing.assert_allclose(scores['importance']['normal'], [0.5, 0.8], rtol=1e-14)
  np.testing.assert_allclose(scores['certainty']['normal'], [0, 1 - entropy], atol=1e-15)
  # Without a past, nothing is stable; and what is the same for all edges counts as nothing.
  np.testing.assert_array_equal(scores['stability']['normal'], [0, 0])
  np.testing.assert_array_equal(scores['score']['normal'], [0, 0])
  assert Sgas(criterion=1).scores(FIRST, ONE_NODE, memory)['score']['normal'].tolist() == [0, 1]

  second = strategy.scores(SECOND, ONE_NODE, strategy.turn(memory, FIRST, ONE_NODE, 0, NO_SUPERNET).memory)
  # (0.1, 0.9) with (0.5, 0.5), and (0.5, 0.5) with (0.75, 0.25).
  np.testing.assert_allclose(second['stability']['reduce'], [0.1 + 0.5, 0.5 + 0.25], rtol=1e-14)


def test_the_past_is_an_average_of_the_latest_epochs():
  alphas = [FIRST, SECOND, SECOND, FIRST]
  for history, expected in ((1, [1.0, 1.0]), (2, [1.0, 1.0]), (3, [(0.6 + 2) / 3, (0.75 + 2) / 3])):
    strategy = Sgas(criterion=2, warmup_epochs=9, history=history)
    memory = strategy.start()
    for epoch in range(3):
      memory = strategy.turn(memory, alphas[epoch], ONE_NODE, epoch, NO_SUPERNET).memory
    assert len(memory['past']['normal']) == history
    found = strategy.scores(SECOND, ONE_NODE, memory)['stability']['normal']
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def decided(*decisions):
  return {'decisions': [list(Decision(0, *decision)) for decision in decisions], 'past': {}}


THREE = decided(('normal', 0, 'skip_connect'), ('normal', 4, 'sep_conv_3x3'), ('normal', 2, 'max_pool_3x3'))


def test_a_node_with_two_decided_edges_loses_the_others():
  cells = Sgas().cells(TWO_NODES, THREE)
  assert cells['normal'].nodes == (
    (Edge(0, ('skip_connect',)), Edge(1, CANDIDATES)),
    (Edge(0, ('max_pool_3x3',)), Edge(2, ('sep_conv_3x3',))),
  )
  assert cells['reduce'] == TWO_NODES.cells['reduce']


def test_decided_edges_have_their_operation_whole_and_nothing_depends_on_their_alphas():
  strategy = Sgas()
  cells = strategy.cells(TWO_NODES, THREE)
  alphas = strategy.init(TWO_NODES, jax.random.key(0))
  whole = Darts().init(TWO_NODES, jax.random.key(0))
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, alphas, whole)))

  def mix(alphas):
    mixing = strategy.mix(alphas, TWO_NODES, cells, Time(jnp.int32(0), 1), jax.random.key(1), ALPHAS)
    return {name: each.operations for name, each in mixing.items()}

  mixing = mix(alphas)
  columns = [CANDIDATES.index(name) for name in ('skip_connect', 'max_pool_3x3', 'sep_conv_3x3')]
  np.testing.assert_array_equal(mixing['normal'][np.array([0, 2, 3])], np.eye(8)[columns])
  np.testing.assert_array_equal(mixing['normal'][1], jax.nn.softmax(alphas['normal'])[1])
  np.testing.assert_array_equal(mixing['reduce'], jax.nn.softmax(alphas['reduce']))
  slope = jax.jacrev(mix)(alphas)['normal']['normal']
  assert (np.abs(slope).sum(axis=(0, 1, 3)) > 0).tolist() == [False, True, False, False, False]


def test_alphas_of_undecided_edges_are_all_that_moves():
  strategy = Sgas()
  before = strategy.init(TWO_NODES, jax.random.key(0))
  after = jax.tree.map(lambda x: x + 1, before)
  moved = strategy.project(before, after, TWO_NODES, strategy.cells(TWO_NODES, THREE))
  np.testing.assert_array_equal(moved['reduce'], after['reduce'])
  np.testing.assert_array_equal(moved['normal'][1], after['normal'][1])
  np.testing.assert_array_equal(np.delete(moved['normal'], 1, 0), np.delete(before['normal'], 1, 0))


def test_the_schedule_of_the_paper():
  strategy = Sgas()
  assert list(strategy.decision_epochs(SPACE)) == [9, 14, 19, 24, 29, 34, 39, 44]
  expected = [Stage(10, 0), *[Stage(5, 8 * number) for number in range(1, 9)]]
  assert strategy.plan(SPACE, 50) == tuple(expected)
  # A decision after the last epoch has nothing left to train.
  assert [len(strategy.plan(SPACE, epochs)) for epochs in (9, 10, 11, 45, 46)] == [1, 1, 2, 8, 9]
  for epochs in (9, 10, 11, 45, 46):
    assert sum(stage.epochs for stage in strategy.plan(SPACE, epochs)) == epochs


@pytest.mark.parametrize(('decisions', 'total'), [(0, 8), (3, 3)])
def test_everything_or_as_many_as_asked_for_is_decided(decisions, total):
  rng = np.random.default_rng(0)
  strategy = Sgas(criterion=2, warmup_epochs=1, decision_frequency=2, decisions=decisions)
  memory, cells, seen = strategy.start(), SPACE.cells, []
  for epoch in range(30):
    alphas = {name: rng.normal(size=(14, 8)) for name in SPACE.cells}
    turn = strategy.turn(memory, alphas, SPACE, epoch, NO_SUPERNET)
    memory = turn.memory
    decides = epoch % 2 == 1 and epoch < 2 * total
    before, cells = cells, strategy.cells(SPACE, memory)
    assert (len(turn.messages), cells != before) == ((2, True) if decides else (0, False))
    seen.append(len(memory['decisions']))
  assert seen[-1] == 2 * total
  assert strategy.cells(SPACE, memory)['normal'].is_discrete == (total == 8)
  genotype = strategy.read(alphas, SPACE, memory)
  # What has been decided stays, and no node is short of edges.
  for _, cell, row, operation in memory['decisions']:
    target, edge = SPACE.cells[cell].edges[row]
    assert Edge(edge.source, (operation,)) in genotype.cell(cell).nodes[target - 2]


def test_a_kind_of_cell_that_is_decided_waits_for_the_others():
  @dataclasses.dataclass(frozen=True)
  class Uneven(DartsSpace):
    @property
    def cells(self):
      return {'normal': TWO_NODES.cells['normal'], 'reduce': DartsSpace(1).cells['reduce']}

  rng, space, strategy = np.random.default_rng(0), Uneven(), Sgas(warmup_epochs=0, decision_frequency=1)
  memory = strategy.start()
  for epoch in range(4):
    alphas = {name: rng.normal(size=(spec.num_edges, 8)) for name, spec in space.cells.items()}
    memory = strategy.turn(memory, alphas, space, epoch, NO_SUPERNET).memory
  found = [decision[:2] for decision in memory['decisions']]
  both = [[epoch, name] for epoch in range(2) for name in ('normal', 'reduce')]
  assert found == [*both, [2, 'normal'], [3, 'normal']]
  assert strategy.read(alphas, space, memory).cell('reduce').pairs == strategy.cells(space, memory)['reduce'].pairs


def test_decisions_are_the_same_with_a_memory_that_was_written_to_a_file():
  rng = np.random.default_rng(1)
  strategy = Sgas(criterion=2, warmup_epochs=1, decision_frequency=1)
  memory = strategy.start()
  for epoch in range(9):
    alphas = {name: rng.normal(size=(14, 8)).astype(np.float32) for name in SPACE.cells}
    again = strategy.turn(json.loads(json.dumps(memory)), alphas, SPACE, epoch, NO_SUPERNET)
    memory, messages = (turn := strategy.turn(memory, alphas, SPACE, epoch, NO_SUPERNET)).memory, turn.messages
    assert (again.memory, again.messages) == (memory, messages)


def test_a_recurrent_node_keeps_one_edge():
  space = Recurrent(3)
  strategy = Sgas(warmup_epochs=0, decision_frequency=1)
  rng = np.random.default_rng(0)
  memory = strategy.start()
  for epoch in range(3):
    alphas = {'recurrent': rng.normal(size=(6, 5))}
    memory = strategy.turn(memory, alphas, space, epoch, NO_SUPERNET).memory
  [found] = strategy.cells(space, memory).values()
  assert found.is_discrete
  assert len(found.edges) == 3
  assert strategy.read(alphas, space, memory).cell('recurrent').nodes == found.nodes


def test_a_space_of_decided_edges_is_refused():
  @dataclasses.dataclass(frozen=True)
  class Decided(DartsSpace):
    @property
    def cells(self):
      whole = ONE_NODE.cells['normal']
      nodes = (tuple(Edge(source, ('skip_connect',)) for source in range(2)),)
      return {'normal': whole, 'reduce': dataclasses.replace(whole, nodes=nodes)}

  with pytest.raises(ValueError, match='^config.space.operations: none, skip_connect, max_pool_3x3 leave nothing to '):
    Sgas().check(Decided())


@pytest.mark.parametrize(
  ('strategy', 'space', 'message'),
  [
    (Sgas(decisions=9), SPACE, r'config.strategy.decisions: 9 is not allowed; a normal cell keeps 8 edges'),
    (
      Sgas(),
      DartsSpace(operations=('none', 'skip_connect')),
      r'config.space.operations: none, skip_connect leave nothing to decide',
    ),
  ],
)
def test_a_space_must_have_something_to_decide(strategy, space, message):
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    strategy.check(space)
