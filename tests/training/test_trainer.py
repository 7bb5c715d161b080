"""Schedules, losses and the training step, by their definitions; the same on any number of devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.data.batches import Examples, evaluate, tally
from darts_jax.runtime.mesh import batch_sharding, make_mesh
from darts_jax.runtime.packed import Packed
from darts_jax.settings import build
from darts_jax.spaces import darts
from darts_jax.training import Model, Trainer, Training
from darts_jax.training.trainer import learning_rates, smoothed_cross_entropy

CELL = (('sep_conv_3x3', 0), ('skip_connect', 1))
GENOTYPE = darts.genotype(CELL, (2,), (('max_pool_3x3', 0), ('dil_conv_3x3', 1)), (2,))
MODEL = Model(GENOTYPE, 2, 3, 4, 'cifar', False, True, 1, (8, 8, 3), (100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
CONFIG = {
  'epochs': 4,
  'batch_size': 8,
  'label_smoothing': 0.1,
  'augment': {'crop_padding': 1, 'flip': True, 'cutout': 2},
  'network': {'channels': 2, 'layers': 3, 'auxiliary': False, 'stem_multiplier': 1, 'drop_path': 0.5},
  'weights': {'learning_rate': 0.5, 'clip_norm': 0.2, 'weight_decay': 0.01},
}


@pytest.mark.parametrize(
  ('field', 'value'),
  [('std', [50, 0, 70]), ('std', [50, 1e-40, 70]), ('std', [50.0]), ('mean', [0, 0, float('nan')]), ('mean', '123')],
)
def test_a_model_that_would_normalise_to_nan_or_infinity_is_refused(field, value):
  values = MODEL.to_dict()
  assert Model.from_dict(values) == MODEL
  with pytest.raises(ValueError, match=f'^{field}: .* (is not a|allowed)'):
    Model.from_dict({**values, field: value})


def rates(steps_per_epoch=5, **changes):
  settings = build(Training, {'epochs': 10, 'batch_size': 256, 'weights': changes})
  learning_rate = learning_rates(settings, steps_per_epoch)
  return np.array([learning_rate(jnp.int32(step)) for step in range(10 * steps_per_epoch)], np.float64)


def test_cosine_starts_at_the_first_rate_and_would_reach_the_final_one_after_the_last_epoch():
  found = rates(learning_rate=0.1, final_learning_rate=0.02)
  epochs = np.arange(50) // 5
  np.testing.assert_allclose(found, 0.02 + 0.04 * (1 + np.cos(np.pi * epochs / 10)), rtol=1e-6)


def test_line_and_exponential():
  epochs = np.arange(50) // 5
  found = rates(learning_rate=0.1, schedule='linear', final_learning_rate=0.02)
  np.testing.assert_allclose(found, 0.1 - 0.008 * epochs, rtol=1e-6)
  found = rates(learning_rate=0.1, schedule='exponential', decay=0.9)
  np.testing.assert_allclose(found, 0.1 * 0.9**epochs, rtol=1e-6)


def test_warmup_grows_step_by_step_to_the_schedule_and_large_batches_scale_it():
  plain = rates(learning_rate=0.1)
  found = rates(learning_rate=0.1, warmup_epochs=2, reference_batch_size=64)
  ramp = np.minimum(1, (np.arange(50) + 1) / 10)
  np.testing.assert_allclose(found, 4 * plain * ramp, rtol=1e-6)


def test_smoothed_cross_entropy_by_its_formula():
  logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
  labels = np.array([0, 1, 2, 3, 4, 0])
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = -(0.8 * logs[np.arange(6), labels] + 0.2 * logs.mean(-1))
  np.testing.assert_allclose(smoothed_cross_entropy(logits, labels, 0.2), expected, rtol=1e-5)
  np.testing.assert_allclose(smoothed_cross_entropy(logits, labels, 0.0), -logs[np.arange(6), labels], rtol=1e-5)


@pytest.mark.usefixtures('x64')
def test_tally_counts_the_largest_and_the_five_largest_logits():
  logits = np.tile(np.arange(7.0), (7, 1))
  logits[0] = 1.0  # A tie: the smaller index wins, as in an argmax.
  labels = np.array([0, 1, 2, 3, 4, 5, 6])
  loss, accuracy, top5 = tally(logits, labels, np.ones(7, bool))
  assert (float(accuracy), float(top5)) == (2, 6)
  _, accuracy, top5 = tally(logits, labels, labels < 6)
  assert (float(accuracy), float(top5)) == (1, 5)
  expected = np.log(7) + 6 * np.log(np.exp(np.arange(7.0)).sum()) - np.arange(7.0).sum()
  np.testing.assert_allclose(loss, expected, rtol=1e-14)


def test_nan_is_no_right_answer():
  _, accuracy, top5 = tally(np.full((2, 3), np.nan), np.array([0, 2]), np.ones(2, bool))
  assert (float(accuracy), float(top5)) == (0, 2)  # Of three classes, any is among the first five.
  _, accuracy, top5 = tally(np.full((2, 7), np.nan), np.array([0, 6]), np.ones(2, bool))
  assert (float(accuracy), float(top5)) == (0, 0)


@pytest.mark.parametrize('total', [8, 9, 23])
def test_evaluation_counts_every_image_once(total):
  rng = np.random.default_rng(1)
  examples = Examples(rng.normal(5, 2, size=(total, 2, 2, 1)).astype(np.float32), rng.integers(0, 3, total))
  weights = rng.normal(size=(4, 3)).astype(np.float32)

  def logits_of(images):
    return images.reshape(len(images), -1) @ weights

  def share(chosen):
    return jax.lax.with_sharding_constraint(chosen, batch_sharding(make_mesh(8)))

  found = jax.jit(lambda data: evaluate(logits_of, data, 8, (5.0,), (2.0,), 'float32', share))(examples)
  logits = ((examples.images - 5) / 2).reshape(total, -1) @ weights
  losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(total), examples.labels]
  np.testing.assert_allclose(found.loss, losses.mean(), rtol=1e-5)
  np.testing.assert_allclose(found.accuracy, (logits.argmax(-1) == examples.labels).mean(), rtol=1e-6)


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(2)
  return Examples(rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8), rng.integers(0, 4, 24).astype(np.int32))


@pytest.fixture(scope='module')
def trainer():
  return Trainer(build(Training, CONFIG), MODEL, 24, make_mesh(1))


@pytest.mark.usefixtures('own')
def test_operations_of_ones_own_are_the_same_on_two_devices_with_remat_and_close_in_bfloat16(images):
  cells = darts.genotype((('squeeze', 0), ('attention', 1)), (2,), (('squeeze', 0), ('pointwise', 1)), (2,))
  model = dataclasses.replace(MODEL, genotype=cells)
  found = []
  for devices, more in ((1, {}), (2, {'remat': True}), (2, {'remat': True, 'precision': 'bfloat16'})):
    trainer = Trainer(build(Training, {**CONFIG, **more}), model, 24, make_mesh(devices))
    state, sums = trainer.run(trainer.init(jax.random.key(0)), images, jnp.int32(3))
    assert (int(sums['steps']), bool(sums['finite'])) == (3, True)
    found.append((jax.device_get((state.weights.vector, state.statistics.vector)), float(sums['train_loss'])))
  (one, loss), (two, shared), (rough, close) = found
  assert {x.dtype for x in rough} == {np.dtype(np.float32)}
  # Rounding, in sums of another order; a batch is normalised as a whole on any number of devices.
  for ours, expected in zip(two, one, strict=True):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
  assert shared == pytest.approx(loss, rel=1e-5)
  # bfloat16 has steps of 2⁻⁸, of which some add up in a dozen layers.
  assert close == pytest.approx(loss, rel=12 * 2**-8)
  assert close != shared


def test_more_steps_than_int32_counts_are_refused():
  settings = build(Training, {**CONFIG, 'epochs': 20_000, 'batch_size': 4})
  with pytest.raises(ValueError, match='^config.epochs: 20000 are 2147500000 steps; at most 2147483647 are allowed$'):
    Trainer(settings, MODEL, 429_500, make_mesh(1))


@pytest.fixture(scope='module')
def trained(trainer, images):
  """The state after seven steps, and sums of metrics of the last four."""
  state = trainer.init(jax.random.key(0))
  state, _ = trainer.run(state, images, jnp.int32(3))
  return trainer.run(state, images, jnp.int32(4))


def test_an_epoch_has_every_image_at_most_once(trainer, images):
  state = trainer.init(jax.random.key(0))
  assert trainer.steps_per_epoch == 3
  marked = Examples(images.images, np.arange(24, dtype=np.int32))
  batch = jax.jit(lambda step, data: trainer.batch(dataclasses.replace(state, step=step), data).labels)
  first, second = (np.concatenate([batch(3 * epoch + i, marked) for i in range(3)]) for epoch in range(2))
  assert sorted(first) == sorted(second) == list(range(24))
  assert (first != second).any()


def start_in_float64(trainer, key):
  # Images are cast to the precision of the settings, which has no float64 for users.
  trainer._settings = dataclasses.replace(trainer._settings, precision='float64')
  return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, trainer.init(key))


@pytest.mark.usefixtures('x64')
def test_a_step_is_clipped_decayed_momentum_on_the_gradient_of_the_smoothed_loss(images):
  """Without drop path, in float64: every part of it from the network's own function."""
  network = {**CONFIG['network'], 'drop_path': 0.0}
  settings = build(Training, {**CONFIG, 'network': network})
  trainer = Trainer(settings, MODEL, 24, make_mesh(1))
  state = start_in_float64(trainer, jax.random.key(1))
  rng = np.random.default_rng(3)
  batch = Examples(rng.normal(size=(8, 8, 8, 3)), images.labels[:8])
  step = jax.jit(trainer.step)

  def loss_of(vector):
    variables = {'params': state.weights.replace(vector).tree}
    logits, updated = trainer.net.apply(variables, batch.images, train=True, mutable=['moments'])
    targets = 0.9 * np.eye(4)[batch.labels] + 0.1 / 4
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits.main), -1)), Packed.pack(updated['moments']).vector

  slope = jax.jit(jax.grad(loss_of, has_aux=True))
  vector, statistics = np.array(state.weights.vector), np.array(state.statistics.vector)
  momentum = np.zeros_like(vector)
  for i in range(3):
    gradient, moments = slope(jnp.asarray(vector))
    norm = np.linalg.norm(gradient)
    assert norm > 0.2
    momentum = 0.9 * momentum + gradient * min(1, 0.2 / (norm + 1e-6)) + 0.01 * vector
    vector = vector - 0.5 * momentum
    statistics = 0.9 * statistics + 0.1 * np.asarray(moments)
    state, metrics = step(state, batch)
    np.testing.assert_allclose(metrics['weights_gradient_norm'], norm, rtol=1e-9)
    assert (float(metrics['clipped']), float(metrics['drop_path']), int(state.step)) == (1, 0, i + 1)
    # The learning rate is a float32.
    np.testing.assert_allclose(state.weights.vector, vector, atol=1e-7)
    np.testing.assert_allclose(state.statistics.vector, statistics, atol=1e-7)


