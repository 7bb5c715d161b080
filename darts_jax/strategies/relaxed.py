"""The contract of a relaxed strategy, which finds an architecture by gradients inside the compiled step.

A strategy is its settings, a frozen dataclass. Its state is kept apart: the architecture parameters, which the search
step updates, and a memory of JSON values, which `turn` updates after every epoch. Therefore every estimator of the
hypergradient works with every strategy, and a run that was killed and resumed repeats the same decisions.

A strategy defines the architecture parameters, the mixing weights and how an architecture is derived from them, and may
make the supernet smaller between epochs. It does not touch the weights, their optimiser, the hypergradient or the data.
"""

import abc
import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.spaces.cells import CellSpace, CellSpec, Genotype
from darts_jax.spaces.doubts import Doubts
from darts_jax.spaces.mixing import Mixing

Array = jax.Array
#: Architecture parameters: any pytree.
Arch = Any
#: The memory of a strategy: JSON values.
Memory = Any
#: The cells of a supernet by name.
Cells = Mapping[str, CellSpec]
#: Scores of edges, `[E]` float64, by name of the score, then by kind of cell.
Scores = Mapping[str, Mapping[str, np.ndarray]]

#: Purposes of mixing weights: an update of the weights, an update of the architecture parameters, an evaluation.
WEIGHTS, ALPHAS, EVALUATE = range(3)


class Time(NamedTuple):
  """The time of a step in a search, for schedules.

  Attributes:
    step: `[]`, steps taken before it; may be traced.
    ends: steps taken by the end of every epoch of the search.
  """

  step: Any
  ends: tuple[int, ...]

  @property
  def steps(self) -> int:
    """Number of steps of the whole search."""
    return self.ends[-1]

  @property
  def epochs(self) -> int:
    """Number of epochs of the whole search."""
    return len(self.ends)

  @property
  def epoch(self) -> Array:
    """The epoch of the step, `[]` int32, counted from 0; after the last step it is still the last epoch."""
    done = jnp.sum(jnp.asarray(self.step) >= np.array(self.ends), dtype=jnp.int32)
    return jnp.minimum(done, self.epochs - 1)


class Stage(NamedTuple):
  """A part of the search with one supernet, which is compiled once.

  Attributes:
    epochs: number of epochs of the stage.
    batch_growth: number of examples by which its batches are larger than `config.batch_size`.
    channel_part: K, if edges of convolutional cells process one in K channels [PC-DARTS §3.2]; 1 for all channels.
  """

  epochs: int
  batch_growth: int = 0
  channel_part: int = 1


class Turn(NamedTuple):
  """The decision of a strategy after an epoch.

  Attributes:
    memory: memory of the strategy for the next epoch.
    scores: the scores of the edges by which it decided.
    messages: its decisions, one line each.
    then: the next action of the search. `on`: it continues with the next epoch. `stop`: it ends. `back`: it continues
      from the end of an earlier epoch, with the weights, α and optimiser states of then, and with this memory.
    to_epoch: the epoch, counted from 0, whose architecture the search returns (`stop`), or from whose end it continues
      (`back`); it has to be one of `Relaxed.may_return_to`, whose checkpoints are kept. None with `stop`: this epoch.
    measures: values for the log line of the epoch.
  """

  memory: Memory
  scores: Scores = MappingProxyType({})
  messages: tuple[str, ...] = ()
  then: Literal['on', 'stop', 'back'] = 'on'
  to_epoch: int | None = None
  measures: Mapping[str, float] = MappingProxyType({})


