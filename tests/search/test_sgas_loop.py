"""Searches whose supernet shrinks: what is carried over, and searches that are killed around a decision."""

import contextlib
import json
import os
import pathlib
import signal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax import search
from darts_jax.data.images import load
from darts_jax.runtime import loop as loops
from darts_jax.runtime import metrics
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.progress import Progress
from darts_jax.search import Search, Searcher, loop, records
from darts_jax.search.searched import Searched
from darts_jax.settings import build
from darts_jax.spaces import Mixing, undecided_edges
from darts_jax.strategies.sgas import Decision

pytestmark = pytest.mark.usefixtures('undrawn', 'same_programs')

# Two nodes with five edges, four of which are decided in the end; three are here.
CONFIG: dict[str, Any] = {
  'epochs': 4,
  'batch_size': 160,
  'log_every': 2,
  'data': {'name': 'digits'},
  'augment': {'crop_padding': 1, 'flip': False},
  'space': {'nodes': 2, 'operations': ('none', 'skip_connect', 'sep_conv_3x3')},
  'network': {'channels': 4, 'layers': 3},
  'alphas': {'learning_rate': 0.05},
  'hypergradient': {'name': 'first_order'},
  'strategy': {
    'name': 'sgas',
    'criterion': 2,
    'warmup_epochs': 0,
    'decision_frequency': 2,
    'batch_growth': 32,
    'init_scale': 0.1,
  },
}
# 718 images, four batches of 160 in the first epoch, three of 192 in the second and third, then three of 224; decisions
# after the first and the third epoch.
ENDS = [4, 7, 10, 13]


def decided_strategy(settings: Search) -> Searched:
  searched = Searched.from_settings(settings)
  chosen = [('normal', 0, 'sep_conv_3x3'), ('normal', 2, 'skip_connect'), ('normal', 4, 'sep_conv_3x3')]
  chosen += [('reduce', 1, 'skip_connect'), ('reduce', 3, 'sep_conv_3x3')]
  memory = {'decisions': [Decision(0, *choice) for choice in chosen], 'past': {}}
  return searched.recall(json.loads(json.dumps(memory)))


def undecided(searched: Searched) -> dict[str, np.ndarray]:
  """Rows of α that are left to decide."""
  decided = [Decision(*each) for each in searched.memory['decisions']]
  return {
    name: undecided_edges(spec, [each.edge for each in decided if each.cell == name])
    for name, spec in searched.space.cells.items()
  }


class Stages(NamedTuple):
  """A search before and after decisions, and its state at both times; its momentum is known."""

  whole: Searcher
  smaller: Searcher
  data: Any
  before: Any
  after: Any


def make_stages(num_devices: int, **changes: Any) -> Stages:
  settings = build(Search, CONFIG | changes)
  mesh, images = make_mesh(num_devices), load('digits')
  whole = Searcher.open(settings, images, mesh)
  smaller = whole.restage(decided_strategy(settings), 1)
  before = whole.init(jax.random.key(0))
  # In the middle of a search: Adam has moments, and the momentum of a weight is three times the weight.
  moved = jax.tree.map(lambda leaf: leaf + 0.01 if leaf.ndim == 2 else leaf, before.alphas_optimizer)
  momentum = jax.tree.map(
    lambda leaf: 3 * before.weights.vector if leaf.shape == before.weights.vector.shape else leaf,
    before.weights_optimizer,
  )
  before = before.replace(step=jnp.int32(whole.epoch_ends[0]), weights_optimizer=momentum, alphas_optimizer=moved)
  data = whole.place([settings.task.halves(images, settings, settings.seed)])
  return Stages(whole, smaller, data, before, smaller.inherit(before, whole))


@pytest.fixture(scope='module')
def stages() -> Stages:
  return make_stages(1)


def test_the_smaller_supernet_classifies_as_the_whole_one_with_its_operations_alone(stages):
  images = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 8, 1)), jnp.float32)
  searched = stages.smaller.searched
  few = searched.look(stages.after.alphas, jnp.int32(0), jax.random.key(0))
  whole = stages.whole.searched.look(stages.before.alphas, jnp.int32(0), jax.random.key(0))
  for name, spec in searched.cells.items():
    zeroed = np.zeros_like(whole[name].operations)
    places = {(edge.source, target): row for row, (target, edge) in enumerate(searched.space.cells[name].edges)}
    for row, (target, edge) in enumerate(spec.edges):
      zeroed[places[edge.source, target]] = few[name].operations[row]
    whole[name] = Mixing(zeroed)

  def classify(searcher, state, mixing):
    variables = {'params': state.weights.tree, 'batch_stats': state.statistics.tree}
    return jax.jit(
      lambda: searcher.learner.net.apply(variables, images, mixing, train=True, mutable=['batch_stats'])[0]
    )()

  expected = classify(stages.whole, stages.before, whole)
  np.testing.assert_allclose(classify(stages.smaller, stages.after, few), expected, atol=1e-5 * np.abs(expected).max())


