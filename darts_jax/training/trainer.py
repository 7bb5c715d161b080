"""Compiled functions of a training: many steps in one call, and the evaluation; and the state that they map."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from darts_jax.data.augment import augment, normalise
from darts_jax.data.batches import Evaluation, Examples, epoch_indices, evaluate, tally
from darts_jax.data.jitter import color_jitter
from darts_jax.hypergradient import global_norm
from darts_jax.limits import check_steps
from darts_jax.nets.bilinear import traced_for
from darts_jax.nets.conv import Logits, draws
from darts_jax.nets.layers import init_variables
from darts_jax.nets.statistics import apply_in_training
from darts_jax.optimizers import clip_by_global_norm, decayed_sgd, scaled_to_batch, warmed_up
from darts_jax.runtime.compilation import compiler_options
from darts_jax.runtime.mesh import batch_sharding, replicated, template
from darts_jax.runtime.packed import Packed
from darts_jax.runtime.precision import precisely
from darts_jax.runtime.steps import take_steps
from darts_jax.streams import Stream
from darts_jax.training.model import Model
from darts_jax.training.settings import Training

Array = jax.Array
PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a training step reads and writes; a pytree.

  Attributes:
    step: `[]` int32, number of steps taken.
    key: typed random key of the run, which never changes: every step draws from this key folded with `step`.
    weights: parameters of the network, `state.weights.tree`.
    statistics: running BN statistics, `state.statistics.tree`.
    optimizer: Optax state of the weights as one vector.
  """

  step: Array
  key: Array
  weights: Packed
  statistics: Packed
  optimizer: PyTree

  @property
  def variables(self) -> dict[str, PyTree]:
    """The variables of the network, as Flax takes them."""
    return {'params': self.weights.tree, 'batch_stats': self.statistics.tree}


def learning_rates(settings: Training, steps_per_epoch: int) -> Callable[[Array], Array]:
  """The learning rate as a function of the number of steps taken; see `darts_jax.training.settings.Weights`."""
  rates = settings.weights
  first, last = (
    scaled_to_batch(rate, settings.batch_size, rates.reference_batch_size)
    for rate in (rates.learning_rate, rates.final_learning_rate)
  )
  schedule = {
    'cosine': optax.cosine_decay_schedule(first, settings.epochs, last / first),
    'linear': optax.linear_schedule(first, last, settings.epochs),
    'exponential': optax.exponential_decay(first, 1, rates.decay),
  }[rates.schedule]

  def learning_rate(step: Array) -> Array:
    # The dtype of Optax's schedules differs: a cosine has that of the count, an exponential is float32.
    return jnp.asarray(schedule(step // steps_per_epoch), jnp.float32)

  return warmed_up(learning_rate, rates.warmup_epochs * steps_per_epoch)


def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: float) -> Array:
  """Cross-entropy with labels `(1 − s)·one-hot + s/num_classes` [Szegedy et al. 2016, §7], `[N]` in nats."""
  targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), smoothing)
  return optax.softmax_cross_entropy(logits, targets)


