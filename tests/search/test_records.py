import types

import jax
import numpy as np
import pytest

from darts_jax import spaces
from darts_jax.hypergradient.settings import FirstOrder, Without
from darts_jax.report import page, workdir
from darts_jax.runtime.loop import Sums
from darts_jax.search import loop
from darts_jax.search.records import AlphaHistory
from darts_jax.search.searched import Searched
from darts_jax.strategies.darts import Darts
from darts_jax.strategies.sgas import Decision, Sgas

SPACE = spaces.Darts(2, ('none', 'skip_connect', 'max_pool_3x3'))
SPECS = SPACE.cells
SPEC = SPECS['normal']
DARTS = Searched.start(Darts(), SPACE)


def alphas(value):
  return {name: np.full((SPEC.num_edges, 3), value + i, np.float32) for i, name in enumerate(SPECS)}


def read(path):
  with np.load(path, allow_pickle=False) as file:
    return {name: file[name] for name in file.files}


def test_history_grows_by_snapshots(tmp_path):
  history = AlphaHistory(tmp_path, DARTS, None)
  history.append(0, 0, alphas(0), DARTS, {})
  history.append(11, 1, alphas(10), DARTS, {})
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
    history.append(step, step // 11, alphas(step), DARTS, {})
  AlphaHistory(tmp_path, DARTS, 15).append(22, 2, alphas(-1), DARTS, {})
  found = read(tmp_path / 'alphas.npz')
  assert found['step'].tolist() == [0, 11, 22]
  assert found['normal'][:, 0, 0].tolist() == [0, 11, -1]


def test_search_from_the_start_forgets_the_history(tmp_path):
  AlphaHistory(tmp_path, DARTS, None).append(11, 1, alphas(1), DARTS, {})
  AlphaHistory(tmp_path, DARTS, None).append(0, 0, alphas(2), DARTS, {})
  assert read(tmp_path / 'alphas.npz')['step'].tolist() == [0]


def test_pruned_operations_are_minus_infinity_and_scores_are_kept(tmp_path):
  """Node 3 reads 0 through a pool and 2 through an identity, so 1 no more; in the other cell nothing is decided."""
  start = Searched.start(Sgas(), SPACE)
  decisions = Decision(0, 'normal', 2, 'max_pool_3x3'), Decision(1, 'normal', 4, 'skip_connect')
  searched = start.recall({'decisions': list(map(list, decisions)), 'past': {}})
  history = AlphaHistory(tmp_path, searched, None)
  scores = searched.scores(alphas(0))
  history.append(0, 0, alphas(0), start, scores)
  history.append(11, 1, alphas(10), searched, scores)
  AlphaHistory(tmp_path, searched, 11).append(22, 2, alphas(20), searched, scores)
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
def test_weights_and_entropies_that_are_shown_are_those_of_the_supernet(tmp_path, kind):
  searched = Searched.start(kind(temperature=(4.0, 0.25)), SPACE, (22,))
  rng = np.random.default_rng(0)
  snapshots = {step: {name: rng.normal(size=(5, 3)).astype(np.float32) for name in SPECS} for step in (0, 11, 22)}
  for epoch, (step, values) in enumerate(snapshots.items()):
    # By a search that is resumed each time.
    AlphaHistory(tmp_path, searched, step).append(step, epoch, values, searched, searched.scores(values))
  shown = workdir.read(tmp_path).alphas
  for i, (step, values) in enumerate(snapshots.items()):
    found = searched.look(values, np.int32(step), jax.random.key(0))
    logged = loop._Loop._describe(types.SimpleNamespace(searched=searched), values, np.int32(step), jax.random.key(0))
    for name in SPECS:
      used = found[name].operations
      np.testing.assert_allclose(shown.mixing(name)[i], used, rtol=1e-5)
      entropies = -np.sum(used * np.log(used), axis=-1)
      assert logged[f'entropy_{name}'] == pytest.approx(float(np.mean(entropies)), rel=1e-5)
    # An architecture is derived at a temperature of 1.
    assert shown.genotype(i) == searched.read(values)


def test_a_line_of_the_log_has_the_entropies_at_the_temperature_of_its_step(tmp_path):
  """Half way from 4 to 1 it is 2, at which α of 2 log 3 and 0 weigh three quarters and a quarter."""
  space = spaces.Recurrent(1, ('none', 'tanh'))
  search = object.__new__(loop._Loop)
  search.folders = [tmp_path]
  search.searched = Searched.start(Darts(temperature=(4.0, 1.0)), space, (22,))
  search._searcher = types.SimpleNamespace(summary=lambda means, sums: {})
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
  history.append(0, 0, before, DARTS, {})
  if not said:
    before = {name: value + [[0, 0, 1 + row] for row in range(5)] for name, value in after.items()}
    history.append(11, 1, before, DARTS, {})
    after = {name: value + np.array([0, 1e-3, 0]) for name, value in before.items()}
  history.append(22, 2, after, DARTS, {})
  noted = []
  search = object.__new__(loop._Loop)
  search.folders, search.searched, search.total = [tmp_path], DARTS, 22
  search._histories = [AlphaHistory(tmp_path, DARTS, 22) if resumed else history]
  search._settings = types.SimpleNamespace(hypergradient=FirstOrder())
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
  history.append(0, 0, alphas(0), DARTS, {})
  assert history.last_epoch(SPECS) is None


def test_a_search_whose_alphas_stay_says_so(tmp_path):
  search = object.__new__(loop._Loop)
  search.folders, search._histories = [tmp_path], [None]
  search._settings = types.SimpleNamespace(hypergradient=Without())
  [warning] = search.warnings()
  assert warning.startswith('the genotype is that of α as they were drawn')