def test_weights_momentum_and_alphas_are_carried_over(stages):
  template = stages.smaller.template()
  assert jax.tree.structure(stages.after) == jax.tree.structure(template)
  assert [x.shape for x in jax.tree.leaves(stages.after)] == [x.shape for x in jax.tree.leaves(template)]
  before, after = stages.before, stages.after
  assert 0.5 < after.weights.vector.size / before.weights.vector.size < 0.9
  [momentum] = [leaf for leaf in jax.tree.leaves(after.weights_optimizer) if leaf.shape == after.weights.vector.shape]
  np.testing.assert_array_equal(momentum, 3 * after.weights.vector)
  assert set(np.asarray(after.weights.vector).tolist()) <= set(np.asarray(before.weights.vector).tolist())
  for name in ('alphas', 'alphas_optimizer', 'step'):
    found, expected = getattr(after, name), getattr(before, name)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, expected))), name


@pytest.fixture(scope='module')
def stepped(stages) -> Any:
  """After one step of the smaller supernet."""
  state, sums = stages.smaller.run(jax.tree.map(jnp.copy, stages.after), stages.data, jnp.int32(1))
  return jax.device_get(state.replace(key=jax.random.key_data(state.key))), jax.device_get(sums)


def test_alphas_of_decided_edges_stay_although_they_have_momentum(stages, stepped):
  state, sums = stepped
  assert sums['finite']
  for name, active in undecided(stages.smaller.searched).items():
    moved = np.any(state.alphas[name] != np.asarray(stages.after.alphas[name]), axis=1)
    assert moved.tolist() == active.tolist()
    for moments, before in zip(
      jax.tree.leaves(state.alphas_optimizer), jax.tree.leaves(stages.after.alphas_optimizer), strict=True
    ):
      if moments.shape == state.alphas[name].shape and name == 'normal':
        assert np.any(moments != np.asarray(before))


def test_one_device_and_eight_take_the_same_step(stepped):
  wide = make_stages(8)
  state, _ = wide.smaller.run(wide.after, wide.data, jnp.int32(1))
  for name, alphas in stepped[0].alphas.items():
    # Sums over a batch in another order.
    np.testing.assert_allclose(state.alphas[name], alphas, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.weights.vector, stepped[0].weights.vector, rtol=1e-4, atol=1e-5)


def test_the_exact_hypergradient_of_a_smaller_supernet():
  """Other estimators, on text, are in test_text.py."""
  stages = make_stages(1, hypergradient={'name': 'exact'}, batch_size=128)
  before = jax.device_get(stages.after.alphas)
  state, sums = stages.smaller.run(stages.after, stages.data, jnp.int32(1))
  assert sums['finite']
  assert float(sums['second_order_fraction']) > 1e-3
  for cell, active in undecided(stages.smaller.searched).items():
    moved = np.any(np.asarray(state.alphas[cell]) != before[cell], axis=1)
    assert moved.tolist() == active.tolist()


def test_larger_batches_are_those_of_whole_epochs():
  """Every image once in an epoch of three batches of 192, in another order in the next."""
  stages = make_stages(1, augment={'crop_padding': 0, 'flip': False})
  batches = jax.jit(stages.smaller.batches)

  def images_of(steps):
    found = [batches(stages.after.replace(step=jnp.int32(step)), stages.data).train for step in steps]
    assert {len(each.labels) for each in found} == {192}
    return np.concatenate([each.images.reshape(192, -1) for each in found])

  first, second = (images_of(range(*ends)) for ends in (ENDS[0:2], ENDS[1:3]))
  whole = np.asarray(stages.data.train.images).reshape(-1, 64).astype(np.float32)
  # Images that are the same are the same as often as in the data, at most.
  limits = {row.tobytes(): count for row, count in zip(*np.unique(whole, axis=0, return_counts=True), strict=True)}
  for images in (first, second):
    counts = np.unique(images, axis=0, return_counts=True)[1]
    assert counts.max() <= max(limits.values())
    assert len(counts) >= 0.95 * len(images)
  assert not np.array_equal(first, second)


# Whole searches, whose only node has two edges: both are decided in the end, and nothing depends on α any more.
TINY: dict[str, Any] = CONFIG | {
  'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'avg_pool_3x3')},
  'network': {'channels': 2, 'layers': 3},
}


class Killed(BaseException):
  """Ends a search as a kill does: nothing is saved any more."""


class Searches(NamedTuple):
  """The same search left alone, and killed before, during and after its first decision, each time started again."""

  whole: pathlib.Path
  result: search.Result
  stopped: pathlib.Path
  again: search.Result
  checkpoints: list[list[int]]


