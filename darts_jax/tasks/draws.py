"""The choice of the examples of each batch, for tasks whose examples are independent of each other."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp

from darts_jax.data.batches import epoch_indices
from darts_jax.streams import Stream
from darts_jax.tasks.base import Halves, Moment, SupernetSpec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Draws:
  """Draws the indices of the examples that the steps of a supernet read.

  The weights' half is read in a random order, another in every epoch; examples of the architecture half are drawn with
  replacement.

  Attributes:
    num_train: number of examples in the weights' half.
    num_valid: number of examples in the architecture half.
    epoch_ends: steps taken by the end of every epoch of the search.
    batch_size: B, examples per batch of this supernet.
    first_epoch: the first epoch in which the supernet is trained, counted from 0.
    first_step: steps before that epoch.
  """

  num_train: int
  num_valid: int
  epoch_ends: tuple[int, ...]
  batch_size: int
  first_epoch: int
  first_step: int

  @classmethod
  def of(cls, supernet: SupernetSpec, num_train: int, num_valid: int) -> Self:
    """The draws of a supernet."""
    sizes, first = supernet.batch_sizes, supernet.first_epoch
    # An epoch of a batch larger than its half has 0 steps here; `Task.halves` raises the error.
    ends = tuple(itertools.accumulate(num_train // size for size in sizes))
    return cls(num_train, num_valid, ends, sizes[min(first, len(sizes) - 1)], first, ends[first - 1] if first else 0)

  @property
  def steps_per_epoch(self) -> int:
    """Number of full batches in the weights' half; the examples left over are others in every epoch."""
    return self.num_train // self.batch_size

  def indices(self, moment: Moment, step_key: Array) -> Halves:
    """Indices `[B]` of the examples of a step, whose key is `step_key`, in each half."""
    epochs, position = jnp.divmod(moment.step - self.first_step, self.steps_per_epoch)
    epoch = self.first_epoch + epochs
    train = epoch_indices(moment.key, Stream.ORDER, epoch, position, self.batch_size, self.num_train)
    return Halves(train, self._valid(step_key))

  def epoch(self, key: Array, epoch: Array) -> Halves:
    """Indices `[steps, B]` of the examples of an epoch in each half.

    Args:
      key: typed random key of the run.
      epoch: `[]` int32; epoch 0 is the first of this supernet.
    """
    steps, size = self.steps_per_epoch, self.batch_size
    train = epoch_indices(key, Stream.ORDER, self.first_epoch + epoch, jnp.int32(0), steps * size, self.num_train)
    numbers = self.first_step + epoch * steps + jnp.arange(steps)
    return Halves(
      train.reshape(steps, size), jax.vmap(lambda step: self._valid(jax.random.fold_in(key, step)))(numbers)
    )

  def _valid(self, step_key: Array) -> Array:
    return jax.random.randint(jax.random.fold_in(step_key, Stream.VALID), (self.batch_size,), 0, self.num_valid)


def check_sizes(sizes: Sequence[int], usual: int, num_devices: int, most: int, unit: str) -> None:
  """Checks batch sizes that a strategy has increased.

  Args:
    sizes: batch size of every epoch.
    usual: `config.batch_size`, which is checked elsewhere.
    num_devices: number of devices that share a batch.
    most: number of examples in the smaller half.
    unit: name of examples in messages.

  Raises:
    ValueError: a batch does not divide evenly over the devices, or is larger than the smaller half.
  """
  for size in sizes:
    grown = f'config.batch_size: {usual} grows to {size} by the decisions, which'
    hint = 'see config.strategy.batch_growth'
    if size != usual and size % num_devices:
      raise ValueError(f'{grown} does not divide evenly over the devices ({num_devices} devices); {hint}')
    if size != usual and size > most:
      raise ValueError(f'{grown} is more than half of the {unit} ({most} {unit} in the smaller half); {hint}')
