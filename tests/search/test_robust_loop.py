"""Searches that stop early or go back, by curvatures that are told to them: what they return, killed or not."""

import contextlib
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from darts_jax import search, spaces
from darts_jax.data.images import load
from darts_jax.runtime import loop as loops
from darts_jax.runtime import metrics
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.progress import Progress
from darts_jax.search import loop, records
from darts_jax.search.probe import SupernetProbe
from darts_jax.settings import build
from darts_jax.strategies.relaxed import Turn
from darts_jax.strategies.robust_darts import RobustDarts

pytestmark = pytest.mark.usefixtures('same_programs')

# Three steps of 200 images an epoch.
CONFIG: dict[str, Any] = {
  'epochs': 6,
  'batch_size': 200,
  'log_every': 2,
  'data': {'name': 'digits'},
  'augment': {'crop_padding': 1, 'flip': False},
  'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'sep_conv_3x3')},
  'network': {'channels': 2, 'layers': 3},
  'alphas': {'learning_rate': 0.05},
  'strategy': {
    'name': 'robust_darts',
    'frequency': 1,
    'window': 1,
    'lag': 2,
    'first_epoch': 1,
    'weight_decays': (0.05, 0.3),
    'init_scale': 0.1,
  },
  'hypergradient': {'name': 'first_order'},
  # Fewer than the search goes back.
  'checkpoint': {'keep': 1, 'every': 4},
}
STOPPING = CONFIG | {'strategy': CONFIG['strategy'] | {'weight_decays': (), 'drop_path': 0.5}}
# Of all epochs with the usual decay of the weights, the next one, and so on. The curvature rises at the end of epoch
# 3, counted from 0, then of 4; what follows, and what comes in the last round, changes nothing any more.
CURVATURES = {3e-4: [1, 1, 1.1, 2, 9, 9], 0.05: [5, 1, 1, 1.2, 1.5, 9], 0.3: [5, 5, 1, 1, 9, 99]}


# Events and metrics that do not tell what a search found.
EVENTS = ('went_back', 'stopped_early', 'decided', 'not_settled')
TIMES = ('seconds', 'images_per_second')


class Killed(BaseException):
  """Ends a search as a kill does: nothing is saved any more."""


