"""Image classification: the data, their batches, the supernet and its loss."""

import dataclasses
import functools
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
from darts_jax.data.batches import Evaluation, Examples, evaluate, tally
from darts_jax.data.files import ImageFiles
from darts_jax.data.images import Images, digest, from_arrays, intact, part, split
from darts_jax.data.settings import IN_FILES, Augment, Source
from darts_jax.nets.conv import Supernet, check_operations, check_statistics, draws
from darts_jax.nets.layers import WHOLE_BATCH, NormGroups, init_variables
from darts_jax.nets.owners import flagged, left, owners
from darts_jax.nets.statistics import apply_in_training
from darts_jax.runtime.mesh import Shards
from darts_jax.runtime.packed import Packed
from darts_jax.settings import setting
from darts_jax.spaces import CellSpace, Mixing
from darts_jax.spaces.operations import OPERATIONS
from darts_jax.strategies.relaxed import Stage
from darts_jax.streams import Stream
from darts_jax.tasks.base import Conditions, Feed, Halves, Learner, Moment, Seen, SupernetSpec, Task
from darts_jax.tasks.draws import Draws, check_sizes
from darts_jax.tasks.windows import AXES, Schedule, Window, Windows

Array = jax.Array
PyTree = Any

# Streams of the two halves of a batch.
_AUGMENTS, _DRAWS = (Stream.AUGMENT_TRAIN, Stream.AUGMENT_VALID), (Stream.DRAW_TRAIN, Stream.DRAW_VALID)


@dataclasses.dataclass(frozen=True)
class Data(Source):
  """The dataset (see `Source`), its split, and whether it is streamed.

  Attributes:
    validation_fraction: fraction of the training images that trains α; the rest trains the weights.
    stream: whether images are read during the search, from files or from host memory; if not, all of them are in device
      memory.
  """

  validation_fraction: float = setting(0.5, above=0, below=1)
  stream: bool = setting(False)

  def load(self) -> Images | ImageFiles:  # type: ignore[override]
    """Loads the dataset; images in files stay there if they are streamed.

    Raises:
      ValueError: the dataset cannot be read; one line that names the field.
    """
    if self.name not in IN_FILES:
      return super().load()
    files = ImageFiles.open(self)
    return files if self.stream else files.decoded()


