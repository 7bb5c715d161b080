"""The recurrent network against its definition in NumPy, one time step, edge and activation after the other.

What is written in NumPy is analytic, so that its imaginary part at a tiny imaginary step is its derivative, exact to
rounding (Squire & Trapp 1998).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from darts_jax.data.sequences import Sequences
from darts_jax.nets.bilinear import weights_gradient_if
from darts_jax.nets.recurrent import (
  Dropout,
  LanguageModel,
  Masks,
  init_language_model,
  initial_hidden,
  read_text,
)
from darts_jax.runtime.compilation import count_compilations
from darts_jax.spaces import CellSpec, Edge, Recurrent, published
from darts_jax.spaces.recurrent import ACTIVATIONS

VOCAB, WIDTH, BATCH = 11, 4, 3


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


FUNCTIONS = {
  'tanh': np.tanh,
  'relu': lambda x: np.where(x.real > 0, x, 0),
  'sigmoid': sigmoid,
  'identity': lambda x: x,
}


class Plain(NamedTuple):
  """What the definition gives: `[T, …, B, V]`, `[T + 1, …, B, H]` with the state before, mean and variance."""

  log_probs: np.ndarray
  states: np.ndarray
  statistics: Any

  def losses(self, targets):
    """`[…]` mean negative log-likelihood, and mean squared change from one time step to the next."""
    chosen = [each[..., np.arange(len(t)), t] for each, t in zip(self.log_probs, targets, strict=True)]
    changes = np.diff(self.states[1:], axis=0) ** 2
    return -np.mean(chosen, axis=(0, -1)), np.mean(changes, axis=(0, -2, -1)) if len(changes) else 0.0


def plain(spec, params, tokens, hidden, mixing=None, masks=None, statistics=None, *, train=True):
  """[DARTS §2.1, §3.1.2], with dropout and BN. Weights and mixing weights may have axes in front, of other networks."""
  width = hidden.shape[-1]
  if masks is None:
    masks = Masks(1.0 + 0 * params['bias'], *[np.ones_like(hidden)] * 4)

  def split(product):
    return sigmoid(product[..., :width]), product[..., width:]

  def normalise(state):
    nonlocal statistics
    if statistics is None:
      return state
    mean, var = statistics['mean'], statistics['var']
    if train:
      batch_mean = state.mean(axis=-2)
      batch_var = np.mean((state - batch_mean[..., None, :]) ** 2, axis=-2)
      size = state.shape[-2]
      statistics = {'mean': 0.9 * mean + 0.1 * batch_mean, 'var': 0.9 * var + 0.1 * batch_var * size / (size - 1)}
      mean, var = batch_mean, batch_var
    return (state - mean[..., None, :]) / np.sqrt(var[..., None, :] + 1e-5)

  log_probs, history = [], [hidden]
  for words in tokens:
    x = params['embedding'][..., words, :] * masks.words[words, None] * masks.embedded * masks.x
    h = history[-1]
    x, masked = (np.broadcast_to(each, np.broadcast_shapes(x.shape, h.shape)) for each in (x, h * masks.h))
    gate, value = split(np.concatenate([x, masked], axis=-1) @ params['first'])
    states = [normalise(h + gate * (np.tanh(value) - h))]
    row = 0
    for i, edges in enumerate(spec.nodes):
      total = np.zeros_like(states[0])
      for edge in edges:
        s = states[edge.source]
        gate, value = split(s * masks.h @ params['nodes'][..., i, :, :])
        for name in edge.operations:
          if name != 'none':
            weight = 1.0 if mixing is None else mixing[..., row, spec.operations.index(name), None, None]
            total = total + weight * (s + gate * (FUNCTIONS[name](value) - s))
        row += 1
      states.append(normalise(total))
    history.append(sum(states[node] for node in spec.outputs) / len(spec.outputs))
    logits = history[-1] * masks.output @ np.swapaxes(params['embedding'], -1, -2) + params['bias'][..., None, :]
    log_probs.append(logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True)))
  shape = history[-1].shape
  return Plain(np.array(log_probs), np.array([np.broadcast_to(h, shape) for h in history]), statistics)


def softmax(alphas):
  return np.exp(alphas) / np.sum(np.exp(alphas), axis=-1, keepdims=True)


def draw(spec, vocab=VOCAB, width=WIDTH):
  """Random weights, all of a size that matters, and running statistics."""
  rng = np.random.default_rng(0)
  params = {
    'embedding': rng.normal(size=(vocab, width)),
    'bias': rng.normal(size=vocab),
    'first': rng.normal(size=(2 * width, 2 * width)) / width**0.5,
    'nodes': rng.normal(size=(len(spec.nodes), width, 2 * width)) / width**0.5,
  }
  return params, {'mean': rng.normal(size=width), 'var': rng.uniform(0.5, 2, width)}


def draw_text(steps):
  """Tokens, targets and the hidden state before."""
  rng = np.random.default_rng(1)
  tokens, targets = rng.integers(VOCAB, size=(2, steps, BATCH)).astype(np.int32)
  return tokens, targets, rng.normal(size=(BATCH, WIDTH))


def draw_masks():
  """Masks of which no two entries are the same but for those that are zero."""
  rng = np.random.default_rng(2)
  shapes = [(VOCAB,), *[(BATCH, WIDTH)] * 4]
  return Masks(*(rng.uniform(0.5, 2, shape) * (rng.random(shape) > 0.3) for shape in shapes))


def assert_close(found, expected, tolerance=1e-12):
  """Equal up to so much of the largest entry."""
  found, expected = (np.asarray(each) for each in (found, expected))
  assert found.shape == expected.shape
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.max(np.abs(expected), initial=1e-300))


PRUNED = CellSpec(
  (
    (Edge(0, ('none', 'tanh')),),
    (Edge(0, ('relu',)), Edge(1, ('none',))),
    (Edge(1, ('identity', 'tanh')), Edge(2, ('sigmoid', 'relu')), Edge(0, ('identity', 'none', 'relu'))),
  ),
  ('identity', 'none', 'relu', 'sigmoid', 'tanh'),
  1,
  (2, 3),
  'mean',
  1,
)
CELLS = {
  'searched': (Recurrent(3).cells['recurrent'], True, True),
  'searched, with running statistics': (Recurrent(3).cells['recurrent'], True, False),
  'pruned': (PRUNED, True, True),
  'RNN_DARTS_V2': (published()['RNN_DARTS_V2'].cell('recurrent'), False, True),
  'RNN_ENAS': (published()['RNN_ENAS'].cell('recurrent'), False, False),
}


@pytest.mark.parametrize(('spec', 'norm', 'train'), CELLS.values(), ids=CELLS)
@pytest.mark.usefixtures('x64')
def test_cells_compute_their_definition(spec, norm, train):
  params, statistics = draw(spec)
  tokens, _, hidden = draw_text(3)
  masks = draw_masks()
  # Weights of a mixture need not add up to one.
  mixing = np.random.default_rng(3).normal(size=(spec.num_edges, len(spec.operations))) if norm else None
  expected = plain(spec, params, tokens, hidden, mixing, masks, statistics if norm else None, train=train)

  net = LanguageModel(spec, VOCAB, WIDTH, norm)
  variables = {'params': params, **({'batch_stats': statistics} if norm else {})}
  apply = jax.jit(functools.partial(net.apply, train=train, mutable=['batch_stats']))
  (log_probs, after), updated = apply(variables, tokens, hidden, mixing, masks)
  assert_close(log_probs, expected.log_probs)
  assert_close(after, expected.states[-1])
  if norm:
    for name, value in expected.statistics.items():
      assert_close(updated['batch_stats'][name], value)


# Reading text.

SPEC = Recurrent(2).cells['recurrent']
NET = LanguageModel(SPEC, VOCAB, WIDTH, norm=True)
CAPACITY = 23
# How a text is read: by default in two parts of twelve time steps, of which the last is padding of the program's own.
READERS = {'default': {}, 'in parts of five': {'chunk': 5}, 'with remat': {'chunk': 4, 'remat': True}}
# Below, at and across the ends of parts, and the shortest and longest there are.
LENGTHS = (1, 4, 5, 6, 12, 13, 22, 23)
# So that gradients are those of both.
TEMPORAL = 0.7

any_reader = pytest.mark.parametrize('reader', READERS)


@functools.cache
def compiled(reader):
  """`read_text` and its gradients in weights and α, compiled once."""

  def read(weights, statistics, batch, hidden, masks):
    def loss(weights):
      params, alphas = weights
      mixing = jnp.exp(alphas) / jnp.sum(jnp.exp(alphas), axis=1, keepdims=True)
      variables = {'params': params, 'batch_stats': statistics}
      found = read_text(NET, variables, batch, hidden, mixing, masks, train=True, **READERS[reader])
      return found.loss + TEMPORAL * found.temporal, found

    gradients, found = jax.grad(loss, has_aux=True)(weights)
    return found, gradients

  return jax.jit(read)


class Case(NamedTuple):
  weights: Any
  statistics: Any
  tokens: np.ndarray
  targets: np.ndarray
  hidden: np.ndarray
  masks: Masks


@pytest.fixture(scope='module')
def case():
  params, statistics = draw(SPEC)
  alphas = np.random.default_rng(3).normal(size=(SPEC.num_edges, len(ACTIVATIONS)))
  return Case((params, alphas), statistics, *draw_text(CAPACITY), draw_masks())


def read(case, reader, length, start=0, **changes):
  """What the program finds in so many time steps from the start on; the rest is padding."""
  case = case._replace(**changes)
  filler = np.zeros((start, BATCH), np.int32)
  tokens, targets = (np.concatenate([each[start:], filler]) for each in (case.tokens, case.targets))
  batch = Sequences(tokens, targets, np.int32(length))
  return jax.device_get(compiled(reader)(case.weights, case.statistics, batch, case.hidden, case.masks))


def plain_losses(case, length, weights):
  """By the definition, without padding."""
  params, alphas = weights
  found = plain(
    SPEC, params, case.tokens[:length], case.hidden, softmax(alphas), case.masks, case.statistics, train=True
  )
  return found, found.losses(case.targets[:length])


def flatten(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def unflatten(tree, vectors):
  """`[…, P]` vectors as trees like this one, of arrays with these axes in front."""
  leaves, treedef = jax.tree.flatten(tree)
  parts = np.split(vectors, np.cumsum([leaf.size for leaf in leaves])[:-1], axis=-1)
  arrays = [part.reshape(*part.shape[:-1], *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
  return jax.tree.unflatten(treedef, arrays)


def plain_gradient(case, length, vector):
  """Of loss and temporal term, at weights and α as one vector: every entry by an imaginary step of its own."""
  steps = vector + 1e-30j * np.eye(len(vector))
  loss, temporal = plain_losses(case, length, unflatten(case.weights, steps))[1]
  return (loss + TEMPORAL * temporal).imag / 1e-30


@pytest.fixture(scope='module')
def expected(case):
  """By length: what `read_text` is to find, and the gradients."""
  found = {}
  for length in LENGTHS:
    read, losses = plain_losses(case, length, case.weights)
    found[length] = (*losses, read.states[-1], read.statistics), plain_gradient(case, length, flatten(case.weights))
  return found


@any_reader
@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.usefixtures('x64')
def test_padded_text_is_read_as_if_it_were_not(case, expected, reader, length):
  found, gradients = read(case, reader, length)
  (loss, temporal, hidden, statistics), gradient = expected[length]
  np.testing.assert_allclose((found.loss, found.temporal), (loss, temporal), rtol=1e-12)
  assert (temporal == 0) == (length == 1)
  assert_close(found.hidden, hidden)
  for name, value in statistics.items():
    assert_close(found.statistics[name], value)
  # Of weights and of α, which are a thousandth of all.
  for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(unflatten(case.weights, gradient)), strict=True):
    assert np.any(theirs)
    assert_close(ours, theirs)


@any_reader
@pytest.mark.usefixtures('x64')
def test_what_the_padding_is_does_not_matter(case, reader):
  other = np.random.default_rng(9).integers(VOCAB, size=(2, CAPACITY, BATCH)).astype(np.int32)
  for length in (4, 13):
    texts = []
    for text, padding in zip((case.tokens, case.targets), other, strict=True):
      texts.append(np.where(np.arange(CAPACITY)[:, None] < length, text, padding))
      assert np.any(texts[-1] != text)
    found, changed = read(case, reader, length), read(case, reader, length, tokens=texts[0], targets=texts[1])
    jax.tree.map(np.testing.assert_array_equal, changed, found)


@pytest.mark.usefixtures('x64')
def test_one_program_reads_texts_of_any_length(case):
  read(case, 'default', 3)
  with count_compilations() as counter:
    for length in LENGTHS:
      read(case, 'default', length)
  assert counter.count == 0


@any_reader
@pytest.mark.usefixtures('x64')
def test_text_in_two_batches_is_one_text_if_the_hidden_state_is_handed_on(case, expected, reader):
  first, _ = read(case, reader, 10)
  second, _ = read(case, reader, 13, start=10, hidden=first.hidden, statistics=first.statistics)
  (loss, _, hidden, statistics), _ = expected[23]
  np.testing.assert_allclose((10 * first.loss + 13 * second.loss) / 23, loss, rtol=1e-12)
  assert_close(second.hidden, hidden)
  for name, value in statistics.items():
    assert_close(second.statistics[name], value)


@pytest.mark.usefixtures('x64')
def test_temporal_term_of_a_state_that_halves_at_every_step():
  """Weights of zero: gates of a half, tanh of zero; s₀ = h/2, and a node of the identity halves it again."""
  spec = Recurrent(1, ('identity',)).cells['recurrent']
  net = LanguageModel(spec, VOCAB, 2)
  params = jax.tree.map(np.zeros_like, draw(spec, width=2)[0])
  tokens = np.zeros((6, 1), np.int32)
  hidden = np.array([[64.0, 128.0]])
  read = jax.jit(
    lambda length: read_text(
      net, {'params': params}, Sequences(tokens, tokens, length), hidden, jnp.ones((1, 1)), train=True, chunk=2
    )
  )
  # h₁ = (16, 32), h₂ = (4, 8), h₃ = (1, 2), h₄ = (¼, ½).
  for length, changes in ((1, []), (2, [12, 24]), (3, [12, 24, 3, 6]), (4, [12, 24, 3, 6, 0.75, 1.5])):
    found = read(jnp.int32(length))
    np.testing.assert_allclose(found.temporal, np.mean(np.square(changes)) if changes else 0, rtol=1e-15)
    np.testing.assert_array_equal(found.hidden, hidden / 4**length)
    np.testing.assert_allclose(found.loss, np.log(VOCAB), rtol=1e-14)


# Second derivatives.

SHORT = 5


@functools.cache
def second_order():
  """Gradients of the loss in weights and α, and their derivatives along a direction of weights and α."""

  def compute(wanted, weights, direction, statistics, batch, hidden, masks):
    def gradient(weights):
      def loss(weights):
        params, alphas = weights
        mixing = jnp.exp(alphas) / jnp.sum(jnp.exp(alphas), axis=1, keepdims=True)
        variables = {'params': params, 'batch_stats': statistics}
        found = read_text(NET, variables, batch, hidden, mixing, masks, train=True, chunk=3)
        return found.loss + TEMPORAL * found.temporal

      return jax.grad(loss)(weights)

    with weights_gradient_if(wanted):
      return jax.jvp(gradient, (weights,), (direction,))

  return jax.jit(compute)


@pytest.fixture(scope='module')
def direction(case):
  rng = np.random.default_rng(4)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), case.weights)


def derive(case, direction, wanted):
  batch = Sequences(case.tokens[:SHORT], case.targets[:SHORT], np.int32(SHORT - 1))
  arguments = case.weights, direction, case.statistics, batch, case.hidden, case.masks
  return jax.device_get(second_order()(np.bool_(wanted), *arguments))


@pytest.mark.usefixtures('x64')
def test_gradients_and_their_derivatives_are_limits_of_differences(case, direction):
  gradient, product = derive(case, direction, True)
  weights, along = flatten(case.weights), flatten(direction)

  def loss(step):
    found, temporal = plain_losses(case, SHORT - 1, unflatten(case.weights, weights + step * along))[1]
    return found + TEMPORAL * temporal

  # Errors are of fourth order in the step, and rounding is divided by it.
  epsilon = 1e-4
  slope = (8 * (loss(epsilon) - loss(-epsilon)) - loss(2 * epsilon) + loss(-2 * epsilon)) / (12 * epsilon)
  np.testing.assert_allclose(flatten(gradient) @ along, slope, rtol=1e-9)
  plus, minus, plus_twice, minus_twice = (
    plain_gradient(case, SHORT - 1, weights + step * epsilon * along) for step in (1, -1, 2, -2)
  )
  expected = (8 * (plus - minus) - plus_twice + minus_twice) / (12 * epsilon)
  for ours, theirs in zip(jax.tree.leaves(product), jax.tree.leaves(unflatten(case.weights, expected)), strict=True):
    assert_close(ours, theirs, 1e-9)


@pytest.mark.usefixtures('x64')
def test_gradients_of_alpha_do_not_need_those_of_the_matrices(case, direction):
  (wanted, wanted_product), (found, found_product) = (derive(case, direction, each) for each in (True, False))
  assert_close(found[1], wanted[1], 1e-14)
  assert_close(found_product[1], wanted_product[1], 1e-14)
  for name in ('first', 'nodes'):
    assert np.any(wanted[0][name])
    assert not np.any(found[0][name])
    assert not np.any(found_product[0][name])


# Dropout.


@pytest.mark.parametrize('rate', [0.05, 0.25, 0.75])
def test_masks_drop_at_their_rate_and_leave_the_mean(rate):
  draw = jax.jit(Masks.draw, static_argnums=(1, 2, 3, 4))
  masks, different = (
    jax.device_get(draw(jax.random.key(key), Dropout(*[rate] * 5), 40, 250, 10_000)) for key in (0, 1)
  )
  assert [mask.shape for mask in masks] == [(10_000,), *[(40, 250)] * 4]
  for mask in masks:
    keep = np.float32(1 - rate)
    assert set(np.unique(mask)) == {0, 1 / keep}
    # Five standard deviations of a share of 10,000.
    assert abs(np.mean(mask, dtype=np.float64) - 1) < 5 * np.sqrt(rate / (1 - rate) / 10_000)
  # Each is drawn for itself: two agree that they drop as often as chance has it.
  for i, one in enumerate(masks):
    for other in masks[:i]:
      both = np.mean((np.ravel(one) == 0) & (np.ravel(other) == 0))
      assert abs(both - rate**2) < 5 * np.sqrt(rate**2 * (1 - rate**2) / 10_000)
  assert np.any(different.words != masks.words)


def test_without_a_rate_there_is_nothing_but_ones():
  masks = Masks.draw(jax.random.key(0), Dropout(0.0, 0.5, 0.0, 0.5, 0.0), 4, 8, 20)
  for mask, whole in zip(masks, (True, False, True, False, True), strict=True):
    assert np.all(np.asarray(mask) == 1) == whole


@pytest.mark.usefixtures('x64')
def test_words_are_dropped_as_a_whole_and_entries_at_all_time_steps():
  params, _ = draw(SPEC)
  net = LanguageModel(SPEC, VOCAB, WIDTH)
  words = np.array([2.0, 0, 2, 2, 0, 2, 2, 2, 0, 2, 2])
  entries = np.array([[1.0, 0, 0, 4], [0, 0, 1, 1], [1, 1, 1, 1]])
  ones = np.ones_like(entries)
  tokens = np.array([[0, 0, 1], [1, 4, 2], [3, 3, 3], [0, 8, 1]], np.int32)

  def embed(masks):
    return net.apply({'params': params}, tokens, masks, method='embed')

  whole = embed(Masks(np.ones(VOCAB), ones, ones, ones, ones))
  found = embed(Masks(words, ones, ones, ones, ones))
  np.testing.assert_allclose(found, whole * words[tokens][..., None], rtol=1e-14)
  # A column of the batch keeps its mask whatever the time and the word; embedded words and what is read of them alike.
  for name in ('embedded', 'x'):
    found = embed(Masks(np.ones(VOCAB), ones, ones, ones, ones)._replace(**{name: entries}))
    expected = (params['embedding'][tokens] * entries) @ params['first'][:WIDTH]
    assert_close(found, expected, 1e-14)


@pytest.mark.usefixtures('x64')
def test_dropped_states_are_dropped_in_products_alone():
  """Without x and h in the products all gates are a half and all values zero; a state passes half of itself on."""
  spec = Recurrent(1, ('relu',)).cells['recurrent']
  net = LanguageModel(spec, VOCAB, WIDTH)
  params, _ = draw(spec)
  tokens, _, hidden = draw_text(3)
  nothing, all_ = np.zeros((BATCH, WIDTH)), np.ones((BATCH, WIDTH))

  @jax.jit
  def last(masks):
    return net.apply({'params': params}, tokens, hidden, jnp.ones((1, 1)), masks, train=True)[1]

  np.testing.assert_allclose(last(Masks(np.ones(VOCAB), all_, nothing, nothing, all_)), hidden / 4**3, rtol=1e-14)
  # What the decoder reads is none of the cell's business.
  whole = last(Masks(np.ones(VOCAB), *[all_] * 4))
  np.testing.assert_array_equal(last(Masks(np.ones(VOCAB), *[all_] * 3, nothing)), whole)
  assert_close(whole, plain(spec, params, tokens, hidden).states[-1])


# Weights and precision.


@pytest.mark.parametrize(
  ('name', 'width', 'vocab_size', 'expected'),
  [
    # 10,000 words of PTB, 33,278 of WikiText-2; published counts.
    (None, 300, 10_000, 4_810_000),
    ('RNN_DARTS_V2', 850, 10_000, 22_960_000),
    ('RNN_DARTS_V1', 700, 33_278, 33_127_878),
  ],
)
def test_published_numbers_of_weights(name, width, vocab_size, expected):
  searched = name is None
  spec = Recurrent().cells['recurrent'] if searched else published()[name].cell('recurrent')
  mixing = np.ones((spec.num_edges, len(spec.operations))) if searched else None
  net = LanguageModel(spec, vocab_size, width, norm=searched)
  variables = jax.eval_shape(lambda: init_language_model(net, jax.random.key(0), mixing))
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == expected


def test_initial_weights_are_small_and_uniform():
  net = LanguageModel(SPEC, 500, 16, norm=True)
  mixing = jnp.ones((SPEC.num_edges, len(ACTIVATIONS)))
  variables = jax.device_get(jax.jit(lambda key: init_language_model(net, key, mixing))(jax.random.key(0)))
  params = variables['params']
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
  np.testing.assert_array_equal(params.pop('bias'), np.zeros(500))
  for leaf in params.values():
    # [DARTS §A.3]; of a thousand or more draws some come close to either end.
    assert 0.039 < leaf.max() <= 0.04
    assert -0.04 <= leaf.min() < -0.039
    # Moments of the uniform distribution, to five standard deviations.
    assert abs(leaf.mean()) < 5 * 0.04 / np.sqrt(3 * leaf.size)
    assert abs(np.mean(leaf**2) - 0.04**2 / 3) < 5 * 0.04**2 * np.sqrt(4 / 45 / leaf.size)
  assert len({leaf.ravel()[:3].tobytes() for leaf in params.values()}) == len(params)
  np.testing.assert_array_equal(variables['batch_stats']['mean'], np.zeros(16))
  np.testing.assert_array_equal(variables['batch_stats']['var'], np.ones(16))
  np.testing.assert_array_equal(initial_hidden(2, 3), np.zeros((2, 3)))


def primitives(jaxpr):
  """Of all operations in a program with a result in bfloat16, the names."""
  for eqn in jaxpr.eqns:
    inner = list(jaxprs_in_params(eqn.params))
    for each in inner:
      yield from primitives(each)
    if not inner and any(getattr(x.aval, 'dtype', None) == jnp.bfloat16 for x in eqn.outvars):
      yield eqn.primitive.name


def test_bfloat16_rounds_what_is_multiplied_and_nothing_else(case):
  (params, alphas), tokens = case.weights, case.tokens[:4]
  float32 = functools.partial(np.asarray, dtype=np.float32)
  arguments = jax.tree.map(float32, (params, case.statistics, case.hidden, softmax(alphas)))

  def apply(precision, params, statistics, hidden, mixing):
    net = NET.clone(precision=precision)
    variables = {'params': params, 'batch_stats': statistics}
    return net.apply(variables, tokens, hidden, mixing, train=False, mutable=['batch_stats'])

  (exact, exact_hidden), _ = jax.jit(functools.partial(apply, 'float32'))(*arguments)
  rounded = jax.jit(functools.partial(apply, 'bfloat16'))(*arguments)
  assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {np.dtype(np.float32)}
  # Arguments of products have 8 bits, and there are three products in a row a time step and one for the logits.
  for found, expected in zip(rounded[0], (exact, exact_hidden), strict=True):
    assert 2**-12 < np.max(np.abs(found - expected)) / np.max(np.abs(expected)) < 2**-4
  # Nothing but conversions and products has results in bfloat16.
  found = {
    precision: set(primitives(jax.make_jaxpr(functools.partial(apply, precision))(*arguments).jaxpr))
    for precision in ('float32', 'bfloat16')
  }
  assert found == {'float32': set(), 'bfloat16': {'bilinear', 'convert_element_type', 'reshape'}}
