"""The training step and the evaluation by their formulas, in float64; the same on any number of devices."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.nets.recurrent import Sequences
from darts_jax.runtime.compilation import count_compilations
from darts_jax.runtime.mesh import make_mesh, replicated
from darts_jax.settings import build
from darts_jax.training.language import LanguageTrainer, LanguageTraining, RecurrentModel
from darts_jax.training.language.texts import divide, mean_loss

CONFIG = {
  'epochs': 3,
  'batch_size': 8,
  'valid_batch_size': 4,
  'bptt': 6,
  'short_fraction': 0.5,
  'spread': 0.0,
  'temporal_activation': 0.7,
  'network': {'width': 8, 'dropout': {'words': 0.2, 'embedded': 0.3, 'x': 0.4, 'h': 0.25, 'output': 0.5}},
  'weights': {'learning_rate': 3.0, 'weight_decay': 0.02, 'clip_norm': 0.5},
}


def make(corpus, genotype, num_devices=1, **changes):
  """A trainer with what belongs to it."""
  settings = build(LanguageTraining, {**CONFIG, **changes})
  mesh = make_mesh(num_devices)
  trainer = LanguageTrainer(settings, RecurrentModel(genotype, 8, corpus.vocabulary), mesh)
  return SimpleNamespace(trainer=trainer, settings=settings, mesh=mesh, texts=divide(corpus, settings))


@pytest.fixture(scope='module')
def whole(corpus, genotype):
  made = make(corpus, genotype)
  made.text = made.texts.place('train', made.mesh)
  made.step = jax.jit(made.trainer.step, out_shardings=replicated(made.mesh))
  made.gradient = jax.jit(made.trainer.gradient)
  made.masks = jax.jit(made.trainer.masks)
  return made


def start(trainer, scale=0.5, seed=1):
  """A state in float64 with random weights and hidden state."""
  state = trainer.init(jax.random.key(3))
  rng = np.random.default_rng(seed)
  weights = state.weights.replace(jnp.asarray(rng.normal(scale=scale, size=state.weights.vector.shape)))
  hidden = jnp.asarray(rng.normal(size=state.hidden.shape))
  average = state.average._replace(mean=jnp.zeros_like(weights.vector))
  return place(state.replace(weights=weights, hidden=hidden, average=average))


def place(state):
  """On the one device in the same manner, whatever was changed, so that a function is compiled once."""
  return jax.device_put(state, replicated(make_mesh(1)))


def formula(params, tokens, targets, hidden, masks):
  """Loss, temporal activation and last state of two nodes, `tanh` and `relu`, that read s₀; `[T, B]` tokens."""
  first, nodes, embedding = params['first'], params['nodes'], params['embedding']
  batch, width = hidden.shape
  loss = temporal = 0.0
  h = hidden
  for t, (words, follow) in enumerate(zip(tokens, targets, strict=True)):
    x = embedding[words] * masks.words[words][:, None] * (masks.embedded * masks.x)
    gate, value = jnp.split(jnp.concatenate([x, h * masks.h], axis=1) @ first, 2, axis=1)
    s0 = h + jax.nn.sigmoid(gate) * (jnp.tanh(value) - h)
    states = []
    for matrix, activation in zip(nodes, (jnp.tanh, lambda g: jnp.maximum(g, 0)), strict=True):
      gate, value = jnp.split((s0 * masks.h) @ matrix, 2, axis=1)
      states.append(s0 + jax.nn.sigmoid(gate) * (activation(value) - s0))
    new = (states[0] + states[1]) / 2
    logits = (new * masks.output) @ embedding.T + params['bias']
    loss -= jnp.sum((logits - jax.nn.logsumexp(logits, axis=1, keepdims=True))[jnp.arange(batch), follow])
    temporal += jnp.sum((new - h) ** 2) if t else 0.0
    h = new
  return loss / (len(tokens) * batch), temporal / ((len(tokens) - 1) * batch * width), h


@pytest.mark.parametrize(('index', 'scale'), [(0, 1.0), (1, 0.02)])
def test_a_step_is_clipped_sgd_on_both_terms_scaled_by_the_length(x64, whole, index, scale):
  state = place(start(whole.trainer, scale).replace(step=jnp.int32(index)))
  windows, rows = whole.texts.windows['train'], whole.texts.columns['train']
  begin, length = int(windows.starts[index]), int(windows.lengths[index])
  tokens, targets = rows[begin : begin + length], rows[begin + 1 : begin + length + 1]
  # The text begins without a past.
  hidden = state.hidden if index else jnp.zeros_like(state.hidden)
  masks = whole.masks(state)

  def objective(vector):
    loss, temporal, last = formula(state.weights.replace(vector).tree, tokens, targets, hidden, masks)
    return loss + 0.7 * temporal, (loss, temporal, last)

  gradient, (loss, temporal, last) = jax.jit(jax.grad(objective, has_aux=True))(state.weights.vector)
  norm = float(np.sqrt(np.sum(np.square(gradient))))
  factor = min(1, 0.5 / (norm + 1e-6))
  vector = np.asarray(state.weights.vector)
  after, metrics = whole.step(state, whole.text)
  np.testing.assert_allclose(
    after.weights.vector, vector - 3.0 * length / 6 * (factor * np.asarray(gradient) + 0.02 * vector), rtol=1e-9
  )
  np.testing.assert_allclose(after.hidden, last, rtol=1e-9)
  expected = {
    'train_loss': float(loss),
    'temporal': float(temporal),
    'weights_gradient_norm': norm,
    'clipped': float(scale == 1.0),
    'learning_rate': 3.0 * length / 6,
    'sequence_length': length,
  }
  assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, rel=1e-9)
  assert int(after.step) == index + 1


def test_the_steps_of_that_test_differ_in_length(whole):
  assert len(set(whole.texts.windows['train'].lengths[:2].tolist())) == 2


def test_text_that_is_cut_in_two_is_read_as_if_it_was_whole(x64, whole):
  """The same masks, weights and hidden state: a boundary between sequences changes nothing but the gradient."""
  state = start(whole.trainer)
  rows = jnp.asarray(whole.texts.columns['train'][:7])
  masks = whole.masks(state)

  def part(begin, end):
    pad = [(0, 6 - (end - begin)), (0, 0)]
    tokens, targets = (jnp.pad(x, pad) for x in (rows[begin:end], rows[begin + 1 : end + 1]))
    return Sequences(tokens, targets, jnp.int32(end - begin))

  def read(batch, hidden):
    return whole.gradient(state.weights, batch, hidden, masks)[1]

  one = read(part(0, 6), state.hidden)
  left = read(part(0, 4), state.hidden)
  right = read(part(4, 6), left.hidden)
  np.testing.assert_allclose((4 * left.loss + 2 * right.loss) / 6, one.loss, rtol=1e-12)
  np.testing.assert_allclose(right.hidden, one.hidden, rtol=1e-12)
  assert np.abs(right.loss - one.loss) > 1e-3


def test_small_batches_have_the_gradient_of_the_whole_one(x64, corpus, genotype, whole):
  divided = make(corpus, genotype, small_batch_size=2).trainer
  state = place(start(whole.trainer).replace(step=jnp.int32(2)))
  masks = whole.masks(state)
  _, batch = whole.text.window(state.step)
  found, expected = (
    gradient(state.weights, batch, state.hidden, masks) for gradient in (jax.jit(divided.gradient), whole.gradient)
  )
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-12, atol=1e-14)
  for name in ('loss', 'temporal', 'hidden'):
    np.testing.assert_allclose(getattr(found[1], name), getattr(expected[1], name), rtol=1e-12)
  assert np.linalg.norm(expected[0]) > 0.1


def test_masks_are_others_in_every_step_and_in_every_run(whole):
  state = whole.trainer.init(jax.random.key(3))
  first, second, again, other = (
    whole.masks(place(s))
    for s in (state, state.replace(step=jnp.int32(1)), state, state.replace(key=jax.random.key(4)))
  )
  rates = {'words': 0.2, 'embedded': 0.3, 'x': 0.4, 'h': 0.25, 'output': 0.5}
  for name, rate in rates.items():
    mask = np.asarray(getattr(first, name))
    assert mask.shape == ((20,) if name == 'words' else (8, 8))
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-6)
    np.testing.assert_array_equal(mask, getattr(again, name))
    assert (mask != getattr(second, name)).any()
    assert (mask != getattr(other, name)).any()
  # All are drawn for themselves.
  assert len({(np.asarray(mask) > 0).tobytes() for mask in first[1:]}) == 4


def test_iterates_are_averaged_from_a_step_on(x64, whole):
  state = start(whole.trainer)
  iterates = []
  for index in range(5):
    state, _ = whole.step(place(state.replace(averaging=jnp.array(index >= 2))), whole.text)
    iterates.append(np.asarray(state.weights.vector))
    expected = np.mean(iterates[2:], axis=0) if index >= 2 else iterates[-1]
    np.testing.assert_allclose(state.evaluated.vector, expected, rtol=1e-12)
  assert int(state.average.num_iterates) == 3
  assert np.abs(iterates[-1] - iterates[2]).max() > 1e-2


@pytest.fixture(scope='module')
def trained(whole):
  """All windows of two epochs, in three calls of one program."""
  first, second, _ = whole.texts.windows['train'].epoch_ends
  state = whole.trainer.init(jax.random.key(3))
  sums = []
  with count_compilations() as counter:
    for steps in (1, first - 1, second - first):
      state, found = whole.trainer.run(state, whole.text, jnp.int32(steps))
      sums.append(jax.device_get(found))
      if steps == 1:
        compiled = counter.count
    after = counter.count
  return SimpleNamespace(state=state, sums=sums, compiled=compiled, recompiled=after - compiled)


def test_sequences_of_all_lengths_are_one_program(whole, trained):
  windows = whole.texts.windows['train']
  assert len(set(windows.lengths[: windows.epoch_ends[1]].tolist())) > 2
  assert trained.compiled >= 1
  assert trained.recompiled == 0


def test_metrics_are_sums_over_steps(whole, trained):
  windows = whole.texts.windows['train']
  first, second, _ = windows.epoch_ends
  assert [int(sums['steps']) for sums in trained.sums] == [1, first - 1, second - first]
  assert all(sums['finite'] for sums in trained.sums)
  lengths = windows.lengths[first:second].sum()
  assert float(trained.sums[2]['sequence_length']) == lengths
  assert float(trained.sums[2]['learning_rate']) == pytest.approx(3.0 * lengths / 6, rel=1e-6)


def test_a_loss_that_is_not_finite_stops(whole):
  state = whole.trainer.init(jax.random.key(0))
  broken = state.replace(weights=state.weights.replace(state.weights.vector * jnp.nan))
  after, sums = whole.trainer.run(broken, whole.text, jnp.int32(4))
  assert (int(sums['steps']), bool(sums['finite']), int(after.step)) == (1, False, 1)


def test_the_same_on_eight_devices(corpus, genotype, trained):
  made = make(corpus, genotype, 8)
  text = made.texts.place('train', made.mesh)
  assert {shard.data.shape[1] for shard in text.columns.addressable_shards} == {1}
  steps = made.texts.windows['train'].epoch_ends[1]
  state, sums = made.trainer.run(made.trainer.init(jax.random.key(3)), text, jnp.int32(steps))
  assert state.weights.vector.sharding.num_devices == 8
  # Sums over a batch are in another order, which some ten steps with a large learning rate amplify.
  np.testing.assert_allclose(state.weights.vector, trained.state.weights.vector, atol=1e-4)
  np.testing.assert_allclose(state.hidden, trained.state.hidden, atol=1e-4)
  total = sum(one['train_loss'] for one in trained.sums)
  np.testing.assert_allclose(sums['train_loss'], total, rtol=1e-5)
  assert np.abs(trained.state.weights.vector).max() > 0.1


@pytest.mark.parametrize('averaged', [False, True])
def test_evaluation_is_the_mean_over_all_targets_without_dropout(x64, whole, averaged):
  state = start(whole.trainer)
  if averaged:
    average = start(whole.trainer, seed=2).weights.vector
    state = state.replace(average=state.average._replace(num_iterates=jnp.int32(3), mean=average))
  weights = start(whole.trainer, seed=2 if averaged else 1).weights.tree
  rows = whole.texts.columns['valid']
  assert rows.shape == (10, 4)
  ones = SimpleNamespace(words=jnp.ones(20), embedded=1, x=1, h=1, output=1)
  expected, _, _ = jax.jit(functools.partial(formula, masks=ones))(weights, rows[:-1], rows[1:], jnp.zeros((4, 8)))
  losses = whole.trainer.losses(state, whole.texts.place('valid', whole.mesh))
  np.testing.assert_allclose(mean_loss(losses, whole.texts.windows['valid']), expected, rtol=1e-11)


def test_settings_reach_the_network(corpus, genotype):
  def text(**changes):
    made = make(corpus, genotype, **changes)
    state = jax.eval_shape(made.trainer.init, jax.random.key(0))
    return str(jax.make_jaxpr(made.trainer.step)(state, made.texts.place('train', made.mesh)))

  plain = text()
  assert 'bf16' not in plain
  assert 'bf16' in text(precision='bfloat16')
  assert text(remat=True).count('remat') > plain.count('remat')
