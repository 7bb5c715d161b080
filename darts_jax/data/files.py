"""Training images of a search that are stored as image files; they are cropped and resized as in an evaluation."""

import dataclasses
from collections.abc import Generator, Sequence
from typing import Any, ClassVar

import numpy as np

from darts_jax.data.images import Images, some
from darts_jax.data.official import IMAGENET_MEAN, IMAGENET_STD
from darts_jax.data.records import Records, fingerprint
from darts_jax.data.settings import Source
from darts_jax.data.stream import Batch, Listed, Stream, check_installed
from darts_jax.runtime.files import as_unicode
from darts_jax.runtime.terminal import say

# Number of images that are decoded at a time.
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class ImageFiles:
  """Training images that stay in their files, with the same interface as `Images`.

  Attributes:
    source: settings of the dataset, and of how it is read.
    records: all image files.
    indices: `[N]` ascending indices of the records that are used.
  """

  mean: ClassVar[tuple[float, ...]] = IMAGENET_MEAN
  std: ClassVar[tuple[float, ...]] = IMAGENET_STD
  damaged: ClassVar[None] = None

  source: Source
  records: Records
  indices: np.ndarray

  @classmethod
  def open(cls, source: Source) -> 'ImageFiles':
    """Lists the image files, without reading them.

    Raises:
      ValueError: the files are missing, cannot be used, or are fewer than `num_images`, with the name of the field; or
        the packages that read them are not installed.
    """
    check_installed()
    records = source.open()
    number = source.num_images
    chosen = some(source.title, len(records), number, records.labels) if number else np.arange(len(records))
    return cls(source, records, chosen)

  @property
  def name(self) -> str:
    """Name of the dataset, for messages and reports; see `Images` for this and the other properties."""
    return self.source.title

  @property
  def num_classes(self) -> int:  # noqa: D102
    return len(self.records.classes)

  @property
  def num_train(self) -> int:  # noqa: D102
    return len(self.indices)

  @property
  def image_shape(self) -> tuple[int, int, int]:  # noqa: D102
    return self.source.image_size, self.source.image_size, 3

  def read(self, parts: Sequence[np.ndarray], rows: np.ndarray) -> Generator[Batch, None, None]:
    """Yields batches of training images, see `Listed`."""
    source, records = self.source, [self.indices[part] for part in parts]
    options = {name: getattr(source, name) for name in ('image_size', 'num_threads', 'num_workers')}
    return Listed(self.records, records, rows, **options).batches()

  def fingerprint(self) -> dict[str, Any]:
    """JSON values that identify the images; see `darts_jax.data.records.fingerprint`."""
    return {'classes': list(map(as_unicode, self.records.classes)), **fingerprint(self.records)}

  def decoded(self) -> Images:
    """Decodes all images into memory, and prints a message about those that cannot be decoded.

    Raises:
      ValueError: a file cannot be read, no image can be decoded, `num_images` leave out a class, or the memory is not
        sufficient.
    """
    source, total = self.source, self.num_train
    try:
      pixels = np.empty((total, *self.image_shape), np.uint8)
    except MemoryError as error:
      raise ValueError(
        f'config.data.stream: False is not allowed; {total} images of {source.image_size}×{source.image_size} pixels do'
        ' not fit into memory (config.data.stream=True, or fewer of them, config.data.num_images)'
      ) from error
    labels, damaged = np.empty(total, np.int32), np.zeros(total, bool)
    options = {name: getattr(source, name) for name in ('image_size', 'num_threads', 'num_workers')}
    stream = Stream(self.records, self.indices, batch_size=min(_BATCH, total), train=False, seed=0, **options)
    for i, batch in enumerate(stream.batches()):
      here = slice(i * stream.batch_size, (i + 1) * stream.batch_size)
      count = len(labels[here])
      pixels[here], labels[here] = batch.images[:count], batch.labels[:count]
      damaged[here] = batch.damaged[:count] >= 0
    missing = sorted({*range(self.num_classes)} - {*labels.tolist()})
    if source.num_images and missing:
      # Of records that have their labels in the files, they are known only now.
      raise ValueError(f'config.data.num_images: {total} leave out class {missing[0]} of {self.name}; more are needed')
    bad = np.flatnonzero(damaged)
    if len(bad) == total:
      raise ValueError(f'config.data.dir: {self.name}: not one of the images can be decoded')
    if not bad.size:
      return Images(self.name, pixels, labels, None, None, self.num_classes, self.mean, self.std)
    others = f', nor can {len(bad) - 1} more' if len(bad) > 1 else ''
    say(f'{self.records.name(int(self.indices[bad[0]]))}: cannot be decoded{others}; the next one takes its place')
    return Images(self.name, pixels, labels, None, None, self.num_classes, self.mean, self.std, damaged)
