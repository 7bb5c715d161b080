"""Searches for recurrent cells: the step by its formulas."""

import dataclasses
import functools
import math
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from darts_jax.data.corpus import Corpus, columns
from darts_jax.data.sequences import Sequences, perplexity
from darts_jax.hypergradient import BILEVEL, Estimator, make
from darts_jax.nets.recurrent import Dropout, Masks
from darts_jax.runtime.compilation import compiler_options
from darts_jax.runtime.mesh import make_mesh, replicated
from darts_jax.search import Search, Searcher
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.state import SearchState
from darts_jax.search.step import search_step
from darts_jax.settings import build
from darts_jax.spaces import Mixing
from darts_jax.strategies.sgas import Sgas
from darts_jax.tasks.base import Halves
from darts_jax.tasks.text import Network, TextBatch, cell_weights

VOCAB, BATCH, BPTT = 10, 8, 5
SEARCH = build(
  Search,
  {
    'epochs': 3,
    'batch_size': BATCH,
    # Regularisation, decay and clipping are strong enough for their absence to be seen.
    'task': {'bptt': BPTT, 'short_fraction': 0.5, 'temporal_activation': 0.3},
    'space': {'name': 'recurrent', 'nodes': 1, 'operations': ('none', 'tanh', 'sigmoid')},
    'network': {'width': 4},
    'weights': {'learning_rate': 4.0, 'final_learning_rate': 4.0, 'weight_decay': 0.02, 'clip_norm': 0.05},
    'alphas': {'learning_rate': 0.02, 'weight_decay': 0.05},
    'strategy': {'init_scale': 0.5},
  },
)
WITHOUT_DROPOUT = dataclasses.replace(
  SEARCH, task=dataclasses.replace(SEARCH.task, network=Network(SEARCH.task.network.width, Dropout(0, 0, 0, 0, 0)))
)


class Lab(NamedTuple):
  searcher: Searcher
  data: Halves

  def init(self) -> SearchState:
    return self.searcher.init(jax.random.key(0))


def make_lab(settings: Search, corpus: Corpus, num_devices: int = 1) -> Lab:
  data = settings.task.halves(corpus, settings, settings.seed)
  searcher = Searcher.open(settings, corpus, make_mesh(num_devices))
  return Lab(searcher, searcher.place([data]))


@pytest.fixture(scope='module')
def lab(corpus) -> Lab:
  return make_lab(WITHOUT_DROPOUT, corpus)


class Step(NamedTuple):
  """A step: the states before and after, its batches, and what it saw."""

  before: SearchState
  after: SearchState
  batches: Halves
  hypergradient: np.ndarray
  metrics: dict[str, float]


# How a batch lies on the devices.
BATCH_AXES = TextBatch(
  Sequences(*[PartitionSpec(None, 'data')] * 2, PartitionSpec()),
  PartitionSpec('data'),
  Masks(PartitionSpec(), *[PartitionSpec('data')] * 4),
)


def make_step(lab: Lab, estimator: Estimator) -> Any:
  """The step of a search, with an estimator of its own."""
  searcher = lab.searcher

  def step(state, data):
    batches = searcher.batches(state, data)
    after, info = search_step(
      state,
      *batches,
      objective=searcher.learner.objective,
      searched=searcher.searched,
      estimator=estimator,
      optimizers=searcher.optimizers(state, data),
      shards=searcher.shards,
    )
    return after, batches, info

  batches = Halves(BATCH_AXES, BATCH_AXES)
  axes = searcher.state_axes, searcher.learner.data_axes
  spread = searcher.spread(step, axes, (searcher.state_axes, batches, PartitionSpec()))
  return jax.jit(spread, compiler_options=compiler_options())


def walk(lab: Lab, estimator: Estimator, start: SearchState, num_steps: int) -> list[Step]:
  """Steps in float64."""
  take = make_step(lab, estimator)
  with jax.enable_x64(True):
    state = jax.device_put(start, replicated(lab.searcher.mesh))
    steps: list[Step] = []
    for _ in range(num_steps):
      before = jax.device_get(state)
      state, batches, info = take(state, lab.data)
      found = {name: value.item() for name, value in info.metrics.items()}
      steps.append(Step(before, *jax.device_get((state, batches, info.hypergradient['recurrent'])), found))
    return steps


@pytest.fixture(scope='module')
def start(lab) -> SearchState:
  """A state in float64, with weights of a size at which second derivatives count."""

  def widen(leaf):
    return np.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

  state = jax.tree.map(widen, lab.init())
  return state.replace(weights=state.weights.replace(20 * state.weights.vector))


