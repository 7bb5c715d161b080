"""Strategies at work: how settings name them, what they are asked for, and strategies of one's own."""

import dataclasses
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from darts_jax import search, searches
from darts_jax.runtime import loop as loops
from darts_jax.runtime import metrics
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import Search
from darts_jax.search import loop as search_loop
from darts_jax.search.epochs import Epochs
from darts_jax.search.searched import Searched
from darts_jax.search.searcher import supernet_of
from darts_jax.search.settings import read
from darts_jax.selection.settings import Selection
from darts_jax.settings import as_config, build
from darts_jax.spaces import Darts as DartsSpace
from darts_jax.strategies import RELAXED, SAMPLED, STRATEGIES
from darts_jax.strategies.darts import Darts
from darts_jax.strategies.relaxation import Softmax
from darts_jax.strategies.relaxed import ALPHAS, EVALUATE, WEIGHTS, Stage
from darts_jax.strategies.sgas import Sgas
from darts_jax.streams import Stream
from darts_jax.trials import TrialSearch

pytestmark = pytest.mark.usefixtures('undrawn', 'same_programs')


@dataclasses.dataclass(frozen=True)
class Drawn(Softmax):
  """Mixes by a softmax of α with noise."""

  name: ClassVar[str] = 'drawn'
  draws: ClassVar[bool] = True

  lengths: tuple[int, ...] = (2, 3)
  growth: int = 8

  def mix(self, arch, space, cells, time, key, purpose):
    noisy = {name: value + jax.random.normal(key, value.shape) for name, value in arch.items()}
    return super().mix(noisy, space, cells, time, key, purpose)

  def read(self, arch, space, memory):
    return space.strongest(arch)

  def plan(self, space, epochs):
    return tuple(Stage(length, self.growth * number) for number, length in enumerate(self.lengths))


@pytest.fixture
def drawn(monkeypatch):
  monkeypatch.setitem(STRATEGIES, 'drawn', Drawn)


@pytest.mark.usefixtures('drawn')
def test_a_strategy_of_ones_own_is_one_of_the_settings():
  settings = build(Search, {'epochs': 5, 'strategy': {'name': 'drawn', 'init_scale': 0.5}})
  assert settings.strategy == Drawn(init_scale=0.5)
  assert build(Search, as_config(settings)) == settings
  assert [*supernet_of(settings, Searched.from_settings(settings)).batch_sizes] == [64, 64, 72, 72, 72]
  with pytest.raises(ValueError, match='^config.strategy.criterion: unknown field of drawn; it is one of sgas$'):
    build(Search, {'strategy': {'name': 'drawn', 'criterion': 2}})
  assert not searches.proposes({'strategy': 'drawn'})
  # Without a memory, but with two stages: supernets of several seeds side by side cannot be rebuilt.
  with pytest.raises(ValueError, match='^config.mesh.seed: 2 is not allowed; with drawn it has to be 1, since supern'):
    build(Search, {'epochs': 5, 'strategy': 'drawn', 'mesh': {'seed': 2}})


@pytest.mark.usefixtures('drawn')
@pytest.mark.parametrize('lengths', [(2, 2), (5, 0), (3, 3)])
def test_stages_are_all_epochs(lengths):
  settings = build(Search, {'epochs': 5, 'strategy': {'name': 'drawn', 'lengths': lengths}})
  with pytest.raises(ValueError, match=r'^config.strategy: the stages of drawn have \[.*\] epochs; they have to be 5'):
    Searched.from_settings(settings).plan(5)


def test_no_stage_has_another_part_of_the_channels(monkeypatch):
  def plan(self, space, epochs):
    return Stage(2, channel_part=4), Stage(3, channel_part=2)

  monkeypatch.setattr(Drawn, 'plan', plan)
  with pytest.raises(ValueError, match=r'^config.strategy: the stages of drawn have channel_part \[2, 4\]; it has to '):
    Searched.start(Drawn(), DartsSpace(1)).plan(5)


def test_every_purpose_has_a_draw_of_its_own_and_the_same_in_every_pass():
  searched = Searched.start(Drawn(), DartsSpace(1), (7,))
  alphas = searched.init(jax.random.key(0))
  mix = jax.jit(lambda purpose: searched.mix(alphas, 3, jax.random.key(1), purpose)['normal'].operations)
  found = [np.asarray(mix(jnp.int32(purpose))) for purpose in (WEIGHTS, ALPHAS, EVALUATE, WEIGHTS)]
  np.testing.assert_array_equal(found[0], found[3])
  for a, b in ((0, 1), (0, 2), (1, 2)):
    assert np.abs(found[a] - found[b]).max() > 0.01


