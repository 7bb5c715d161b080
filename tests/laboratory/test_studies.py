"""What the supernet's laboratory starts from; its results are tested by the command."""

import itertools

import jax
import numpy as np
import pytest

from darts_jax.laboratory import Laboratory
from darts_jax.laboratory.studies import SupernetLab
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.search import Searcher
from darts_jax.settings import build

LABORATORY = {
  'batch_sizes': (8,),
  'search': {
    'seed': 5,
    'batch_size': 4,
    'data': {'name': 'digits'},
    'space': {'nodes': 1, 'operations': ('none', 'skip_connect')},
    'network': {'channels': 2, 'layers': 3},
  },
}


def test_without_a_checkpoint_the_network_is_at_initialisation():
  settings = build(Laboratory, LABORATORY)
  lab = SupernetLab(settings, None, print)
  assert lab.source == 'initialisation'
  searcher: Searcher = lab._searcher
  state = searcher.init(jax.random.key(5))
  np.testing.assert_array_equal(lab.frozen.state.weights.vector, state.weights.vector)
  np.testing.assert_array_equal(lab.frozen.state.alphas['normal'], state.alphas['normal'])
  # A batch of either half, of the search's size or another, the same for the same draw.
  assert [half.images.shape for half in lab.frozen.batches] == [(4, 8, 8, 1)] * 2
  other, same, third = (lab.freeze(state, 8, draw) for draw in (1, 1, 2))
  assert other.batches.train.images.shape == (8, 8, 8, 1)
  np.testing.assert_array_equal(other.batches.valid.images, same.batches.valid.images)
  assert (other.batches.valid.images != third.batches.valid.images).any()


def test_checkpoint_of_a_search_on_other_data_is_refused(tmp_path):
  settings = build(Laboratory, LABORATORY)
  state = SupernetLab(settings, None, print)._searcher.init(jax.random.key(0))
  fingerprint = settings.search.task.fingerprint(settings.search.task.load())
  for pixels in ('others', fingerprint['pixels']):
    claim = {'dataset': {**fingerprint, 'pixels': pixels}}
    Checkpoints(tmp_path / pixels / 'checkpoints').save(0, state, {}, claim=claim)
  same = tmp_path / fingerprint['pixels']
  assert SupernetLab(build(Laboratory, LABORATORY), str(same), print).source == f'step 0 of {same}'
  with pytest.raises(
    ValueError,
    match=f'^--checkpoint: {tmp_path}/others was searched on other data than those of config.search.data .digits.$',
  ):
    SupernetLab(build(Laboratory, LABORATORY), str(tmp_path / 'others'), print)


def test_a_walk_takes_the_steps_of_the_search_in_its_order_and_at_its_times():
  alphas = {'order': 'weights_first', 'every': 2, 'weight_decay': 0.1}
  strategy = {'init_scale': 0.1, 'temperature': (2.0, 0.5)}
  search = {
    **LABORATORY['search'],
    'batch_size': 16,
    'alphas': alphas,
    'strategy': strategy,
    'hypergradient': {'name': 'first_order'},
  }
  settings = build(Laboratory, {**LABORATORY, 'search': search, 'search_steps': 4, 'compare_every': 1})
  lab = SupernetLab(settings, None, print)
  searcher, data, _ = lab._searchers[16]
  walk = list(lab._walk(0))
  assert [step for step, _ in walk] == [0, 1, 2, 3, 4]
  state = searcher.init(jax.random.key(5))
  moved = []
  for (_, before), (_, after) in itertools.pairwise(walk):
    state, _ = searcher.run(state, data, np.int32(1))
    # Sums in another order.
    np.testing.assert_allclose(after.weights.vector, state.weights.vector, rtol=0, atol=1e-5)
    np.testing.assert_allclose(after.alphas['normal'], state.alphas['normal'], rtol=0, atol=1e-5)
    moved.append(bool(np.any(after.alphas['normal'] != before.alphas['normal'])))
  assert moved == [False, True, False, True]
