"""A training as compiled functions: the state, many steps in a call, the evaluation."""

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
from darts_jax.training.model import Model
from darts_jax.training.settings import Training

Array = jax.Array
PyTree = Any

# What the random key of a step is folded with for each purpose.
_DROP_PATH, _ORDER, _AUGMENT, _NOISE = range(4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a training step reads and writes; a pytree.

  Attributes:
    step: `[]` int32, steps taken.
    key: typed random key of the run; what a step draws is a function of this key and `step`, so it never changes.
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
    """Those of the network."""
    return {'params': self.weights.tree, 'batch_stats': self.statistics.tree}


def learning_rates(settings: Training, steps_per_epoch: int) -> Callable[[Array], Array]:
  """The learning rate as a function of the steps taken before; see `darts_jax.training.settings.Weights`."""
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
    # Optax's exponential decay is a float32 already; its cosine is one of the type of the count.
    return jnp.asarray(schedule(step // steps_per_epoch), jnp.float32)

  return warmed_up(learning_rate, rates.warmup_epochs * steps_per_epoch)


def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: float) -> Array:
  """`[N]` nats: cross-entropy with labels `(1 − s)·one-hot + s/num_classes` [Szegedy et al. 2016, §7]."""
  targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), smoothing)
  return optax.softmax_cross_entropy(logits, targets)


class Trainer:
  """A training as compiled functions: `init`, `run` steps, `evaluate`.

  Attributes:
    steps_per_epoch: full batches in the training images.
    net: the network.
  """

  def __init__(self, settings: Training, model: Model, num_train: int, mesh: Mesh) -> None:
    """Builds the functions; compiles nothing.

    Args:
      settings: of the training.
      model: what is trained.
      num_train: number of training images, at least a batch.
      mesh: devices with an axis `data`.

    Raises:
      ValueError: all epochs have too many steps.
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
    """Shapes, dtypes and places of the state, without arrays."""
    return template(self.init, replicated(self._mesh), jax.random.key(0))

  def drop_path(self, step: Array) -> Array:
    """The probability that an edge is dropped, linear in the epoch from 0 on [DARTS §A.2]."""
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
    """Takes up to `num_steps` steps; stops after one whose loss or gradient is not finite.

    Args:
      state: donated.
      data: raw training images and labels, on the devices.
      num_steps: `[]` int32; traced, so that any number is the same program.

    Returns:
      The new state; and sums of the steps' metrics, with `steps` and `finite` (see `take_steps`).
    """
    return take_steps(
      lambda state: self.step(state, self.batch(state, data)), state, num_steps, ('train_loss', 'weights_gradient_norm')
    )

  def batch(self, state: TrainState, data: Examples) -> Examples:
    """The batch of a step: the next images of a random order, augmented and normalised."""
    settings = self._settings
    epoch, position = jnp.divmod(state.step, self.steps_per_epoch)
    chosen = epoch_indices(state.key, _ORDER, epoch, position, settings.batch_size, self._num_train)
    raw, labels = lax.with_sharding_constraint((data.images[chosen], data.labels[chosen]), batch_sharding(self._mesh))
    return Examples(self._augmented(state, raw), labels)

  def _augmented(self, state: TrainState, raw: Array) -> Array:
    settings = self._settings.augment
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _AUGMENT)
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
    """One step on raw images, which are augmented and normalised; the state is donated."""
    return self.step(state, Examples(self._augmented(state, batch.images), batch.labels))

  def step(self, state: TrainState, batch: Examples) -> tuple[TrainState, dict[str, Array]]:
    """One step of clipped SGD.

    Args:
      state: before.
      batch: augmented and normalised.

    Returns:
      The new state; and metrics, `[]` each: the main classifier's loss in nats, with smoothed labels, and its accuracy;
      the gradient's norm before clipping, and whether it was clipped; learning rate and drop path rate.
    """
    settings = self._settings
    rate = self.drop_path(state.step)
    step_key = jax.random.fold_in(state.key, state.step)
    key = jax.random.fold_in(step_key, _DROP_PATH)
    images = batch.images.astype(settings.precision)

    def loss_of(vector: Array) -> tuple[Array, tuple[Array, Array, Array]]:
      drawn: dict[str, Any] = {'drop_path': rate, 'key': key} if settings.network.drop_path else {}
      if draws(spec for _, spec in self.net.cells):
        drawn['keys'] = jax.random.split(jax.random.fold_in(step_key, _NOISE), len(images))
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
    """Loss and accuracy on raw images, with running statistics and no augmentation."""
    logits_of = functools.partial(self._logits, state.variables)
    settings = self._settings

    def share(chosen: Array) -> Array:
      return lax.with_sharding_constraint(chosen, batch_sharding(self._mesh))

    return evaluate(logits_of, data, settings.batch_size, self._mean, self._std, settings.precision, share)

  def _tally(self, state: TrainState, batch: Examples, counts: Array) -> tuple[Evaluation, Array]:
    """Sums of losses and right answers over the raw images of a batch that count, `[B]` bool, and their number."""
    images = normalise(batch.images, self._mean, self._std).astype(self._settings.precision)
    return tally(self._logits(state.variables, images), batch.labels, counts), jnp.sum(counts)

  def _logits(self, variables: PyTree, images: Array) -> Array:
    with precisely(self._settings.precision):
      logits: Any = self.net.apply(variables, images, train=False)
    main: Array = logits.main
    return main