def test_a_step_drops_paths_by_its_own_key(trainer, images):
  """Against the network's own function at the key and the rate that are documented, at two steps of one epoch."""
  batch = Examples(np.random.default_rng(5).normal(size=(8, 8, 8, 3)).astype(np.float32), images.labels[:8])
  state = trainer.init(jax.random.key(0))

  def loss_of(vector, step, drop):
    variables = {'params': state.weights.replace(vector).tree}
    key = jax.random.fold_in(jax.random.fold_in(state.key, step), 0)
    options = {'drop_path': 0.125, 'key': key} if drop else {}
    logits, _ = trainer.net.apply(variables, batch.images, train=True, mutable=['moments'], **options)
    return jnp.mean(smoothed_cross_entropy(logits.main, batch.labels, 0.1))

  expected = jax.jit(loss_of, static_argnums=2)
  step = jax.jit(trainer.step)
  losses = []
  for number in (3, 4):
    # The second epoch: ½ · ¼.
    _, metrics = step(dataclasses.replace(state, step=jnp.int32(number)), batch)
    losses.append(float(metrics['train_loss']))
    np.testing.assert_allclose(losses[-1], expected(state.weights.vector, number, True), rtol=1e-5)
    assert abs(losses[-1] - float(expected(state.weights.vector, number, False))) > 1e-4
  assert abs(losses[0] - losses[1]) > 1e-4


