"""What the supernet's laboratory starts from; its results are tested by the command."""

import jax
import numpy as np

from darts_jax.laboratory import Laboratory
from darts_jax.laboratory.studies import SupernetLab
from darts_jax.search import ImageSearcher
from darts_jax.settings import build


def test_without_a_checkpoint_the_network_is_at_initialisation():
  config = {
    'batch_sizes': (8,),
    'search': {
      'seed': 5,
      'batch_size': 4,
      'data': {'name': 'digits'},
      'network': {'channels': 2, 'layers': 3, 'nodes': 1, 'operations': ('none', 'skip_connect')},
    },
  }
  settings = build(Laboratory, config)
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
