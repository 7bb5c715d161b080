"""Searches for convolutional cells: images on the devices, their batches, the loss of the supernet on them."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from darts_jax.data.augment import augment
from darts_jax.data.batches import Evaluation, Examples, epoch_indices, evaluate
from darts_jax.data.images import Images, digest, split
from darts_jax.nets.conv import Supernet, check_statistics
from darts_jax.nets.layers import NormGroups, init_variables, running_average
from darts_jax.nets.owners import flagged, left, owners
from darts_jax.runtime.packed import Packed
from darts_jax.search.searched import Searched
from darts_jax.search.searcher import FIRST_PURPOSE, Searcher
from darts_jax.search.settings import Search
from darts_jax.search.state import Halves, SearchState
from darts_jax.search.step import Seen
from darts_jax.spaces import Mixing
from darts_jax.strategies.relaxed import Stage

Array = jax.Array
PyTree = Any

# What the random key of a step is folded with for each purpose.
_ORDER, _VALID, _AUGMENT_TRAIN, _AUGMENT_VALID = range(FIRST_PURPOSE, FIRST_PURPOSE + 4)


def divide(images: Images, settings: Search, seed: int) -> Halves:
  """The training images, divided by seed.

  Raises:
    ValueError: a batch is larger than one of the two parts.
  """
  indices = split(len(images.y_train), settings.data.validation_fraction, seed)
  parts = []
  for name, chosen in zip(Halves._fields, indices, strict=True):
    if len(chosen) < settings.batch_size:
      raise ValueError(
        f'config.batch_size: {settings.batch_size} is larger than the {name} half of {images.name},'
        f' which has {len(chosen)} images'
      )
    parts.append(Examples(images.x_train[chosen], images.y_train[chosen]))
  return Halves(*parts)


def batch_sizes(settings: Search, searched: Searched) -> list[int]:
  """The examples of a batch in every epoch."""
  return [settings.batch_size + stage.batch_growth for stage in stages(settings, searched)]


def stages(settings: Search, searched: Searched) -> list[Stage]:
  """The stage of every epoch."""
  return [stage for stage in searched.plan(settings.epochs) for _ in range(stage.epochs)]


@dataclasses.dataclass(frozen=True)
class ImageLoss:
  """Mean cross-entropy of a supernet in training mode (see `darts_jax.search.step.Objective`), and its accuracy.

  In bfloat16 images are that throughout the network.

  Attributes:
    net: the supernet.
  """

  net: Supernet

  def __call__(
    self,
    weights: PyTree,
    statistics: Packed,
    mixing: dict[str, Mixing],
    batch: Examples,
    precision: str,
    updating: Array,
  ) -> tuple[Array, Seen]:
    """See `Objective`; a batch is normalised images `[B, H, W, C]` and labels `[B]`."""
    del updating
    # In float32 images keep their dtype, which is float64 where exactness is tested.
    images = batch.images if precision == 'float32' else batch.images.astype(precision)
    found: Any = self.net.apply({'params': weights}, images, mixing, train=True, mutable=['moments'])
    logits, updated = found
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels))
    accuracy = jnp.mean(jnp.argmax(logits, -1) == batch.labels, dtype=loss.dtype)
    moments = Packed.pack(updated['moments'])
    assert moments.treedef == statistics.treedef, 'moments are to lie where the running statistics are'
    after = running_average(statistics.vector, moments.vector)
    computed = flagged(self.net, statistics.tree, {name: each.computed for name, each in mixing.items()})
    if computed is not None:
      after = jnp.where(computed, after, statistics.vector)
    active = flagged(self.net, weights, {name: each.active for name, each in mixing.items()})
    return loss, Seen(loss, {'accuracy': accuracy}, after, (), active)


class ImageSearcher(Searcher[Search, Halves]):
  """See `Searcher`; its data are the two halves of the training images.

  Attributes:
    net: the supernet.
    image_shape: of an image, `(H, W, C)`.
    batch_size: examples a batch.
    steps_per_epoch: batches in the weights' half; what is left over by the last full batch is another part of the
      images in every epoch.
  """

  def __init__(self, settings: Search, searched: Searched, images: Images, mesh: Mesh, first_epoch: int = 0) -> None:
    """Builds the functions; compiles nothing.

    Args:
      settings: of the search.
      searched: the strategy, whose cells are those of the supernet.
      images: the dataset, for its shape, classes, mean and standard deviation; and the size of its halves.
      mesh: devices with the axes `seed` and `data`.
      first_epoch: from which on this supernet is trained, with batches of one size.

    Raises:
      ValueError: groups of BN and batches do not fit into each other, or are too small for the images.
    """
    num_train, num_valid = (len(part) for part in split(len(images.y_train), settings.data.validation_fraction, 0))
    sizes = batch_sizes(settings, searched)
    # A batch that is larger than its half makes no step; `divide` says so.
    ends = list(itertools.accumulate(num_train // size for size in sizes))
    super().__init__(settings, searched, mesh, ends)
    self.batch_size = sizes[min(first_epoch, settings.epochs - 1)]
    self.steps_per_epoch = num_train // self.batch_size
    self._images = images
    self._first_epoch, self._first_step = first_epoch, ends[first_epoch - 1] if first_epoch else 0
    groups = NormGroups(settings.batch_norm.group_size, self.shards)
    for size in sizes:
      groups.divide(size // self.shards.size)
    shared = ('batch_norm.group_size', groups.size) if groups.size else ('batch_size', sizes[0])
    height, width = images.x_train.shape[1:3]
    plan = self.searched.space.plan(settings.network.layers)
    check_statistics(f'config.{shared[0]}', shared[1], height, width, plan, stem=settings.network.stem)
    self.net = Supernet(
      tuple(self.searched.cells.items()),
      plan,
      settings.network.channels,
      images.num_classes,
      settings.network.stem_multiplier,
      settings.remat,
      groups=groups,
      stem=settings.network.stem,
      channel_part=stages(settings, searched)[min(first_epoch, settings.epochs - 1)].channel_part,
    )
    self.objective = ImageLoss(self.net)
    self.image_shape = images.x_train.shape[1:]
    self._mean, self._std = np.array(images.mean, np.float32), np.array(images.std, np.float32)
    self._num_train, self._num_valid = num_train, num_valid

  @property
  def fingerprint(self) -> dict[str, Any]:
    """See `Searcher`."""
    return digest(self._images.x_train, self._images.y_train)

  def variables(self, key: Array, mixing: dict[str, Mixing]) -> PyTree:
    """See `Searcher`."""
    return init_variables(self.net, key, jnp.zeros((1, *self.image_shape)), mixing, train=False)

  def batches(self, state: SearchState, data: Halves) -> Halves:
    """This device's part of the batches of a step: the next ones of a random order for the weights, any for α."""
    size = self.batch_size
    step_key = jax.random.fold_in(state.key, state.step)
    epochs, position = jnp.divmod(state.step - self._first_step, self.steps_per_epoch)
    indices = (
      epoch_indices(state.key, _ORDER, self._first_epoch + epochs, position, size, self._num_train),
      jax.random.randint(jax.random.fold_in(step_key, _VALID), (size,), 0, self._num_valid),
    )
    augmentation = self.settings.augment
    parts = []
    for half, drawn, purpose in zip(data, indices, (_AUGMENT_TRAIN, _AUGMENT_VALID), strict=True):
      chosen = self.shards.own(drawn)
      images = augment(
        half.images[chosen],
        jax.random.fold_in(step_key, purpose),
        self._mean,
        self._std,
        crop_padding=augmentation.crop_padding,
        flip=augmentation.flip,
        cutout=augmentation.cutout,
        first=self.shards.first(len(chosen)),
      )
      parts.append(Examples(images, half.labels[chosen]))
    return Halves(*parts)

  def measure(self, state: SearchState, mixing: dict[str, Mixing], data: Halves) -> Evaluation:
    """Loss and accuracy of the supernet on the whole architecture half, without augmentation."""
    variables = {'params': state.weights.tree, 'batch_stats': state.statistics.tree}

    def logits_of(images: Array) -> Array:
      logits: Any = self.net.apply(variables, images, mixing, train=False)
      return logits

    settings, own = self.settings, self.shards.own
    found = evaluate(logits_of, data.valid, settings.batch_size, self._mean, self._std, settings.precision, own)
    return jax.tree.map(lambda part: part * self.shards.size, self.shards.mean(found))

  def metrics(self, found: Evaluation) -> dict[str, float]:
    """See `Searcher`."""
    return {'loss': float(found.loss), 'accuracy': float(found.accuracy)}

  def summary(self, means: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
    """See `Searcher`."""
    del means
    return {'images_per_second': sums['steps'] * self.batch_size / sums['seconds']}

  def restage(self, searched: Searched, first_epoch: int) -> Self:
    """See `Searcher`."""
    return type(self)(self.settings, searched, self._images, self.mesh, first_epoch)

  def inherited(self, variables: Packed, before: Searcher[Search, Halves]) -> np.ndarray:
    """See `Searcher`."""
    assert isinstance(before, ImageSearcher)
    after = dict(self.net.cells)
    kept = {name: left(spec, after[name]) for name, spec in before.net.cells}
    return np.flatnonzero(owners(before.net, variables.tree).flagged(kept))