def test_scores_follow_from_what_the_strategy_remembers():
  """α that stay are stable, once there is a past."""
  searched = Searched.start(Sgas(criterion=2), DartsSpace(1))
  alphas = jax.device_get(searched.init(jax.random.key(0)))
  assert not searched.scores(alphas)['stability']['normal'].any()
  after, _ = searched.turn(alphas, 0)
  np.testing.assert_allclose(after.scores(alphas)['stability']['normal'], [1, 1], rtol=1e-12)


def test_every_look_between_steps_has_a_draw_of_its_own():
  searched = Searched.start(Drawn(), DartsSpace(1), (7,))
  alphas, key = searched.init(jax.random.key(0)), jax.random.key(1)
  look = jax.jit(lambda step: searched.look(alphas, step, key)['normal'].operations)
  found = [np.asarray(look(jnp.int32(step))) for step in (3, 4, 3)]
  np.testing.assert_array_equal(found[0], found[2])
  of_step = jax.random.fold_in(jax.random.fold_in(key, 3), Stream.MIX)
  for other in (found[1], searched.mix(alphas, 3, of_step, EVALUATE)['normal'].operations):
    assert np.abs(found[0] - other).max() > 0.01


def test_strategies_of_either_contract_are_in_one_dictionary():
  assert [*RELAXED, *SAMPLED] == list(STRATEGIES)
  assert len(RELAXED) + len(SAMPLED) == len(STRATEGIES)
  assert 'random_search' in SAMPLED
  assert 'random_search' not in RELAXED


@pytest.mark.parametrize(
  ('strategy', 'message'),
  [
    ({'decision_frequency': 0}, r'config.strategy.decision_frequency: 0 is not allowed; it has to be ≥ 1'),
    ({'history': 0}, r'config.strategy.history: 0 is not allowed; it has to be ≥ 1'),
    ({'criterion': 3}, r'config.strategy.criterion: 3 is not known; allowed are 1, 2'),
    ({'warmup_epochs': -1}, r'config.strategy.warmup_epochs: -1 is not allowed; it has to be ≥ 0'),
    ({'decisions': 9}, r'config.strategy.decisions: 9 is not allowed; a normal cell keeps 8 edges'),
    ({'name': 'sgs'}, r"config.strategy.name: 'sgs' is not known; did you mean 'sgas'"),
    (
      {'name': 'random_search'},
      r"config.strategy.name: 'random_search' is not known; allowed are darts, sgas",
    ),
    ({'name': 'darts', 'criterion': 1}, r'config.strategy.criterion: unknown field of darts; it is one of sgas'),
  ],
)
def test_settings_that_cannot_be_searched_with(strategy, message):
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    Searched.from_settings(build(Search, {'strategy': {'name': 'sgas', **strategy}}))


@pytest.mark.parametrize('make', [dict, ConfigDict])
@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'sgas': {'criterion': 2}}, 'config.sgas.criterion: it is called config.strategy.criterion now'),
    ({'sgas': {}}, 'config.sgas: it is called config.strategy now'),
    ({'temperature': {'final': 2.0}}, 'config.temperature.final: it is called config.strategy.temperature now'),
    ({'alphas': {'init_scale': 1.0}}, 'config.alphas.init_scale: it is called config.strategy.init_scale now'),
    ({'network': {'nodes': 2}}, 'config.network.nodes: it is called config.space.nodes now'),
    ({'network': {'operations': ()}}, 'config.network.operations: it is called config.space.operations now'),
    ({'bptt': 20}, 'config.bptt: it is called config.task.bptt now'),
  ],
)
def test_fields_of_earlier_versions_are_told_how_they_are_called_now(make, config, message):
  for space in ('darts', 'recurrent'):
    with pytest.raises(ValueError, match=f'^{message}$'):
      read(make({'space': space, **config}))
  with pytest.raises(ValueError, match=f'^{message.replace("config.", "config.search.")}$'):
    build(Selection, make({'search': config}))


