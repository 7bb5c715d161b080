"""Searches for recurrent cells: what is read when, the step by its formulas, whole searches that are stopped."""

import contextlib
import copy
import dataclasses
import functools
import io
import itertools
import math
import os
import pathlib
import re
import signal
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from darts_jax import genotype as genotypes
from darts_jax import search
from darts_jax.data import windows
from darts_jax.data.sequences import Text, perplexity
from darts_jax.data.text import Corpus, columns, load
from darts_jax.genotype import RecurrentGenotype
from darts_jax.hypergradient import ESTIMATORS, Estimator, make
from darts_jax.nets.recurrent import Dropout
from darts_jax.runtime import loop as loops
from darts_jax.runtime import metrics
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.mesh import make_mesh, replicated
from darts_jax.runtime.progress import Progress
from darts_jax.search import RecurrentSearch, Search, TextSearcher, loop
from darts_jax.search import searcher as searchers
from darts_jax.search.state import Halves, SearchState
from darts_jax.search.step import Optimizers, search_step
from darts_jax.search.text import place
from darts_jax.settings import build
from experiments import search as command

# Programs are run a few times, so they had better be compiled quickly.
QUICKLY: dict[str, str | bool] = {'xla_backend_optimization_level': '0', 'xla_cpu_use_fusion_emitters': False}

VOCAB, BATCH, BPTT = 10, 8, 5
SEARCH = build(
  RecurrentSearch,
  {
    'epochs': 3,
    'batch_size': BATCH,
    'bptt': BPTT,
    'short_fraction': 0.5,
    # Regularisation, decay and clipping are strong enough for their absence to be seen.
    'temporal_activation': 0.3,
    'network': {'width': 4, 'nodes': 1, 'operations': ('none', 'tanh', 'sigmoid')},
    'weights': {'learning_rate': 4.0, 'final_learning_rate': 4.0, 'weight_decay': 0.02, 'clip_norm': 0.05},
    'alphas': {'learning_rate': 0.02, 'weight_decay': 0.05, 'init_scale': 0.5},
  },
)
WITHOUT_DROPOUT = dataclasses.replace(
  SEARCH, network=dataclasses.replace(SEARCH.network, dropout=Dropout(0, 0, 0, 0, 0))
)


@pytest.fixture(scope='module')
def corpus() -> Corpus:
  """Words that follow each other as a rule; some are left over, whatever the columns."""
  rng = np.random.default_rng(0)

  def text(length):
    return np.cumsum(rng.choice([1, 3], size=length, p=[0.8, 0.2])).astype(np.int32) % VOCAB

  return Corpus('counting', tuple('abcdefghij'), text(203), text(101), text(50))


class Lab(NamedTuple):
  searcher: TextSearcher
  data: Halves

  def init(self) -> SearchState:
    return self.searcher.init(jax.random.key(0))


def make_lab(settings: RecurrentSearch, corpus: Corpus, num_devices: int = 1) -> Lab:
  mesh = make_mesh(num_devices)
  data = place(corpus, settings, mesh)
  return Lab(TextSearcher(settings, loop.make_strategy(settings), corpus, mesh), data)


@pytest.fixture(scope='module')
def lab(corpus) -> Lab:
  return make_lab(WITHOUT_DROPOUT, corpus)


# What is read.


def test_sequences_are_cut_with_targets_one_row_later():
  rows = np.arange(1, 15, dtype=np.int32).reshape(7, 2)
  plan = windows.Windows(np.array([0, 3, 5, 2], np.int32), np.array([3, 3, 1, 2], np.int32), (4,), 4)
  same = replicated(make_mesh(1))
  text = Text.place(rows, plan, same, same)
  for number, (start, length) in enumerate(zip(plan.starts, plan.lengths, strict=True)):
    first, found = text.window(jnp.int32(number))
    assert found.tokens.shape == found.targets.shape == (4, 2)
    assert (first, found.length) == (start, length)
    np.testing.assert_array_equal(found.tokens[:length], rows[start : start + length])
    np.testing.assert_array_equal(found.targets[:length], rows[start + 1 : start + length + 1])