# One inner step and one back make all that unrolls the same as what is exact; the others have terms enough.
FIELDS = {'steps': 1, 'backward_steps': 1, 'terms': 1, 'step_size': 0.5, 'iterations': 2, 'damping': 1.0}
NUM_STEPS = 2


@pytest.fixture(scope='module')
def walks(lab, start) -> Any:
  """By the name of an estimator, the first two steps."""
  return functools.cache(lambda name: walk(lab, make(name, FIELDS), start, NUM_STEPS))


def differentiate(lab: Lab, half: Any) -> Any:
  """Loss, hidden state, statistics and gradients in weights and α, as a function of weights, α, statistics.

  The network without padding and dropout, with the temporal term if it is asked for.
  """
  length = int(half.sequences.length)
  tokens, targets = half.sequences.tokens[:length], half.sequences.targets[:length]
  net = lab.searcher.learner.net

  @jax.jit
  def compute(weights, alphas, statistics, temporal):
    def loss(weights, alphas):
      mixing = jnp.exp(alphas) / jnp.sum(jnp.exp(alphas), axis=1, keepdims=True)
      variables = {'params': weights, 'batch_stats': statistics}
      embedded = net.apply(variables, tokens, method='embed')
      states, updated = net.apply(
        variables, embedded, half.hidden, mixing, train=True, method='advance', mutable=['batch_stats']
      )
      log_probs = jax.nn.log_softmax(net.apply(variables, states, method='decode'))
      time, column = jnp.indices(tokens.shape)
      likelihood = -jnp.mean(log_probs[time, column, targets])
      changes = jnp.mean(jnp.diff(states, axis=0) ** 2)
      return likelihood + temporal * changes, (likelihood, states[-1], updated['batch_stats'])

    return jax.grad(loss, (0, 1), has_aux=True)(weights, alphas)

  def at(vector, alphas, state, temporal=0.0):
    weights = state.weights.replace(vector).tree
    found = compute(weights, alphas, state.statistics.tree, temporal)
    (of_weights, of_alphas), (loss, hidden, statistics) = jax.device_get(found)
    return types.SimpleNamespace(
      weights=np.asarray(ravel_pytree(of_weights)[0]),
      alphas=of_alphas,
      loss=loss,
      hidden=hidden,
      statistics=np.asarray(ravel_pytree(statistics)[0]),
    )

  return at


def coefficient(gradient: np.ndarray) -> float:
  """Of clipping, by the rule of the published experiments."""
  return min(1, SEARCH.weights.clip_norm / (np.linalg.norm(gradient) + 1e-6))


class Formulas(NamedTuple):
  """What SPEC §2 says of a step."""

  direct: np.ndarray
  second_order: np.ndarray
  alphas: np.ndarray
  weights: np.ndarray
  train: Any
  valid: Any
  coefficients: tuple[float, float, float]


@pytest.fixture(scope='module')
def formulas(lab, walks) -> list[Formulas]:
  """Of the exact estimator's steps."""

  def compute(step):
    before, batches = step.before, step.batches
    train, valid = differentiate(lab, batches.train), differentiate(lab, batches.valid)
    w, alphas = before.weights.vector, before.alphas['recurrent']
    rates = SEARCH.weights
    # The fraction is rounded to float32, which would be seen below.
    rate = rates.learning_rate * float(np.float32(batches.train.sequences.length) / np.float32(BPTT))

    # The coefficient that clips g is a constant factor of ξ; v is clipped to the same norm [DARTS, as published].
    g = train(w, alphas, before).weights
    outer = valid(w - rate * (coefficient(g) * g + rates.weight_decay * w), alphas, before)
    v = coefficient(outer.weights) * outer.weights
    epsilon = 1e-3 / np.linalg.norm(v)
    plus, minus, plus_twice, minus_twice = (train(w + k * epsilon * v, alphas, before).alphas for k in (1, -1, 2, -2))
    mixed = (8 * (plus - minus) - plus_twice + minus_twice) / (12 * epsilon)
    second_order = -rate * coefficient(g) * mixed

    # Adam with decay in the gradient.
    adam = SEARCH.alphas
    count, mean, square = (optax.tree_utils.tree_get(before.alphas_optimizer, name) for name in ('count', 'mu', 'nu'))
    gradient = outer.alphas + second_order + adam.weight_decay * alphas
    mean = adam.beta1 * mean['recurrent'] + (1 - adam.beta1) * gradient
    square = adam.beta2 * square['recurrent'] + (1 - adam.beta2) * gradient**2
    root = np.sqrt(square / (1 - adam.beta2 ** (count + 1)))
    new_alphas = alphas - adam.learning_rate * mean / (1 - adam.beta1 ** (count + 1)) / (root + 1e-8)

    # The weights at the new α, with the temporal term.
    last = train(w, new_alphas, before, SEARCH.task.temporal_activation)
    weights = w - rate * (coefficient(last.weights) * last.weights + rates.weight_decay * w)
    coefficients = coefficient(g), coefficient(outer.weights), coefficient(last.weights)
    return Formulas(outer.alphas, second_order, new_alphas, weights, last, outer, coefficients)

  steps = walks('exact')
  with jax.enable_x64(True):
    return [compute(step) for step in steps]