@pytest.fixture(scope='module')
def searches(tmp_path_factory) -> Searches:
  whole, stopped = (tmp_path_factory.mktemp(name) for name in ('whole', 'stopped'))
  update, append, turn = Progress.update, records.AlphaHistory.append, loop.Epochs.turn_epoch
  happenings: dict[tuple[str, int], Any] = {}

  def happen(what: str, step: int) -> None:
    happenings.pop((what, step), lambda: None)()

  def kill() -> None:
    raise Killed

  def updated(self, step, values):
    update(self, step, values)
    happen('step', step)

  def turned(self, state, evaluation, step):
    happen('before', step)
    return turn(self, state, evaluation, step)

  def appended(self, step, *args):
    # α are on the disk, the checkpoint is not.
    append(self, step, *args)
    happen('during', step)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'make_mesh', lambda seeds: make_mesh(1))
    patch.setattr(loop, 'enable_cache', lambda: None)
    result = search.run(TINY, whole)
    patch.setattr(loops, '_SECONDS_A_CALL', 0.0)  # One step a call.
    patch.setattr(Progress, 'update', updated)
    patch.setattr(loop.Epochs, 'turn_epoch', turned)
    patch.setattr(records.AlphaHistory, 'append', appended)
    found = []
    for what, step, action in (
      ('before', ENDS[0], kill),
      ('during', ENDS[0], kill),
      ('step', ENDS[0] + 1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
      ('before', ENDS[2], kill),
      ('during', ENDS[2], kill),
      ('step', ENDS[2] + 1, kill),
    ):
      happenings[what, step] = action
      with contextlib.suppress(Killed):
        search.run(TINY, stopped)
      assert not happenings
      found.append(Checkpoints(stopped / 'checkpoints').steps())
    again = search.run(TINY, stopped)
  return Searches(whole, result, stopped, again, found)


def test_killed_searches_go_on_from_where_they_had_been_saved(searches):
  # Before and during the first decision nothing has been saved; the fifth step is one of the smaller supernet.
  assert searches.checkpoints == [[], [], [4, 5], [4, 5, 7], [4, 5, 7], [5, 7, 10]]
  assert searches.again.finished


def test_killed_searches_decide_the_same_bit_for_bit(searches):
  found, expected = searches.again, searches.result
  assert found.genotype == expected.genotype
  assert found.valid_loss == expected.valid_loss
  states = [state.replace(key=jax.random.key_data(state.key)) for state in (found.state, expected.state)]
  jax.tree.map(np.testing.assert_array_equal, *states)
  with np.load(searches.stopped / 'alphas.npz') as a, np.load(searches.whole / 'alphas.npz') as b:
    assert sorted(a.files) == sorted(b.files)
    for name in b.files:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  logs = [metrics.read(workdir) for workdir in (searches.stopped, searches.whole)]
  decided = [[line['message'] for line in log if line.get('event') == 'decided'] for log in logs]
  assert decided[0] == decided[1]
  assert len(decided[1]) == 4


def test_the_history_holds_what_was_decided(searches):
  with np.load(searches.whole / 'alphas.npz') as file:
    history = dict(file)
  assert history['step'].tolist() == [0, *ENDS]
  for cell in ('normal', 'reduce'):
    left = np.isfinite(history[cell]).sum(axis=2)
    # After the first and the third epoch another edge has one operation left.
    assert [sorted(row) for row in left.tolist()] == [[3, 3], [1, 3], [1, 3], [1, 1], [1, 1]]
    for criterion in ('importance', 'certainty', 'stability', 'score'):
      assert history[f'{criterion}_{cell}'].shape == (5, 2)
    # What was decided had the highest score.
    decided_at = [(left[t] == 1) & (left[t - 1] == 3) for t in (1, 3)]
    for t, edge in zip((1, 3), decided_at, strict=True):
      scores = np.where(left[t - 1] == 3, history[f'score_{cell}'][t], -1)
      assert edge[np.argmax(scores)]


def test_programs_are_as_many_as_announced(searches):
  messages = [line['message'] for line in metrics.read(searches.whole) if line['kind'] == 'event']
  assert messages[0] == '3 supernets will be compiled, each smaller than the one before'
  assert sum(message.startswith('search step') for message in messages) == 3
  assert sum(message.startswith('evaluation') for message in messages) == 3


@pytest.mark.parametrize(
  ('changes', 'devices', 'message'),
  [
    ({'batch_growth': 4}, 8, 'config.batch_size: 160 grows to 164 by the decisions, which does not divide evenly'),
    ({'batch_growth': 560}, 1, 'config.batch_size: 160 grows to 720 by the decisions, which is more than half'),
    ({'decisions': 5}, 1, 'config.strategy.decisions: 5 is not allowed; a normal cell keeps 4 edges'),
  ],
)
def test_what_cannot_be_searched_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, changes, devices, message):
  monkeypatch.setattr(loop, 'make_mesh', lambda seeds: make_mesh(devices))
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    search.run(CONFIG | {'strategy': CONFIG['strategy'] | changes}, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
