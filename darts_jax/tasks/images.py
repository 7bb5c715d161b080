"""Classification of images: where they come from, their batches, the supernet and its loss."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from darts_jax import limits
from darts_jax.data.augment import augment, normalise
from darts_jax.data.batches import Evaluation, Examples, epoch_indices, evaluate, tally
from darts_jax.data.files import ImageFiles
from darts_jax.data.images import Images, digest, from_arrays, intact, part, split
from darts_jax.data.settings import IN_FILES, Augment, Source
from darts_jax.nets.conv import Supernet, check_statistics, draws
from darts_jax.nets.layers import WHOLE_BATCH, NormGroups, init_variables
from darts_jax.nets.operations import check_own
from darts_jax.nets.owners import flagged, left, owners
from darts_jax.nets.statistics import apply_in_training
from darts_jax.runtime.mesh import Shards
from darts_jax.runtime.packed import Packed
from darts_jax.settings import setting
from darts_jax.spaces import CellSpace, Mixing
from darts_jax.spaces.operations import OPERATIONS
from darts_jax.strategies.relaxed import Stage
from darts_jax.tasks.base import (
  FIRST_PURPOSE,
  Conditions,
  Feed,
  Halves,
  Learner,
  Moment,
  Seen,
  SupernetSpec,
  Task,
  check_sizes,
)
from darts_jax.tasks.windows import AXES, Schedule, Window, Windows

Array = jax.Array
PyTree = Any

# What the random key of a step is folded with for each purpose.
_ORDER, _VALID, _AUGMENT_TRAIN, _AUGMENT_VALID, _DRAW_TRAIN, _DRAW_VALID = range(FIRST_PURPOSE, FIRST_PURPOSE + 6)
# Of the halves of the data.
_AUGMENTS, _DRAWS = (_AUGMENT_TRAIN, _AUGMENT_VALID), (_DRAW_TRAIN, _DRAW_VALID)


@dataclasses.dataclass(frozen=True)
class Data(Source):
  """Which images, see `Source`, and how they are divided and read.

  Attributes:
    validation_fraction: the part of the training images that trains α; the rest trains the weights.
    stream: whether images are read while the search goes on, from their files or from the memory of the host; if not,
      all of them lie on the devices.
  """

  validation_fraction: float = setting(0.5, above=0, below=1)
  stream: bool = setting(False)

  def load(self) -> Images | ImageFiles:  # type: ignore[override]
    """The dataset. Raises ValueErrors that name the field."""
    if self.name not in IN_FILES:
      return super().load()
    files = ImageFiles.open(self)
    return files if self.stream else files.decoded()


@dataclasses.dataclass(frozen=True)
class Network:
  """The supernet.

  Attributes:
    channels: channels `C` of the first cell; even, since strided identities make two halves.
    layers: cells `L`; in the space of DARTS cells ⌊L/3⌋ and ⌊2L/3⌋ are reduction cells.
    stem: `cifar`, one convolution that keeps the size of images; or `imagenet`, three that divide it by eight.
    stem_multiplier: the stem for CIFAR has so many times `C` channels.
  """

  channels: int = setting(16, at_least=2, at_most=limits.CHANNELS)
  layers: int = setting(8, at_least=3, at_most=limits.LAYERS)
  stem: str = setting('cifar', choices=('cifar', 'imagenet'))
  stem_multiplier: int = setting(3, at_least=1, at_most=limits.STEM_MULTIPLIER)

  def __post_init__(self) -> None:
    if self.channels % 2:
      raise ValueError(f'config.channels: {self.channels} is not allowed; it has to be even')


@dataclasses.dataclass(frozen=True)
class ImageTask(Task[Images | ImageFiles]):
  """Classification of images.

  Attributes:
    data: see `Data`.
    augment: see `darts_jax.data.settings.Augment`.
    network: see `Network`.
  """

  name: ClassVar[str] = 'images'
  unit: ClassVar[str] = 'images'

  data: Data = setting(Data())
  augment: Augment = setting(Augment())
  network: Network = setting(Network())

  def check(self, space: CellSpace, conditions: Conditions, stages: Sequence[Stage], seeds: int) -> None:
    """See `Task`."""
    del conditions, seeds
    for parts in {stage.channel_part for stage in stages} - {1}:
      if self.network.channels % (2 * parts):
        raise ValueError(
          f'config.network.channels: {self.network.channels} is not allowed; it has to be a multiple of {2 * parts},'
          f' since edges compute one in {parts} channels (config.strategy.channel_part)'
        )
    try:
      space.plan(self.network.layers)
    except ValueError as error:
      raise ValueError(f'config.network.{error}') from error
    for spec in space.cells.values():
      unknown = [operation for operation in spec.operations if operation not in OPERATIONS]
      if unknown:
        raise ValueError(
          f'config.space.name: {space.name!r} is not allowed; the task images has no operation {unknown[0]!r}, only'
          f' {", ".join(OPERATIONS)}'
        )
      if spec.preparation == 'none' and (self.network.stem, self.network.stem_multiplier) != ('cifar', 1):
        raise ValueError(
          f'config.network.stem_multiplier: {self.network.stem_multiplier} is not allowed with the stem'
          f' {self.network.stem}; cells of {space.name} read C channels, which the stem cifar has if it is 1'
        )

  @property
  def source(self) -> str:
    """The name of the dataset."""
    return self.data.title

  def load(self) -> Images | ImageFiles:
    """See `Task`."""
    return self.data.load()

  def given(self, x: Any, y: Any) -> Images:
    """See `darts_jax.data.images.from_arrays`."""
    found = from_arrays(x, y)
    return part(found, self.data.num_images) if self.data.num_images else found

  def fingerprint(self, data: Images | ImageFiles) -> Any:
    """See `Task`."""
    return data.fingerprint() if isinstance(data, ImageFiles) else digest(data.x_train, data.y_train)

  def halves(self, data: Images | ImageFiles, conditions: Conditions, seed: int) -> Halves:
    """The training images, divided by seed; of those that are streamed their indices.

    Raises:
      ValueError: a batch is larger than one of the two parts.
    """
    indices = split(data.num_train, self.data.validation_fraction, seed)
    parts: list[Any] = []
    for name, chosen in zip(Halves._fields, indices, strict=True):
      if len(chosen) < conditions.batch_size:
        raise ValueError(
          f'config.batch_size: {conditions.batch_size} is larger than the {name} half of {data.name},'
          f' which has {len(chosen)} images'
        )
      if isinstance(data, ImageFiles) or self.data.stream:
        parts.append(chosen)
      else:
        chosen = intact(chosen, data.damaged)
        parts.append(Examples(data.x_train[chosen], data.y_train[chosen]))
    return Halves(*parts)

  def learner(
    self, data: Images | ImageFiles, conditions: Conditions, supernet: SupernetSpec, mesh: Mesh
  ) -> 'ImageLearner':
    """See `Task`."""
    return (StreamedLearner if self.data.stream else ImageLearner)(self, data, conditions, supernet, mesh)


class ImageBatch(NamedTuple):
  """A batch as a supernet reads it.

  Attributes:
    images: `[B, H, W, C]`, normalised.
    labels: `[B]` int32.
    keys: `[B, …]` uint32, the data of a random key for every image, of which the network draws; None if it draws
      nothing.
  """

  images: Array
  labels: Array
  keys: Array | None = None


@dataclasses.dataclass(frozen=True)
class ImageLoss:
  """Mean cross-entropy of a supernet in training mode (see `Objective`), and its accuracy.

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
    batch: ImageBatch,
    precision: str,
    updating: Array,
  ) -> tuple[Array, Seen]:
    """See `Objective`."""
    del updating
    # In float32 images keep their dtype, which is float64 where exactness is tested.
    images = batch.images if precision == 'float32' else batch.images.astype(precision)
    logits, after = apply_in_training(self.net, weights, statistics, images, mixing, keys=batch.keys)
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels))
    accuracy = jnp.mean(jnp.argmax(logits, -1) == batch.labels, dtype=loss.dtype)
    computed = flagged(self.net, statistics.tree, {name: each.computed for name, each in mixing.items()})
    if computed is not None:
      after = jnp.where(computed, after, statistics.vector)
    active = flagged(self.net, weights, {name: each.active for name, each in mixing.items()})
    return loss, Seen(loss, {'accuracy': accuracy}, after, (), active)