def test_a_step_draws_noise_by_its_own_key_on_any_number_of_devices(images):
  """Also without drop path; against the network's own function at the keys that are documented."""
  cell = (('noise', 0), ('sep_conv_3x3', 1))
  model = dataclasses.replace(MODEL, genotype=darts.genotype(cell, (2,), cell, (2,)))
  settings = build(Training, {**CONFIG, 'network': {**CONFIG['network'], 'drop_path': 0.0}})
  batch = Examples(np.random.default_rng(5).normal(size=(8, 8, 8, 3)).astype(np.float32), images.labels[:8])
  found = []
  for devices in (1, 8):
    trainer = Trainer(settings, model, 24, make_mesh(devices))
    state = trainer.init(jax.random.key(0))
    step, placed = jax.jit(trainer.step), jax.device_put(batch, batch_sharding(make_mesh(devices)))
    states = [dataclasses.replace(state, step=jnp.int32(i)) for i in (0, 1)]
    found.append([float(step(each, placed)[1]['train_loss']) for each in states])

  @jax.jit
  def loss_of(step):
    keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(state.key, step), 3), 8)
    variables = {'params': state.weights.tree}
    logits, _ = trainer.net.apply(variables, batch.images, train=True, keys=keys, mutable=['moments'])
    return jnp.mean(smoothed_cross_entropy(logits.main, batch.labels, 0.1))

  np.testing.assert_allclose(found, [[loss_of(0), loss_of(1)]] * 2, rtol=1e-5)
  assert abs(found[0][0] - found[0][1]) > 1e-3


