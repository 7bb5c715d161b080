"""The contract of a relaxed strategy, which moves an architecture by gradients inside the compiled step.

A strategy is its settings, a frozen dataclass. What it has learnt is a value beside it: architecture parameters, which
the search step moves, and a memory of JSON values, which `turn` changes after every epoch. So every estimator of the
hypergradient works with every strategy, and a run that was killed comes to the same decisions again.

A strategy shapes the architecture parameters, the mixing weights, how an architecture is read off them, and from one
epoch to the next the supernet. It does not touch the weights, their optimiser, the hypergradient or the data.
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
#: JSON values.
Memory = Any
#: The cells of a supernet by name.
Cells = Mapping[str, CellSpec]
#: By name, then by kind of cell, `[E]` float64: what a strategy scores edges by.
Scores = Mapping[str, Mapping[str, np.ndarray]]

#: What mixing weights are for: an update of the weights, one of the architecture, or an evaluation.
WEIGHTS, ALPHAS, EVALUATE = range(3)


class Time(NamedTuple):
  """When a step is.

  Attributes:
    step: `[]` steps taken; may be traced.
    ends: steps taken by the end of every epoch of the search.
  """

  step: Any
  ends: tuple[int, ...]

  @property
  def steps(self) -> int:
    """Steps of the whole search."""
    return self.ends[-1]

  @property
  def epochs(self) -> int:
    """Epochs of the whole search."""
    return len(self.ends)

  @property
  def epoch(self) -> Array:
    """`[]` int32: the epoch of the step, counted from 0; of the last step's end, the last epoch."""
    done = jnp.sum(jnp.asarray(self.step) >= np.array(self.ends), dtype=jnp.int32)
    return jnp.minimum(done, self.epochs - 1)


class Stage(NamedTuple):
  """A part of the search with one supernet, which is compiled once.

  Attributes:
    epochs: how many there are in it.
    batch_growth: by how many examples its batches are larger than `config.batch_size`.
    channel_part: K, if edges of convolutional cells compute one in K channels [PC-DARTS §3.2]; 1 for all.
  """

  epochs: int
  batch_growth: int = 0
  channel_part: int = 1


class Turn(NamedTuple):
  """What a strategy makes of an epoch.

  Attributes:
    memory: for the next epoch.
    scores: of the edges, by which the strategy decided.
    messages: what it decided, a line each.
    then: what the search does next. `on`: the next epoch. `stop`: it ends. `back`: it goes on from where an earlier
      epoch ended, with all that the supernet and its optimisers were then, and with this memory.
    to_epoch: with `stop` or `back`, the epoch, counted from 0, that the search returns the architecture of or goes on
      from; the checkpoints of such epochs are kept (see `Relaxed.may_return_to`). None with `stop`: this epoch.
    measures: numbers about the epoch, which the log has in its line.
  """

  memory: Memory
  scores: Scores = MappingProxyType({})
  messages: tuple[str, ...] = ()
  then: Literal['on', 'stop', 'back'] = 'on'
  to_epoch: int | None = None
  measures: Mapping[str, float] = MappingProxyType({})