@pytest.mark.parametrize('strategy', ['random_search', {'name': 'random_search'}])
@pytest.mark.parametrize('make', [dict, ConfigDict])
def test_the_strategy_says_which_settings_a_search_has(make, strategy):
  config = make({'strategy': strategy, 'trials': 3})
  assert searches.proposes(config)
  assert searches.read(config) == TrialSearch(trials=3)
  assert not searches.proposes(make({'strategy': 'sgas'}))
  assert searches.read(make({'strategy': 'sgas'})) == read({'strategy': 'sgas'})
  assert searches.read(make({})) == read({})


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'strategy': 'random'}, "config.strategy: 'random' is called 'random_search' now"),
    ({'strategy': {'name': 'random', 'tries': 3}}, "config.strategy: 'random' is called 'random_search' now"),
    ({'strategy': {'name': 'random_search', 'tries': 3}}, 'config.strategy.tries: unknown field; allowed are none'),
    ({'strategy': 'sgsa'}, "config.strategy.name: 'sgsa' is not known; did you mean 'sgas'"),
    ({'strategy': 3}, 'config.strategy: 3 is neither a name nor a group of fields'),
    ({'strategy': 'darts', 'trials': 3}, 'config.trials: unknown field of darts; it is one of random_search, regular'),
    ({'strategy': 'random_search', 'bptt': 3}, 'config.bptt: unknown field of random_search; it is one of darts, sgas'),
    (
      {'strategy': 'random_search', 'alphas': {}},
      'config.alphas: unknown field of random_search; it is one of darts, ',
    ),
  ],
)
def test_fields_of_the_other_kind_of_search_are_refused_by_name(config, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    searches.read(config)


def test_on_text_batches_do_not_grow():
  assert read({'space': 'recurrent', 'strategy': 'sgas'}).strategy == Sgas(batch_growth=0)
  config = {'space': 'recurrent', 'strategy': {'name': 'sgas', 'batch_growth': 8}}
  message = '^config.strategy.batch_growth: 8 is not allowed; it has to be 0 on text, where hidden states go[^\n]*$'
  with pytest.raises(ValueError, match=message):
    read(config)
  assert read({'space': 'recurrent'}).strategy == Darts()


@pytest.mark.usefixtures('drawn')
def test_stages_of_a_strategy_without_a_memory_are_trained_and_resumed(tmp_path, tiny_search, make_guard, monkeypatch):
  """Five batches of 128 of the 718 images in the first epoch, and three of 224 in the second."""
  config = tiny_search(strategy={'name': 'drawn', 'lengths': (1, 1), 'growth': 96, 'init_scale': 0.1})
  monkeypatch.setattr(search_loop, 'make_mesh', lambda seeds: make_mesh(1))
  monkeypatch.setattr(search_loop, 'enable_cache', lambda: None)
  whole = search.run(config, tmp_path / 'whole')
  assert whole.finished
  log = metrics.read(tmp_path / 'whole')
  assert [line['step'] for line in log if line['kind'] == 'epoch'] == [5, 8]
  messages = [line['message'] for line in log if line['kind'] == 'event']
  assert messages[0].startswith('2 supernets will be compiled')
  assert sum(message.startswith('search step') for message in messages) == 2
  # Stopped after the first of the three larger batches.
  with monkeypatch.context() as patch:
    patch.setattr(loops, '_SECONDS_A_CALL', 0.0)  # One step a call.
    asked = iter(range(100))
    patch.setattr(search_loop, 'InterruptGuard', make_guard(lambda: 'SIGTERM' if next(asked) == 6 else None))
    assert not search.run(config, tmp_path / 'stopped').finished
  assert max(Checkpoints(tmp_path / 'stopped' / 'checkpoints').steps()) == 6
  resumed = search.run(config, tmp_path / 'stopped')
  assert resumed.finished
  jax.tree.map(np.testing.assert_array_equal, resumed.state.alphas, whole.state.alphas)


def test_cells_change_only_where_a_stage_ends():
  searched = Searched.start(Sgas(warmup_epochs=0), DartsSpace(1))
  loop = object.__new__(Epochs)
  loop.searched, loop.folders, loop.total, loop._ends, loop._latest = searched, ['run'], 10, [], None
  loop._settings, loop._searcher, loop._feed = build(Search, {}), None, None
  loop.plan = types.SimpleNamespace(epoch_ends=[5, 10])
  loop.alphas = lambda state: [{name: np.zeros((2, 8)) for name in searched.space.cells}]
  loop.note = lambda *args: None
  message = '^config.strategy: sgas changes cells after epoch 1, where no stage ends$'
  with pytest.raises(ValueError, match=message):
    loop.turn_epoch(None, {}, 5)
