"""When α move: at which steps, and whether before the weights or after them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from darts_jax.search.settings import Search

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Timing:
  """When α move.

  Attributes:
    weights_first: whether weights move before α in a step, which then move at the new weights.
    every: α move at steps `every`, 2 · `every`, …, counted from 1.
    start: steps before the first at which α may move.
  """

  weights_first: bool = False
  every: int = 1
  start: int = 0

  @classmethod
  def from_settings(cls, settings: Search, epoch_ends: Sequence[int]) -> Self:
    """As the settings of α say.

    Args:
      settings: of a search.
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
    """Whether α move at the step that follows `step` steps, bool; of arrays likewise."""
    return (step >= self.start) & ((step + 1) % self.every == 0)

  def updates(self, step: Array | int) -> Array | int:
    """How often α have moved in `step` steps."""
    return step if self.always else jnp.maximum(step // self.every - self.start // self.every, 0)

  def is_last(self, step: Array, interval: int) -> Array:
    """Whether α do not move again, after the step that follows `step` steps, before a multiple of `interval` steps."""
    if self.always:
      return (step + 1) % interval == 0
    return -(step + 1) % interval < self.every


#: α move first, at every step.
ALWAYS = Timing()
