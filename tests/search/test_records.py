import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from darts_jax import spaces
from darts_jax.hypergradient.settings import Without
from darts_jax.report import page, workdir
from darts_jax.runtime.loop import Sums
from darts_jax.search import loop
from darts_jax.search.records import AlphaHistory, check_names
from darts_jax.search.searched import Searched
from darts_jax.spaces import Doubts, Mixing
from darts_jax.strategies.darts import Darts
from darts_jax.strategies.relaxed import Relaxed
from darts_jax.strategies.sgas import Decision, Sgas

SPACE = spaces.Darts(2, ('none', 'skip_connect', 'max_pool_3x3'))
SPECS = SPACE.cells
SPEC = SPECS['normal']
DARTS = Searched.start(Darts(), SPACE)
KEY = jax.random.key(0)


def alphas(value):
  return {name: np.full((SPEC.num_edges, 3), value + i, np.float32) for i, name in enumerate(SPECS)}


def read(path):
  with np.load(path, allow_pickle=False) as file:
    return {name: file[name] for name in file.files}


@pytest.mark.parametrize('name', ['step', 'cells', 'scores', 'topology', 'mixing_normal', 'edges_a'])
def test_cells_cannot_have_the_names_of_other_arrays(name):
  space = types.SimpleNamespace(name='mine', cells={'normal': SPEC, name: SPEC})
  with pytest.raises(ValueError, match=f"^config.space.name: 'mine' is not allowed; its kind of cell '{name}' [^\n]*$"):
    check_names(space)


@pytest.mark.parametrize('space', [kind() for kind in spaces.SPACES.values()], ids=lambda space: space.name)
def test_names_of_the_cells_of_all_spaces_are_allowed(space):
  check_names(space)


def test_history_grows_by_snapshots(tmp_path):
  history = AlphaHistory(tmp_path, DARTS, None)
  history.append(0, 0, alphas(0), KEY, DARTS, {})
  history.append(11, 1, alphas(10), KEY, DARTS, {})
  found = read(tmp_path / 'alphas.npz')
  assert found['step'].tolist() == [0, 11]
  assert found['epoch'].tolist() == [0, 1]
  assert found['operations'].tolist() == ['none', 'skip_connect', 'max_pool_3x3']
  for i, name in enumerate(SPECS):
    # Node 2 reads the inputs 0 and 1, node 3 also node 2 [DARTS §2.1].
    assert found[f'edges_{name}'].tolist() == [[0, 2], [1, 2], [0, 3], [1, 3], [2, 3]]
    np.testing.assert_array_equal(found[name], [np.full((5, 3), i), np.full((5, 3), 10 + i)])
  assert [path.name for path in tmp_path.iterdir()] == ['alphas.npz']