class Probe(Protocol):
  """Answers questions of a strategy about the supernet after an epoch.

  Each program is compiled at its first use. The answers are functions of the state of the search and the arguments.
  """

  def curvature(self) -> float:
    """The largest eigenvalue of ∂²L_val/∂α² [RobustDARTS §4].

    L_val is the loss in training mode on the batch of the latest update of α, at the present weights. The Hessian is in
    all architecture parameters together; it is not normalised, and does not include the decay of α.
    """
    ...

  def measure(self, mixing: Mapping[str, Mixing]) -> dict[str, float]:
    """Evaluates the supernet at these mixing weights; returns metrics such as `loss` and `accuracy`.

    Args:
      mixing: mixing weights of every kind of cell; rows are the edges of `Relaxed.cells`, columns the operations. They
        are arguments of one compiled program, so that other values need no compilation.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Relaxed(abc.ABC):
  """A relaxed strategy; methods that are not abstract have defaults for a strategy that decides nothing.

  In all methods, `space` is the searched space, and `cells` are the present cells of the supernet: those of the space,
  or with fewer edges and operations.

  Attributes:
    name: name of the strategy in configs.
    draws: whether `mix` draws random numbers. If not, its key is None, and the compiled step does not contain it.
  """

  name: ClassVar[str]
  draws: ClassVar[bool] = True

  @property
  def legend(self) -> str:
    """Plain text for the report that explains how the strategy weighs, scores and decides edges."""
    return ''

  def check(self, space: CellSpace) -> None:
    """Raises a ValueError, one line that begins with a field of the config, if the strategy cannot search the space."""
    del space

  @abc.abstractmethod
  def init(self, space: CellSpace, key: Array) -> Arch:
    """Draws the initial architecture parameters; consumes the key."""

  @abc.abstractmethod
  def mix(self, arch: Arch, space: CellSpace, cells: Cells, time: Time, key: Any, purpose: Any) -> dict[str, Mixing]:
    """Computes the mixing weights of every kind of cell; rows are the edges of `cells`, columns the operations.

    This method is traced, and differentiated with respect to `arch`. Schedules have to be functions of the traced time,
    so that the step is compiled once.

    Args:
      arch: the architecture parameters.
      space: the searched space.
      cells: the cells of the supernet.
      time: time of the step.
      key: typed random key of this step and purpose, the same in all passes of one hypergradient; None unless the
        strategy `draws`.
      purpose: `WEIGHTS`, `ALPHAS` or `EVALUATE`; may be traced.
    """

  @abc.abstractmethod
  def read(self, arch: Arch, space: CellSpace, memory: Memory) -> Genotype:
    """Derives the architecture from the architecture parameters and the decisions in the memory, after any epoch."""

  def chances(self, arch: Arch, space: CellSpace, cells: Cells) -> Mapping[str, Array] | None:
    """The probabilities with which `mix` draws operations, `[E, O]` for every kind of cell, with the edges of `cells`.

    Logs and reports show them instead of the mixing weights of an evaluation. None for a strategy that draws nothing.
    """
    del arch, space, cells
    return None

  def temperature_at(self, time: Time) -> Array | float:
    """The temperature of the softmax in `mix`, `[]`; for logs and reports."""
    del time
    return 1.0

  def project(self, before: Arch, after: Arch, space: CellSpace, cells: Cells) -> Arch:
    """The architecture parameters after an update; part of the compiled step.

    Args:
      before: architecture parameters before the update.
      after: architecture parameters that the optimiser returned.
      space: the searched space.
      cells: the cells of the supernet.
    """
    del before, space, cells
    return after

  def start(self) -> Memory:
    """The memory before the first epoch; None, which it then always has to be, for a strategy that decides nothing."""
    return None

  def plan(self, space: CellSpace, epochs: int) -> tuple[Stage, ...]:
    """The stages of a search; they are fixed in advance, since the number of steps and schedules depend on them.

    Args:
      space: the searched space.
      epochs: number of epochs of the search.
    """
    del space
    return (Stage(epochs),)

  def cells(self, space: CellSpace, memory: Memory) -> Cells:
    """The cells of the supernet, as a function of the memory.

    They may change only at the end of a stage, and only by losing edges and operations.
    """
    del memory
    return space.cells

  def turn(self, memory: Memory, arch: Arch, space: CellSpace, epoch: int, probe: Probe) -> Turn:
    """Decides after an epoch; has to be deterministic.

    Args:
      memory: the memory after the epoch before.
      arch: the architecture parameters, on the host.
      space: the searched space.
      epoch: the epoch that has ended, counted from 0.
      probe: answers questions about the supernet.
    """
    del arch, space, epoch, probe
    return Turn(memory)

  def may_return_to(self, memory: Memory, epoch: int) -> tuple[int, ...]:
    """The epochs, counted from 0, that `turn` may name as `to_epoch` after any later epoch; their checkpoints are kept.

    Args:
      memory: the memory after `epoch`.
      epoch: the latest epoch that has ended, counted from 0.
    """
    del memory, epoch
    return ()

  def weight_decay(self, memory: Memory, usual: float) -> float | None:
    """The weight decay from now on.

    None, which it then always has to be, for a strategy that leaves the decay as it is; the decay is then a constant of
    the compiled step.

    Args:
      memory: the memory of the strategy.
      usual: `config.weights.weight_decay`.
    """
    del memory, usual
    return None

  def scores(self, arch: Arch, space: CellSpace, memory: Memory) -> Scores:
    """The scores of edges by which `turn` would decide; empty for a strategy that decides no edges.

    The report shows all of them, and next to a decision the one named `score`, or else the first.
    """
    del arch, space, memory
    return {}

  def doubts(self, before: Arch, after: Arch, space: CellSpace) -> Doubts | None:
    """How much of the architecture would change if the architecture parameters moved once more by as much.

    None for a strategy whose architecture does not depend on the final architecture parameters.

    Args:
      before: architecture parameters before the latest epoch.
      after: architecture parameters after it, from which the architecture is derived.
      space: the searched space.
    """
    del before, after, space
    return None
