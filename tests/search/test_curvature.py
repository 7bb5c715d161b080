"""The curvature of a supernet's loss in α, which strategies may ask for: against dense Hessians, and on all devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from darts_jax.data.images import load
from darts_jax.runtime import processes
from darts_jax.runtime.mesh import UNSHARED, make_mesh
from darts_jax.search import Search, Searcher
from darts_jax.search.curvature import architecture_curvature
from darts_jax.search.probe import Evaluator, SupernetProbe
from darts_jax.search.searched import Searched
from darts_jax.search.step import BatchLoss
from darts_jax.settings import build
from darts_jax.spaces import Darts as DartsSpace
from darts_jax.strategies.darts import Darts
from darts_jax.strategies.relaxed import ALPHAS
from darts_jax.tasks import Placed


def quadratic(matrix, vector):
  """A loss ½ αᵀMα + bᵀα of the architecture parameters, whatever the weights and the batch."""

  def loss(weights, alphas, batch):
    flat = ravel_pytree(alphas)[0]
    return flat @ matrix @ flat / 2 + vector @ flat + jnp.sum(weights) * batch, None

  loss.key = jax.random.key(3)
  return loss


@pytest.mark.usefixtures('x64')
def test_of_a_quadratic_it_is_the_largest_eigenvalue():
  rng = np.random.default_rng(0)
  alphas = {'normal': jnp.asarray(rng.normal(size=(2, 3))), 'reduce': jnp.asarray(rng.normal(size=(1, 3)))}
  matrix = rng.normal(size=(9, 9))
  matrix += matrix.T
  found = architecture_curvature(quadratic(matrix, rng.normal(size=9)), jnp.ones(4), alphas, 2.0, UNSHARED).largest()
  eigenvalues = np.linalg.eigvalsh(matrix)
  assert -eigenvalues[0] != pytest.approx(eigenvalues[-1], rel=0.01)
  assert found == pytest.approx(eigenvalues[-1], rel=1e-12)


CONFIG: dict[str, Any] = {
  'epochs': 2,
  'batch_size': 64,
  'data': {'name': 'digits'},
  'augment': {'crop_padding': 1, 'flip': False},
  'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'avg_pool_3x3', 'sep_conv_3x3')},
  'network': {'channels': 2, 'layers': 3},
  'strategy': {'name': 'darts', 'init_scale': 0.5},
  'hypergradient': {'name': 'first_order'},
}


def make_searcher(num_devices):
  settings, images = build(Search, CONFIG), load('digits')
  searcher = Searcher.open(settings, images, make_mesh(num_devices))
  data = searcher.place([settings.task.halves(images, settings, settings.seed)])
  state = searcher.init(searcher.keys())
  # In the middle of a search; the latest step is the seventh.
  return searcher, data, state.replace(step=jnp.int32(7))


@pytest.fixture(scope='module')
def alone():
  return make_searcher(1)


def probe(searcher, state, data, index=None):
  evaluator = Evaluator(searcher, state, 7, Placed(data), None, lambda name, function, *arguments: function)
  return SupernetProbe(evaluator, index)


def curvature_of(searcher, data, state):
  return probe(searcher, state, data).curvature()


@pytest.fixture(scope='module')
def found(alone):
  return curvature_of(*alone)


def test_of_a_supernet_it_is_that_of_the_dense_hessian(alone, found):
  """Of the batch that the latest step read, by reverse mode over reverse mode."""
  searcher, data, state = alone
  batch = jax.jit(searcher.batches)(state.replace(step=jnp.int32(6)), data).valid
  at, unravel = ravel_pytree(state.alphas)

  def loss(values):
    mixing = searcher.searched.mix(unravel(values), 6, jax.random.key(0), ALPHAS)
    logits = searcher.learner.net.apply(
      {'params': state.weights.tree}, batch.images, mixing, train=True, mutable=['moments']
    )[0]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch.labels[:, None], axis=1))

  rows = jax.jit(lambda v: jax.vjp(jax.grad(loss), at)[1](v)[0])
  hessian = np.stack([rows(row) for row in np.eye(at.size, dtype=np.float32)])
  np.testing.assert_allclose(hessian, hessian.T, rtol=0, atol=1e-5 * np.abs(hessian).max())
  eigenvalues = np.linalg.eigvalsh(hessian.astype(np.float64))
  assert eigenvalues[-1] > 0.01
  assert found == pytest.approx(eigenvalues[-1], rel=1e-4)


def test_eight_devices_find_the_same(found):
  assert curvature_of(*make_searcher(8)) == pytest.approx(found, rel=1e-4)


def test_the_same_state_gives_the_same_bit_for_bit(alone, found):
  """So a search that was killed decides as if it had not been."""
  assert curvature_of(*alone) == found


def test_of_searches_side_by_side_each_has_its_own(found):
  """The first has the seed of the search by itself."""
  settings, images = build(Search, CONFIG | {'mesh': {'seed': 2}}), load('digits')
  searcher = Searcher.open(settings, images, make_mesh(2, seeds=2))
  data = searcher.place([settings.task.halves(images, settings, settings.seed + i) for i in range(2)])
  state = searcher.init(searcher.keys())
  state = state.replace(step=jnp.full_like(state.step, 7))
  first, second = (probe(searcher, state, data, i).curvature() for i in range(2))
  assert first == pytest.approx(found, rel=1e-4)
  assert second != pytest.approx(found, rel=0.01)


@pytest.mark.parametrize(
  ('changes', 'on_text'),
  [
    ({'space': 'nasbench201', 'network': {'channels': 2, 'layers': 3}}, False),
    ({'space': {'name': 'recurrent', 'nodes': 2}, 'network': {'width': 6}, 'data': {}, 'batch_size': 4}, True),
  ],
)
def test_of_other_spaces_and_of_text(changes, on_text, corpus):
  common = {name: value for name, value in CONFIG.items() if not on_text or name != 'augment'}
  settings = build(Search, common | changes)
  examples = corpus if on_text else load('digits')
  searcher = Searcher.open(settings, examples, make_mesh(1))
  data = searcher.place([settings.task.halves(examples, settings, settings.seed)])
  state = searcher.init(searcher.keys()).replace(step=jnp.int32(3))
  found = curvature_of(searcher, data, state)
  batch = jax.jit(searcher.batches)(state.replace(step=jnp.int32(2)), data).valid
  at, unravel = ravel_pytree(state.alphas)
  loss = BatchLoss.at(state.replace(step=jnp.int32(2)), searcher.learner.objective, searcher.searched, 'float32')
  gradient = jax.grad(lambda x: loss(state.weights.vector, unravel(x), batch)[0])
  # Reverse mode over reverse mode, where a search has forward mode over reverse mode.
  rows = jax.jit(lambda v: jax.vjp(gradient, at)[1](v)[0])
  hessian = np.stack([rows(row) for row in np.eye(at.size, dtype=np.float32)]).astype(np.float64)
  eigenvalues = np.linalg.eigvalsh((hessian + hessian.T) / 2)
  assert eigenvalues[-1] > 1e-5
  assert found == pytest.approx(eigenvalues[-1], rel=1e-3)


def test_an_evaluation_at_given_mixing_weights(alone):
  searcher, data, state = alone
  asked = probe(searcher, state, data)
  usual = searcher.learner.metrics(processes.fetch(searcher.evaluate(state, data)))
  mixing = searcher.searched.look(state.alphas, state.step, state.key)
  assert asked.measure(mixing) == pytest.approx(usual, rel=1e-6)
  other = {name: each._replace(operations=each.operations[:, ::-1]) for name, each in mixing.items()}
  assert asked.measure(other)['loss'] != pytest.approx(usual['loss'], rel=1e-5)
  assert searcher.measure._cache_size() == 1


def test_where_there_is_no_supernet_a_strategy_that_asks_is_told():
  class Asking(Darts):
    def turn(self, memory, arch, space, epoch, probe):
      getattr(probe, 'curvature' if epoch else 'measure')(*([] if epoch else [{}]))

  searched = Searched.start(Asking(), DartsSpace(1))
  for epoch, what in enumerate(('an evaluation', 'the curvature')):
    with pytest.raises(
      ValueError, match=f'^config.strategy: it asks for {what} of a supernet, and there is none here$'
    ):
      searched.turn({}, epoch)
