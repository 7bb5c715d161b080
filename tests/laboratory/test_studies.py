"""What the supernet's laboratory starts from; its results are tested by the command."""

import jax
import numpy as np
import pytest

from darts_jax.laboratory import Laboratory
from darts_jax.laboratory.studies import SupernetLab
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.search import ImageSearcher
from darts_jax.settings import build

LABORATORY = {
  'batch_sizes': (8,),
  'search': {
    'seed': 5,
    'batch_size': 4,
    'data': {'name': 'digits'},
    'network': {'channels': 2, 'layers': 3, 'nodes': 1, 'operations': ('none', 'skip_connect')},
  },
}


def test_without_a_checkpoint_the_network_is_at_initialisation():
  settings = build(Laboratory, LABORATORY)
  lab = SupernetLab(settings, None, print)
  assert lab.source == 'initialisation'
  searcher: ImageSearcher = lab._searcher
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
  searcher: ImageSearcher = SupernetLab(build(Laboratory, LABORATORY), None, print)._searcher
  state = searcher.init(jax.random.key(0))
  for pixels in ('others', searcher.fingerprint['pixels']):
    claim = {'dataset': {**searcher.fingerprint, 'pixels': pixels}}
    Checkpoints(tmp_path / pixels / 'checkpoints').save(0, state, {}, claim=claim)
  same = tmp_path / searcher.fingerprint['pixels']
  assert SupernetLab(build(Laboratory, LABORATORY), str(same), print).source == f'step 0 of {same}'
  with pytest.raises(
    ValueError,
    match=f'^--checkpoint: {tmp_path}/others was searched on other data than those of config.search.data .digits.$',
  ):
    SupernetLab(build(Laboratory, LABORATORY), str(tmp_path / 'others'), print)
