"""A strategy in a search: its settings, the searched space and its memory, as one frozen value."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax

from darts_jax.search.settings import Search
from darts_jax.spaces import CellSpace, Doubts, Genotype, Mixing
from darts_jax.strategies.relaxed import EVALUATE, Arch, Cells, Memory, Probe, Relaxed, Scores, Stage, Time, Turn
from darts_jax.streams import Stream

Array = jax.Array


class NoSupernet(Probe):
  """A probe that answers no question."""

  def curvature(self) -> float:
    """Raises a ValueError."""
    raise ValueError('config.strategy: it asks for the curvature of a supernet, and there is none here')

  def measure(self, mixing: Mapping[str, Mixing]) -> dict[str, float]:
    """Raises a ValueError."""
    del mixing
    raise ValueError('config.strategy: it asks for an evaluation of a supernet, and there is none here')


#: The probe of a strategy that is asked for a turn without a supernet; its methods raise a ValueError.
NO_SUPERNET = NoSupernet()


@dataclasses.dataclass(frozen=True)
class Searched:
  """A strategy in a search; its methods call those of `Relaxed` with space, cells, memory and time filled in.

  Attributes:
    strategy: the strategy's settings.
    space: the searched space.
    memory: the strategy's memory.
    ends: steps taken by the end of every epoch of the search.
  """

  strategy: Relaxed
  space: CellSpace
  memory: Memory
  ends: tuple[int, ...] = (1,)

  @classmethod
  def start(cls, strategy: Relaxed, space: CellSpace, ends: Sequence[int] = (1,)) -> Self:
    """The strategy before the first epoch.

    Raises:
      ValueError: the strategy cannot search this space.
    """
    strategy.check(space)
    return cls(strategy, space, strategy.start(), tuple(ends))

  @classmethod
  def from_settings(cls, settings: Search) -> Self:
    """The strategy and space of the settings, before the first epoch; raises a ValueError as `start` does."""
    return cls.start(settings.strategy, settings.space)

  def over(self, ends: Sequence[int]) -> Self:
    """A copy for a search whose epochs end after these steps; schedules depend on them."""
    return dataclasses.replace(self, ends=tuple(ends))

  def recall(self, memory: Memory) -> Self:
    """A copy with another memory."""
    return dataclasses.replace(self, memory=memory)

  @functools.cached_property
  def cells(self) -> Cells:
    """The cells of the supernet."""
    return self.strategy.cells(self.space, self.memory)

  def plan(self, epochs: int) -> tuple[Stage, ...]:
    """The stages of a search of `epochs` epochs.

    Raises:
      ValueError: the strategy's stages have another number of epochs in all, or differ in `channel_part`.
    """
    stages = self.strategy.plan(self.space, epochs)
    planned = [stage.epochs for stage in stages]
    if sum(planned) != epochs or min(planned) < 1:
      raise ValueError(
        f'config.strategy: the stages of {self.strategy.name} have {planned} epochs; they have to be {epochs} in all,'
        ' and one or more each'
      )
    parts = sorted({stage.channel_part for stage in stages})
    if len(parts) > 1:
      raise ValueError(
        f'config.strategy: the stages of {self.strategy.name} have channel_part {parts}; it has to be the same in all'
      )
    return stages

  def init(self, key: Array) -> Arch:
    """The architecture parameters before the first step; consumes the key."""
    return self.strategy.init(self.space, key)

  @functools.cached_property
  def drops(self) -> bool:
    """Whether the mixing weights have rates of drop path."""
    found = jax.eval_shape(lambda key: self.look(self.init(key), 0, key), jax.random.key(0))
    return any(each.drop is not None for each in found.values())

  def mix(self, arch: Arch, step: Any, key: Array, purpose: Any) -> dict[str, Mixing]:
    """Mixing weights of the supernet, by kind of cell.

    Args:
      arch: the architecture parameters.
      step: steps taken; may be traced.
      key: typed random key of the step; each purpose draws from a key folded from it.
      purpose: `WEIGHTS`, `ALPHAS` or `EVALUATE`; may be traced.
    """
    own = jax.random.fold_in(key, purpose) if self.strategy.draws else None
    return self.strategy.mix(arch, self.space, self.cells, Time(step, self.ends), own, purpose)

  def look(self, arch: Arch, step: Any, key: Array) -> dict[str, Mixing]:
    """Mixing weights for an evaluation or the log before a step; `key` is that of the run, not of the step."""
    return self.mix(arch, step, jax.random.fold_in(jax.random.fold_in(key, step), Stream.LOOK), EVALUATE)

  def shown(self, arch: Arch, step: Any, key: Array) -> dict[str, Mixing]:
    """Mixing weights that logs and reports show: those of `look`, or, of a strategy that draws, its probabilities."""
    mixing = self.look(arch, step, key)
    chances = self.strategy.chances(arch, self.space, self.cells)
    return mixing if chances is None else {name: Mixing(chances[name], each.edges) for name, each in mixing.items()}

  def temperature_at(self, step: int) -> float:
    """Temperature of the softmax at a step; for logs and reports."""
    return float(self.strategy.temperature_at(Time(step, self.ends)))

  def project(self, before: Arch, after: Arch) -> Arch:
    """The architecture parameters after an update; see `Relaxed.project`."""
    return self.strategy.project(before, after, self.space, self.cells)

  def read(self, arch: Arch) -> Genotype:
    """The architecture that the architecture parameters and the decisions so far stand for."""
    return self.strategy.read(arch, self.space, self.memory)

  def scores(self, arch: Arch) -> Scores:
    """The scores of the edges by which `turn` would decide."""
    return self.strategy.scores(arch, self.space, self.memory)

  def doubts(self, before: Arch, after: Arch) -> Doubts | None:
    """How much of the architecture is in doubt, given how far the parameters moved; see `Relaxed.doubts`."""
    return self.strategy.doubts(before, after, self.space)

  def turn(self, arch: Arch, epoch: int, probe: Probe = NO_SUPERNET) -> tuple[Self, Turn]:
    """Lets the strategy decide after an epoch.

    Args:
      arch: the architecture parameters.
      epoch: the epoch that has ended, counted from 0.
      probe: answers questions about the supernet.

    Returns:
      The strategy with its new memory, and its turn.

    Raises:
      ValueError: the turn's `then` is unknown, or it returns to an epoch whose checkpoint is not kept.
    """
    turned = self.strategy.turn(self.memory, arch, self.space, epoch, probe)
    elsewhere = turned.then != 'on' and turned.to_epoch not in (None, epoch)
    if turned.then not in ('on', 'stop', 'back') or (turned.then == 'back' and not elsewhere):
      raise ValueError(
        f'config.strategy: {self.strategy.name} has nothing that follows epoch {epoch + 1}: then is {turned.then!r},'
        f" and to_epoch {turned.to_epoch}; allowed are 'on', 'stop', and 'back' to an earlier epoch"
      )
    if elsewhere and turned.to_epoch not in self.strategy.may_return_to(self.memory, epoch - 1):
      raise ValueError(
        f'config.strategy: {self.strategy.name} returns to epoch {(turned.to_epoch or 0) + 1} after epoch {epoch + 1},'
        ' whose checkpoint is not kept; see Relaxed.may_return_to'
      )
    return self.recall(turned.memory), turned

  def may_return_to(self, epoch: int) -> tuple[int, ...]:
    """The epochs, counted from 0, that the search may return to after `epoch` has ended."""
    return self.strategy.may_return_to(self.memory, epoch) if epoch >= 0 else ()

  def weight_decay(self, usual: float) -> float | None:
    """The weight decay that the strategy asks for; None if it never changes the usual one."""
    return self.strategy.weight_decay(self.memory, usual)
