"""Sources of a training's images: a dataset placed on the devices, or a dataset streamed from files."""

from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from darts_jax.data import images as image_data
from darts_jax.data.batches import Evaluation, Examples
from darts_jax.data.images import Images
from darts_jax.data.official import IMAGENET_MEAN, IMAGENET_STD
from darts_jax.data.records import EVALUATION, fingerprint
from darts_jax.data.settings import IN_FILES
from darts_jax.data.stream import Batch, Stream
from darts_jax.runtime import processes
from darts_jax.runtime.files import as_unicode
from darts_jax.runtime.mesh import batch_sharding, put, replicated
from darts_jax.runtime.terminal import say
from darts_jax.training.settings import Training
from darts_jax.training.trainer import Trainer, TrainState

Array = jax.Array
#: Compiles a jitted function for some arguments: `(name, jitted, *arguments) → compiled`.
Compile = Callable[..., Any]
#: Logs an event: `(step, event, message) → None`.
Note = Callable[[int, str, str], None]


class Feed(Protocol):
  """The images of a training.

  Attributes:
    name: name of the dataset.
    image_shape: `(H, W, C)`.
    num_classes: number of classes; class ids are below it.
    mean: `[C]`, mean of raw pixel values.
    std: `[C]`, standard deviation of raw pixel values.
    num_train: number of training images without the held-out ones.
    fingerprint: JSON values that identify these images; a training resumes only with the same fingerprint.
    parts: names of the parts that can be measured: `valid`, if images are held out; `test`, if there are test images
      and the settings say to read them.
  """

  name: str
  image_shape: tuple[int, int, int]
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  num_train: int
  fingerprint: dict[str, Any]
  parts: tuple[str, ...]

  def prepare(self, trainer: Trainer, state: TrainState, step: int, compile_: Compile, note: Note) -> None:
    """Compiles the training step and prepares `advance` to continue from step `step`."""

  def advance(self, state: TrainState, num_steps: int) -> tuple[TrainState, Mapping[str, Any]]:
    """Takes up to `num_steps` steps; see `Trainer.run` for the metrics."""

  def measure(
    self, part: str, trainer: Trainer, state: TrainState, step: int, compile_: Compile, note: Note
  ) -> Evaluation:
    """Measures loss and accuracies on all images of a part, `valid` or `test`."""

  def close(self) -> None:
    """Stops threads and processes that read ahead."""


def open_feed(settings: Training, mesh: Mesh, given: Images | None = None) -> Feed:
  """Opens the images that the settings name, or takes those that are given.

  Raises:
    ValueError: the images are missing or unfit, or too few for a batch.
  """
  data = settings.data
  if given is not None:
    return Placed(image_data.part(given, data.num_images) if data.num_images else given, settings, mesh)
  if data.name not in IN_FILES:
    return Placed(data.load(), settings, mesh)
  return Streamed(settings, mesh)


