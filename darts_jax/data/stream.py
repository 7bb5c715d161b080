"""Batches of images that do not fit into memory, read, cropped and resized by Grain while the device computes.

Everything random is a function of the seed and the step: the order of an epoch and the crop of an image. So reading
can start at any step, and neither threads, worker processes nor the number of hosts change a batch.
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
# Image, label, whether it counts, and which record is damaged, if one is.
Row = tuple[np.ndarray, int, bool, int]

# What is drawn from a seed; a draw is named by one of these and then by epoch, or by step and row.
_ORDER, _CROP = 0, 1

# Images that a thread reads at once: few enough to share a batch, enough to spare a worker process many messages.
_CHUNK = 16


class Batch(NamedTuple):
  """One process's rows of a global batch.

  Attributes:
    images: [b, S, S, 3] uint8 RGB.
    labels: [b] int32.
    counts: [b] bool, False where a row of an evaluation holds no image: the last batch is filled up with such rows,
      and an image that cannot be decoded leaves one. Their pixels and labels are 0.
    damaged: [b] int32, the index of the record that should have been here but cannot be decoded, else -1.
  """

  images: np.ndarray
  labels: np.ndarray
  counts: np.ndarray
  damaged: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """Batches of some of the records, in a new random order every epoch or, for evaluation, in the order given.

  A record that cannot be decoded is replaced in training by the next one in `indices` that can, and left out in
  evaluation; `Batch.damaged` names it. A file that cannot be read at all ends the stream with an error: it might be
  readable again when the run is resumed.

  Attributes:
    records: where images come from.
    indices: [N] integers, the records to read, such as one part of `images.split`.
    batch_size: `config.batch_size`, of the global batch; a multiple of `process_count`.
    image_size: `config.data.image_size`, the side S of the images in pixels.
    train: whether to shuffle and crop at random.
    seed: `config.seed`, any non-negative integer.
    num_threads: `config.data.num_threads`, that read in each process or worker; 0 to read when a batch is asked for.
    num_workers: `config.data.num_workers`, processes that read; 0 to read in this one. Decoding runs in parallel in
      threads, too, but their Python does not: workers pay off where one process cannot keep up with the device. They
      import the program's main module, which has to guard what it runs by `__name__ == '__main__'`.
    process_index: number of this host process; it gets the rows p·b/P to (p + 1)·b/P of a global batch.
    process_count: the number P of host processes.
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
    """Raises a ValueError that names a field which cannot be, or the packages that are not installed."""
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
    """Number of batches of an epoch; in training other images are left over each time, in evaluation none are."""
    return len(self.indices) // self.batch_size if self.train else -(-len(self.indices) // self.batch_size)

  def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
    """Reads batches ahead, from any step on without reading those before it.

    Args:
      start_step: number of the first batch. In training steps count on over the epochs; an evaluation has
        `steps_per_epoch` of them.

    Returns:
      Without end in training, the rest of the images in evaluation. Closing it stops its threads and workers.

    Raises:
      ValueError: on a negative step; while iterating, if a file cannot be read, or no image can be decoded.
    """
    if start_step < 0:
      raise ValueError(f'start_step is {start_step}; it has to be at least 0')
    rows = self.batch_size // self.process_count
    last_step = sys.maxsize // rows if self.train else self.steps_per_epoch
    return _batches(self._row_of_process, rows, range(start_step, last_step), self.num_threads, self.num_workers)

  def _row_of_process(self, step: int, row: int) -> Row:
    return self._row(step, self.process_index * (self.batch_size // self.process_count) + row)

  def _row(self, step: int, row: int) -> Row:
    """A row of the global batch."""
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
  """Batches of the records that a table names, of which the centre is cut out.

  A record that cannot be decoded is replaced by the next one in its part that can.

  Attributes:
    records: where images come from.
    parts: [N_i] integers each, the records of every part.
    rows: [steps, b] integers, positions in all parts one after the other; -1 for a row without an image.
    image_size: see `Stream`; and so on.
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
  """Batches of so many rows, made of `row_of(step, row)` for the steps of a range."""
  import grain

  # A power of two, or less: batches are put together from these.
  chunk_rows = math.gcd(rows, _CHUNK)
  chunks = rows // chunk_rows
  # The dataset is made of what is left, so that nothing has to be skipped.
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
  """The first of some records that can be decoded."""
  damaged = -1
  for index in indices:
    encoded, label = records.load(index)
    image = decode(encoded, image_size, choose_box)
    if image is not None:
      return image, label, True, damaged
    damaged = index if damaged < 0 else damaged
  raise ValueError(f'{records.name(damaged)}: cannot be decoded, nor can any other of the training images')


def decode(encoded: bytes, image_size: int, choose_box: Callable[[int, int], Box]) -> np.ndarray | None:
  """Decodes an image, cuts a box out of it and resizes that with an antialiasing bilinear filter.

  Colours and depths are converted by `darts_jax.data.decoding.to_rgb`. As is customary for ImageNet, an orientation
  that a camera stored beside the image is not applied.

  Args:
    encoded: content of an image file.
    image_size: side S of the result in pixels.
    choose_box: called with width and height of the image, returns the box.

  Returns:
    [S, S, 3] uint8, or None if the image is damaged, of a format that is not read, or of a depth without a rule.
  """
  from PIL import Image

  try:
    image = open_image(encoded)
  except Exception:  # Its parsers fail in many ways on what is not an image.
    return None
  width, height = image.size
  box = choose_box(width, height)
  # A JPEG decodes much faster at 1/2, 1/4 or 1/8 of its size. The filter still averages over at least two pixels.
  shrink = max(1, int(min(box[2] - box[0], box[3] - box[1]) / (2 * image_size)))
  try:
    drafted = image.draft(None, (width // shrink, height // shrink))
    image = to_rgb(image)
  except Exception:  # As above; this is where truncated files are found out.
    return None
  scale = drafted[1][2] / width if drafted else 1.0
  left, top, right, bottom = box
  box = (scale * left, scale * top, scale * right, scale * bottom)
  return np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR, box))


def random_box(generator: np.random.Generator, width: int, height: int) -> Box:
  """Draws the box of a random resized crop [Szegedy et al., arXiv 1409.4842 §6].

  Its area is uniform in 8–100 % of the image, the logarithm of its aspect ratio uniform between 3/4 and 4/3, its
  place uniform. Should none of ten fit into the image, it is the largest in the centre whose aspect is within limits.

  Args:
    generator: consumed.
    width: of the image in pixels.
    height: of the image in pixels.

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
  """The square that remains if the shorter side is resized to 256/224 · S pixels and the S×S in the centre cut out.

  Args:
    width: of the image in pixels.
    height: of the image in pixels.
    image_size: S in pixels; 256/224 · S is rounded.

  Returns:
    Left, top, right, bottom in pixels of the image, not whole ones.
  """
  side = min(width, height) * image_size / round(image_size * 256 / 224)
  return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


def _generator(seed: int, *draw: int) -> np.random.Generator:
  return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=draw)))


@functools.lru_cache(maxsize=4)  # Two epochs meet in the batches read ahead, and a search reads two streams.
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
  return _generator(seed, _ORDER, epoch).permutation(length)


def _concatenate(chunks: Sequence[Batch]) -> Batch:
  return Batch(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def _iterate(dataset: Any) -> Generator[Batch, None, None]:
  iterator = iter(dataset)
  try:
    yield from iterator
  except ValueError as error:
    # Grain adds a paragraph about its own frames.
    raise ValueError(str(error).partition('\n')[0]) from error
  finally:
    iterator.close()


def _let_grain_read_its_flags() -> None:
  from absl import flags

  # Grain looks its options up among the flags of a program, which a notebook or a test has never parsed.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def _live_as_long_as_the_parent(worker_index: int, num_workers: int) -> None:
  del worker_index, num_workers
  # The parent decides what a signal to all processes means, and closes its workers.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_exit_with_the_parent, daemon=True).start()


def _exit_with_the_parent() -> None:
  from multiprocessing import parent_process

  parent = parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)