class Trainer:
  """Compiled functions of a training: `init`, `run` (many steps), `evaluate`; `raw_step` and `tally` for streams.

  Attributes:
    steps_per_epoch: number of full batches in the training images.
    net: the network.
    learning_rate: the learning rate as a function of the number of steps taken.
  """

  def __init__(self, settings: Training, model: Model, num_train: int, mesh: Mesh) -> None:
    """Builds the functions; compiles nothing.

    Args:
      settings: settings of the training.
      model: the model to train.
      num_train: number of training images, at least a batch.
      mesh: devices with an axis `data`.

    Raises:
      ValueError: the steps of all epochs do not fit into int32.
    """
    self.steps_per_epoch = num_train // settings.batch_size
    check_steps(settings.epochs, settings.epochs * self.steps_per_epoch)
    self.net = model.network(remat=settings.remat)
    self._settings = settings
    self._model = model
    self._num_train = num_train
    self._mesh = mesh
    self._mean, self._std = np.array(model.mean, np.float32), np.array(model.std, np.float32)
    rates = settings.weights
    self.learning_rate = learning_rates(settings, self.steps_per_epoch)
    self._optimizer = optax.chain(
      clip_by_global_norm(rates.clip_norm) if rates.clip_norm else optax.identity(),
      decayed_sgd(self.learning_rate, rates.momentum, rates.weight_decay, rates.nesterov),
    )
    same = replicated(mesh)
    options = compiler_options(mesh)
    self.init = jax.jit(self._init, out_shardings=same)
    self.run = jax.jit(traced_for(mesh, self._run), donate_argnums=0, out_shardings=same, compiler_options=options)
    self.evaluate = jax.jit(traced_for(mesh, self._evaluate), out_shardings=same, compiler_options=options)
    self.raw_step = jax.jit(
      traced_for(mesh, self._raw_step), donate_argnums=0, out_shardings=same, compiler_options=options
    )
    self.tally = jax.jit(traced_for(mesh, self._tally), out_shardings=same, compiler_options=options)

  def template(self) -> TrainState:
    """Shapes, dtypes and shardings of the state, without arrays."""
    return template(self.init, replicated(self._mesh), jax.random.key(0))

  def drop_path(self, step: Array) -> Array:
    """The probability that drop path drops an edge: linear in the epoch, 0 in the first [DARTS §A.2]."""
    epoch = step // self.steps_per_epoch
    return jnp.asarray(self._settings.network.drop_path * epoch / self._settings.epochs, jnp.float32)

  def _init(self, key: Array) -> TrainState:
    """The state before the first step, from the typed key of the run."""
    run_key, weights_key = jax.random.split(key)
    variables = init_variables(self.net, weights_key, jnp.zeros((1, *self._model.image_shape)), train=True)
    weights = Packed.pack(variables['params'])
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      key=run_key,
      weights=weights,
      statistics=Packed.pack(variables['batch_stats']),
      optimizer=self._optimizer.init(weights.vector),
    )

  def _run(self, state: TrainState, data: Examples, num_steps: Array) -> tuple[TrainState, dict[str, Array]]:
    """Takes up to `num_steps` steps; stops after a step whose loss or gradient is not finite.

    Args:
      state: the state before the steps; donated.
      data: raw training images and labels, on the devices.
      num_steps: `[]` int32; traced, so that one program serves any number.

    Returns:
      The new state; and sums over steps of the metrics, with `steps` and `finite` (see `take_steps`).
    """
    return take_steps(
      lambda state: self.step(state, self.batch(state, data)), state, num_steps, ('train_loss', 'weights_gradient_norm')
    )

  def batch(self, state: TrainState, data: Examples) -> Examples:
    """The batch of the next step: images in the random order of the epoch, augmented and normalised."""
    settings = self._settings
    epoch, position = jnp.divmod(state.step, self.steps_per_epoch)
    chosen = epoch_indices(state.key, Stream.ORDER, epoch, position, settings.batch_size, self._num_train)
    raw, labels = lax.with_sharding_constraint((data.images[chosen], data.labels[chosen]), batch_sharding(self._mesh))
    return Examples(self._augmented(state, raw), labels)

  def _augmented(self, state: TrainState, raw: Array) -> Array:
    settings = self._settings.augment
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), Stream.AUGMENT)
    recolour = None
    if settings.jitters:
      strengths = {name: getattr(settings, name) for name in ('brightness', 'contrast', 'saturation', 'hue')}

      def recolour(images: Array, key: Array) -> Array:
        return 255 * color_jitter(images.astype(jnp.float32) / 255, key, **strengths)

    return augment(
      raw,
      key,
      self._mean,
      self._std,
      crop_padding=settings.crop_padding,
      flip=settings.flip,
      cutout=settings.cutout,
      recolour=recolour,
    )

  def _raw_step(self, state: TrainState, batch: Examples) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step on a batch of raw images, after augmentation and normalisation; the state is donated."""
    return self.step(state, Examples(self._augmented(state, batch.images), batch.labels))

  def step(self, state: TrainState, batch: Examples) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step of clipped SGD.

    Args:
      state: the state before the step.
      batch: augmented and normalised images with labels.

    Returns:
      The new state; and metrics, `[]` each: `train_loss` in nats, with smoothed labels, and `train_accuracy` of the
      main classifier; `weights_gradient_norm` before clipping, and `clipped`, 1 or 0; `learning_rate` and `drop_path`.
    """
    settings = self._settings
    rate = self.drop_path(state.step)
    step_key = jax.random.fold_in(state.key, state.step)
    key = jax.random.fold_in(step_key, Stream.DROPOUT)
    images = batch.images.astype(settings.precision)

    def loss_of(vector: Array) -> tuple[Array, tuple[Array, Array, Array]]:
      drawn: dict[str, Any] = {'drop_path': rate, 'key': key} if settings.network.drop_path else {}
      if draws(spec for _, spec in self.net.cells):
        drawn['keys'] = jax.random.split(jax.random.fold_in(step_key, Stream.NOISE), len(images))
      logits: Logits
      tree = state.weights.replace(vector).tree
      logits, after = apply_in_training(self.net, tree, state.statistics, images, **drawn)
      main = jnp.mean(smoothed_cross_entropy(logits.main, batch.labels, settings.label_smoothing))
      loss = main
      if logits.auxiliary is not None:
        auxiliary = smoothed_cross_entropy(logits.auxiliary, batch.labels, settings.label_smoothing)
        loss = main + settings.auxiliary_weight * jnp.mean(auxiliary)
      accuracy = jnp.mean(jnp.argmax(logits.main, -1) == batch.labels, dtype=main.dtype)
      return loss, (main, accuracy, after)

    with precisely(settings.precision):
      gradient, (loss, accuracy, after) = jax.grad(loss_of, has_aux=True)(state.weights.vector)
    updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.weights.vector)
    norm, clip_norm = global_norm(gradient), settings.weights.clip_norm
    metrics = {
      'train_loss': loss,
      'train_accuracy': accuracy,
      'weights_gradient_norm': norm,
      'clipped': jnp.asarray((norm > clip_norm) & bool(clip_norm), norm.dtype),
      'learning_rate': self.learning_rate(state.step),
      'drop_path': rate,
    }
    after = TrainState(
      state.step + 1,
      state.key,
      state.weights.replace(optax.apply_updates(state.weights.vector, updates)),
      state.statistics.replace(after),
      optimizer,
    )
    return after, metrics

  def _evaluate(self, state: TrainState, data: Examples) -> Evaluation:
    """Loss and accuracies on raw images, with running statistics and without augmentation."""
    logits_of = functools.partial(self._logits, state.variables)
    settings = self._settings

    def share(chosen: Array) -> Array:
      return lax.with_sharding_constraint(chosen, batch_sharding(self._mesh))

    return evaluate(logits_of, data, settings.batch_size, self._mean, self._std, settings.precision, share)

  def _tally(self, state: TrainState, batch: Examples, counts: Array) -> tuple[Evaluation, Array]:
    """Sums of losses and correct answers over a batch of raw images, and the number of images.

    Args:
      state: state of the training.
      batch: raw images and labels.
      counts: `[B]` bool, whether an image counts.
    """
    images = normalise(batch.images, self._mean, self._std).astype(self._settings.precision)
    return tally(self._logits(state.variables, images), batch.labels, counts), jnp.sum(counts)

  def _logits(self, variables: PyTree, images: Array) -> Array:
    with precisely(self._settings.precision):
      logits: Any = self.net.apply(variables, images, train=False)
    main: Array = logits.main
    return main
