"""The examples of docs/strategies.md run as they are written, in a folder of the user's own."""

import pathlib
import re

import jax
import numpy as np
import pytest

from darts_jax import search
from darts_jax.runtime import metrics
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import Search, loop
from darts_jax.search.searched import Searched
from darts_jax.settings import build
from darts_jax.strategies import STRATEGIES
from darts_jax.strategies.relaxed import ALPHAS

TEXT = (pathlib.Path(__file__).parents[2] / 'docs' / 'strategies.md').read_text(encoding='utf-8')
EXAMPLES = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


def test_a_strategy_of_ones_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(STRATEGIES, 'noisy', None)
  exec(EXAMPLES[0], {'__name__': 'mine'})
  settings = build(Search, {'strategy': {'name': 'noisy', 'noise': 0.5}})
  searched = Searched.from_settings(settings)
  alphas = searched.init(jax.random.key(0))
  mixing = searched.mix(alphas, 0, jax.random.key(1), ALPHAS)
  for each in mixing.values():
    # A softmax of α alone would be all but uniform.
    assert np.ptp(np.asarray(each.operations), axis=1).min() > 0.01
    np.testing.assert_allclose(np.sum(each.operations, axis=1), 1, rtol=1e-5)
  assert searched.read(alphas).cell('normal').is_discrete


def test_a_strategy_that_measures_the_supernet_and_stops(tmp_path, monkeypatch, tiny_search):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(STRATEGIES, 'decided', None)
  monkeypatch.setattr(loop, 'make_mesh', lambda seeds: make_mesh(1))
  monkeypatch.setattr(loop, 'enable_cache', lambda: None)
  exec(EXAMPLES[1], {'__name__': 'mine'})
  # Two epochs of five steps. Nothing is ever so much better alone; and whatever is lost is less than everything.
  whole = search.run(tiny_search(strategy={'name': 'decided', 'margin': 0.0, 'init_scale': 0.1}), tmp_path / 'whole')
  config = tiny_search(strategy={'name': 'decided', 'margin': 1.0, 'init_scale': 0.1})
  found = search.run(config, tmp_path / 'stopped')
  assert whole.finished
  assert found.finished
  logs = [metrics.read(tmp_path / name) for name in ('whole', 'stopped')]
  lost = [line['accuracy_lost'] for line in logs[1] if line['kind'] == 'epoch']
  assert len(lost) == 1
  assert -1 <= lost[0] < 1
  [line] = [line for line in logs[1] if line.get('event') == 'stopped_early']
  assert line['message'] == 'epoch 1 has ended: the search stops, with the architecture of epoch 1'
  assert int(found.state.step) == 5
  # Both measures are calls of one program.
  programs = [line['message'].partition(' compiled')[0] for line in logs[1] if line.get('event') == 'compiled']
  assert [name.partition(' loaded')[0] for name in programs] == [
    'search step',
    'evaluation',
    'evaluation at given mixing weights',
  ]
  again = search.run(config, tmp_path / 'stopped')
  assert again.finished
  assert again.genotype == found.genotype
  # Searches side by side end together.
  monkeypatch.setattr(loop, 'make_mesh', lambda seeds: make_mesh(2, seeds=seeds))
  with pytest.raises(
    ValueError, match='^config.mesh.seed: 2 is not allowed; with decided it has to be 1, since [^\n]*$'
  ):
    search.run_side_by_side({**config, 'mesh': {'seed': 2}}, tmp_path / 'two')