class Placed:
  """A dataset that is replicated on every device."""

  def __init__(self, images: Images, settings: Training, mesh: Mesh) -> None:
    """Splits the training images by seed and puts all parts on the devices.

    Raises:
      ValueError: a batch is larger than the training part, the validation part is empty, or the settings jitter colours
        of images that are not uint8 RGB.
    """
    self.name, self.num_classes, self.mean, self.std = images.name, images.num_classes, images.mean, images.std
    height, width, channels = images.x_train.shape[1:]
    self.image_shape = (height, width, channels)
    if settings.augment.jitters and (channels != 3 or images.x_train.dtype != np.uint8):
      raise ValueError(
        f'config.augment: brightness, contrast, saturation and hue are of uint8 RGB images; those of {images.name} are'
        f' {images.x_train.dtype} with {channels} channels'
      )
    fraction = settings.data.validation_fraction
    chosen = {'train': np.arange(len(images.y_train))}
    if fraction:
      chosen['train'], chosen['valid'] = image_data.split(len(images.y_train), fraction, settings.seed)
    arrays = {name: (images.x_train[indices], images.y_train[indices]) for name, indices in chosen.items()}
    if settings.data.test and images.x_test is not None and images.y_test is not None:
      arrays['test'] = images.x_test, images.y_test
    self.num_train = len(chosen['train'])
    self.fingerprint = {
      'classes': self.num_classes,
      'train': image_data.digest(images.x_train, images.y_train),
      'test': image_data.digest(*arrays['test']) if 'test' in arrays else None,
    }
    _check_batch_size(settings.batch_size, self.num_train, images.name)
    self.parts = tuple(name for name in arrays if name != 'train')
    placed: Any = put(arrays, replicated(mesh))
    self.examples = {name: Examples(*pair) for name, pair in placed.items()}
    self._run: Any = None
    # Compiled functions by number of images.
    self._evaluations: dict[int, Any] = {}

  def prepare(self, trainer: Trainer, state: TrainState, step: int, compile_: Compile, note: Note) -> None:
    """See `Feed`."""
    del step, note
    self._run = compile_('training step', trainer.run, state, self.examples['train'], np.int32(1))

  def advance(self, state: TrainState, num_steps: int) -> tuple[TrainState, Mapping[str, Any]]:
    """See `Feed`."""
    found: tuple[TrainState, Mapping[str, Any]] = self._run(state, self.examples['train'], np.int32(num_steps))
    return found

  def measure(
    self, part: str, trainer: Trainer, state: TrainState, step: int, compile_: Compile, note: Note
  ) -> Evaluation:
    """See `Feed`."""
    del step, note
    data = self.examples[part]
    size = len(data.labels)
    if size not in self._evaluations:
      # Compiled on first use, so that the first training step starts sooner.
      self._evaluations[size] = compile_({'valid': 'validation', 'test': 'test'}[part], trainer.evaluate, state, data)
    found: Evaluation = self._evaluations[size](state, data)
    return found

  def close(self) -> None:
    """See `Feed`."""


