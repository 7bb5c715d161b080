"""The steps at which α move, and whether they move before or after the weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from darts_jax.search.settings import Search

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Timing:
  """The steps at which α move.

  Attributes:
    weights_first: whether the weights move before α in a step, and α at the new weights.
    every: α move at steps `every`, 2 · `every`, …, counted from 1.
    start: number of steps at the beginning at which α stay.
  """

  weights_first: bool = False
  every: int = 1
  start: int = 0

  @classmethod
  def from_settings(cls, settings: Search, epoch_ends: Sequence[int]) -> Self:
    """The timing that the settings describe.

    Args:
      settings: the settings of a search.
      epoch_ends: steps taken by the end of every epoch.
    """
    alphas = settings.alphas
    start = epoch_ends[alphas.from_epoch - 1] if alphas.from_epoch else 0
    return cls(alphas.order == 'weights_first', alphas.every, start)

  @property
  def always(self) -> bool:
    """Whether α move at every step."""
    return self.every == 1 and not self.start

  def moves(self, step: Any) -> Any:
    """Whether α move at the step that follows `step` steps: bool, of the shape of `step`."""
    return (step >= self.start) & ((step + 1) % self.every == 0)

  def updates(self, step: Array | int) -> Array | int:
    """The number of updates of α in the first `step` steps."""
    return step if self.always else jnp.maximum(step // self.every - self.start // self.every, 0)

  def is_last(self, step: Array, interval: int) -> Array:
    """Whether no further update of α follows, after the step at `step`, up to the next multiple of `interval` steps."""
    if self.always:
      return (step + 1) % interval == 0
    return -(step + 1) % interval < self.every


#: The default: α move at every step, before the weights.
ALWAYS = Timing()
