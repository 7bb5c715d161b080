"""Batches of images that do not fit into memory, read, cropped and resized by Grain while the device computes.

All random draws, the order of an epoch and the crop of an image, are functions of the seed and the step. Reading can
therefore start at any step, and batches do not depend on the number of threads, worker processes or hosts.
"""

import dataclasses
import functools
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from darts_jax.data.decoding import open_image, to_rgb
from darts_jax.data.records import Records

Box = tuple[float, float, float, float]
# Image, label, whether it counts, and the index of a damaged record, or -1; see `Batch`.
Row = tuple[np.ndarray, int, bool, int]

# Purposes of random draws: orders, which are further identified by epoch, and crops, by step and row.
_ORDER, _CROP = 0, 1

# Images that a thread reads at a time: few, so that threads share a batch, but enough to save messages between worker
# processes.
_CHUNK = 16


class Batch(NamedTuple):
  """One process's rows of a global batch.

  Attributes:
    images: [b, S, S, 3] uint8 RGB.
    labels: [b] int32.
    counts: [b] bool, False for rows without an image, which fill up the last batch of an evaluation and stand for
      images that cannot be decoded. Their pixels and labels are 0.
    damaged: [b] int32, index of the record that should be in the row but cannot be decoded; -1 if there is none.
  """

  images: np.ndarray
  labels: np.ndarray
  counts: np.ndarray
  damaged: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """Batches of some of the records, in a new random order every epoch, or for evaluation in the given order.

  In training, a record that cannot be decoded is replaced by the next one in `indices` that can be; in evaluation it is
  left out. `Batch.damaged` has its index. A file that cannot be read at all ends the stream with an error, since it may
  be readable again when the run is resumed.

  Attributes:
    records: the encoded images.
    indices: [N] integers, indices of the records to read, such as one part of `images.split`.
    batch_size: `config.batch_size`, size of the global batch; a multiple of `process_count`.
    image_size: `config.data.image_size`, side S of the images in pixels.
    train: whether to shuffle, and to crop at random.
    seed: `config.seed`, any non-negative integer.
    num_threads: `config.data.num_threads`, number of threads that read, in each process or worker; 0 to read without
      threads, only on demand.
    num_workers: `config.data.num_workers`, number of processes that read; 0 to read in this process. Threads decode in
      parallel, too, but share one Python interpreter: workers help if one process cannot keep up with the device. They
      import the program's main module, which has to guard its code by `__name__ == '__main__'`.
    process_index: number p of this process; it gets the rows p·B/P to (p + 1)·B/P of a global batch of B.
    process_count: number P of processes of the run.
  """

  records: Records
  indices: np.ndarray
  _: dataclasses.KW_ONLY
  batch_size: int
  image_size: int
  train: bool
  seed: int
  num_threads: int = 8
  num_workers: int = 0
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self) -> None:
    """Raises a ValueError if a field is not valid, or if packages are not installed."""
    check_installed()
    for field, smallest in (
      ('config.batch_size', 1),
      ('config.data.image_size', 1),
      ('config.seed', 0),
      ('config.data.num_threads', 0),
      ('config.data.num_workers', 0),
    ):
      value = getattr(self, field.rpartition('.')[2])
      if value < smallest:
        raise ValueError(f'{field} is {value}; it has to be at least {smallest}')
    if self.batch_size % self.process_count:
      raise ValueError(
        f'config.batch_size is {self.batch_size}; it has to be a multiple of the {self.process_count} processes'
      )
    smallest = self.batch_size if self.train else 1
    if len(self.indices) < smallest:
      raise ValueError(f'config.batch_size is {self.batch_size}, but there are {len(self.indices)} images')

  @property
  def steps_per_epoch(self) -> int:
    """Number of batches per epoch. Training leaves out images that do not fill a batch; evaluation does not."""
    return len(self.indices) // self.batch_size if self.train else -(-len(self.indices) // self.batch_size)

  def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
    """Reads batches ahead, from any step on, without reading those before it.

    Args:
      start_step: number of the first batch. In training, steps are counted over all epochs; an evaluation has
        `steps_per_epoch` of them.

    Returns:
      A generator of batches, without end in training, and up to the last image in evaluation. Closing it stops its
      threads and workers.

    Raises:
      ValueError: the step is negative; or, while iterating, a file cannot be read or no image can be decoded.
    """
    if start_step < 0:
      raise ValueError(f'start_step is {start_step}; it has to be at least 0')
    rows = self.batch_size // self.process_count
    last_step = sys.maxsize // rows if self.train else self.steps_per_epoch
    return _batches(self._row_of_process, rows, range(start_step, last_step), self.num_threads, self.num_workers)

  def _row_of_process(self, step: int, row: int) -> Row:
    return self._row(step, self.process_index * (self.batch_size // self.process_count) + row)

  def _row(self, step: int, row: int) -> Row:
    """Reads a row of the global batch."""
    if self.train:
      epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
      order = _permutation(self.seed, epoch, len(self.indices))
      return self._training_row(int(order[step_of_epoch * self.batch_size + row]), step, row)
    nothing = _nothing(self.image_size)
    position = step * self.batch_size + row
    if position >= len(self.indices):
      return nothing, 0, False, -1
    index = int(self.indices[position])
    encoded, label = self.records.load(index)
    image = decode(encoded, self.image_size, functools.partial(centre_box, image_size=self.image_size))
    return (nothing, 0, False, index) if image is None else (image, label, True, -1)

  def _training_row(self, position: int, step: int, row: int) -> Row:
    def choose_box(width: int, height: int) -> Box:
      return random_box(_generator(self.seed, _CROP, step, row), width, height)

    indices = (int(self.indices[(position + i) % len(self.indices)]) for i in range(len(self.indices)))
    return _first_decoded(self.records, indices, self.image_size, choose_box)


@dataclasses.dataclass(frozen=True, eq=False)
class Listed:
  """Batches of records that a table lists, with a central crop.

  A record that cannot be decoded is replaced by the next one in its part that can be.

  Attributes:
    records: the encoded images.
    parts: for every part, [N_i] integers, indices of its records.
    rows: [steps, b] integers, positions in the concatenation of all parts; -1 for a row without an image.
    image_size: see `Stream`.
    num_threads: see `Stream`.
    num_workers: see `Stream`.
  """

  records: Records
  parts: Sequence[np.ndarray]
  rows: np.ndarray
  _: dataclasses.KW_ONLY
  image_size: int
  num_threads: int = 8
  num_workers: int = 0

  def batches(self) -> Generator[Batch, None, None]:
    """Reads batches ahead, one for every row of the table; see `Stream.batches`."""
    steps, rows = self.rows.shape
    return _batches(self._row, rows, range(steps), self.num_threads, self.num_workers)

  def _row(self, step: int, row: int) -> Row:
    position = int(self.rows[step, row])
    if position < 0:
      return _nothing(self.image_size), 0, False, -1
    for part in self.parts:
      if position < len(part):
        break
      position -= len(part)
    indices = (int(part[(position + i) % len(part)]) for i in range(len(part)))
    choose_box = functools.partial(centre_box, image_size=self.image_size)
    return _first_decoded(self.records, indices, self.image_size, choose_box)


def check_installed() -> None:
  """Raises a ValueError if the packages that streams need are not installed."""
  try:
    import grain  # noqa: F401
    import PIL  # noqa: F401
  except ImportError as error:
    raise ValueError(f'streaming images needs: pip install darts_jax[stream] ({error})') from error


def _batches(
  row_of: Callable[[int, int], Row], rows: int, steps: range, num_threads: int, num_workers: int
) -> Generator[Batch, None, None]:
  """Reads batches ahead.

  Args:
    row_of: function `(step, row) → Row`.
    rows: number of rows of a batch.
    steps: the steps to read.
    num_threads: see `Stream`.
    num_workers: see `Stream`.
  """
  import grain

  # Batches are concatenated from chunks, whose size divides the batch.
  chunk_rows = math.gcd(rows, _CHUNK)
  chunks = rows // chunk_rows
  # The dataset begins at the first step, so that nothing has to be skipped.
  reading = grain.MapDataset.range(steps.start * chunks, steps.stop * chunks).map(
    functools.partial(_chunk, row_of, chunks, chunk_rows)
  )
  ahead = num_threads + (0 if num_workers else 2 * chunks)
  dataset = reading.to_iter_dataset(
    grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead if num_threads else 0)
  )
  if num_workers:
    _let_grain_read_its_flags()
    options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=-(-chunks // num_workers))
    dataset = dataset.mp_prefetch(options, worker_init_fn=_live_as_long_as_the_parent)
  return _iterate(dataset.batch(chunks, batch_fn=_concatenate))


def _chunk(row_of: Callable[[int, int], Row], chunks: int, chunk_rows: int, number: int) -> Batch:
  step, part = divmod(number, chunks)
  rows = [row_of(step, part * chunk_rows + row) for row in range(chunk_rows)]
  images, labels, counts, damaged = zip(*rows, strict=True)
  return Batch(np.stack(images), np.array(labels, np.int32), np.array(counts), np.array(damaged, np.int32))


def _nothing(image_size: int) -> np.ndarray:
  return np.zeros((image_size, image_size, 3), np.uint8)


def _first_decoded(
  records: Records, indices: Iterable[int], image_size: int, choose_box: Callable[[int, int], Box]
) -> Row:
  """Reads the first of some records that can be decoded; raises a ValueError if none can be."""
  damaged = -1
  for index in indices:
    encoded, label = records.load(index)
    image = decode(encoded, image_size, choose_box)
    if image is not None:
      return image, label, True, damaged
    damaged = index if damaged < 0 else damaged
  raise ValueError(f'{records.name(damaged)}: cannot be decoded, nor can any other of the training images')


def decode(encoded: bytes, image_size: int, choose_box: Callable[[int, int], Box]) -> np.ndarray | None:
  """Decodes an image, crops it to a box, and resizes this with an antialiasing bilinear filter.

  Colours and depths are converted by `darts_jax.data.decoding.to_rgb`. As is customary for ImageNet, the orientation in
  a camera's metadata is ignored.

  Args:
    encoded: content of an image file.
    image_size: side S of the result in pixels.
    choose_box: function from the width and height of the image, in pixels, to the box.

  Returns:
    [S, S, 3] uint8; None if the image is damaged, or of a format or depth that is not supported.
  """
  from PIL import Image

  try:
    image = open_image(encoded)
  except Exception:  # Pillow's parsers can raise anything on other content.
    return None
  width, height = image.size
  box = choose_box(width, height)
  # A JPEG is decoded much faster at 1/2, 1/4 or 1/8 of its size. The filter still averages over at least two pixels.
  shrink = max(1, int(min(box[2] - box[0], box[3] - box[1]) / (2 * image_size)))
  try:
    drafted = image.draft(None, (width // shrink, height // shrink))
    image = to_rgb(image)
  except Exception:  # As above; truncated files fail here.
    return None
  scale = drafted[1][2] / width if drafted else 1.0
  left, top, right, bottom = box
  box = (scale * left, scale * top, scale * right, scale * bottom)
  return np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR, box))


def random_box(generator: np.random.Generator, width: int, height: int) -> Box:
  """Draws the box of a random resized crop [Szegedy et al., arXiv 1409.4842 §6].

  Its area is uniform in 8–100 % of the image, the logarithm of its aspect ratio uniform between those of 3/4 and 4/3,
  and its place uniform. If none of ten draws fits into the image, it is the largest box in the centre whose aspect
  ratio is between 3/4 and 4/3.

  Args:
    generator: generator of the draws; it is advanced.
    width: width of the image in pixels.
    height: height of the image in pixels.

  Returns:
    Left, top, right, bottom in whole pixels.
  """
  areas = generator.uniform(0.08, 1, 10) * width * height
  aspects = np.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3), 10))
  widths, heights = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
  fitting = np.flatnonzero((widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height))
  if fitting.size:
    box_width, box_height = int(widths[fitting[0]]), int(heights[fitting[0]])
    left, top = (int(start) for start in generator.integers(0, (width - box_width + 1, height - box_height + 1)))
  else:
    box_width, box_height = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    left, top = (width - box_width) // 2, (height - box_height) // 2
  return left, top, left + box_width, top + box_height


