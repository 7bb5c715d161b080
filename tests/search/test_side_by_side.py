"""Searches side by side, against each of them by itself."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from darts_jax import laboratory, search, selection, spaces
from darts_jax.runtime import loop as loops
from darts_jax.runtime import metrics
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import loop
from darts_jax.settings import build

pytestmark = pytest.mark.usefixtures('undrawn', 'same_programs')

SEEDS = (3, 4)


@pytest.fixture(scope='module')
def settings(tiny_search) -> dict[str, Any]:
  """Both searches, of 5 steps an epoch each."""
  return tiny_search(seed=SEEDS[0], mesh={'seed': len(SEEDS)})


def alphas(folder: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(folder / 'alphas.npz') as saved:
    return {name: saved[name] for name in ('epoch', 'step', 'normal', 'reduce')}


@pytest.fixture(scope='module')
def alone(tmp_path_factory, tiny_search) -> list[tuple[pathlib.Path, search.Result]]:
  """Each search by itself, on one device."""
  found = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'enable_cache', lambda: None)
    patch.setattr(loop, 'make_mesh', lambda seeds: make_mesh(1))
    for seed in SEEDS:
      folder = tmp_path_factory.mktemp('alone')
      found.append((folder, search.run(tiny_search(seed=seed), folder)))
  return found


@pytest.fixture(scope='module')
def together(tmp_path_factory, make_guard, settings) -> tuple[pathlib.Path, list[search.Result]]:
  """Both, each on four devices; stopped in the middle of the second epoch, and resumed."""
  folder = tmp_path_factory.mktemp('together')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'enable_cache', lambda: None)
    patch.setattr(loops, '_SECONDS_A_CALL', 0.0)  # One step a call.
    asked = iter(range(100))
    patch.setattr(loop, 'InterruptGuard', make_guard(lambda: 'SIGTERM' if next(asked) > 7 else None))
    stopped = search.run_side_by_side(settings, folder)
    assert [result.finished for result in stopped] == [False, False]
    [step] = {max(Checkpoints(folder / 'checkpoints').steps())}
    assert 5 < step < 10
    patch.setattr(loop, 'InterruptGuard', make_guard(lambda: None))
    return folder, search.run_side_by_side(settings, folder)


def test_each_finds_what_it_finds_alone(alone, together):
  folder, results = together
  for seed, (own, expected), result in zip(SEEDS, alone, results, strict=True):
    found, wanted = alphas(folder / f'seed_{seed}'), alphas(own)
    for name, value in wanted.items():
      # Sums are in another order.
      np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)
    assert result.genotype == expected.genotype
    np.testing.assert_allclose(
      (result.valid_loss, result.valid_accuracy), (expected.valid_loss, expected.valid_accuracy), rtol=1e-3
    )
    assert result.finished
  # They are different searches.
  assert np.abs(alphas(folder / 'seed_3')['normal'][-1] - alphas(folder / 'seed_4')['normal'][-1]).max() > 1e-3


def test_each_has_a_folder_like_that_of_a_search(alone, together):
  folder, results = together
  assert {path.name for path in folder.iterdir()} == {'config.json', 'checkpoints', 'seed_3', 'seed_4'}
  for seed, (own, _), result in zip(SEEDS, alone, results, strict=True):
    mine = folder / f'seed_{seed}'
    assert {path.name for path in mine.iterdir()} == {path.name for path in own.iterdir()} - {'checkpoints'}
    assert json.loads((mine / 'config.json').read_text())['seed'] == seed
    assert spaces.load(mine / 'genotype.json') == result.genotype
    assert result.report == mine / 'report.html'
    found, wanted = (
      {(line['kind'], line['step']): line for line in metrics.read(path) if line['kind'] != 'event'}
      for path in (mine, own)
    )
    assert found.keys() == wanted.keys()
    for place, line in found.items():
      assert line.keys() == wanted[place].keys()
      assert line['train_loss'] == pytest.approx(wanted[place]['train_loss'], rel=1e-3)
      assert line['entropy_normal'] == pytest.approx(wanted[place]['entropy_normal'], rel=1e-4)
    events = [line['event'] for line in metrics.read(mine) if line['kind'] == 'event']
    assert [each for each in events if each not in ('compiled', 'not_settled')] == [
      'interrupted',
      'resumed',
      'finished',
    ]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'mesh': {'seed': 3}}, 'config.mesh.seed: 3 is not allowed; 8 cpu devices do not divide evenly over 3 searches'),
    ({'mesh': {'seed': 0}}, 'config.mesh.seed: 0 is not allowed; it has to be ≥ 1'),
    ({'strategy': 'sgas'}, 'config.mesh.seed: 2 is not allowed; with sgas it has to be 1'),
    ({'batch_size': 126}, 'config.batch_size: 126 does not divide evenly over 4 devices'),
    ({'batch_norm': {'group_size': 48}}, 'config.batch_norm.group_size: 48 is not allowed; it has to divide the batch'),
  ],
)
def test_what_cannot_be_searched_is_one_line_and_leaves_nothing(tmp_path, settings, changes, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    search.run_side_by_side(settings | changes, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_texts_are_searched_one_by_one():
  with pytest.raises(ValueError, match=r'^config.mesh.seed: 2 is not allowed; it has to be 1 on text'):
    build(search.Search, {'space': 'recurrent', 'mesh': {'seed': 2}})


@pytest.mark.parametrize('kind', [laboratory.Laboratory, selection.Selection])
def test_what_compares_searches_makes_them_one_by_one(kind):
  with pytest.raises(ValueError, match=r'^config.search.mesh.seed: 2 is not allowed; it has to be 1 here$'):
    build(kind, {'search': {'mesh': {'seed': 2}}})


def test_one_search_is_asked_for_where_one_is_expected(tmp_path, settings):
  with pytest.raises(ValueError, match=r'^config.mesh.seed: 2 is not allowed; it has to be 1 here$'):
    search.run(settings, tmp_path)
