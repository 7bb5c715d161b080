"""A search as compiled functions: data on the devices, the state, many steps in a call, the evaluation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from darts_jax.data.augment import augment
from darts_jax.data.batches import Evaluation, Examples, epoch_indices, evaluate
from darts_jax.data.images import Images, split
from darts_jax.nets.conv import Supernet
from darts_jax.nets.layers import init_variables
from darts_jax.runtime.compilation import compiler_options
from darts_jax.runtime.mesh import batch_sharding, replicated, template
from darts_jax.runtime.packed import Packed
from darts_jax.runtime.steps import take_steps
from darts_jax.search.settings import Search
from darts_jax.search.state import SearchState
from darts_jax.search.step import RELAX, Halves, Optimizers, search_step
from darts_jax.search.strategy import Strategy

Array = jax.Array
PyTree = Any

# What the random key of a step is folded with for each purpose.
_ORDER, _VALID, _AUGMENT_TRAIN, _AUGMENT_VALID = range(RELAX + 1, RELAX + 5)


def place(images: Images, settings: Search, mesh: Mesh) -> Halves:
  """Divides the training images by seed and puts them on every device of the mesh.

  Raises:
    ValueError: a batch is larger than one of the two parts.
  """
  indices = split(len(images.y_train), settings.data.validation_fraction, settings.seed)
  parts = []
  for name, chosen in zip(Halves._fields, indices, strict=True):
    if len(chosen) < settings.batch_size:
      raise ValueError(
        f'config.batch_size: {settings.batch_size} is larger than the {name} half of {images.name},'
        f' which has {len(chosen)} images'
      )
    parts.append(Examples(images.x_train[chosen], images.y_train[chosen]))
  return jax.device_put(Halves(*parts), replicated(mesh))


class Searcher:
  """A search as compiled functions: `init`, `run` steps, `evaluate`.

  Attributes:
    steps_per_epoch: batches in the weights' half; what is left over by the last full batch is another part of the
      images in every epoch.
    net: the supernet.
    image_shape: of an image, `(H, W, C)`.
  """

  def __init__(self, settings: Search, strategy: Strategy, images: Images, mesh: Mesh) -> None:
    """Builds the functions; compiles nothing.

    Args:
      settings: of the search.
      strategy: of the search; its specs are those of the supernet.
      images: the dataset, for its shape, classes, mean and standard deviation; and the size of its halves.
      mesh: devices with an axis `data`.
    """
    num_train, num_valid = (len(part) for part in split(len(images.y_train), settings.data.validation_fraction, 0))
    self.steps_per_epoch = num_train // settings.batch_size
    self.net = Supernet(
      strategy.specs['normal'],
      strategy.specs['reduce'],
      settings.network.channels,
      settings.network.layers,
      images.num_classes,
      settings.network.stem_multiplier,
      settings.remat,
    )
    self._settings = settings
    self._strategy = strategy
    self._optimizers = Optimizers.from_settings(settings, self.steps_per_epoch)
    self._estimator = settings.hypergradient.estimator()
    self._mesh = mesh
    self.image_shape = images.x_train.shape[1:]
    self._mean, self._std = np.array(images.mean, np.float32), np.array(images.std, np.float32)
    self._num_train, self._num_valid = num_train, num_valid
    same = replicated(mesh)
    self.init = jax.jit(self._init, out_shardings=same)
    options = compiler_options()
    self.run = jax.jit(self._run, donate_argnums=0, out_shardings=same, compiler_options=options)
    self.evaluate = jax.jit(self._evaluate, out_shardings=same, compiler_options=options)

  def template(self) -> SearchState:
    """Shapes, dtypes and places of the state, without arrays."""
    return template(self.init, self._mesh, jax.random.key(0))

  def _init(self, key: Array) -> SearchState:
    """The state before the first step, from the typed key of the run."""
    run_key, weights_key, alphas_key = jax.random.split(key, 3)
    alphas = self._strategy.init(alphas_key)
    images = jnp.zeros((1, *self.image_shape))
    mixing = self._strategy.relax(alphas, alphas_key, jnp.zeros((), jnp.int32))
    variables = init_variables(self.net, weights_key, images, mixing, train=False)
    weights = Packed.pack(variables['params'])
    return SearchState(
      step=jnp.zeros((), jnp.int32),
      key=run_key,
      weights=weights,
      statistics=Packed.pack(variables['batch_stats']),
      alphas=alphas,
      weights_optimizer=self._optimizers.weights.init(weights.vector),
      alphas_optimizer=self._optimizers.alphas.init(alphas),
    )

  def _run(self, state: SearchState, data: Halves, num_steps: Array) -> tuple[SearchState, dict[str, Array]]:
    """Takes up to `num_steps` steps; stops after one whose loss is not finite.

    Args:
      state: donated.
      data: both halves, on the devices.
      num_steps: `[]` int32; traced, so that any number is the same program.

    Returns:
      The new state; and sums of the steps' metrics (see `search_step`), with `steps`, their number, and `finite`,
      whether all losses were.
    """
    step = functools.partial(self._step, data=data)
    watched = ('train_loss', 'valid_loss', 'weights_gradient_norm', 'alphas_gradient_norm')
    return take_steps(step, state, num_steps, watched)

  def _step(self, state: SearchState, data: Halves) -> tuple[SearchState, dict[str, Array]]:
    train, valid = self.batches(state, data)
    state, info = search_step(
      state,
      train,
      valid,
      net=self.net,
      strategy=self._strategy,
      estimator=self._estimator,
      optimizers=self._optimizers,
      precision=self._settings.precision,
      check=(state.step + 1) % self._settings.log_every == 0,
      batch_sharding=NamedSharding(self._mesh, PartitionSpec(None, 'data')),
    )
    return state, info.metrics

  def batches(self, state: SearchState, data: Halves) -> Halves:
    """The batches of a step: the next ones of a random order for the weights, any images for the architecture."""
    size = self._settings.batch_size
    step_key = jax.random.fold_in(state.key, state.step)
    indices = (
      epoch_indices(state.key, _ORDER, state.step, self.steps_per_epoch, size, self._num_train),
      jax.random.randint(jax.random.fold_in(step_key, _VALID), (size,), 0, self._num_valid),
    )
    augmentation = self._settings.augment
    sharding = batch_sharding(self._mesh)
    parts = []
    for half, chosen, purpose in zip(data, indices, (_AUGMENT_TRAIN, _AUGMENT_VALID), strict=True):
      raw, labels = lax.with_sharding_constraint((half.images[chosen], half.labels[chosen]), sharding)
      images = augment(
        raw,
        jax.random.fold_in(step_key, purpose),
        self._mean,
        self._std,
        crop_padding=augmentation.crop_padding,
        flip=augmentation.flip,
        cutout=augmentation.cutout,
      )
      parts.append(Examples(images, labels))
    return Halves(*parts)

  def _evaluate(self, state: SearchState, data: Halves) -> Evaluation:
    """Loss and accuracy of the supernet on the whole architecture half, with running statistics and no augmentation."""
    mixing = self._strategy.relax(state.alphas, state.key, state.step)
    variables = {'params': state.weights.tree, 'batch_stats': state.statistics.tree}

    def logits_of(images: Array) -> Array:
      logits: Any = self.net.apply(variables, images, mixing, train=False)
      return logits

    sharding = batch_sharding(self._mesh)
    settings = self._settings
    return evaluate(logits_of, data.valid, settings.batch_size, self._mean, self._std, settings.precision, sharding)