class Streamed:
  """A dataset streamed from files; every process reads its own part of each batch."""

  def __init__(self, settings: Training, mesh: Mesh) -> None:
    """Opens the splits; reads no image.

    Args:
      settings: settings of the training.
      mesh: devices with an axis `data`.

    Raises:
      ValueError: a split is missing, has no images or other classes than the training split, or there are too few
        images for a batch.
    """
    data = settings.data
    train = data.open()
    test = data.open(data.test_split or EVALUATION) if data.test else None
    self.name = data.title
    self.num_classes = len(train.classes)
    self.image_shape = (data.image_size, data.image_size, 3)
    self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
    chosen = {'train': np.arange(len(train))}
    self._records = {'train': train, 'valid': train}
    if test is not None:
      chosen['test'], self._records['test'] = np.arange(len(test)), test
    if data.validation_fraction:
      chosen['train'], held_out = image_data.split(len(train), data.validation_fraction, settings.seed)
      # Sorted, so that files are read sequentially.
      chosen['valid'] = np.sort(held_out)
    self.num_train = len(chosen['train'])
    self.fingerprint = {
      'classes': list(map(as_unicode, train.classes)),
      **{name: fingerprint(records) for name, records in self._records.items() if name != 'valid'},
    }
    _check_batch_size(settings.batch_size, self.num_train, self.name)
    self.parts: tuple[str, ...] = tuple(name for name in ('valid', 'test') if name in chosen)
    self._mesh = mesh
    self.streams = {
      name: Stream(
        self._records[name],
        indices,
        batch_size=settings.batch_size,
        image_size=data.image_size,
        train=name == 'train',
        seed=settings.seed,
        num_threads=data.num_threads,
        num_workers=data.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      )
      for name, indices in chosen.items()
    }
    self._batches: Generator[Batch, None, None] | None = None
    self._step: Any = None
    self._tally: Any = None
    self._at = 0
    self._note: Note = lambda step, event, message: None
    self._failure: ValueError | None = None
    self._known_damaged: set[tuple[str, int]] = set()

  def prepare(self, trainer: Trainer, state: TrainState, step: int, compile_: Compile, note: Note) -> None:
    """See `Feed`."""
    self._at, self._note = step, note
    self._batches = self.streams['train'].batches(step)
    rows, size = self.streams['train'].batch_size, self.image_shape
    images: Any = jax.ShapeDtypeStruct((rows, *size), jnp.uint8, sharding=batch_sharding(self._mesh))
    labels: Any = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=batch_sharding(self._mesh))
    self._step = compile_('training step', trainer.raw_step, state, Examples(images, labels))

  def advance(self, state: TrainState, num_steps: int) -> tuple[TrainState, Mapping[str, Any]]:
    """See `Feed`; all `num_steps` steps are taken even if a metric is not finite.

    Raises:
      ValueError: a file cannot be read. With one process, the steps before the failure are returned first, and the
        next call raises.
    """
    assert self._batches is not None
    if self._failure is not None:
      raise self._failure
    each: dict[str, list[Any]] = {}
    taken = 0
    while taken < num_steps:
      try:
        batch = next(self._batches)
      except ValueError as error:
        if not taken or jax.process_count() > 1:
          # Other processes would wait for this one in the remaining steps.
          raise
        # Return the steps taken so far; the next call raises.
        self._failure = error
        break
      self._name_damaged('train', batch)
      state, metrics = self._step(state, Examples(*self._place(batch.images, batch.labels)))
      for name, value in metrics.items():
        each.setdefault(name, []).append(value)
      taken += 1
      self._at += 1
    rows = {name: np.array(values) for name, values in jax.device_get(each).items()}
    finite = all(bool(np.isfinite(values).all()) for values in rows.values())
    return state, {
      **{name: values.sum() for name, values in rows.items()},
      'steps': taken,
      'finite': finite,
      'each': rows,
    }

  def measure(
    self, part: str, trainer: Trainer, state: TrainState, step: int, compile_: Compile, note: Note
  ) -> Evaluation:
    """See `Feed`; images that cannot be read are left out.

    Raises:
      ValueError: no image can be read.
    """
    self._at, self._note = step, note
    total, count = Evaluation(*[jnp.zeros(())] * len(Evaluation._fields)), 0
    batches = self.streams[part].batches()
    try:
      for batch in batches:
        self._name_damaged(part, batch)
        images, labels, counts = self._place(batch.images, batch.labels, batch.counts)
        if self._tally is None:
          self._tally = compile_('evaluation', trainer.tally, state, Examples(images, labels), counts)
        found, number = self._tally(state, Examples(images, labels), counts)
        total, count = jax.tree.map(jnp.add, total, found), count + number
    finally:
      batches.close()
    if not count:
      raise ValueError(f'{self.name}: not one of the images for the {part} part can be decoded')
    return jax.tree.map(lambda s: s / count, total)

  def close(self) -> None:
    """See `Feed`."""
    if self._batches is not None:
      self._batches.close()

  def _place(self, *arrays: np.ndarray) -> list[Array]:
    sharding = batch_sharding(self._mesh)
    return [jax.make_array_from_process_local_data(sharding, array) for array in arrays]

  def _name_damaged(self, part: str, batch: Batch) -> None:
    records = self._records[part]
    for index in batch.damaged[batch.damaged >= 0]:
      known = ('test' if part == 'test' else 'train', int(index))
      if known not in self._known_damaged:
        self._known_damaged.add(known)
        instead = 'the next one takes its place' if part == 'train' else 'it is left out'
        message = f'{records.name(int(index))}: cannot be decoded; {instead}'
        self._note(self._at, 'damaged_image', message)
        if not processes.is_first():
          # Only the first process writes the log, and it has not read this image.
          say(f'process {jax.process_index()}: {message}')


def _check_batch_size(batch_size: int, num_train: int, name: str) -> None:
  if num_train < batch_size:
    raise ValueError(
      f'config.batch_size: {batch_size} is larger than the training part of {name}, which has {num_train} images'
    )