def centre_box(width: int, height: int, image_size: int) -> Box:
  """The square that corresponds to resizing the shorter side to 256/224 · S pixels and cropping the central S×S.

  Args:
    width: width of the image in pixels.
    height: height of the image in pixels.
    image_size: S in pixels; 256/224 · S is rounded.

  Returns:
    Left, top, right, bottom in pixels of the image, not rounded.
  """
  side = min(width, height) * image_size / round(image_size * 256 / 224)
  return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


def _generator(seed: int, *draw: int) -> np.random.Generator:
  return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=draw)))


@functools.lru_cache(maxsize=4)  # Batches that are read ahead can span two epochs, and a search reads two streams.
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
  return _generator(seed, _ORDER, epoch).permutation(length)


def _concatenate(chunks: Sequence[Batch]) -> Batch:
  return Batch(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def _iterate(dataset: Any) -> Generator[Batch, None, None]:
  iterator = iter(dataset)
  try:
    yield from iterator
  except ValueError as error:
    # Grain appends a paragraph about its own stack frames.
    raise ValueError(str(error).partition('\n')[0]) from error
  except RuntimeError as error:
    if 'Worker process' not in str(error):
      raise
    raise ValueError(
      'config.data.num_workers: a process that reads images has ended; it may have had too little memory, or a script'
      " without if __name__ == '__main__': has started it; 0 reads in this process"
    ) from error
  finally:
    iterator.close()


def _let_grain_read_its_flags() -> None:
  from absl import flags

  # Grain reads its options from absl's flags, which a notebook or a test has not parsed.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def _live_as_long_as_the_parent(worker_index: int, num_workers: int) -> None:
  del worker_index, num_workers
  # A signal to all processes is handled by the parent, which closes its workers.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_exit_with_the_parent, daemon=True).start()


def _exit_with_the_parent() -> None:
  from multiprocessing import parent_process

  parent = parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)