def assert_close(found, expected, tolerance):
  """Equal up to so much of the largest entry."""
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)))


def test_steps_are_of_both_lengths_and_clip(walks, formulas):
  steps = walks('exact')
  assert [int(step.batches.train.sequences.length) for step in steps] == [2, 5]
  for formula in formulas:
    assert max(formula.coefficients) < 0.9


def test_hypergradient_is_that_of_the_formulas(walks, formulas):
  for step, formula in zip(walks('exact'), formulas, strict=True):
    assert_close(step.hypergradient, formula.direct + formula.second_order, 1e-9)
    # On its own, since it is small beside the direct term: what is wrong with it would not be seen.
    assert_close(step.hypergradient - formula.direct, formula.second_order, 1e-6)
    fraction = np.linalg.norm(formula.second_order) / np.linalg.norm(formula.direct)
    np.testing.assert_allclose(step.metrics['second_order_fraction'], fraction, rtol=1e-6)
    assert fraction > 1e-3


def test_alphas_and_weights_move_as_the_formulas_say(walks, formulas):
  for step, formula in zip(walks('exact'), formulas, strict=True):
    before, after = step.before, step.after
    old = before.alphas['recurrent']
    assert_close(after.alphas['recurrent'] - old, formula.alphas - old, 1e-8)
    old = before.weights.vector
    assert_close(after.weights.vector - old, formula.weights - old, 1e-8)
    assert after.step == before.step + 1


def test_learning_rate_is_proportional_to_the_length(walks):
  # Which the weights' update has confirmed.
  assert [step.metrics['learning_rate'] for step in walks('exact')] == pytest.approx([4.0 * 2 / 5, 4.0], rel=1e-6)


def test_losses_are_those_without_the_temporal_term(walks, formulas):
  for step, formula in zip(walks('exact'), formulas, strict=True):
    assert step.metrics['train_loss'] == pytest.approx(formula.train.loss, rel=1e-9)
    assert step.metrics['valid_loss'] == pytest.approx(formula.valid.loss, rel=1e-9)
    norm = np.linalg.norm(formula.train.weights)
    assert step.metrics['weights_gradient_norm'] == pytest.approx(norm, rel=1e-8)


def test_hidden_states_are_those_of_the_weight_update_and_of_the_outer_loss(walks, formulas):
  steps = walks('exact')
  for step, formula in zip(steps, formulas, strict=True):
    assert_close(step.after.carried.train, formula.train.hidden, 1e-9)
    assert_close(step.after.carried.valid, formula.valid.hidden, 1e-9)
  # The second step reads on.
  assert not np.any(steps[0].batches.train.hidden)
  for half in Halves._fields:
    np.testing.assert_array_equal(getattr(steps[1].batches, half).hidden, getattr(steps[0].after.carried, half))


def test_running_statistics_are_those_of_the_weight_update(walks, formulas):
  for step, formula in zip(walks('exact'), formulas, strict=True):
    assert_close(step.after.statistics.vector, formula.train.statistics, 1e-9)


@pytest.mark.parametrize('name', BILEVEL)
def test_every_estimator_takes_steps(walks, name):
  for step in walks(name):
    for leaf in jax.tree.leaves((step.hypergradient, step.metrics, step.after.weights, step.after.carried)):
      assert np.all(np.isfinite(leaf))
    assert np.any(step.hypergradient)
    assert np.all(step.after.alphas['recurrent'] != step.before.alphas['recurrent'])
    assert (step.metrics['second_order_fraction'] == 0) == (name == 'first_order')


