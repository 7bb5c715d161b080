"""The example of docs/strategies.md runs as it is written, in a folder of the user's own."""

import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax import search
from darts_jax.nets import OPERATIONS
from darts_jax.runtime import metrics
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.modules import import_modules
from darts_jax.search import loop
from darts_jax.search.searched import Searched
from darts_jax.search.settings import read
from darts_jax.strategies import STRATEGIES
from darts_jax.strategies.gdas import Gdas
from darts_jax.strategies.relaxed import ALPHAS, EVALUATE, WEIGHTS

TEXT = (pathlib.Path(__file__).parents[2] / 'docs' / 'strategies.md').read_text(encoding='utf-8')
EXAMPLES = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


@pytest.fixture
def mine(tmp_path, monkeypatch):
  """The module of the document, imported as `--import` does."""
  (tmp_path / 'mine.py').write_text(EXAMPLES[0])
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  monkeypatch.setitem(STRATEGIES, 'mine', None)
  monkeypatch.delitem(sys.modules, 'mine', raising=False)
  before = dict(OPERATIONS)
  import_modules(['mine'])
  yield sys.modules['mine'].Mine
  assert before == OPERATIONS
  del sys.modules['mine']


def test_the_strategy_of_the_document_is_gdas(mine):
  [command] = re.findall(r'```sh\n(.*?)```', TEXT, re.DOTALL)
  assert '--import=mine --config.strategy=mine' in command
  settings = read({'strategy': {'name': 'mine', 'tau': (5.0, 0.1)}, 'epochs': 4})
  assert settings.strategy == mine(tau=(5.0, 0.1))
  searched = Searched.from_settings(settings).over((3, 6, 9, 12))
  own = Searched.start(Gdas(tau=(5.0, 0.1)), settings.space, (3, 6, 9, 12))
  alphas = {name: 3 * value for name, value in searched.init(jax.random.key(0)).items()}
  jax.tree.map(np.testing.assert_array_equal, searched.init(jax.random.key(0)), own.init(jax.random.key(0)))
  for purpose in (WEIGHTS, ALPHAS, EVALUATE):

    def weigh(alphas, searched, purpose=purpose):
      found = searched.mix(alphas, jnp.int32(7), jax.random.key(1), purpose)
      return sum(
        jnp.sum(each.operations * jnp.arange(each.operations.size).reshape(each.operations.shape))
        for each in found.values()
      ), found

    results = [jax.grad(weigh, has_aux=True)(alphas, each) for each in (searched, own)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)
    for each in results[0][1].values():
      np.testing.assert_array_equal(np.sum(each.computed, axis=1), 1)
  assert searched.read(alphas) == own.read(alphas)
  other = {name: value[::-1] for name, value in alphas.items()}
  assert searched.doubts(alphas, other) == own.doubts(alphas, other)


def test_its_fields_are_checked(mine):
  del mine
  for config, message in (
    ({'tau': (1.0, 0.0)}, 'config.strategy.tau: 0.0 is not allowed'),
    ({'criterion': 2}, 'config.strategy.criterion: unknown field of mine; it is one of sgas'),
  ):
    with pytest.raises(ValueError, match=f'^{message}'):
      read({'strategy': {'name': 'mine', **config}})


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