@pytest.fixture(scope='module')
def drawn(corpus) -> tuple[Lab, list[Halves]]:
  """With dropout: the batches of all steps; hidden states carried to them are the step, plus a half for α."""
  lab = make_lab(SEARCH, corpus)
  shape = lab.searcher.carried().train.shape

  @functools.partial(jax.jit, compiler_options=QUICKLY)
  def batches(step):
    carried = Halves(jnp.full(shape, 1.0 + step), jnp.full(shape, 1.5 + step))
    state: Any = types.SimpleNamespace(key=jax.random.key(0), step=step, carried=carried)
    return lab.searcher.batches(state, lab.data), lab.searcher.step_metrics(state, lab.data)

  found = [jax.device_get(batches(jnp.int32(step))) for step in range(lab.searcher.epoch_ends[-1])]
  for halves, step_metrics in found:
    assert step_metrics == {'sequence_length': halves.train.sequences.length}
  return lab, [halves for halves, _ in found]


def test_sequences_of_the_weights_follow_each_other(corpus, drawn):
  lab, batches = drawn
  rows = columns(corpus.train, BATCH)
  ends = lab.searcher.epoch_ends
  assert len(ends) == SEARCH.epochs
  orders = []
  for first, end in itertools.pairwise((0, *ends)):
    sequences = [halves.train.sequences for halves in batches[first:end]]
    tokens = np.concatenate([each.tokens[: each.length] for each in sequences])
    targets = np.concatenate([each.targets[: each.length] for each in sequences])
    # All of the text, but perhaps a row at its end.
    assert len(rows) - 2 <= len(tokens) <= len(rows) - 1
    np.testing.assert_array_equal(tokens, rows[: len(tokens)])
    np.testing.assert_array_equal(targets, rows[1 : len(tokens) + 1])
    lengths = [int(each.length) for each in sequences]
    assert set(lengths[:-1]) == {BPTT, BPTT // 2}
    orders.append(tuple(lengths))
    # Zeros at the beginning of an epoch, what was carried after.
    for step, halves in enumerate(batches[first:end], start=first):
      np.testing.assert_array_equal(halves.train.hidden, np.full((BATCH, 4), 0.0 if step == first else 1.0 + step))
  assert len(set(orders)) == SEARCH.epochs
  assert lab.data.train.capacity == lab.data.valid.capacity == BPTT


def test_text_of_alpha_begins_again_at_its_end(corpus, drawn):
  _, batches = drawn
  rows = columns(corpus.valid, BATCH)
  assert len(rows) == 12
  # Eleven rows have another after them: two sequences of five, and one of one.
  for step, halves in enumerate(batches):
    start, length = [(0, 5), (5, 5), (10, 1)][step % 3]
    sequences, hidden, _ = halves.valid
    assert sequences.length == length
    np.testing.assert_array_equal(sequences.tokens[:length], rows[start : start + length])
    np.testing.assert_array_equal(sequences.targets[:length], rows[start + 1 : start + length + 1])
    np.testing.assert_array_equal(hidden, np.full((BATCH, 4), 0.0 if start == 0 else 1.5 + step))
  assert len(batches) > 6


def test_every_step_and_half_has_its_own_masks(drawn):
  _, batches = drawn
  dropout = SEARCH.network.dropout
  for name in ('embedded', 'x', 'h', 'output'):
    masks = np.array([getattr(half.masks, name) for halves in batches for half in halves])
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    rate = getattr(dropout, name)
    # Five standard deviations.
    assert abs(np.mean(masks == 0) - rate) < 5 * np.sqrt(rate * (1 - rate) / masks.size)
  # No words are dropped in the paper's search.
  assert all(np.all(half.masks.words == 1) for halves in batches for half in halves)


def test_text_that_is_too_short_is_refused(corpus):
  for part, said in zip(Halves._fields, ('training', 'validation'), strict=True):
    short = dataclasses.replace(corpus, **{part: corpus.train[: 3 * BATCH - 1]})
    message = f'config.batch_size: 8 is too large; the {said} text of counting has 23 tokens, which are enough for 7 co'
    with pytest.raises(ValueError, match=f'^{message}'):
      make_lab(SEARCH, short)
    place(dataclasses.replace(corpus, **{part: corpus.train[: 3 * BATCH]}), SEARCH, make_mesh(1))


# The step.


class Step(NamedTuple):
  """A step: the states before and after, its batches, and what it saw."""

  before: SearchState
  after: SearchState
  batches: Halves
  hypergradient: np.ndarray
  metrics: dict[str, float]


def make_step(lab: Lab, estimator: Estimator) -> Any:
  """The step of a search, with an estimator of its own."""
  searcher = lab.searcher

  def step(state, data):
    batches = searcher.batches(state, data)
    after, info = search_step(
      state,
      *batches,
      objective=searcher.objective,
      strategy=searcher.strategy,
      estimator=estimator,
      optimizers=searcher.optimizers(state, data),
      batch_sharding=searcher.batch_sharding,
    )
    return after, batches, info

  return jax.jit(step, compiler_options=QUICKLY)


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
  net = lab.searcher.net

  @functools.partial(jax.jit, compiler_options=QUICKLY)
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
    last = train(w, new_alphas, before, SEARCH.temporal_activation)
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


@pytest.mark.parametrize('name', ESTIMATORS)
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


def test_all_devices_share_a_batch(corpus):
  lab = make_lab(SEARCH, corpus, 8)
  sharding = lab.searcher.batch_sharding
  assert sharding.hidden.shard_shape((2, BATCH, 4)) == (2, 1, 4)
  assert sharding.sequences.tokens.shard_shape((2, BPTT, BATCH)) == (2, BPTT, 1)
  assert sharding.masks.h.shard_shape((2, BATCH, 4)) == (2, 1, 4)
  assert sharding.masks.words.is_fully_replicated


def test_evaluation_is_that_of_one_long_sequence_without_dropout(corpus, monkeypatch, lab):
  monkeypatch.setattr(searchers, 'compiler_options', lambda: QUICKLY)
  state = lab.init()
  lab = make_lab(SEARCH, corpus)
  # α's last sequence is shorter than the others, and so is its weight in the mean.
  found = lab.searcher.evaluate(state, lab.data)
  rows = columns(corpus.valid, BATCH)
  alphas = np.asarray(state.alphas['recurrent'])
  mixing = np.exp(alphas) / np.exp(alphas).sum(axis=1, keepdims=True)
  variables = {'params': state.weights.tree, 'batch_stats': state.statistics.tree}
  apply = jax.jit(functools.partial(lab.searcher.net.apply, train=True), compiler_options=QUICKLY)
  log_probs, _ = apply(variables, rows[:-1], jnp.zeros((BATCH, 4)), mixing)
  expected = -np.mean(np.take_along_axis(np.asarray(log_probs), rows[1:, :, None], axis=-1))
  np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
  assert lab.searcher.metrics(found) == {'loss': float(found.loss), 'perplexity': math.exp(found.loss)}


def test_outer_gradient_is_clipped_as_in_the_published_search_and_only_there():
  v = np.array([3, 4], np.float32)
  for changes, norm in (
    ({}, 0.25),
    ({'weights': {'clip_norm': 2.0}}, 2.0),
    ({'weights': {'clip_norm': 8.0}}, 5.0),
    ({'hypergradient': {'clipping': 'none'}}, 0.25),
  ):
    optimizers = Optimizers.from_settings(build(RecurrentSearch, changes), 10)
    limit = optimizers.inner_optimizer(optimizers.weights.init(v)).limit
    np.testing.assert_allclose(limit(v), v * norm / 5, rtol=1e-6)
    # A step of another length has the same limit.
    scaled = optimizers.scaled(jnp.float32(0.5))
    np.testing.assert_allclose(scaled.inner_optimizer(scaled.weights.init(v)).limit(v), v * norm / 5, rtol=1e-6)
  for settings in (build(Search, {}), build(RecurrentSearch, {'hypergradient': {'clip_outer': False}})):
    optimizers = Optimizers.from_settings(settings, 10)
    assert optimizers.inner_optimizer(optimizers.weights.init(v)).limit is None


def test_perplexity_is_the_exponential_as_far_as_there_are_numbers():
  assert perplexity(math.log(50)) == pytest.approx(50)
  assert perplexity(1e4) == math.inf


# Whole searches.


def set_up(patch: pytest.MonkeyPatch) -> None:
  """Searches in this process: on one device, quickly compiled, and with programs kept as the tests have set it up."""
  patch.setattr(loop, 'make_mesh', lambda: make_mesh(1))
  patch.setattr(loop, 'enable_cache', lambda: None)
  patch.setattr(searchers, 'compiler_options', lambda: QUICKLY)


def write_corpus(folder: pathlib.Path) -> None:
  """Sentences that count on from a word, of nine words and an end."""
  rng = np.random.default_rng(0)
  for name, sentences in (('train', 60), ('valid', 14), ('test', 4)):
    lines = [' '.join(f'word{(first + i) % 9}' for i in range(6)) for first in rng.integers(9, size=sentences)]
    (folder / f'{name}.txt').write_text('\n'.join(lines) + '\n')


OPERATIONS = ('none', 'tanh', 'identity')


def make_config(folder: pathlib.Path) -> dict[str, Any]:
  return {
    'space': 'recurrent',
    'epochs': 2,
    'batch_size': 8,
    'bptt': 6,
    'short_fraction': 0.4,
    'log_every': 4,
    'data': {'name': 'files', 'dir': str(folder)},
    'network': {
      'width': 6,
      'nodes': 2,
      'operations': OPERATIONS,
      'dropout': {'embedded': 0.0, 'x': 0.1, 'h': 0.1, 'output': 0.1},
    },
    'weights': {'learning_rate': 3.0, 'final_learning_rate': 3.0},
    'hypergradient': {'name': 'first_order'},
  }


class Killed(BaseException):
  """Ends a search as a kill does: nothing is saved any more."""


def kill() -> None:
  raise Killed


class Searches(NamedTuple):
  """The same search twice: one was left alone; one was killed in its second epoch, and terminated there later on.

  Of the latter, the checkpoints after each of its three processes, and what the last one printed.
  """

  config: dict[str, Any]
  whole: pathlib.Path
  result: search.Result
  ends: list[int]
  stopped: pathlib.Path
  checkpoints: list[list[int]]
  output: str


@pytest.fixture(scope='module')
def searches(tmp_path_factory) -> Searches:
  folder = tmp_path_factory.mktemp('text')
  write_corpus(folder)
  config, whole, stopped = make_config(folder), folder / 'whole', folder / 'stopped'
  update = Progress.update
  happenings: dict[int, Any] = {}

  def update_and_act(self, step, values):
    update(self, step, values)
    happenings.pop(step, lambda: None)()

  with pytest.MonkeyPatch.context() as patch:
    set_up(patch)
    result = search.run(config, whole)
    assert result.finished
    ends = [line['step'] for line in metrics.read(whole) if line['kind'] == 'epoch']

    patch.setattr(loops, '_SECONDS_A_CALL', 0.0)  # One step a call.
    patch.setattr(Progress, 'update', update_and_act)
    checkpoints = Checkpoints(stopped / 'checkpoints')
    found = []
    happenings[ends[0] + 2] = kill
    with pytest.raises(Killed):
      search.run(config, stopped)
    found.append(checkpoints.steps())
    # In the middle of the text, where hidden states have been handed on.
    happenings[ends[0] + 5] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert command.run(config, stopped) == 130
    found.append(checkpoints.steps())
    with contextlib.redirect_stdout(io.StringIO()) as output:
      assert command.run(config, stopped) == 0
    found.append(checkpoints.steps())
  return Searches(config, whole, result, ends, stopped, found, output.getvalue())


def test_stopped_search_goes_on_from_its_last_checkpoint(searches):
  first, second = searches.ends
  assert searches.checkpoints == [[first], [first, first + 5], [first, first + 5, second]]
  events = [line for line in metrics.read(searches.stopped) if line['kind'] == 'event']
  assert [event['step'] for event in events if event['event'] == 'resumed'] == [first, first + 5]


def leaves(state: SearchState) -> dict[str, np.ndarray]:
  state = state.replace(key=jax.random.key_data(state.key))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def test_stopped_search_ends_bit_for_bit_like_an_uninterrupted_one(searches):
  lab = make_lab(build(RecurrentSearch, searches.config), load('files', str(searches.whole.parent)))
  template = jax.eval_shape(lab.searcher.init, jax.random.key(0))
  restored = Checkpoints(searches.stopped / 'checkpoints').restore(template)
  found, expected = leaves(restored.state), leaves(searches.result.state)
  assert restored.step == searches.ends[-1]
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)
  # Hidden states of both texts are among them.
  carried = [leaf for name, leaf in found.items() if 'carried' in name]
  assert [bool(np.all(leaf)) for leaf in carried] == [True, True]
  assert (searches.stopped / 'genotype.json').read_text() == (searches.whole / 'genotype.json').read_text()
  with np.load(searches.stopped / 'alphas.npz') as a, np.load(searches.whole / 'alphas.npz') as b:
    assert sorted(a.files) == sorted(b.files)
    for name in b.files:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_directory_holds_the_recurrent_architecture(searches):
  found = genotypes.load(searches.stopped / 'genotype.json')
  assert isinstance(found, RecurrentGenotype)
  assert found == searches.result.genotype
  with np.load(searches.stopped / 'alphas.npz') as file:
    assert file['step'].tolist() == [0, *searches.ends]
    assert file['recurrent'].shape == (3, 3, 3)
    assert file['edges_recurrent'].tolist() == [[0, 1], [0, 2], [1, 2]]
    assert tuple(file['operations']) == OPERATIONS
    weights = np.exp(file['recurrent'][-1])
  # Node 1 has no choice but of its activation, the better of two; node 2 has one of its source, too.
  best = weights[:, 1:] / weights.sum(axis=1, keepdims=True)
  source = int(np.argmax(best[1:].max(axis=1)))
  rows = (0, 0), (1 + source, source)
  assert found.recurrent == tuple((OPERATIONS[1 + int(np.argmax(best[row]))], source) for row, source in rows)
  assert found.concat == (1, 2)
  assert searches.output.splitlines() == [
    f'genotype: {genotypes.to_dict(found)}',
    f'validation perplexity of the supernet: {math.exp(searches.result.valid_loss):.2f}',
    f'report: {searches.stopped / "report.html"}',
  ]
  assert math.isnan(searches.result.valid_accuracy)


