"""The softmax and its temperature, and the strategies that anneal it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.data.images import load
from darts_jax.relaxation import Annealing, softmax
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import ImageSearcher, Search
from darts_jax.search.loop import make_strategy
from darts_jax.settings import build

ALPHAS = np.log([[1.0, 2.0, 4.0], [3.0, 3.0, 9.0]]).astype(np.float32)


def test_softmax_of_logarithms_is_their_shares():
  np.testing.assert_allclose(softmax(ALPHAS), [[1 / 7, 2 / 7, 4 / 7], [0.2, 0.2, 0.6]], rtol=1e-6)
  # At half the temperature every weight is squared before they are scaled.
  np.testing.assert_allclose(softmax(ALPHAS, 0.5), [[1 / 21, 4 / 21, 16 / 21], [1 / 11, 1 / 11, 9 / 11]], rtol=1e-6)


def test_annealing_is_geometric():
  annealing = Annealing(4.0, 0.25, 200)
  found = [float(annealing.at(step)) for step in (0, 50, 100, 150, 200)]
  np.testing.assert_allclose(found, [4, 2, 1, 0.5, 0.25], rtol=1e-6)
  assert Annealing(3.0, 3.0, 7).at(jnp.int32(5)) == 3.0


@pytest.mark.parametrize('strategy', ['darts', 'sgas'])
def test_strategies_anneal_over_the_whole_search_and_compile_once(strategy):
  settings = build(
    Search,
    {
      'strategy': strategy,
      'epochs': 4,
      'batch_size': 64,
      'data': {'name': 'digits'},
      'network': {'channels': 2, 'layers': 3, 'nodes': 1},
      'temperature': {'initial': 2.0, 'final': 0.5},
    },
  )
  searcher = ImageSearcher(settings, make_strategy(settings), load('digits'), make_mesh(1))
  total = searcher.epoch_ends[-1]
  assert total == 4 * (718 // 64)
  alphas = {name: 3 * value for name, value in searcher.strategy.init(jax.random.key(0)).items()}
  relax = jax.jit(searcher.strategy.relax)
  found = {step: relax(alphas, jax.random.key(1), jnp.int32(step)) for step in (0, total // 2, total)}
  assert relax._cache_size() == 1
  for (_, mixing), temperature in zip(found.items(), (2, 1, 0.5), strict=True):
    for name, value in alphas.items():
      np.testing.assert_allclose(mixing[name], softmax(value, temperature), rtol=1e-5)


@pytest.mark.parametrize('field', ['initial', 'final'])
def test_a_temperature_is_positive(field):
  with pytest.raises(ValueError, match=f'^config.temperature.{field}: 0.0 is not allowed; it has to be ≥ 1e-06$'):
    build(Search, {'temperature': {field: 0}})
