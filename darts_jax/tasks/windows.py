"""Streaming of images during a search, from files or from host memory.

A window holds the batches of some consecutive steps in device memory. While the devices compute on one window, a host
thread reads the next one. Every process reads only the rows of a batch that its devices hold.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from darts_jax.data.batches import Examples
from darts_jax.data.files import ImageFiles
from darts_jax.data.images import Images
from darts_jax.data.stream import Batch
from darts_jax.runtime import processes
from darts_jax.runtime.mesh import put
from darts_jax.runtime.precision import in_float32
from darts_jax.runtime.steps import MAX_STEPS
from darts_jax.runtime.terminal import say
from darts_jax.tasks.base import Feed, Halves, Note

Array = jax.Array
PyTree = Any

# Largest size of a window's images for one search, in bytes.
_WINDOW = 2**25
# Number of indices of each half that are drawn at once; at least an epoch of them is.
_DRAWN = 2**20


class Window(NamedTuple):
  """Batches of consecutive steps, or of an evaluation.

  Attributes:
    first: `[]` int32, index of the step of the first batch; in an evaluation, index of the first batch.
    train: raw images `[K, B, H, W, C]` and labels `[K, B]` of the weights' half; `()` in an evaluation.
    valid: raw images and labels of the architecture half, of the same shapes.
  """

  first: Any
  train: Any
  valid: Any


#: Sharding of a window over the devices of a search: batches along `data`.
AXES = Window(PartitionSpec(), PartitionSpec(None, 'data'), PartitionSpec(None, 'data'))


class Schedule(NamedTuple):
  """The examples that each step reads, for one supernet.

  Attributes:
    batch_size: B, examples per batch.
    evaluation_size: examples per batch of an evaluation.
    num_valid: number of examples in the architecture half.
    steps_per_epoch: full batches in the weights' half.
    first_step: steps taken before the first epoch of the supernet.
    end: steps of the whole search.
    drawn: from the typed key of a run and an epoch `[]`, counted from the supernet's first, the indices of the examples
      that its steps read, `[steps, B]` for each half.
    reads_valid: for steps `[n]`, whether each reads a batch of the architecture half, `[n]` bool.
  """

  batch_size: int
  evaluation_size: int
  num_valid: int
  steps_per_epoch: int
  first_step: int
  end: int
  drawn: Callable[[Array, Array], Halves]
  reads_valid: Callable[[np.ndarray], np.ndarray]


class _Taken(NamedTuple):
  """A window that has been read.

  Attributes:
    window: the batches, on the devices.
    stop: the first step after the window.
    damaged: indices of records that should be in the window but cannot be decoded.
  """

  window: Window
  stop: int
  damaged: list[int]


class Windows(Feed):
  """The feed of streamed images; its data are windows."""

  def __init__(self, images: Images | ImageFiles, halves: Sequence[Halves], schedule: Schedule, places: Window) -> None:
    """Reads nothing yet.

    Args:
      images: the training images.
      halves: for every search, the indices of the images of each half.
      schedule: the examples that each step reads.
      places: shardings of a window.
    """
    self._images, self._halves, self._schedule, self._places = images, halves, schedule, places
    self._drawn = jax.jit(schedule.drawn)
    dtype = images.x_train.dtype if isinstance(images, Images) else np.dtype(np.uint8)
    size = schedule.batch_size
    bytes_a_step = 2 * size * math.prod(images.image_shape) * dtype.itemsize
    self._length = max(1, min(_WINDOW // bytes_a_step, MAX_STEPS, schedule.steps_per_epoch))
    self._lead = () if len(halves) == 1 else (len(halves),)

    def shape(*rest: int, dtype: Any = np.int32, place: NamedSharding = places.train) -> Any:
      return jax.ShapeDtypeStruct((*self._lead, *rest), dtype, sharding=place)

    half = Examples(shape(self._length, size, *images.image_shape, dtype=dtype), shape(self._length, size))
    self.shapes = Window(shape(place=places.first), half, half)
    self._thread: ThreadPoolExecutor | None = None
    self._windows: Generator[_Taken, None, None] | None = None
    self._following: Future[_Taken] | None = None
    self._now: _Taken | None = None
    # The step that `read` is expected to ask for next.
    self._step = -1
    self._known: set[int] = set()

  def read(self, step: Array, keys: Array, num_steps: int, note: Note) -> tuple[Window, int]:
    """See `Feed`."""
    now = int(np.ravel(processes.fetch(step))[0])
    if now != self._step:
      self._open(now, keys)
    if self._now is None or now == self._now.stop:
      assert self._following is not None
      self._now = self._following.result()
      if self._now.stop < self._schedule.end:
        self._ahead()
      self._name_damaged(self._now.damaged, now, note)
    count = min(num_steps, self._now.stop - now)
    self._step = now + count
    return self._now.window, count

  def at(self, step: int, keys: Array, note: Note) -> Window:
    """See `Feed`."""
    schedule = self._schedule._replace(end=step + 1, reads_valid=lambda steps: np.ones(len(steps), bool))
    other = Windows(self._images, self._halves, schedule, self._places)
    other._drawn, other._known = self._drawn, self._known
    with contextlib.closing(other):
      window, _ = other.read(jnp.int32(step), keys, 1, note)
    return window

  def evaluation(self, step: int, note: Note) -> Iterator[Window]:
    """See `Feed`."""
    size, total = self._schedule.evaluation_size, self._schedule.num_valid
    # The last batch is padded with repeated examples, which `Learner.measure` does not count.
    table = (np.arange(-(-total // size) * size) % total).reshape(-1, size)
    rows = self._rows(size)
    with contextlib.ExitStack() as stack:
      readers = {
        seed: stack.enter_context(contextlib.closing(self._images.read((self._halves[seed].valid,), table[:, own])))
        for seed, own in rows.items()
      }
      length = min(self._length, len(table))
      for first in range(0, len(table), length):
        found, damaged = self._collect(readers, min(length, len(table) - first), length)
        self._name_damaged(damaged, step, note)
        yield Window(self._first(first), (), self._put(found, rows, size))

  def again(self, make: Callable[[Sequence[Any]], Feed]) -> Feed:
    """See `Feed`."""
    self.close()
    other = make(self._halves)
    if isinstance(other, Windows):
      other._known = self._known
    return other

  def close(self) -> None:
    """See `Feed`."""
    if self._thread is None or self._windows is None:
      return
    # Waits for the window that is being read.
    self._thread.shutdown(cancel_futures=True)
    self._windows.close()
    self._thread = self._windows = self._following = self._now = None
    self._step = -1

  def _open(self, step: int, keys: Array) -> None:
    """Starts the thread that reads windows from a step on."""
    self.close()
    data = np.asarray(processes.fetch(jax.random.key_data(keys))).reshape(len(self._halves), -1)
    self._windows = self._read_windows(step, data)
    self._thread = ThreadPoolExecutor(1)
    self._ahead()

  def _ahead(self) -> None:
    """Submits the next window to the reading thread."""
    assert self._thread is not None
    assert self._windows is not None
    self._following = self._thread.submit(next, self._windows)

  def _read_windows(self, step: int, keys: np.ndarray) -> Generator[_Taken, None, None]:
    """Yields the windows from a step on; the last one of a search is padded to the same length."""
    size, end = self._schedule.batch_size, self._schedule.end
    rows = self._rows(size)
    with contextlib.ExitStack() as stack:
      readers = {
        seed: stack.enter_context(contextlib.closing(self._read_steps(seed, own, step, keys[seed])))
        for seed, own in rows.items()
      }
      for first in range(step, end, self._length):
        count = min(self._length, end - first)
        found, damaged = self._collect(readers, count, self._length)
        halves = []
        for half in range(2):
          parts = {
            seed: Examples(*(each[:, half * len(rows[seed]) :][:, : len(rows[seed])] for each in examples))
            for seed, examples in found.items()
          }
          halves.append(self._put(parts, rows, size))
        yield _Taken(Window(self._first(first), *halves), first + count, damaged)

  def _read_steps(self, seed: int, rows: np.ndarray, step: int, key: np.ndarray) -> Generator[Batch, None, None]:
    """Yields the batches of a search from a step on: `rows` of the weights' half, then of the architecture half."""
    schedule, halves = self._schedule, self._halves[seed]
    steps = schedule.steps_per_epoch
    most = max(1, _DRAWN // (steps * schedule.batch_size))
    epoch, done = divmod(step - schedule.first_step, steps)
    while True:
      left = schedule.end - schedule.first_step - epoch * steps
      number = min(most, -(-left // steps))
      drawn = self._draw(key, range(epoch, epoch + number))
      reads = schedule.reads_valid(schedule.first_step + epoch * steps + np.arange(number * steps))
      valid = np.where(reads[:, None], len(halves.train) + drawn.valid, -1)
      table = np.concatenate([drawn.train[:, rows], valid[:, rows]], axis=1)
      yield from self._images.read(halves, table[done:])
      epoch, done = epoch + number, 0

  @in_float32
  def _draw(self, key: np.ndarray, epochs: range) -> Halves:
    """Indices of the examples that the steps of some epochs read, NumPy arrays `[steps, B]` for each half."""
    typed = jax.random.wrap_key_data(jnp.asarray(key))
    found = [jax.device_get(self._drawn(typed, np.int32(epoch))) for epoch in epochs]
    return Halves(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

  def _rows(self, size: int) -> dict[int, np.ndarray]:
    """The rows of a batch that devices of this process hold, ascending, by index of the search."""
    found: dict[int, set[int]] = {}
    for index in self._places.train.addressable_devices_indices_map((*self._lead, 1, size)).values():
      found.setdefault(self._seed_of(index), set()).update(range(*index[-1].indices(size)))
    return {seed: np.array(sorted(rows)) for seed, rows in found.items()}

  def _seed_of(self, index: tuple[slice, ...]) -> int:
    """Index of the search that a shard of an array belongs to."""
    return index[0].indices(len(self._halves))[0] if self._lead else 0

  def _collect(
    self, readers: dict[int, Generator[Batch, None, None]], count: int, length: int
  ) -> tuple[dict[int, Examples], list[int]]:
    """Reads the next `count` batches of every search.

    Returns:
      The batches, padded with copies of the first to `length`, by index of the search; and indices of damaged records.
    """
    found: dict[int, Examples] = {}
    damaged: list[int] = []
    for seed, reader in readers.items():
      batches = [next(reader) for _ in range(count)]
      filled = batches + batches[:1] * (length - count)
      # A new array each time, since the array of a window on CPU devices may share its memory.
      arrays: Any = (np.stack([getattr(batch, name) for batch in filled]) for name in Examples._fields)
      found[seed] = Examples(*arrays)
      damaged += [int(index) for batch in batches for index in batch.damaged if index >= 0]
    return found, damaged

  def _put(self, found: dict[int, Examples], rows: dict[int, np.ndarray], size: int) -> Examples:
    """Puts rows `[K, b, …]` of every search on the devices that hold them."""
    axis = len(self._lead) + 1

    def placed(name: str) -> Array:
      parts = {seed: getattr(examples, name) for seed, examples in found.items()}
      some = next(iter(parts.values()))

      def own(index: Any) -> np.ndarray:
        seed = self._seed_of(index)
        start, stop, _ = index[axis].indices(size)
        first = int(np.searchsorted(rows[seed], start))
        part = parts[seed][:, first : first + stop - start]
        return part[None] if self._lead else part

      shape = (*self._lead, len(some), size, *some.shape[2:])
      return jax.make_array_from_callback(shape, self._places.train, own)

    return Examples(placed('images'), placed('labels'))

  def _first(self, number: int) -> Array:
    """`Window.first`, on the devices."""
    placed: Any = put(np.full(self._lead, number, np.int32), self._places.first)
    return placed

  def _name_damaged(self, damaged: Sequence[int], step: int, note: Note) -> None:
    for index in damaged:
      if index not in self._known:
        self._known.add(index)
        assert isinstance(self._images, ImageFiles)
        message = f'{self._images.records.name(index)}: cannot be decoded; the next one takes its place'
        note(step, 'damaged_image', message)
        if not processes.is_first():
          # Only the first process writes the log, and it has not read this image.
          say(f'process {jax.process_index()}: {message}')