@pytest.mark.parametrize('name', ['exact_reverse', 'unrolled', 'truncated'])
def test_one_step_is_exact_however_it_is_differentiated(walks, name):
  for step, expected in zip(walks(name), walks('exact'), strict=True):
    assert_close(step.hypergradient, expected.hypergradient, 1e-11)
    assert_close(step.after.weights.vector, expected.after.weights.vector, 1e-11)
    # Steps are alike but for the rounding of the term of second order.
    fraction = expected.metrics['second_order_fraction']
    assert step.metrics['second_order_fraction'] == pytest.approx(fraction, rel=1e-8)


def test_finite_difference_is_close_to_what_is_exact(walks, formulas):
  found, formula = walks('finite_difference')[0], formulas[0]
  # By the square of the radius, a hundredth, where nothing has a kink.
  assert_close(found.hypergradient - formula.direct, formula.second_order, 1e-2)


def test_one_device_and_eight_take_the_same_steps(corpus, start, walks):
  name = 'finite_difference'
  wide = walk(make_lab(WITHOUT_DROPOUT, corpus, 8), make(name, FIELDS), start, NUM_STEPS)
  for one, eight in zip(walks(name), wide, strict=True):
    # Rounding is divided by the radius.
    assert_close(eight.hypergradient, one.hypergradient, 1e-10)
    for name in ('weights', 'statistics', 'alphas', 'carried'):
      for a, b in zip(*(jax.tree.leaves(getattr(step.after, name)) for step in (eight, one)), strict=True):
        assert_close(a, b, 1e-10)


@pytest.mark.parametrize('name', BILEVEL)
def test_a_decided_edge_is_decided_for_the_whole_step(corpus, name):
  """The first of two nodes has but one edge, whose α stay, whatever estimates the hypergradient."""
  settings = dataclasses.replace(
    WITHOUT_DROPOUT,
    strategy=Sgas(batch_growth=0),
    space=dataclasses.replace(WITHOUT_DROPOUT.space, nodes=2),
    hypergradient=WITHOUT_DROPOUT.hypergradient.other(name),
  )
  whole = make_lab(settings, corpus)
  decided = whole.searcher.searched.recall({'decisions': [[0, 'recurrent', 0, 'sigmoid']], 'past': {}})
  smaller = whole.searcher.restage(decided, 1)
  before = whole.init()
  state = smaller.inherit(before, whole.searcher)
  jax.tree.map(np.testing.assert_array_equal, state.weights.tree, before.weights.tree)
  alphas = jax.device_get(state.alphas['recurrent'])
  state, sums = smaller.run(state, whole.data, jnp.int32(1))
  assert sums['finite']
  assert (float(sums['second_order_fraction']) > 0) == (name != 'first_order')
  moved = np.any(np.asarray(state.alphas['recurrent']) != alphas, axis=1)
  assert moved.tolist() == [False, True, True]


def test_weights_of_edges_are_factors_in_the_sum_of_a_node():
  operations, edges = np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([1.0, 0.5])
  found = cell_weights({'recurrent': Mixing(operations, edges)})
  np.testing.assert_array_equal(found, [[0.25, 0.75], [0.25, 0.25]])
  np.testing.assert_array_equal(cell_weights({'recurrent': Mixing(operations)}), operations)
  # What is not computed is left out.
  computed = np.array([[True, False], [True, True]])
  found = cell_weights({'recurrent': Mixing(operations, edges, computed=computed)})
  np.testing.assert_array_equal(found, [[0.25, 0], [0.25, 0.25]])


def test_a_decided_edge_is_all_that_a_node_computes(corpus):
  settings = dataclasses.replace(
    WITHOUT_DROPOUT, strategy=Sgas(batch_growth=0), space=dataclasses.replace(WITHOUT_DROPOUT.space, nodes=2)
  )
  whole = make_lab(settings, corpus)
  decided = whole.searcher.searched.recall({'decisions': [[0, 'recurrent', 0, 'sigmoid']], 'past': {}})
  smaller = whole.searcher.restage(decided, 1)
  before = whole.init()
  state = smaller.inherit(before, whole.searcher)
  # As if all other operations of that edge had no weight.
  mixing = whole.searcher.searched.look(state.alphas, state.step, jax.random.key(0))['recurrent'].operations
  variables = {'params': before.weights.tree, 'batch_stats': before.statistics.tree}
  mixing = mixing.at[0].set(jnp.array([0.0, 0.0, 1.0]))
  expected = whole.searcher.learner.measure(variables, {'recurrent': Mixing(mixing)}, whole.data)
  np.testing.assert_allclose(smaller.evaluate(state, whole.data).loss, expected.loss, rtol=1e-6)


