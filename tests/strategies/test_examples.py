"""The example of docs/strategies.md runs as it is written, in a folder of the user's own."""

import pathlib
import re

import jax
import numpy as np

from darts_jax.search import Search
from darts_jax.search.searched import Searched
from darts_jax.settings import build
from darts_jax.strategies import STRATEGIES
from darts_jax.strategies.relaxed import ALPHAS

TEXT = (pathlib.Path(__file__).parents[2] / 'docs' / 'strategies.md').read_text(encoding='utf-8')


def test_a_strategy_of_ones_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(STRATEGIES, 'noisy', None)
  [example] = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
  exec(example, {'__name__': 'mine'})
  settings = build(Search, {'strategy': {'name': 'noisy', 'noise': 0.5}})
  searched = Searched.from_settings(settings)
  alphas = searched.init(jax.random.key(0))
  mixing = searched.mix(alphas, 0, jax.random.key(1), ALPHAS)
  for each in mixing.values():
    # A softmax of α alone would be all but uniform.
    assert np.ptp(np.asarray(each.operations), axis=1).min() > 0.01
    np.testing.assert_allclose(np.sum(each.operations, axis=1), 1, rtol=1e-5)
  assert searched.read(alphas).cell('normal').is_discrete