def test_augmentation_is_another_one_in_every_step(trainer, images):
  state = trainer.init(jax.random.key(0))
  augmented = jax.jit(lambda step: trainer._augmented(dataclasses.replace(state, step=step), images.images[:8]))
  first, second, again = (np.asarray(augmented(step)) for step in (0, 1, 0))
  np.testing.assert_array_equal(first, again)
  assert (first != second).any(axis=(1, 2, 3)).sum() > 4


def lowered(precision, platform):
  trainer = Trainer(build(Training, {**CONFIG, 'precision': precision}), MODEL, 24, make_mesh(1))
  state = jax.eval_shape(trainer.init, jax.random.key(0))
  batch = Examples(jax.ShapeDtypeStruct((8, 8, 8, 3), np.uint8), jax.ShapeDtypeStruct((8,), np.int32))
  return trainer.raw_step.trace(state, batch).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize('platform', ['cpu', 'cuda', 'tpu'])
def test_precision_is_that_of_the_images_inside_the_network(platform):
  assert 'bf16' not in lowered('float32', platform)
  products = [
    line
    for line in lowered('bfloat16', platform).splitlines()
    # On CPU sums over pixels are products, too, in float32 and marked with the highest precision.
    if ('stablehlo.convolution' in line or 'stablehlo.dot_general' in line) and 'HIGHEST' not in line
  ]
  # The classifier with its two gradients, and the norm of all gradients, for clipping and for the metrics.
  exceptions = [line for line in products if 'f32>' in line]
  assert len(exceptions) == 3 + 2
  assert len(products) > 6 * len(exceptions)
  assert all('bf16>, tensor' in line and line.endswith('bf16>') for line in products if line not in exceptions)


