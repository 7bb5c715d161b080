import numpy as np

from darts_jax.genotype import search_space
from darts_jax.search.records import AlphaHistory

SPEC = search_space(('none', 'skip_connect', 'max_pool_3x3'), 2)
SPECS = {'normal': SPEC, 'reduce': SPEC}


def alphas(value):
  return {name: np.full((SPEC.num_edges, 3), value + i, np.float32) for i, name in enumerate(SPECS)}


def read(path):
  with np.load(path, allow_pickle=False) as file:
    return {name: file[name] for name in file.files}


def test_history_grows_by_snapshots(tmp_path):
  history = AlphaHistory(tmp_path, SPECS, None)
  history.append(0, 0, alphas(0))
  history.append(11, 1, alphas(10))
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
  history = AlphaHistory(tmp_path, SPECS, None)
  for step in (0, 11, 22):
    history.append(step, step // 11, alphas(step))
  AlphaHistory(tmp_path, SPECS, 15).append(22, 2, alphas(-1))
  found = read(tmp_path / 'alphas.npz')
  assert found['step'].tolist() == [0, 11, 22]
  assert found['normal'][:, 0, 0].tolist() == [0, 11, -1]


def test_search_from_the_start_forgets_the_history(tmp_path):
  AlphaHistory(tmp_path, SPECS, None).append(11, 1, alphas(1))
  AlphaHistory(tmp_path, SPECS, None).append(0, 0, alphas(2))
  assert read(tmp_path / 'alphas.npz')['step'].tolist() == [0]