def test_log_holds_every_measure_of_a_text(searches):
  logs = [metrics.read(workdir) for workdir in (searches.whole, searches.stopped)]
  epochs, others = ([line for line in log if line['kind'] == 'epoch'] for log in logs)
  rows = 7 * 60 // 8
  for line, other, first in zip(epochs, others, (0, *searches.ends[:-1]), strict=True):
    assert line['valid_perplexity'] == pytest.approx(math.exp(line['valid_loss']))
    assert line['train_perplexity'] == pytest.approx(math.exp(line['train_loss']))
    # Three activations that weigh about the same.
    assert line['entropy_recurrent'] == pytest.approx(np.log(3), abs=1e-2)
    # All rows are read once, but for the last or the last two.
    assert rows - 2 <= round(line['sequence_length'] * (line['step'] - first), 3) <= rows - 1
    assert line['tokens_per_second'] > 0
    assert not line.keys() & {'images_per_second', 'skip_connections', 'train_accuracy', 'valid_accuracy'}
    assert other.keys() == line.keys()
    assert other['valid_loss'] == line['valid_loss']
    # Sums over the same steps in calls of other lengths differ by rounding.
    assert other['train_loss'] == pytest.approx(line['train_loss'], rel=1e-6)
  for log in logs:
    assert [line['step'] for line in log if line['kind'] == 'step'] == [*range(4, searches.ends[-1] + 1, 4)]


