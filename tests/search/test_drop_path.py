"""A search whose supernet drops paths and has noise: what the rates and random numbers depend on."""

import dataclasses

import jax
import numpy as np
import pytest

from darts_jax.search import Search
from darts_jax.settings import build
from darts_jax.strategies.robust_darts import RobustDarts

SEARCH = build(
  Search,
  {
    'epochs': 3,
    # Epochs of two steps.
    'batch_size': 256,
    'data': {'name': 'digits'},
    'augment': {'crop_padding': 1, 'flip': False},
    'space': {'name': 'robust', 'subspace': 's4', 'nodes': 1},
    'network': {'channels': 2, 'layers': 3},
    # Decay keeps gradients from being nothing but rounding, of which Adam makes steps of full length.
    'alphas': {'learning_rate': 0.003, 'weight_decay': 0.1},
    'strategy': {'name': 'robust_darts', 'init_scale': 0.1, 'drop_path': 0.6},
    'hypergradient': {'name': 'first_order'},
  },
)


@pytest.fixture(scope='module')
def lab(make_lab):
  return make_lab(SEARCH, 1)


def test_nothing_is_dropped_in_the_first_epoch(make_lab, states):
  """Its rate is zero, so that a step is one of DARTS."""
  without = make_lab(dataclasses.replace(SEARCH, strategy=RobustDarts(init_scale=0.1)), 1)
  state = without.searcher.init(without.searcher.keys())
  for expected in states[1:3]:
    state, _ = without.searcher.run(state, without.data, np.int32(1))
    np.testing.assert_array_equal(state.weights.vector, expected.weights.vector)
    jax.tree.map(np.testing.assert_array_equal, state.alphas, expected.alphas)
  state, _ = without.searcher.run(state, without.data, np.int32(1))
  # Far beyond rounding.
  assert np.abs(np.asarray(state.weights.vector) - states[3].weights.vector).max() > 1e-4


def test_the_steps_of_a_state_are_the_same_in_any_call(check_in_any_call, lab, states):
  check_in_any_call(lab, states)


def test_eight_devices_drop_the_same_and_take_the_steps_of_one(check_on_eight_devices, states):
  check_on_eight_devices(SEARCH, states)


def test_evaluations_have_the_same_noise_on_all_devices(make_lab, lab, states):
  found = [
    jax.device_get(each.searcher.evaluate(jax.device_put(states[4], each.searcher.template().step.sharding), each.data))
    for each in (lab, lab, make_lab(SEARCH, 8))
  ]
  assert found[0] == found[1]
  np.testing.assert_allclose(found[2].loss, found[0].loss, rtol=1e-5)


def test_images_draw_by_step_half_and_place(lab, states):
  searcher = lab.searcher
  found = [jax.jit(searcher.batches)(jax.device_put(state), lab.data) for state in states[2:4]]
  keys = np.concatenate([half.keys for halves in found for half in halves])
  assert keys.shape == (4 * 256, 2)
  assert len(np.unique(keys, axis=0)) == len(keys)
