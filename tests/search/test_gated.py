"""Searches whose strategy draws operations and trains these alone: what stays, and what does not depend on a call."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from darts_jax.hypergradient import first_order
from darts_jax.nets.conv import Supernet
from darts_jax.nets.owners import flagged
from darts_jax.runtime.packed import Packed
from darts_jax.search import Search
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.searched import Searched
from darts_jax.search.state import SearchState
from darts_jax.search.step import search_step
from darts_jax.settings import build
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.strategies.gdas import Gdas
from darts_jax.strategies.relaxed import WEIGHTS
from darts_jax.streams import Stream
from darts_jax.tasks.base import Halves
from darts_jax.tasks.images import ImageBatch, ImageLoss

SEARCH = build(
  Search,
  {
    'epochs': 4,
    'batch_size': 32,
    'data': {'name': 'digits'},
    'augment': {'crop_padding': 1, 'flip': False},
    'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'avg_pool_3x3', 'sep_conv_3x3')},
    'network': {'channels': 2, 'layers': 3},
    'weights': {'weight_decay': 0.01},
    # Decay keeps gradients from being nothing but rounding, of which Adam makes steps of full length.
    'alphas': {'learning_rate': 0.003, 'weight_decay': 0.1},
    'strategy': {'name': 'gdas', 'init_scale': 0.1},
    'hypergradient': {'name': 'first_order'},
  },
)


@pytest.fixture(scope='module')
def lab(make_lab):
  return make_lab(SEARCH, 1)


def momentum(state: SearchState) -> np.ndarray:
  return np.asarray(optax.tree_utils.tree_get(state.weights_optimizer, 'trace'))


def drawn(searched: Searched, state: SearchState, alphas: Any) -> dict[str, Any]:
  """The mixing weights of the update of the weights, which a step makes at the new α."""
  key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), Stream.MIX)
  return searched.mix(alphas, state.step, key, WEIGHTS)


def check_gates(net: Supernet, before: SearchState, after: SearchState, mixing: dict[str, Any]) -> int:
  """Checks which weights, momenta and running statistics have moved; returns how many weights have not."""
  flags = {name: each.active for name, each in mixing.items()}
  active = np.asarray(flagged(net, before.weights.tree, flags))
  for old, new in ((before.weights.vector, after.weights.vector), (momentum(before), momentum(after))):
    moved = np.asarray(old) != np.asarray(new)
    assert not moved[~active].any()
    # Decay moves every weight, but for those of BN that begin with 0.
    assert moved[active].mean() > 0.9
  computed = np.asarray(flagged(net, before.statistics.tree, flags))
  moved = np.asarray(before.statistics.vector) != np.asarray(after.statistics.vector)
  assert not moved[~computed].any()
  assert moved[computed].mean() > 0.9
  return int((~active).sum())


def test_weights_momenta_and_statistics_of_what_was_not_drawn_stay(lab, states):
  searched = lab.searcher.searched
  for before, after in itertools.pairwise(states):
    assert check_gates(lab.searcher.learner.net, before, after, drawn(searched, before, after.alphas)) > 0
    for name, old in before.alphas.items():
      assert (np.asarray(old) != np.asarray(after.alphas[name])).all()


def test_the_step_of_a_state_is_the_same_in_any_call(check_in_any_call, lab, states):
  check_in_any_call(lab, states)


def test_eight_devices_draw_the_same_and_take_the_steps_of_one(check_on_eight_devices, states):
  check_on_eight_devices(SEARCH, states)


@pytest.mark.usefixtures('x64')
def test_a_step_on_the_cell_of_nasbench201():
  space, rng = NasBench201(), np.random.default_rng(0)
  searched = Searched.start(Gdas(init_scale=0.1), space)
  net = Supernet(tuple(space.cells.items()), space.plan(3), 2, 3, stem_multiplier=1, tracked=False)
  optimizers = Optimizers.from_settings(SEARCH, [10] * SEARCH.epochs)
  alphas = searched.init(jax.random.key(1))
  batches = Halves(*[ImageBatch(jnp.asarray(rng.normal(size=(4, 8, 8, 3))), jnp.arange(4) % 3) for _ in range(2)])
  mixing = searched.mix(alphas, 0, jax.random.key(0), WEIGHTS)

  def start() -> SearchState:
    variables = net.init(jax.random.key(2), batches.train.images, mixing, train=True)
    weights = Packed.pack(variables['params'])
    moments = optimizers.weights.init(weights.vector), optimizers.alphas.init(alphas)
    statistics = Packed.pack(variables['batch_stats'])
    return SearchState(jnp.int32(0), jax.random.key(3), weights, statistics, alphas, *moments)

  def step(state: SearchState) -> SearchState:
    return search_step(
      state,
      *batches,
      objective=ImageLoss(net),
      searched=searched,
      estimator=first_order(),
      optimizers=optimizers,
    )[0]

  before = jax.jit(start)()
  after = jax.jit(step)(before)
  assert check_gates(net, before, after, drawn(searched, before, after.alphas)) > 0