def test_history_of_a_resumed_search_ends_where_it_resumes(tmp_path):
  history = AlphaHistory(tmp_path, DARTS, None)
  for step in (0, 11, 22):
    history.append(step, step // 11, alphas(step), KEY, DARTS, {})
  AlphaHistory(tmp_path, DARTS, 15).append(22, 2, alphas(-1), KEY, DARTS, {})
  found = read(tmp_path / 'alphas.npz')
  assert found['step'].tolist() == [0, 11, 22]
  assert found['normal'][:, 0, 0].tolist() == [0, 11, -1]


def test_a_history_of_an_earlier_version_is_not_gone_on_with(tmp_path):
  AlphaHistory(tmp_path, DARTS, None).append(0, 0, alphas(0), KEY, DARTS, {})
  assert AlphaHistory(tmp_path, DARTS, 0).steps == [0]
  known = {name: values for name, values in read(tmp_path / 'alphas.npz').items() if name != 'mixing_reduce'}
  np.savez(tmp_path / 'alphas.npz', **known)
  assert AlphaHistory(tmp_path, DARTS, 0).steps == []


def test_search_from_the_start_forgets_the_history(tmp_path):
  AlphaHistory(tmp_path, DARTS, None).append(11, 1, alphas(1), KEY, DARTS, {})
  AlphaHistory(tmp_path, DARTS, None).append(0, 0, alphas(2), KEY, DARTS, {})
  assert read(tmp_path / 'alphas.npz')['step'].tolist() == [0]


def test_pruned_operations_are_minus_infinity_and_scores_are_kept(tmp_path):
  """Node 3 reads 0 through a pool and 2 through an identity, so 1 no more; in the other cell nothing is decided."""
  start = Searched.start(Sgas(), SPACE)
  decisions = Decision(0, 'normal', 2, 'max_pool_3x3'), Decision(1, 'normal', 4, 'skip_connect')
  searched = start.recall({'decisions': list(map(list, decisions)), 'past': {}})
  history = AlphaHistory(tmp_path, searched, None)
  scores = searched.scores(alphas(0))
  history.append(0, 0, alphas(0), KEY, start, scores)
  history.append(11, 1, alphas(10), KEY, searched, scores)
  AlphaHistory(tmp_path, searched, 11).append(22, 2, alphas(20), KEY, searched, scores)
  found = read(tmp_path / 'alphas.npz')
  nothing = -np.inf
  expected = [[10, 10, 10], [10, 10, 10], [nothing, nothing, 10], [nothing] * 3, [nothing, 10, nothing]]
  np.testing.assert_array_equal(found['normal'][1], expected)
  assert np.isfinite(found['normal'][0]).all()
  assert np.isfinite(found['reduce']).all()
  # All operations weigh the same.
  np.testing.assert_allclose(found['importance_normal'], np.full((3, 5), 2 / 3), rtol=1e-14)
  assert found['score_reduce'].tolist() == [[0] * 5] * 3


@pytest.mark.parametrize('kind', [Darts, Sgas])
def test_weights_are_those_of_the_supernet_and_architectures_those_of_the_search(tmp_path, kind):
  """The temperature goes from 4 to a quarter by the same factor at each of 22 steps, so it is 1 after 11."""
  searched = Searched.start(kind(temperature=(4.0, 0.25)), SPACE, (22,))
  rng = np.random.default_rng(0)
  snapshots = {step: {name: rng.normal(size=(5, 3)).astype(np.float32) for name in SPECS} for step in (0, 11, 22)}
  for epoch, (step, values) in enumerate(snapshots.items()):
    # By a search that is resumed each time.
    AlphaHistory(tmp_path, searched, step).append(step, epoch, values, KEY, searched, searched.scores(values))
  found, shown = read(tmp_path / 'alphas.npz'), workdir.read(tmp_path).history
  np.testing.assert_allclose(found['temperature'], [4, 1, 0.25], rtol=1e-6)
  for i, (step, values) in enumerate(snapshots.items()):
    logged = loop.Epochs._describe(types.SimpleNamespace(searched=searched), values, np.int32(step), KEY)
    for name in SPECS:
      exponentials = np.exp(values[name].astype(float) / (4.0, 1.0, 0.25)[i])
      softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
      np.testing.assert_allclose(found[f'mixing_{name}'][i], softmax, rtol=1e-5)
      np.testing.assert_array_equal(shown.mixing[name][i], found[f'mixing_{name}'][i].astype(float))
      entropies = -np.sum(softmax * np.log(softmax), axis=-1)
      assert logged[f'entropy_{name}'] == pytest.approx(float(np.mean(entropies)), rel=1e-5)
    # It does not depend on the temperature.
    assert shown.architectures[i] == searched.read(values)
    assert spaces.from_json(json.loads(found['genotype'][i])) == searched.read(values)
  assert shown.legend == searched.strategy.legend


def test_a_smaller_supernet_has_no_weight_where_it_lost_operations(tmp_path):
  searched = Searched.start(Sgas(), SPACE).recall(
    {'decisions': [[0, 'normal', 2, 'max_pool_3x3'], [1, 'normal', 4, 'skip_connect']], 'past': {}}
  )
  AlphaHistory(tmp_path, searched, None).append(0, 0, alphas(0), KEY, searched, {})
  found, third = read(tmp_path / 'alphas.npz'), [1 / 3] * 3
  expected = [third, third, [0, 0, 1], [0, 0, 0], [0, 1, 0]]
  np.testing.assert_allclose(found['mixing_normal'], [expected], rtol=1e-6)
  np.testing.assert_array_equal(found['left_normal'], np.array([expected]) > 0)
  assert found['left_reduce'].all()
  assert workdir.read(tmp_path).history.cell('normal', 0) == searched.cells['normal']
  # The entropy in the log is that of the edges that have something to choose.
  logged = loop.Epochs._describe(types.SimpleNamespace(searched=searched), alphas(0), np.int32(0), KEY)
  assert (logged['entropy_normal'], logged['entropy_reduce']) == pytest.approx((np.log(3), np.log(3)))


@dataclasses.dataclass(frozen=True)
class Paths(Relaxed):
  """Weighs edges, too, draws mixing weights, and has other architecture parameters than an array of every cell."""

  name = 'paths'

  def init(self, space, key):
    return {'shared': jax.numpy.zeros(()), 'others': (1.0, {'of': jax.numpy.zeros(2)})}

  def mix(self, arch, space, cells, time, key, purpose):
    found = {}
    for name, spec in cells.items():
      mixing = jax.random.dirichlet(key, np.ones(len(spec.operations)), (spec.num_edges,))
      found[name] = Mixing(mixing, jax.nn.softmax(arch['shared'] * np.arange(spec.num_edges)))
    return found

  def read(self, arch, space, memory):
    return space.strongest({name: np.tile([0, 1, 0], (spec.num_edges, 1)) for name, spec in space.cells.items()})

  def doubts(self, before, after, space):
    assert [len(each['others'][1]['of']) for each in (before, after)] == [2, 2]
    return Doubts(int(after['shared']), int(before['shared']), 0)


def test_any_architecture_parameters_leave_a_history(tmp_path):
  searched = Searched.start(Paths(), SPACE, (20,))
  history = AlphaHistory(tmp_path, searched, None)
  arch = searched.init(KEY)
  for step, shared in ((0, 0.0), (10, 1.0), (20, 2.0)):
    # A strategy that scores the edges of one epoch, of one kind of cell.
    scores = {'gain': {'reduce': np.arange(5.0)}} if step == 10 else {}
    history.append(step, step // 10, arch | {'shared': np.float32(shared)}, KEY, searched, scores)
  found = read(tmp_path / 'alphas.npz')
  assert not {'normal', 'reduce'} & found.keys()
  assert found['parameters_shared'].tolist() == [0, 1, 2]
  assert (found['parameters_others_0'].shape, found['parameters_others_1_of'].shape) == ((3,), (3, 2))
  for i, step in enumerate((0, 10, 20)):
    for name, mixing in searched.look(arch, np.int32(step), KEY).items():
      np.testing.assert_array_equal(found[f'mixing_{name}'][i], mixing.operations)
    exponentials = np.exp(i * np.arange(5))
    np.testing.assert_allclose(found['edge_weights_normal'][i], exponentials / exponentials.sum(), rtol=1e-5)
  np.testing.assert_array_equal(found['gain_reduce'], [[np.nan] * 5, np.arange(5), [np.nan] * 5])
  assert history.doubt == Doubts(2, 1, 0).message
  before = (tmp_path / 'alphas.npz').read_bytes()
  AlphaHistory(tmp_path, searched, 10).append(20, 2, arch | {'shared': np.float32(2)}, KEY, searched, {})
  assert (tmp_path / 'alphas.npz').read_bytes() == before
  shown = page.render(workdir.read(tmp_path))
  for said in ('Normal cell: the weight of every edge in its node', 'Gain', 'No edge has been decided yet.'):
    assert said in shown


def test_probabilities_are_kept_in_place_of_draws_and_beside_the_weights_of_edges(tmp_path):
  class Known(Paths):
    def chances(self, arch, space, cells):
      return {name: np.full((spec.num_edges, 3), 1 / 3, np.float32) for name, spec in cells.items()}

  searched = Searched.start(Known(), SPACE, (20,))
  AlphaHistory(tmp_path, searched, None).append(0, 0, searched.init(KEY), KEY, searched, {})
  found = read(tmp_path / 'alphas.npz')
  np.testing.assert_allclose(found['mixing_reduce'], np.full((1, 5, 3), 1 / 3), rtol=1e-6)
  np.testing.assert_allclose(found['edge_weights_reduce'], np.full((1, 5), 1 / 5), rtol=1e-6)


def test_a_score_with_the_name_of_another_array_is_refused(tmp_path):
  history = AlphaHistory(tmp_path, DARTS, None)
  with pytest.raises(
    ValueError, match="^config.strategy: 'mixing' cannot be the name of a score; alphas.npz has other"
  ):
    history.append(0, 0, alphas(0), KEY, DARTS, {'mixing': {'normal': np.zeros(5)}})


def test_a_line_of_the_log_has_the_entropies_at_the_temperature_of_its_step(tmp_path):
  """Half way from 4 to 1 it is 2, at which α of 2 log 3 and 0 weigh three quarters and a quarter."""
  space = spaces.Recurrent(1, ('none', 'tanh'))
  search = object.__new__(loop.Epochs)
  search.folders = [tmp_path]
  search.searched = Searched.start(Darts(temperature=(4.0, 1.0)), space, (22,))
  search._searcher = types.SimpleNamespace(learner=types.SimpleNamespace(summary=lambda means, sums: {}))
  alphas = np.tile(np.float32([2 * np.log(3), 0]), (space.cells['recurrent'].num_edges, 1))
  state = types.SimpleNamespace(step=np.int32(11), alphas={'recurrent': alphas}, key=jax.random.key(0))
  line = search.summary(state, Sums({'steps': 1.0, 'seconds': 2.0}))
  assert line == {'seconds': 2.0, 'entropy_recurrent': pytest.approx(np.log(4) - 0.75 * np.log(3), rel=1e-5)}


@pytest.mark.parametrize(('resumed', 'said'), [(False, True), (True, True), (False, False)])
def test_a_search_that_hardly_moved_says_so_in_log_and_result(tmp_path, resumed, said):
  """Of the three edges into node 3 two are kept; operations lead by less, or more, than the last epoch moved them."""
  before = {name: np.tile(np.float32([0, 0.01, 0]), (SPEC.num_edges, 1)) for name in SPECS}
  after = {name: np.tile(np.float32([0, 0, 0.001]), (SPEC.num_edges, 1)) for name in SPECS}
  history = AlphaHistory(tmp_path, DARTS, None)
  history.append(0, 0, before, KEY, DARTS, {})
  if not said:
    before = {name: value + [[0, 0, 1 + row] for row in range(5)] for name, value in after.items()}
    history.append(11, 1, before, KEY, DARTS, {})
    after = {name: value + np.array([0, 1e-3, 0]) for name, value in before.items()}
  history.append(22, 2, after, KEY, DARTS, {})
  noted = []
  search = object.__new__(loop.Epochs)
  search.folders, search.searched, search.total = [tmp_path], DARTS, 22
  search._histories = [AlphaHistory(tmp_path, DARTS, 22) if resumed else history]
  search.write = lambda *args: noted.append(args)
  (tmp_path / 'metrics.jsonl').touch()
  if search.lacks():
    search.finish(None)
  if not said:
    assert (noted, search.warnings()) == ([], [None])
    return
  [warning] = search.warnings()
  assert noted == [('event', 22, {'event': 'not_settled', 'message': warning})]
  assert search.lacks() == 'the warning that a genotype is not settled'
  (tmp_path / 'metrics.jsonl').write_text('{"kind": "event", "step": 22, "event": "not_settled"}\n')
  assert search.lacks() == ''
  assert warning.startswith('the genotype is not settled: 4 of its 8 edges and 8 of their operations would be others')
  # Node 2 keeps both of its edges whatever happens.
  shown = page.render(workdir.read(tmp_path))
  assert f'{warning[1:]}.' in shown


def test_a_first_epoch_is_nothing_to_go_by(tmp_path):
  history = AlphaHistory(tmp_path, DARTS, None)
  history.append(0, 0, alphas(0), KEY, DARTS, {})
  assert history.doubt is None


def test_a_search_whose_alphas_stay_says_so(tmp_path):
  search = object.__new__(loop.Epochs)
  search.folders, search.workdir, search.searched = [tmp_path], tmp_path, DARTS
  search._settings, search._ends = types.SimpleNamespace(hypergradient=Without()), []
  search.opened(types.SimpleNamespace(alphas=alphas(0), key=KEY), None)
  [warning] = search.warnings()
  assert warning.startswith('the genotype is that of α as they were drawn')
  assert f'T{warning[1:]}.' in page.render(workdir.read(tmp_path))