def test_metrics_are_sums_over_steps_and_drop_path_grows_by_epoch(trainer, trained):
  state, sums = trained
  assert (int(state.step), int(sums['steps']), bool(sums['finite'])) == (7, 4, True)
  # Steps 3 to 6: three of the second epoch, one of the third; ½ · epoch/4 each.
  np.testing.assert_allclose(sums['drop_path'], 3 * 0.125 + 0.25, rtol=1e-6)
  np.testing.assert_allclose(
    sums['learning_rate'], sum(float(trainer.learning_rate(jnp.int32(i))) for i in range(3, 7))
  )


def test_a_loss_that_is_not_finite_stops(trainer, images):
  state = trainer.init(jax.random.key(0))
  broken = dataclasses.replace(state, weights=state.weights.replace(state.weights.vector * jnp.nan))
  _, sums = trainer.run(broken, images, jnp.int32(4))
  assert (int(sums['steps']), bool(sums['finite'])) == (1, False)


def test_the_same_on_eight_devices(trained, images):
  settings = build(Training, CONFIG)
  trainer = Trainer(settings, MODEL, 24, make_mesh(8))
  state, _ = trainer.run(trainer.init(jax.random.key(0)), images, jnp.int32(7))
  assert state.weights.vector.sharding.num_devices == 8
  # Sums over a batch are in another order; seven steps at a learning rate of 0.5 amplify float32 rounding.
  np.testing.assert_allclose(state.weights.vector, trained[0].weights.vector, atol=2e-4)
  np.testing.assert_allclose(state.statistics.vector, trained[0].statistics.vector, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures('x64')
def test_auxiliary_loss_has_its_weight():
  """In float64, since the auxiliary head normalises two numbers here, which leaves little of their gradient."""
  model = dataclasses.replace(MODEL, image_shape=(32, 32, 3), auxiliary=True)
  rng = np.random.default_rng(4)
  batch = Examples(rng.normal(size=(2, 32, 32, 3)), np.array([1, 3]))

  network = {**CONFIG['network'], 'drop_path': 0.0, 'auxiliary': True}
  settings = build(Training, {**CONFIG, 'batch_size': 2, 'network': network, 'auxiliary_weight': 0.4})
  trainer = Trainer(settings, model, 24, make_mesh(1))
  state = start_in_float64(trainer, jax.random.key(0))

  def losses(vector):
    variables = {'params': state.weights.replace(vector).tree}
    logits, _ = trainer.net.apply(variables, batch.images, train=True, mutable=['moments'])
    return [jnp.mean(smoothed_cross_entropy(x, batch.labels, 0.1)) for x in logits]

  slope = jax.jit(jax.grad(lambda vector: losses(vector)[0] + 0.4 * losses(vector)[1]))
  _, metrics = jax.jit(trainer.step)(state, batch)
  np.testing.assert_allclose(metrics['weights_gradient_norm'], jnp.linalg.norm(slope(state.weights.vector)), rtol=1e-10)
  np.testing.assert_allclose(metrics['train_loss'], jax.jit(losses)(state.weights.vector)[0], rtol=1e-12)


def test_what_is_drawn_in_a_step_has_a_purpose_of_its_own(trainer, images, purposes):
  """The order of the images, how they are augmented, the paths that are dropped."""
  data = jax.tree.map(jnp.asarray, images)
  state = jax.eval_shape(trainer.init, jax.random.key(0))
  found = purposes(lambda state: trainer.step(state, trainer.batch(state, data)), state)
  assert len(found) == len(set(found)) == 3


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize(('name', 'num_args'), [('run', 3), ('evaluate', 2), ('raw_step', 2), ('tally', 3)])
def test_networks_are_traced_as_suits_the_devices(edges_are_channels, name, num_args, platform):
  mesh = make_mesh(1)

  def make():
    return Trainer(build(Training, CONFIG), MODEL, 24, mesh)

  args = [jnp.int32(0)] * num_args
  assert edges_are_channels(Trainer, name, mesh, platform, make, *args) == (platform == 'tpu')