class Probe(Protocol):
  """Answers questions of a strategy about the supernet after an epoch.

  A program is compiled when it is first asked for. The answers depend on nothing but the state of the search.
  """

  def curvature(self) -> float:
    """The largest eigenvalue of ∂²L_val/∂α² [RobustDARTS §4].

    L_val is the loss in training mode of the latest batch that α moved by, at the weights of now; the derivatives are
    in all architecture parameters together. It is neither normalised, nor is the decay of α a part of it.
    """
    ...

  def measure(self, mixing: Mapping[str, Mixing]) -> dict[str, float]:
    """Evaluates the supernet at these mixing weights; returns metrics such as `loss` and `accuracy`.

    Args:
      mixing: of every kind of cell, rows and columns as `cells` has edges and operations. They are arguments of one
        compiled program.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Relaxed(abc.ABC):
  """A relaxed strategy; what is not abstract may be left as it is.

  `space` is the searched space throughout. `cells` are those of the supernet now, the searched ones or a part of them.

  Attributes:
    name: by which configs call it.
    draws: whether `mix` draws random numbers. If not, its key is None, and is no part of the compiled step.
  """

  name: ClassVar[str]
  draws: ClassVar[bool] = True

  @property
  def legend(self) -> str:
    """Explains to readers of the report how the strategy weighs, scores and decides edges; plain text."""
    return ''

  def check(self, space: CellSpace) -> None:
    """Raises a ValueError, one line that begins with a field of the config, if the space cannot be searched."""
    del space

  @abc.abstractmethod
  def init(self, space: CellSpace, key: Array) -> Arch:
    """The architecture parameters before the first step; consumes the key."""

  @abc.abstractmethod
  def mix(self, arch: Arch, space: CellSpace, cells: Cells, time: Time, key: Any, purpose: Any) -> dict[str, Mixing]:
    """Mixing weights of every kind of cell, rows and columns as `cells` has edges and operations.

    Traced, and differentiated with respect to `arch`. A schedule is a function of the traced time, so that nothing is
    compiled again.

    Args:
      arch: architecture parameters.
      space: the searched space.
      cells: the cells of the supernet.
      time: of the step.
      key: of this step and purpose, the same in all passes of one hypergradient; None unless the strategy `draws`.
      purpose: `WEIGHTS`, `ALPHAS` or `EVALUATE`; may be traced.
    """

  @abc.abstractmethod
  def read(self, arch: Arch, space: CellSpace, memory: Memory) -> Genotype:
    """The architecture that the parameters and what has been decided stand for; asked after any epoch."""

  def chances(self, arch: Arch, space: CellSpace, cells: Cells) -> Mapping[str, Array] | None:
    """`[E, O]` for every kind of cell: the probabilities that operations are drawn with, as `mix` has edges.

    Logs and reports show them in place of the weights of an evaluation. None for a strategy that draws no operations.
    """
    del arch, space, cells
    return None

  def temperature_at(self, time: Time) -> Array | float:
    """`[]`: what the parameters are divided by before `mix` takes a softmax; for logs and reports."""
    del time
    return 1.0

  def project(self, before: Arch, after: Arch, space: CellSpace, cells: Cells) -> Arch:
    """The architecture parameters after an update, from those before it and those that the optimiser came to."""
    del before, space, cells
    return after

  def start(self) -> Memory:
    """The memory before the first epoch; None, and None ever after, for a strategy that decides nothing."""
    return None

  def plan(self, space: CellSpace, epochs: int) -> tuple[Stage, ...]:
    """The stages of a search of so many epochs, known in advance, so that its length and its learning rates are."""
    del space
    return (Stage(epochs),)

  def cells(self, space: CellSpace, memory: Memory) -> Cells:
    """The cells of the supernet with this memory.

    They may change only where a stage ends, and only lose edges and operations.
    """
    del memory
    return space.cells

  def turn(self, memory: Memory, arch: Arch, space: CellSpace, epoch: int, probe: Probe) -> Turn:
    """Decides after an epoch, counted from 0; the same arguments always give the same.

    Args:
      memory: what the strategy has learnt by the end of the epoch before.
      arch: architecture parameters, on the host.
      space: the searched space.
      epoch: that has ended.
      probe: answers questions about the supernet.
    """
    del arch, space, epoch, probe
    return Turn(memory)

  def may_return_to(self, memory: Memory, epoch: int) -> tuple[int, ...]:
    """The epochs that `turn` may name as `to_epoch` after the epoch that follows this one, or a later one.

    Their checkpoints are kept.

    Args:
      memory: after the epoch.
      epoch: the latest one that has ended, counted from 0.
    """
    del memory, epoch
    return ()

  def weight_decay(self, memory: Memory, usual: float) -> float | None:
    """The decay of the weights from now on; `usual` is that of the config.

    None, and None ever after, for a strategy that leaves it as it is, so that it is a constant of the compiled step.
    """
    del memory, usual
    return None

  def scores(self, arch: Arch, space: CellSpace, memory: Memory) -> Scores:
    """What `turn` would score edges by; none if there is nothing to decide.

    The report shows all of them, and beside a decision the one that is called `score`, or else the first.
    """
    del arch, space, memory
    return {}

  def doubts(self, before: Arch, after: Arch, space: CellSpace) -> Doubts | None:
    """What of the architecture is in doubt by how far the parameters moved from `before` to `after`.

    None for a strategy whose architecture does not depend on the parameters of the end.
    """
    del before, after, space
    return None