@dataclasses.dataclass(frozen=True)
class Network:
  """The supernet.

  Attributes:
    channels: channels `C` of the first cell; an even number, since a skip connection of stride 2 concatenates two
      convolutions of half the channels.
    layers: number of cells `L`; in the space of DARTS, cells ⌊L/3⌋ and ⌊2L/3⌋ are reduction cells.
    stem: `cifar`, one convolution of stride 1; or `imagenet`, three convolutions that divide height and width by 8.
    stem_multiplier: the `cifar` stem has `stem_multiplier` · `C` channels.

  Raises:
    ValueError: `channels` is odd.
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
  """Image classification.

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
    """The two halves of the training images, split at random by the seed; of streamed images, their indices.

    Raises:
      ValueError: a half has fewer images than a batch.
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
  """Mean cross-entropy and accuracy of a supernet in training mode; see `Objective`.

  In bfloat16, the activations of the network are bfloat16 throughout.

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
    # At precision float32 the images keep their dtype, since tests of exactness pass float64.
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
  """The learner of an `ImageTask`; its data are the two halves of the training images.

  Attributes:
    net: the supernet.
    image_shape: shape of an image, `(H, W, C)`.
    batch_size: examples per batch.
    steps_per_epoch: full batches in the weights' half; the images left over are others in every epoch.
  """

  def __init__(
    self, task: ImageTask, images: Images | ImageFiles, conditions: Conditions, supernet: SupernetSpec, mesh: Mesh
  ) -> None:
    """See `Task.learner`."""
    self._task, self._images, self._conditions, self._mesh = task, images, conditions, mesh
    self._supernet = supernet
    self._shards = shards = Shards(mesh.shape['data'])
    num_train, num_valid = (len(part) for part in split(images.num_train, task.data.validation_fraction, 0))
    sizes = supernet.batch_sizes
    self._draws = Draws.of(supernet, num_train, num_valid)
    self.epoch_ends, self.batch_size = self._draws.epoch_ends, self._draws.batch_size
    self.steps_per_epoch = self._draws.steps_per_epoch
    groups = NormGroups(conditions.batch_norm.group_size, shards)
    check_sizes(sizes, conditions.batch_size, shards.size, min(num_train, num_valid), task.unit)
    for size in sizes:
      groups.divide(size // shards.size)
    network = task.network
    shared = ('batch_norm.group_size', groups.size) if groups.size else ('batch_size', sizes[0])
    height, width, _ = self.image_shape = images.image_shape
    plan = supernet.space.plan(network.layers)
    check_statistics(f'config.{shared[0]}', shared[1], height, width, plan, stem=network.stem)
    cells = tuple(supernet.cells.items())
    check_operations(
      cells,
      plan,
      network.channels,
      height,
      width,
      stem=network.stem,
      channel_part=supernet.channel_part,
      precision=conditions.precision,
    )
    self.net = Supernet(
      cells,
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

  def variables(self, key: Array, mixing: dict[str, Mixing]) -> PyTree:
    """See `Learner`."""
    # A single search is initialised outside `shard_map`, where cross-replica statistics would have no mesh axis.
    net = self.net.clone(groups=WHOLE_BATCH)
    return init_variables(net, key, jnp.zeros((1, *self.image_shape)), mixing, train=False)

  def batches(self, moment: Moment, data: Halves) -> Halves:
    """See `Learner` and `Draws`."""
    step_key = jax.random.fold_in(moment.key, moment.step)
    indices = self._draws.indices(moment, step_key)
    parts = []
    for half, drawn, purpose, of_keys in zip(data, indices, _AUGMENTS, _DRAWS, strict=True):
      chosen = self._shards.own(drawn)
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
    """Augments and normalises this device's raw images of a batch."""
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
  """An `ImageLearner` whose batches come from a `Window`; they are the same as with all images in device memory."""

  data_axes = AXES

  def feed(self, halves: Sequence[Any], places: PyTree, reads_valid: Callable[[np.ndarray], np.ndarray]) -> Feed:
    """See `Learner`."""
    schedule = Schedule(
      batch_size=self.batch_size,
      evaluation_size=self._conditions.batch_size,
      num_valid=self._draws.num_valid,
      steps_per_epoch=self.steps_per_epoch,
      first_step=self._draws.first_step,
      end=self.epoch_ends[-1],
      drawn=self._draws.epoch,
      reads_valid=reads_valid,
    )
    return Windows(self._images, halves, schedule, places)

  def batches(self, moment: Moment, data: Window) -> Halves:  # type: ignore[override]
    """See `Learner`."""
    step_key = jax.random.fold_in(moment.key, moment.step)
    parts = []
    for half, purpose, of_keys in zip((data.train, data.valid), _AUGMENTS, _DRAWS, strict=True):
      # A gather by index, as from device memory, so that XLA compiles the rest of the step to the same program.
      images, labels = (each.reshape(-1, *each.shape[2:]) for each in half)
      rows = half.labels.shape[1]
      chosen = (moment.step - data.first) * rows + jnp.arange(rows)
      augmented = self._augmented(images[chosen], step_key, purpose)
      parts.append(ImageBatch(augmented, labels[chosen], self._keys(step_key, of_keys, rows)))
    return Halves(*parts)

  def measure(self, variables: PyTree, mixing: dict[str, Mixing], data: Window) -> Evaluation:  # type: ignore[override]
    """The part of a window's batches in loss and accuracy of the supernet on the whole architecture half."""
    size, total, precision = self._conditions.batch_size, self._draws.num_valid, self._conditions.precision
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
