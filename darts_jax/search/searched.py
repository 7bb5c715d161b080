"""A strategy at work: its settings, the space that it searches, and what it has learnt so far, as one frozen value."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax

from darts_jax.search.settings import Search
from darts_jax.spaces import CellSpace, Doubts, Genotype, Mixing
from darts_jax.strategies.relaxed import EVALUATE, Arch, Cells, Memory, Probe, Relaxed, Scores, Stage, Time, Turn

Array = jax.Array

#: The number for mixing weights where no step is taken.
_LOOK = 2**16


class _NoSupernet(Probe):
  """See `NO_SUPERNET`."""

  def curvature(self) -> float:
    """Raises a ValueError."""
    raise ValueError('config.strategy: it asks for the curvature of a supernet, and there is none here')

  def measure(self, mixing: Mapping[str, Mixing]) -> dict[str, float]:
    """Raises a ValueError."""
    del mixing
    raise ValueError('config.strategy: it asks for an evaluation of a supernet, and there is none here')


#: A probe for decisions that ask for nothing.
NO_SUPERNET = _NoSupernet()


@dataclasses.dataclass(frozen=True)
class Searched:
  """A strategy at work; its methods are those of `Relaxed` with less to say.

  Attributes:
    strategy: its settings.
    space: the searched space.
    memory: what it has learnt.
    ends: steps taken by the end of every epoch of the search.
  """

  strategy: Relaxed
  space: CellSpace
  memory: Memory
  ends: tuple[int, ...] = (1,)

  @classmethod
  def start(cls, strategy: Relaxed, space: CellSpace, ends: Sequence[int] = (1,)) -> Self:
    """A strategy before the first epoch.

    Raises:
      ValueError: it cannot search this space.
    """
    strategy.check(space)
    return cls(strategy, space, strategy.start(), tuple(ends))

  @classmethod
  def from_settings(cls, settings: Search) -> Self:
    """The strategy that the settings name, on the space that they have; raises a ValueError as `start`."""
    return cls.start(settings.strategy, settings.space)

  def over(self, ends: Sequence[int]) -> Self:
    """The same in a search whose epochs end after these steps, which schedules are relative to."""
    return dataclasses.replace(self, ends=tuple(ends))

  def recall(self, memory: Memory) -> Self:
    """The same with what it had learnt when it had this memory."""
    return dataclasses.replace(self, memory=memory)

  @functools.cached_property
  def cells(self) -> Cells:
    """The cells of the supernet."""
    return self.strategy.cells(self.space, self.memory)

  def plan(self, epochs: int) -> tuple[Stage, ...]:
    """The stages of so many epochs.

    Raises:
      ValueError: the strategy's stages have another number of epochs, or different parts of the channels.
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
  def parameters(self) -> tuple[str, ...]:
    """The names of the architecture parameters."""
    return tuple(jax.eval_shape(self.init, jax.random.key(0)))

  @functools.cached_property
  def drops(self) -> bool:
    """Whether mixing weights say rates of drop path."""
    found = jax.eval_shape(lambda key: self.look(self.init(key), 0, key), jax.random.key(0))
    return any(each.drop is not None for each in found.values())

  def mix(self, arch: Arch, step: Any, key: Array, purpose: Any) -> dict[str, Mixing]:
    """Mixing weights of the supernet.

    Args:
      arch: architecture parameters.
      step: steps taken; may be traced.
      key: of the step; every purpose has its own key, made of it.
      purpose: `WEIGHTS`, `ALPHAS` or `EVALUATE`; may be traced.
    """
    own = jax.random.fold_in(key, purpose) if self.strategy.draws else None
    return self.strategy.mix(arch, self.space, self.cells, Time(step, self.ends), own, purpose)

  def look(self, arch: Arch, step: Any, key: Array) -> dict[str, Mixing]:
    """Mixing weights before a step, for what is no part of it; from the key of the run."""
    return self.mix(arch, step, jax.random.fold_in(jax.random.fold_in(key, step), _LOOK), EVALUATE)

  def shown(self, arch: Arch, step: Any, key: Array) -> dict[str, Mixing]:
    """What logs and reports show of a moment: see `look`, or the probabilities that operations are drawn with."""
    mixing = self.look(arch, step, key)
    chances = self.strategy.chances(arch, self.space, self.cells)
    return mixing if chances is None else {name: Mixing(chances[name], each.edges) for name, each in mixing.items()}

  def temperature_at(self, step: int) -> float:
    """What architecture parameters are divided by, at a step, before their softmax; for logs and reports."""
    return float(self.strategy.temperature_at(Time(step, self.ends)))

  def project(self, before: Arch, after: Arch) -> Arch:
    """The architecture parameters after an update."""
    return self.strategy.project(before, after, self.space, self.cells)

  def read(self, arch: Arch) -> Genotype:
    """The architecture that the parameters and what has been decided stand for."""
    return self.strategy.read(arch, self.space, self.memory)

  def scores(self, arch: Arch) -> Scores:
    """What `turn` would score edges by."""
    return self.strategy.scores(arch, self.space, self.memory)

  def doubts(self, before: Arch, after: Arch) -> Doubts | None:
    """What of the architecture is in doubt by how far the parameters moved."""
    return self.strategy.doubts(before, after, self.space)

  def turn(self, arch: Arch, epoch: int, probe: Probe = NO_SUPERNET) -> tuple[Self, Turn]:
    """Decides after an epoch.

    Args:
      arch: architecture parameters.
      epoch: that has ended, counted from 0.
      probe: answers questions about the supernet.

    Returns:
      The strategy with what it has learnt by then, and what it made of the epoch.

    Raises:
      ValueError: the strategy wants to go on from an epoch that it may not return to.
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
    """The epochs up to this one, counted from 0, that the search may return to."""
    return self.strategy.may_return_to(self.memory, epoch) if epoch >= 0 else ()

  def weight_decay(self, usual: float) -> float | None:
    """The decay of the weights; None if the strategy leaves the usual one as it is."""
    return self.strategy.weight_decay(self.memory, usual)
