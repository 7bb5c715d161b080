"""Batches that several devices share: what crosses devices in a step, BN in groups, and rates for large batches."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.hlo import Collective, Program
from darts_jax.search import Search
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.settings import Alphas, BatchNorm, Weights
from darts_jax.settings import build

DEVICES, BATCH = 8, 128
SEARCH = build(
  Search,
  {
    'epochs': 4,
    'batch_size': BATCH,
    'data': {'name': 'digits'},
    'augment': {'crop_padding': 1, 'flip': True, 'cutout': 2},
    'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'avg_pool_3x3', 'sep_conv_3x3')},
    'network': {'channels': 2, 'layers': 3},
    # Decay keeps gradients from being nothing but rounding, of which Adam makes steps of full length.
    'alphas': {'learning_rate': 0.003, 'weight_decay': 0.1},
    'strategy': {'init_scale': 0.1},
    'hypergradient': {'name': 'first_order'},
  },
)


def in_groups_of(size: int) -> Search:
  return dataclasses.replace(SEARCH, batch_norm=BatchNorm(size))


@pytest.fixture(scope='module')
def in_one(make_lab):
  """A batch is one group."""
  return make_lab(in_groups_of(0), DEVICES)


def crossing(lab: Any) -> tuple[Any, list[Collective]]:
  """The state before the first step, and the collectives of the compiled step."""
  state = lab.searcher.init(lab.searcher.keys())
  text = lab.searcher.run.lower(state, lab.data, np.int32(1)).compile().as_text()
  # The pass of the outer loss and that of the weight update, which alone wants the gradient in the weights.
  return state, Program(text, DEVICES, 2, 1).step().collectives


def check_gradients(found: list[Collective], state: Any) -> None:
  """One all-reduce a pass: of α's gradient, loss and accuracy; with that of the weights and running statistics."""
  small = sum(alphas.size for alphas in state.alphas.values()) + 2
  large = small + state.weights.vector.size + state.statistics.vector.size
  gradients = [each for each in found if each.purpose == 'gradients']
  assert sorted(each.bytes for each in gradients) == [4 * small, 4 * large]
  for each in gradients:
    assert (each.kind, each.place, each.group) == ('all-reduce', 'in a pass, in a branch', DEVICES)
    # Each pass takes one of the branches.
    assert each.executions == 1


def test_gradients_cross_devices_once_a_pass_and_statistics_once_each_way(in_one):
  state, found = crossing(in_one)
  check_gradients(found, state)
  others = [each for each in found if each.purpose != 'gradients']
  assert {(each.kind, each.purpose, each.place, each.group) for each in others} == {
    ('all-reduce', 'BN statistics', 'in a pass', DEVICES)
  }
  # Six numbers for every channel (see `NormGroups.moments`), and in the backward pass their gradients.
  assert sum(each.bytes for each in others) == 2 * 4 * 6 * state.statistics.vector.size // 2
  assert all(each.executions == 2 for each in others)


@pytest.fixture(scope='module')
def in_groups(make_lab):
  """Two groups on each of the devices."""
  return make_lab(in_groups_of(BATCH // DEVICES // 2), DEVICES)


def test_nothing_but_gradients_crosses_devices_if_groups_are_on_one(in_groups):
  state, found = crossing(in_groups)
  check_gradients(found, state)
  assert len(found) == 2


def test_steps_in_groups_are_the_same_on_any_number_of_devices(make_lab, in_groups, in_one):
  found = []
  for size in (in_groups.searcher.settings.batch_norm.group_size, 0):
    for lab in (in_groups if size else in_one, make_lab(in_groups_of(size), 1)):
      state, sums = lab.searcher.run(lab.searcher.init(lab.searcher.keys()), lab.data, np.int32(3))
      assert sums['steps'] == 3
      found.append(jax.device_get((state.alphas, state.weights.vector, state.statistics.vector)))
  # Rounding, in sums of another order.
  for ours, one in (found[:2], found[2:]):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), ours[1:], one[1:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), ours[0], one[0])
  # Groups matter by more than that.
  assert np.abs(found[0][1] - found[2][1]).max() > 2e-3


# Rates.

ENDS = (10, 20, 30, 40)


def optimizers(**changes: Any) -> Optimizers:
  return Optimizers.from_settings(dataclasses.replace(SEARCH, **changes), ENDS)


@pytest.mark.parametrize(('reference', 'factor'), [(0, 1), (64, 2), (256, 0.5)])
def test_learning_rates_grow_with_the_batch_and_are_warmed_up(reference, factor):
  weights = Weights(0.1, 0.02, warmup_epochs=1.5, reference_batch_size=reference)
  rate = jax.jit(optimizers(weights=weights).learning_rate)
  for step in (0, 4, 9, 10, 14, 15, 25, 39):
    cosine = 0.02 + 0.08 * (1 + math.cos(math.pi * (step // 10) / 4)) / 2
    assert float(rate(step)) == pytest.approx(factor * cosine * min(1, (step + 1) / 15), rel=1e-5)


@pytest.mark.parametrize(('warmup', 'reference', 'factors'), [(0, 0, [1, 1, 1]), (0.3, 64, [2 / 3, 4 / 3, 2])])
def test_alphas_have_a_rate_of_their_own(warmup, reference, factors):
  alphas = Alphas(0.01, 0.5, 0.999, 0.0, warmup, reference)
  transform = optimizers(alphas=alphas).alphas
  state = transform.init(jnp.zeros(2))
  for factor in factors:
    # Adam's steps on a gradient that stays the same are as long as the learning rate.
    updates, state = jax.jit(transform.update)(jnp.array([0.3, -2.0]), state, jnp.zeros(2))
    np.testing.assert_allclose(updates, [-0.01 * factor, 0.01 * factor], rtol=1e-4)


def test_alphas_are_warmed_up_from_their_first_epoch_on_by_their_own_steps():
  alphas = Alphas(0.01, 0.5, 0.999, 0.0, warmup_epochs=1.5, every=5, from_epoch=1)
  transform = optimizers(alphas=alphas).alphas
  state = transform.init(jnp.zeros(2))
  # In one and a half epochs of ten steps there are three.
  for factor in (1 / 3, 2 / 3, 1, 1):
    updates, state = jax.jit(transform.update)(jnp.array([0.3, -2.0]), state, jnp.zeros(2))
    np.testing.assert_allclose(updates, [-0.01 * factor, 0.01 * factor], rtol=1e-4)


def test_without_warm_up_the_rate_of_alphas_is_a_constant():
  # As it was before there was any: the state of the optimiser has no step of a schedule.
  constant = optimizers().alphas.init(jnp.zeros(1))
  expected = optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.003, 0.5)).init(jnp.zeros(1))
  assert jax.tree.structure(constant) == jax.tree.structure(expected)


@pytest.mark.parametrize('group', ['weights', 'alphas'])
def test_a_warm_up_that_is_longer_than_the_search_is_refused(group):
  with pytest.raises(ValueError, match=rf'^config.{group}.warmup_epochs: 5.0 is not allowed; there are 4 epochs$'):
    build(Search, {'epochs': 4, group: {'warmup_epochs': 5}})