class ImageLearner(Learner):
  """See `Learner`; its data are the two halves of the training images.

  Attributes:
    net: the supernet.
    image_shape: of an image, `(H, W, C)`.
    batch_size: examples a batch.
    steps_per_epoch: batches in the weights' half; what is left over by the last full batch is another part of the
      images in every epoch.
  """

  def __init__(
    self, task: ImageTask, images: Images | ImageFiles, conditions: Conditions, supernet: SupernetSpec, mesh: Mesh
  ) -> None:
    """See `Task.learner`."""
    self._task, self._images, self._conditions, self._mesh = task, images, conditions, mesh
    self._supernet = supernet
    self._shards = shards = Shards(mesh.shape['data'])
    num_train, num_valid = (len(part) for part in split(images.num_train, task.data.validation_fraction, 0))
    sizes, first = supernet.batch_sizes, supernet.first_epoch
    # A batch that is larger than its half makes no step; `halves` says so.
    self.epoch_ends = ends = list(itertools.accumulate(num_train // size for size in sizes))
    self.batch_size = sizes[min(first, conditions.epochs - 1)]
    self.steps_per_epoch = num_train // self.batch_size
    self._first_step = ends[first - 1] if first else 0
    groups = NormGroups(conditions.batch_norm.group_size, shards)
    check_sizes(sizes, conditions.batch_size, shards.size, min(num_train, num_valid), task.unit)
    for size in sizes:
      groups.divide(size // shards.size)
    network = task.network
    shared = ('batch_norm.group_size', groups.size) if groups.size else ('batch_size', sizes[0])
    height, width, _ = self.image_shape = images.image_shape
    plan = supernet.space.plan(network.layers)
    check_statistics(f'config.{shared[0]}', shared[1], height, width, plan, stem=network.stem)
    names = (name for spec in supernet.cells.values() for name in spec.operations)
    check_own(names, network.channels, height, width)
    self.net = Supernet(
      tuple(supernet.cells.items()),
      plan,
      network.channels,
      images.num_classes,
      network.stem_multiplier,
      conditions.remat,
      groups=groups,
      stem=network.stem,
      tracked=conditions.batch_norm.tracked,
      channel_part=supernet.channel_part,
    )
    self.objective = ImageLoss(self.net)
    self._mean, self._std = np.array(images.mean, np.float32), np.array(images.std, np.float32)
    self._num_train, self._num_valid = num_train, num_valid

  def variables(self, key: Array, mixing: dict[str, Mixing]) -> PyTree:
    """See `Learner`."""
    # A search begins on one device, where there are no others to share statistics with.
    net = self.net.clone(groups=WHOLE_BATCH)
    return init_variables(net, key, jnp.zeros((1, *self.image_shape)), mixing, train=False)

  def batches(self, moment: Moment, data: Halves) -> Halves:
    """This device's part of the batches of a step: the next ones of a random order for the weights, any for α."""
    size, key, shards = self.batch_size, moment.key, self._shards
    step_key = jax.random.fold_in(key, moment.step)
    epochs, position = jnp.divmod(moment.step - self._first_step, self.steps_per_epoch)
    indices = (
      epoch_indices(key, _ORDER, self._supernet.first_epoch + epochs, position, size, self._num_train),
      jax.random.randint(jax.random.fold_in(step_key, _VALID), (size,), 0, self._num_valid),
    )
    parts = []
    for half, drawn, purpose, of_keys in zip(data, indices, _AUGMENTS, _DRAWS, strict=True):
      chosen = shards.own(drawn)
      images = self._augmented(half.images[chosen], step_key, purpose)
      parts.append(ImageBatch(images, half.labels[chosen], self._keys(step_key, of_keys, len(images))))
    return Halves(*parts)

  def _keys(self, step_key: Array, purpose: int, count: int) -> Array | None:
    """Keys of this device's images of a batch, see `ImageBatch`; each is made of the image's place in the batch."""
    if not self._supernet.drops and not draws(self._supernet.cells.values()):
      return None
    key = jax.random.fold_in(step_key, purpose)
    places = self._shards.first(count) + jnp.arange(count)
    return jax.random.key_data(jax.vmap(functools.partial(jax.random.fold_in, key))(places))

  def _augmented(self, images: Array, step_key: Array, purpose: int) -> Array:
    """This device's raw images of a batch, augmented and normalised."""
    augmentation = self._task.augment
    return augment(
      images,
      jax.random.fold_in(step_key, purpose),
      self._mean,
      self._std,
      crop_padding=augmentation.crop_padding,
      flip=augmentation.flip,
      cutout=augmentation.cutout,
      first=self._shards.first(len(images)),
    )

  def measure(self, variables: PyTree, mixing: dict[str, Mixing], data: Halves) -> Evaluation:
    """Loss and accuracy of the supernet on the whole architecture half, without augmentation."""
    logits_of = functools.partial(self._logits, variables, mixing)
    size, precision, own = self._conditions.batch_size, self._conditions.precision, self._shards.own
    found = evaluate(logits_of, data.valid, size, self._mean, self._std, precision, own)
    return jax.tree.map(lambda part: part * self._shards.size, self._shards.mean(found))

  def _logits(self, variables: PyTree, mixing: dict[str, Mixing], images: Array) -> Array:
    logits: Any = self.net.apply(variables, images, mixing, train=False)
    return logits

  def metrics(self, found: Evaluation) -> dict[str, float]:
    """See `Learner`."""
    return {'loss': float(found.loss), 'accuracy': float(found.accuracy)}

  def summary(self, means: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
    """See `Learner`."""
    del means
    return {'images_per_second': sums['steps'] * self.batch_size / sums['seconds']}

  def rebuilt(self, supernet: SupernetSpec) -> Self:
    """See `Learner`."""
    return type(self)(self._task, self._images, self._conditions, supernet, self._mesh)

  def inherited(self, variables: Packed, before: Self) -> np.ndarray:
    """See `Learner`."""
    after = dict(self.net.cells)
    kept = {name: left(spec, after[name]) for name, spec in before.net.cells}
    return np.flatnonzero(owners(before.net, variables.tree).flagged(kept))


class StreamedLearner(ImageLearner):
  """Likewise, where the data of a step come from a `Window`; they are those that it reads if all lie on the devices."""

  data_axes = AXES

  def feed(self, halves: Sequence[Any], places: PyTree, reads_valid: Callable[[np.ndarray], np.ndarray]) -> Feed:
    """See `Learner`."""
    ends, first = self.epoch_ends, self._supernet.first_epoch
    schedule = Schedule(
      batch_size=self.batch_size,
      evaluation_size=self._conditions.batch_size,
      num_valid=self._num_valid,
      steps_per_epoch=self.steps_per_epoch,
      first_step=self._first_step,
      end=ends[-1],
      drawn=functools.partial(self._drawn, first),
      reads_valid=reads_valid,
    )
    return Windows(self._images, halves, schedule, places)

  def _drawn(self, first_epoch: int, key: Array, epoch: Array) -> Halves:
    """`[steps, B]`: the examples of an epoch, counted from that in which the supernet was first trained."""
    steps, size = self.steps_per_epoch, self.batch_size
    train = epoch_indices(key, _ORDER, first_epoch + epoch, jnp.int32(0), steps * size, self._num_train)

    def drawn(step: Array) -> Array:
      step_key = jax.random.fold_in(jax.random.fold_in(key, step), _VALID)
      return jax.random.randint(step_key, (size,), 0, self._num_valid)

    valid = jax.vmap(drawn)(self._first_step + epoch * steps + jnp.arange(steps))
    return Halves(train.reshape(steps, size), valid)

  def batches(self, moment: Moment, data: Window) -> Halves:  # type: ignore[override]
    """This device's part of the batches of a step."""
    step_key = jax.random.fold_in(moment.key, moment.step)
    parts = []
    for half, purpose, of_keys in zip((data.train, data.valid), _AUGMENTS, _DRAWS, strict=True):
      # As in memory, images are gathered by their places, so that the compiler makes the same of all that follows.
      images, labels = (each.reshape(-1, *each.shape[2:]) for each in half)
      rows = half.labels.shape[1]
      chosen = (moment.step - data.first) * rows + jnp.arange(rows)
      augmented = self._augmented(images[chosen], step_key, purpose)
      parts.append(ImageBatch(augmented, labels[chosen], self._keys(step_key, of_keys, rows)))
    return Halves(*parts)

  def measure(self, variables: PyTree, mixing: dict[str, Mixing], data: Window) -> Evaluation:  # type: ignore[override]
    """What the batches of a window add to loss and accuracy of the supernet on the whole architecture half."""
    size, total, precision = self._conditions.batch_size, self._num_valid, self._conditions.precision
    own = self._shards.own(jnp.arange(size))

    def add(sums: Evaluation, batch: tuple[Array, Examples]) -> tuple[Evaluation, None]:
      number, (images, labels) = batch
      logits = self._logits(variables, mixing, normalise(images, self._mean, self._std).astype(precision))
      return jax.tree.map(jnp.add, sums, tally(logits, labels, number * size + own < total)), None

    numbers = data.first + jnp.arange(len(data.valid.labels))
    start = Evaluation(*[jnp.zeros(())] * len(Evaluation._fields))
    sums, _ = lax.scan(add, start, (numbers, data.valid))
    return jax.tree.map(
      lambda part: part * self._shards.size, self._shards.mean(jax.tree.map(lambda s: s / total, sums))
    )
