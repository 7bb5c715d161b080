"""A search whose edges compute a part of the channels: when α and β move, and that devices and calls do not matter."""

import numpy as np
import pytest

from darts_jax.search import Search
from darts_jax.settings import build

SEARCH = build(
  Search,
  {
    'epochs': 4,
    # Epochs of two steps.
    'batch_size': 256,
    'data': {'name': 'digits'},
    'augment': {'crop_padding': 1, 'flip': False},
    'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'sep_conv_3x3')},
    'network': {'channels': 4, 'layers': 3},
    # Decay keeps gradients from being nothing but rounding, of which Adam makes steps of full length.
    'alphas': {'learning_rate': 0.003, 'weight_decay': 0.1, 'from_epoch': 1},
    'strategy': {'name': 'pc_darts', 'init_scale': 0.1, 'channel_part': 2},
    'hypergradient': {'name': 'first_order'},
  },
)


@pytest.fixture(scope='module')
def lab(make_lab):
  return make_lab(SEARCH, 1)


def test_alphas_and_betas_move_from_their_epoch_on(lab, states):
  assert lab.searcher.learner.net.channel_part == 2
  for name, first in states[0].alphas.items():
    np.testing.assert_array_equal(states[2].alphas[name], first)
    assert (states[3].alphas[name] != first).all()
  assert set(states[0].alphas) == {'normal', 'reduce', 'betas_normal', 'betas_reduce'}


def test_the_steps_of_a_state_are_the_same_in_any_call(check_in_any_call, lab, states):
  check_in_any_call(lab, states)


def test_eight_devices_take_the_steps_of_one(check_on_eight_devices, states):
  check_on_eight_devices(SEARCH, states)
