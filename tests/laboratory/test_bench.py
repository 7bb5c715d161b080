"""Estimators run pass by pass on a tiny supernet, against each other where they agree in theory, and as in a search."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from darts_jax.data.images import load
from darts_jax.hypergradient import (
  exact,
  exact_reverse,
  finite_difference,
  first_order,
  truncated,
  unrolled,
)
from darts_jax.hypergradient.settings import ConjugateGradient, Exact, ExactReverse, FirstOrder, Truncated
from darts_jax.laboratory.bench import Bench, Frozen, compare, to_host
from darts_jax.runtime.compilation import compiler_options
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.packed import Packed
from darts_jax.search import Search, Searcher
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.searched import Searched
from darts_jax.search.step import search_step
from darts_jax.settings import build

SETTINGS = build(
  Search,
  {
    'batch_size': 4,
    'data': {'name': 'digits'},
    'augment': {'crop_padding': 1, 'flip': False},
    'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'max_pool_3x3')},
    'network': {'channels': 2, 'layers': 3},
    'weights': {'learning_rate': 0.05, 'clip_norm': 1.0},
    'strategy': {'init_scale': 0.1},
    'hypergradient': {'clipping': 'differentiated'},
  },
)


def gathered(gradient):
  return np.concatenate([np.ravel(gradient[name]) for name in sorted(gradient)]).astype(np.float64)


def distance(found, expected):
  a, b = gathered(found), gathered(expected)
  return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture(scope='module')
def searcher():
  return Searcher.open(SETTINGS, load('digits'), make_mesh(1))


@pytest.fixture(scope='module')
def state(searcher):
  state = searcher.init(jax.random.key(3))
  # A momentum that matters.
  vector = state.weights.vector
  trace = 0.1 * jax.random.normal(jax.random.key(4), vector.shape)
  moving = jax.tree.map(lambda x: trace if x.shape == vector.shape else x, state.weights_optimizer)
  return state.replace(weights_optimizer=moving)


@pytest.fixture(scope='module')
def frozen(searcher, state):
  halves = searcher.place([SETTINGS.task.halves(load('digits'), SETTINGS, SETTINGS.seed)])
  return Frozen(to_host(state), jax.device_get(jax.jit(searcher.batches)(state, halves)))


@pytest.fixture(scope='module')
def optimizers(searcher):
  return Optimizers.from_settings(SETTINGS, searcher.epoch_ends)


@pytest.fixture(scope='module')
def benches(searcher, optimizers):
  searched = Searched.from_settings(SETTINGS)
  return {name: Bench(searcher.learner.net, searched, optimizers, name) for name in ('float32', 'float64')}


@pytest.fixture(scope='module')
def truth(benches, frozen):
  return benches['float64'].estimate(exact(), frozen)


def test_finite_difference_of_a_vanishing_radius_is_exact(benches, frozen, truth):
  """At a radius of 1e-6 no ReLU or pooling changes branch; round-off, of 1e-16 / 1e-6, and truncation are small."""
  found = benches['float64'].estimate(finite_difference(1e-6), frozen)
  assert np.linalg.norm(gathered(truth.term)) > 1e-3
  assert distance(found.term, truth.term) < 1e-7
  assert distance(found.estimate, truth.estimate) < 1e-7


@pytest.mark.parametrize('estimator', [exact_reverse(), unrolled(1), truncated(1, 1)], ids=lambda e: e.name)
def test_other_ways_to_the_exact_one_step_gradient(benches, frozen, truth, estimator):
  assert distance(benches['float64'].estimate(estimator, frozen).term, truth.term) < 1e-10


def test_clipping_and_momentum_are_part_of_the_step(benches, frozen, truth, searcher):
  _, gradients = benches['float64'].gradients(frozen)
  assert np.linalg.norm(gradients.weights) > SETTINGS.weights.clip_norm
  found = []
  for clipping in ('none', 'constant'):
    changed = dataclasses.replace(SETTINGS, hypergradient=Exact(clipping=clipping))
    each = dataclasses.replace(
      benches['float64'], optimizers=Optimizers.from_settings(changed, searcher.epoch_ends), advances={}
    )
    each._programs = benches['float64']._programs
    found.append(each.estimate(exact(), frozen))
  none, constant = found
  assert distance(none.outer, truth.outer) > 1e-3
  # The same step, but another derivative of it.
  assert distance(constant.outer, truth.outer) < 1e-12
  assert distance(constant.term, truth.term) > 1e-3


def test_unrolled_gradient_is_that_of_the_outer_loss_after_the_steps(benches, frozen):
  """By a central difference in a direction of α, of the loss after three real steps of the optimiser."""
  bench, steps = benches['float64'], 3
  estimate = bench.estimate(unrolled(steps), frozen).estimate
  rng = np.random.default_rng(0)
  direction = {name: rng.normal(size=value.shape) for name, value in estimate.items()}

  def outer(scale):
    moved = {name: frozen.state.alphas[name] + scale * direction[name] for name in direction}
    state = frozen.state.replace(
      alphas=moved,
      weights=Packed(
        np.float64(frozen.state.weights.vector), frozen.state.weights.treedef, frozen.state.weights.shapes
      ),
      weights_optimizer=jax.tree.map(
        lambda x: np.float64(x) if x.dtype == np.float32 else x, frozen.state.weights_optimizer
      ),
    )
    for _ in range(steps):
      _, gradients = bench.gradients(frozen._replace(state=state))
      with jax.enable_x64(True):
        inner = bench.optimizers.inner_optimizer(state.weights_optimizer)
        vector, after = jax.device_get(inner.update(state.weights.vector, gradients.weights, state.weights_optimizer))
      state = state.replace(weights=state.weights.replace(vector), weights_optimizer=after)
    return bench.gradients(frozen._replace(state=state), 'valid')[0]

  step = 1e-6
  slope = (outer(step) - outer(-step)) / (2 * step)
  np.testing.assert_allclose(gathered(estimate) @ gathered(direction), slope, rtol=1e-6)


def test_many_radii_are_those_of_the_estimator(benches, frozen, truth):
  terms = list(benches['float64'].differences(frozen, truth, [0.01, 1e-4]))
  for radius, term in zip([0.01, 1e-4], terms, strict=True):
    assert distance(term, benches['float64'].estimate(finite_difference(radius), frozen).term) < 1e-9
  assert distance(*terms) > 1e-6


def test_what_is_measured(benches, frozen):
  bench = benches['float32']
  gradient_seconds, gradient_bytes = bench.time_gradient(frozen, 2)
  outcome = bench.estimate(first_order(), frozen, repeats=2)
  assert gradient_seconds > 0
  assert outcome.seconds > 0
  assert outcome.num_bytes > gradient_bytes > 0
  assert np.isnan(bench.estimate(first_order(), frozen).seconds)


# They have what all estimators share from the settings of the fixtures.
@pytest.mark.parametrize(
  'hypergradient',
  [FirstOrder(), Exact(), ExactReverse(), Truncated(steps=3), ConjugateGradient(iterations=2, damping=10.0)],
  ids=lambda each: each.name,
)
@pytest.mark.usefixtures('x64')
def test_search_step_makes_the_same_passes(benches, frozen, searcher, optimizers, hypergradient):
  estimator = hypergradient.estimator()
  expected = benches['float64'].estimate(estimator, frozen)
  state, batches = jax.tree.map(lambda x: np.float64(x) if x.dtype == np.float32 else x, tuple(frozen))

  @functools.partial(jax.jit, compiler_options=compiler_options())
  def step(state, batches):
    return search_step(
      state.replace(key=jax.random.key(0)),
      *batches,
      objective=searcher.learner.objective,
      searched=Searched.from_settings(SETTINGS),
      estimator=estimator,
      optimizers=optimizers,
    )

  after, info = step(state, batches)
  # Two programs of the same passes differ by rounding.
  assert distance(info.hypergradient, expected.estimate) < 1e-9
  fraction = np.linalg.norm(gathered(expected.term)) / np.linalg.norm(gathered(expected.outer))
  np.testing.assert_allclose(info.metrics['second_order_fraction'], fraction, rtol=1e-8)
  for report in estimator.reports:
    np.testing.assert_allclose(info.metrics[report], getattr(expected.memory, report), rtol=1e-8)
  assert int(after.step) == 1


def test_comparison():
  reference = {'a': np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]), 'b': np.array([1.0, -1.0, 0.0])}
  same = compare(reference, reference)
  assert same['error'] == 0
  assert same['cosine'] == pytest.approx(1)
  # Of the pairs in an edge, two are tied in the reference's second edge.
  assert same['rank'] == pytest.approx((1 + 2 / 3 + 1) / 3)
  turned = {name: -2 * value for name, value in reference.items()}
  found = compare(turned, reference)
  assert (found['error'], found['cosine']) == (pytest.approx(3), pytest.approx(-1))
  assert found['sign'] == pytest.approx(3 / 9)
  nothing = {name: 0 * value for name, value in reference.items()}
  assert compare(nothing, reference) == {'error': 1, 'cosine': None, 'sign': None, 'rank': None}
  assert compare(reference, nothing) == dict.fromkeys(('error', 'cosine', 'sign', 'rank'))
