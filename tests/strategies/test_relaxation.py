"""The softmax and its temperature, and the strategies that anneal it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.data.images import load
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import Search, Searcher
from darts_jax.settings import build
from darts_jax.spaces import full_cell
from darts_jax.strategies.relaxation import annealed, softmax
from darts_jax.strategies.relaxed import EVALUATE, Time

TWO_EDGES = np.log([[1.0, 2.0, 4.0], [3.0, 3.0, 9.0]]).astype(np.float32)
SPEC = full_cell(('none', 'skip_connect', 'max_pool_3x3'), 1, num_inputs=2, output='concat', kept=2)


def test_softmax_of_logarithms_is_their_shares():
  np.testing.assert_allclose(softmax(TWO_EDGES, SPEC, SPEC), [[1 / 7, 2 / 7, 4 / 7], [0.2, 0.2, 0.6]], rtol=1e-6)
  # At half the temperature every weight is squared before they are scaled.
  expected = [[1 / 21, 4 / 21, 16 / 21], [1 / 11, 1 / 11, 9 / 11]]
  np.testing.assert_allclose(softmax(TWO_EDGES, SPEC, SPEC, 0.5), expected, rtol=1e-6)


def test_annealing_is_geometric():
  found = [float(annealed((4.0, 0.25), Time(step, (50, 200)))) for step in (0, 50, 100, 150, 200)]
  np.testing.assert_allclose(found, [4, 2, 1, 0.5, 0.25], rtol=1e-6)
  # A temperature that does not change is no part of the program.
  assert annealed((3.0, 3.0), Time(None, (7,))) == 3.0


@pytest.mark.parametrize('strategy', ['darts', 'sgas'])
def test_strategies_anneal_over_the_whole_search_and_compile_once(strategy):
  settings = build(
    Search,
    {
      'strategy': {'name': strategy, 'temperature': (2.0, 0.5)},
      'epochs': 4,
      'batch_size': 64,
      'data': {'name': 'digits'},
      'space': {'nodes': 1},
      'network': {'channels': 2, 'layers': 3},
    },
  )
  searcher = Searcher.open(settings, load('digits'), make_mesh(1))
  searched, total = searcher.searched, searcher.epoch_ends[-1]
  assert total == 4 * (718 // 64)
  alphas = {name: 3 * value for name, value in searched.init(jax.random.key(0)).items()}
  mix = jax.jit(lambda *args: searched.mix(*args, EVALUATE))
  found = {step: mix(alphas, jnp.int32(step), jax.random.key(1)) for step in (0, total // 2, total)}
  assert mix._cache_size() == 1
  for (_, mixing), temperature in zip(found.items(), (2, 1, 0.5), strict=True):
    for name, value in alphas.items():
      np.testing.assert_allclose(mixing[name].operations, jax.nn.softmax(value / temperature), rtol=1e-5)


@pytest.mark.parametrize('temperature', [(0, 1), (1, 0)])
def test_a_temperature_is_positive(temperature):
  with pytest.raises(ValueError, match='^config.strategy.temperature: 0.0 is not allowed; it has to be ≥ 1e-06$'):
    build(Search, {'strategy': {'temperature': temperature}})