def test_page_speaks_of_perplexity(searches, parse_page):
  page = parse_page((searches.stopped / 'report.html').read_text())
  assert 'perplexity' in page.text.lower()
  assert 'accuracy' not in page.text.lower()
  for activation, _ in searches.result.genotype.recurrent:
    assert activation in page.text


def test_another_text_is_another_search(searches, monkeypatch):
  set_up(monkeypatch)
  path = searches.whole.parent / 'valid.txt'
  text = path.read_text()
  path.write_text(text.replace('word3', 'word4', 1))
  message = rf'^--workdir: {searches.stopped} holds a search with another config \(config.dataset.valid.sha256: [^\n]*$'
  with pytest.raises(ValueError, match=message):
    command.run(searches.config, searches.stopped)
  path.write_text(text)
  assert command.run(searches.config, searches.stopped) == 0


@pytest.fixture
def config(tmp_path, monkeypatch) -> dict[str, Any]:
  set_up(monkeypatch)
  write_corpus(tmp_path)
  return make_config(tmp_path)


def change(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
  config = copy.deepcopy(config)
  *groups, name = path.split('.')
  functools.reduce(lambda group, key: group[key], groups, config)[name] = value
  return config


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('space', 'convolution', "config.space: 'convolution' is not known; allowed are convolutional, recurrent"),
    (
      'network.operations',
      ('none', 'sep_conv_3x3'),
      "config.network.operations: 'sep_conv_3x3' is not an operation; allowed are none, tanh, relu, sigmoid, identity",
    ),
    ('batch_size', 40, 'config.batch_size: 40 is too large; the validation text of files has 98 tokens'),
    ('data.dir', '/nowhere', "config.data.dir '/nowhere' is not a folder"),
    ('data.name', 'cifar10', "config.data.name: 'cifar10' is not known"),
    ('network.channels', 4, 'config.network.channels: unknown field'),
    ('bptt', 1, 'config.bptt: 1 is not allowed; it has to be ≥ 2'),
  ],
)
def test_what_cannot_be_searched_is_one_line_and_leaves_nothing(config, tmp_path, path, value, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}[^\n]*$'):
    command.run(change(config, path, value), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('part', ['train', 'valid', 'test'])
def test_split_that_is_missing_is_named(config, tmp_path, part):
  (tmp_path / f'{part}.txt').unlink()
  with pytest.raises(ValueError, match=f'^config.data.dir .* but not {part}.txt'):
    command.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_search_on_the_help_texts_learns_more_than_how_frequent_words_are(monkeypatch):
  monkeypatch.setattr(searchers, 'compiler_options', lambda: QUICKLY)
  settings = build(
    RecurrentSearch,
    {
      'epochs': 2,
      'batch_size': 32,
      'bptt': 5,
      'data': {'name': 'pydoc'},
      'weights': {'learning_rate': 6.0, 'final_learning_rate': 6.0},
      'network': {'width': 16, 'nodes': 1, 'dropout': {'embedded': 0.0, 'x': 0.1, 'h': 0.1, 'output': 0.1}},
      'hypergradient': {'name': 'first_order'},
    },
  )
  corpus = settings.data.load()
  counts = np.bincount(corpus.train, minlength=len(corpus.vocabulary)) + 1.0
  unigram = np.exp(-np.mean(np.log(counts / counts.sum())[corpus.valid]))
  lab = make_lab(settings, corpus)
  state, sums = lab.searcher.run(lab.init(), lab.data, jnp.int32(lab.searcher.epoch_ends[-1]))
  assert sums['finite']
  found = lab.searcher.metrics(jax.device_get(lab.searcher.evaluate(state, lab.data)))['perplexity']
  assert 1 < found < 0.75 * unigram