def test_all_devices_share_a_batch(corpus):
  found = []
  for devices in (1, 8):
    lab = make_lab(SEARCH, corpus, devices)
    searcher, seen = lab.searcher, []

    def batches(state, data, searcher=searcher, seen=seen):
      seen.append(searcher.batches(state, data))
      return seen[0]

    axes = searcher.state_axes, searcher.learner.data_axes
    whole = jax.jit(searcher.spread(batches, axes, Halves(BATCH_AXES, BATCH_AXES)))(lab.init(), lab.data)
    train = seen[0].train
    assert train.hidden.shape == train.masks.h.shape == (BATCH // devices, 4)
    assert train.sequences.tokens.shape == (BPTT, BATCH // devices)
    found.append(jax.device_get(whole))
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_evaluation_is_that_of_one_long_sequence_without_dropout(corpus, lab):
  state = lab.init()
  lab = make_lab(SEARCH, corpus)
  # α's last sequence is shorter than the others, and so is its weight in the mean.
  found = lab.searcher.evaluate(state, lab.data)
  rows = columns(corpus.valid, BATCH)
  alphas = np.asarray(state.alphas['recurrent'])
  mixing = np.exp(alphas) / np.exp(alphas).sum(axis=1, keepdims=True)
  variables = {'params': state.weights.tree, 'batch_stats': state.statistics.tree}
  apply = jax.jit(functools.partial(lab.searcher.learner.net.apply, train=True))
  log_probs, _ = apply(variables, rows[:-1], jnp.zeros((BATCH, 4)), mixing)
  expected = -np.mean(np.take_along_axis(np.asarray(log_probs), rows[1:, :, None], axis=-1))
  np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
  assert lab.searcher.learner.metrics(found) == {'loss': float(found.loss), 'perplexity': math.exp(found.loss)}


def test_outer_gradient_is_clipped_as_in_the_published_search_and_only_there():
  v = np.array([3, 4], np.float32)
  for changes, norm in (
    ({}, 0.25),
    ({'weights': {'clip_norm': 2.0}}, 2.0),
    ({'weights': {'clip_norm': 8.0}}, 5.0),
    ({'hypergradient': {'clipping': 'none'}}, 0.25),
  ):
    optimizers = Optimizers.from_settings(build(Search, {'space': 'recurrent', **changes}), [10])
    limit = optimizers.inner_optimizer(optimizers.weights.init(v)).limit
    np.testing.assert_allclose(limit(v), v * norm / 5, rtol=1e-6)
    # A step of another length has the same limit.
    scaled = optimizers.scaled(jnp.float32(0.5))
    np.testing.assert_allclose(scaled.inner_optimizer(scaled.weights.init(v)).limit(v), v * norm / 5, rtol=1e-6)
  for settings in (build(Search, {}), build(Search, {'space': 'recurrent', 'hypergradient': {'clip_outer': False}})):
    optimizers = Optimizers.from_settings(settings, [10])
    assert optimizers.inner_optimizer(optimizers.weights.init(v)).limit is None


def test_perplexity_is_the_exponential_as_far_as_there_are_numbers():
  assert perplexity(math.log(50)) == pytest.approx(50)
  assert perplexity(1e4) == math.inf


def test_search_on_the_help_texts_learns_more_than_how_frequent_words_are():
  settings = build(
    Search,
    {
      'epochs': 2,
      'batch_size': 32,
      'task': {'bptt': 5},
      'data': {'name': 'pydoc'},
      'weights': {'learning_rate': 6.0, 'final_learning_rate': 6.0},
      'space': {'name': 'recurrent', 'nodes': 1},
      'network': {'width': 16, 'dropout': {'embedded': 0.0, 'x': 0.1, 'h': 0.1, 'output': 0.1}},
      'hypergradient': {'name': 'first_order'},
    },
  )
  corpus = settings.task.load()
  counts = np.bincount(corpus.train, minlength=len(corpus.vocabulary)) + 1.0
  unigram = np.exp(-np.mean(np.log(counts / counts.sum())[corpus.valid]))
  lab = make_lab(settings, corpus)
  state, sums = lab.searcher.run(lab.init(), lab.data, jnp.int32(lab.searcher.epoch_ends[-1]))
  assert sums['finite']
  found = lab.searcher.learner.metrics(jax.device_get(lab.searcher.evaluate(state, lab.data)))['perplexity']
  assert 1 < found < 0.75 * unigram