def tell(self: SupernetProbe) -> float:
  decay = self._evaluator.state.weight_decay
  series = CURVATURES[3e-4 if decay is None else round(float(decay), 6)]
  return float(series[int(self._evaluator.state.step) // 3 - 1])


@pytest.fixture(scope='module')
def patch():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'make_mesh', lambda seeds: make_mesh(1))
    patch.setattr(loop, 'enable_cache', lambda: None)
    patch.setattr(SupernetProbe, 'curvature', tell)
    yield patch


class Searches(NamedTuple):
  """The same search left alone, and killed around everything that it decides, each time started again."""

  whole: pathlib.Path
  result: search.Result
  stopped: pathlib.Path
  again: search.Result
  checkpoints: list[list[int]]


def make_searches(patch: pytest.MonkeyPatch, config: dict[str, Any], folder: pathlib.Path, kills: Any) -> Searches:
  whole, stopped = folder / 'whole', folder / 'stopped'
  result = search.run(config, whole)
  happenings: list[tuple[str, int]] = []

  def happen(what: str, step: int) -> None:
    if happenings and happenings[0] == (what, step):
      happenings.pop()
      raise Killed

  def around(kind: type, name: str, before: str = '', after: str = '') -> None:
    original = getattr(kind, name)

    def wrapped(self: Any, *args: Any, **further: Any) -> Any:
      # The step is the first of them that is a number.
      [step, *_] = [arg for arg in args if isinstance(arg, int)]
      happen(before, step)
      found = original(self, *args, **further)
      happen(after, step)
      return found

    context.setattr(kind, name, wrapped)

  found = []
  with patch.context() as context:
    context.setattr(loops, '_SECONDS_A_CALL', 0.0)  # One step a call.
    around(Progress, 'update', after='step')
    around(loop.Epochs, 'turn_epoch', before='before', after='decided')
    around(loop.Epochs, 'went_back', before='restored', after='gone_back')
    around(records.AlphaHistory, 'append', after='written')
    around(Checkpoints, 'save', before='unsaved', after='saved')
    for kill in kills:
      happenings.append(kill)
      with contextlib.suppress(Killed):
        search.run(config, stopped)
      assert not happenings
      found.append(Checkpoints(stopped / 'checkpoints').steps())
    again = search.run(config, stopped)
  return Searches(whole, result, stopped, again, found)


@pytest.fixture(scope='module')
def adaptive(patch, tmp_path_factory) -> Searches:
  # The first decision is after step 12, back to step 6; the second after step 15, back to step 9.
  kills = [
    ('before', 12),
    ('written', 12),
    ('restored', 6),
    ('unsaved', 6),
    ('saved', 6),
    ('step', 10),
    ('decided', 15),
  ]
  kills += [('saved', 9), ('saved', 18)]
  return make_searches(patch, CONFIG, tmp_path_factory.mktemp('adaptive'), kills)


@pytest.fixture(scope='module')
def stopping(patch, tmp_path_factory) -> Searches:
  kills = [('decided', 12), ('restored', 6), ('saved', 6)]
  return make_searches(patch, STOPPING, tmp_path_factory.mktemp('stopping'), kills)


def check_same(searches: Searches) -> None:
  found, expected = searches.again, searches.result
  assert found.finished
  assert (found.genotype, found.valid_loss, found.warning) == (expected.genotype, expected.valid_loss, expected.warning)
  states = [state.replace(key=jax.random.key_data(state.key)) for state in (found.state, expected.state)]
  jax.tree.map(np.testing.assert_array_equal, *states)
  with np.load(searches.stopped / 'alphas.npz') as a, np.load(searches.whole / 'alphas.npz') as b:
    assert sorted(a.files) == sorted(b.files)
    for name in b.files:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  logs = []
  for folder in (searches.stopped, searches.whole):
    kept = [line for line in metrics.read(folder) if line['kind'] != 'event' or line['event'] in EVENTS]
    logs.append([{name: value for name, value in line.items() if name not in TIMES} for line in kept])
  assert logs[0] == logs[1]
  assert spaces.load(searches.stopped / 'genotype.json') == expected.genotype


def test_a_search_goes_back_and_regularises_more(adaptive):
  lines = metrics.read(adaptive.whole)
  went = [line for line in lines if line.get('event') == 'went_back']
  assert [(line['step'], line['epoch'], line['to_epoch'], line['to_step']) for line in went] == [
    (12, 3, 1, 6),
    (15, 4, 2, 9),
  ]
  assert went[0]['message'] == (
    'epoch 4 has ended: the mean curvature is 2, and was 1; back to epoch 2, with a weight decay of 0.05'
  )
  epochs = [(line['step'], line['curvature']) for line in lines if line['kind'] == 'epoch']
  expected = [(3, 1), (6, 1), (9, 1.1), (12, 2), (9, 1), (12, 1.2), (15, 1.5), (12, 1), (15, 9), (18, 99)]
  assert epochs == expected
  assert float(adaptive.result.state.weight_decay) == np.float32(0.3)
  assert int(adaptive.result.state.step) == 18
  with np.load(adaptive.whole / 'alphas.npz') as history:
    # What was left behind is no part of it.
    assert history['step'].tolist() == [0, 3, 6, 9, 12, 15, 18]


def test_epochs_that_are_repeated_are_others(adaptive):
  losses: dict[int, list[float]] = {}
  for line in metrics.read(adaptive.whole):
    if line['kind'] == 'epoch':
      losses.setdefault(line['step'], []).append(line['train_loss'])
  # They see the same images with weights that decay more.
  assert [len(losses[step]) for step in (3, 6, 9, 12, 15, 18)] == [1, 1, 2, 3, 2, 1]
  assert all(len(set(values)) == len(values) for values in losses.values())


def test_a_step_with_a_decay_of_the_strategy_is_one_with_that_of_the_config():
  """Also in the virtual step of the hypergradient."""
  images, common = load('digits'), CONFIG | {'hypergradient': {'name': 'finite_difference'}}
  states = []
  for changes in ({'strategy': {'init_scale': 0.1}, 'weights': {'weight_decay': 0.3}}, {}):
    settings = build(search.Search, common | changes)
    searcher = search.Searcher.open(settings, images, make_mesh(1))
    state = searcher.init(searcher.keys())
    if not changes:
      raised = searcher.searched.recall({'curvature': [], 'raised': 2})
      assert float(state.weight_decay) == np.float32(3e-4)
      state = searcher.with_weight_decay(state, raised)
    data = searcher.place([settings.task.halves(images, settings, settings.seed)])
    states.append(searcher.run(state, data, np.int32(2))[0])
  for name in ('normal', 'reduce'):
    # The two programs round in another way.
    np.testing.assert_allclose(states[0].alphas[name], states[1].alphas[name], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(states[0].weights.vector, states[1].weights.vector, rtol=1e-4, atol=1e-6)


def test_killed_searches_that_go_back_end_the_same_bit_for_bit(adaptive):
  check_same(adaptive)


def test_checkpoints_that_a_search_may_return_to_are_kept(adaptive):
  # From the second epoch on, the first that may be returned to, all are saved; after the last weight decay only every
  # fourth one, and the last.
  before, written, restored, unsaved, saved, step, decided, back, end = adaptive.checkpoints
  assert before == written == restored == unsaved == [6, 9]
  assert saved == [6]
  assert step == [6, 9]
  assert decided == [9, 12]
  assert back == [9]
  assert end == [18]


def test_nothing_is_compiled_again(adaptive, stopping):
  for folder in (adaptive.whole, stopping.whole):
    messages = [line['message'] for line in metrics.read(folder) if line.get('event') == 'compiled']
    assert len(messages) == 2
    assert messages[0].startswith('search step')
    assert messages[1].startswith('evaluation')


def test_a_search_that_would_go_back_for_ever_is_one_line(patch, tmp_path):
  memory = RobustDarts().start()

  def turn(self, before, arch, space, epoch, probe):
    return Turn(memory, then='back', to_epoch=1) if epoch == 3 else Turn(memory)

  with patch.context() as context:
    context.setattr(RobustDarts, 'turn', turn)
    with pytest.raises(
      ValueError, match='^config.strategy: robust_darts goes back to step 6 with the memory that it had'
    ):
      search.run(CONFIG, tmp_path)


def test_a_search_that_stops_returns_the_architecture_of_before(stopping):
  [line] = [line for line in metrics.read(stopping.whole) if line.get('event') == 'stopped_early']
  assert (line['step'], line['to_epoch'], line['to_step']) == (12, 1, 6)
  assert line['message'] == (
    'epoch 4 has ended: the mean curvature is 2, and was 1; the search stops, with the architecture of epoch 2'
  )
  last = metrics.read(stopping.whole)[-1]
  assert (last['event'], last['step'], last['message']) == ('finished', 6, '2 epochs done')
  found = stopping.result
  assert found.finished
  assert int(found.state.step) == 6
  with np.load(stopping.whole / 'alphas.npz') as history:
    assert history['step'].tolist() == [0, 3, 6]
    for name, alphas in found.state.alphas.items():
      np.testing.assert_array_equal(history[name][-1], alphas)
  epochs = [line for line in metrics.read(stopping.whole) if line['kind'] == 'epoch']
  assert [line['step'] for line in epochs] == [3, 6, 9, 12]
  assert found.valid_loss == epochs[1]['valid_loss']


def test_killed_searches_that_stop_end_the_same_bit_for_bit(stopping):
  check_same(stopping)


def test_a_search_that_has_stopped_is_finished(stopping):
  before = metrics.read(stopping.whole)
  again = search.run(STOPPING, stopping.whole)
  assert again.finished
  assert again.genotype == stopping.result.genotype
  assert [line for line in metrics.read(stopping.whole) if line not in before] == []


def test_a_checkpoint_that_is_gone_is_one_line(patch, tmp_path):
  turn = loop.Epochs.turn_epoch

  def turned(self, state, evaluation, step):
    if step == 12:
      for path in (tmp_path / 'checkpoints').iterdir():
        path.rename(tmp_path / path.name)
    return turn(self, state, evaluation, step)

  with patch.context() as context:
    context.setattr(loop.Epochs, 'turn_epoch', turned)
    with pytest.raises(ValueError, match='^[^\n]*the checkpoint of step 6, which the run is to go back to, is gone$'):
      search.run(STOPPING, tmp_path)
