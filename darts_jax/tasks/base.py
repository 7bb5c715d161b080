"""The contract of a task, which says what a supernet learns: data, batches, network, loss and measures.

A task is its settings, a frozen dataclass. With data and devices it becomes a `Learner`, of which a search makes its
compiled functions. A task knows neither the strategy of a search nor its optimisers nor its hypergradient.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from darts_jax.runtime.packed import Packed
from darts_jax.spaces import CellSpace, CellSpec, Mixing
from darts_jax.strategies.relaxed import Stage

Array = jax.Array
PyTree = Any
#: What a task loads.
Data = TypeVar('Data')

#: The random key of a step is folded with this number for mixing weights; tasks have the numbers from the next one on.
MIX = 0
FIRST_PURPOSE = MIX + 1


class Halves(NamedTuple):
  """What there is for either half of the data: `train` moves the weights and `valid` α, or `train` both.

  That is so if weights and α have one loss (see `darts_jax.hypergradient.Estimator`).
  """

  train: Any
  valid: Any


class Seen(NamedTuple):
  """What a network saw in a batch.

  Attributes:
    loss: `[]` nats; what is minimised may have regularisers besides.
    metrics: `[]` each, more to be logged.
    statistics: running BN statistics after the batch, as one vector.
    carried: what the next batch of the same half begins with.
    active: `[P]` bool, the weights that an update moves, as mixing weights say; None for all.
  """

  loss: Array
  metrics: dict[str, Array]
  statistics: Array
  carried: PyTree
  active: Array | None = None


class Objective(Protocol):
  """The loss of a network on a batch."""

  def __call__(
    self, weights: PyTree, statistics: Packed, mixing: dict[str, Mixing], batch: Any, precision: str, updating: Array
  ) -> tuple[Array, Seen]:
    """What is minimised, and what was seen.

    Args:
      weights: of the network.
      statistics: running BN statistics before the batch.
      mixing: mixing weights of every kind of cell.
      batch: of one half.
      precision: see `darts_jax.search.step.search_step`.
      updating: `[]` bool: whether the gradient updates the weights, where regularisers may count; the hypergradient
        is that of the losses alone.
    """
    ...


class Moment(NamedTuple):
  """The step that batches are read for.

  Attributes:
    key: typed random key of the run.
    step: `[]` int32, steps taken before it.
    updates: `[]` int32, updates of α before it.
    carried: what the batches before it handed on.
  """

  key: Array
  step: Array
  updates: Array
  carried: Halves


class BatchNorm(Protocol):
  """The settings of batch normalisation that a network depends on; see `darts_jax.search.settings.BatchNorm`."""

  @property
  def group_size(self) -> int: ...  # noqa: D102
  @property
  def tracked(self) -> bool: ...  # noqa: D102


class Conditions(Protocol):
  """The settings of a search that a task depends on; see `darts_jax.search.settings.Search`."""

  @property
  def seed(self) -> int: ...  # noqa: D102
  @property
  def epochs(self) -> int: ...  # noqa: D102
  @property
  def batch_size(self) -> int: ...  # noqa: D102
  @property
  def precision(self) -> str: ...  # noqa: D102
  @property
  def remat(self) -> bool: ...  # noqa: D102
  @property
  def batch_norm(self) -> BatchNorm: ...  # noqa: D102


class SupernetSpec(NamedTuple):
  """The supernet that is to be built.

  Attributes:
    space: the searched space.
    cells: the cells it has now, those of the space or a part of them.
    batch_sizes: the examples of a batch in every epoch.
    first_epoch: the first epoch in which it is trained, counted from 0.
    channel_part: edges compute one in so many channels (see `darts_jax.nets.conv.Supernet`).
    drops: whether mixing weights say rates of drop path.
  """

  space: CellSpace
  cells: Mapping[str, CellSpec]
  batch_sizes: Sequence[int]
  first_epoch: int = 0
  channel_part: int = 1
  drops: bool = False


#: Is told of an event: `(step, event, message)`.
Note = Callable[[int, str, str], None]


class Feed(abc.ABC):
  """Hands the data of a search to its compiled functions.

  Attributes:
    shapes: arrays, or their shapes, dtypes and places, for which the steps are compiled.
  """

  shapes: PyTree

  @abc.abstractmethod
  def read(self, step: Array, keys: Array, num_steps: int, note: Note) -> tuple[PyTree, int]:
    """The data of the next steps.

    Args:
      step: steps taken, `[]` or, of searches side by side, `[S]`; on the devices.
      keys: typed random key of the run, likewise.
      num_steps: how many steps are to be taken at most.
      note: see `Note`.

    Returns:
      The data, and how many steps can be taken on them, at least one.

    Raises:
      ValueError: they cannot be read.
    """

  @abc.abstractmethod
  def at(self, step: int, keys: Array, note: Note) -> PyTree:
    """The data of one step by itself, counted from 0, with a batch of either half; see `read`."""

  @abc.abstractmethod
  def evaluation(self, step: int, note: Note) -> Iterator[PyTree]:
    """The data of an evaluation, part by part; what `Learner.measure` finds of them adds up."""

  @abc.abstractmethod
  def again(self, make: Callable[[Sequence[Any]], 'Feed']) -> 'Feed':
    """The feed of another supernet from the next step on, which `make` makes of the halves of every search."""

  @abc.abstractmethod
  def close(self) -> None:
    """Stops what reads ahead."""


class Placed(Feed):
  """Data that lie on the devices, whole."""

  def __init__(self, data: PyTree) -> None:
    """Takes them from there."""
    self.shapes = self.data = data

  def read(self, step: Array, keys: Array, num_steps: int, note: Note) -> tuple[PyTree, int]:
    """See `Feed`."""
    del step, keys, note
    return self.data, num_steps

  def at(self, step: int, keys: Array, note: Note) -> PyTree:
    """See `Feed`."""
    del step, keys, note
    return self.data

  def evaluation(self, step: int, note: Note) -> Iterator[PyTree]:
    """See `Feed`."""
    del step, note
    yield self.data

  def again(self, make: Callable[[Sequence[Any]], Feed]) -> Feed:
    """See `Feed`."""
    del make
    return self

  def close(self) -> None:
    """See `Feed`."""


class Learner(abc.ABC):
  """A supernet and what it learns, on the devices of a search; every device runs its methods by itself.

  Attributes:
    net: the supernet, a Flax module.
    objective: the loss of the supernet on a batch.
    epoch_ends: steps taken by the end of every epoch.
    data_axes: how the data of a search lie on its devices, as `PartitionSpec`s, a pytree prefix.
  """

  net: Any
  objective: Objective
  epoch_ends: Sequence[int]
  data_axes: PyTree = PartitionSpec()

  @abc.abstractmethod
  def variables(self, key: Array, mixing: dict[str, Mixing]) -> PyTree:
    """Variables of the supernet before the first step, `params` and `batch_stats`; consumes the key."""

  @abc.abstractmethod
  def batches(self, moment: Moment, data: Any) -> Halves:
    """This device's part of the batches of a step."""

  @abc.abstractmethod
  def measure(self, variables: PyTree, mixing: dict[str, Mixing], data: Any) -> NamedTuple:
    """What an evaluation of the supernet finds, `[]` each and equal on all devices."""

  @abc.abstractmethod
  def metrics(self, found: Any) -> dict[str, float]:
    """An evaluation, fetched from the devices, as it is logged."""

  @abc.abstractmethod
  def summary(self, means: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
    """What is logged besides the means of metrics over `sums['steps']` steps in `sums['seconds']`."""

  @abc.abstractmethod
  def rebuilt(self, supernet: SupernetSpec) -> Self:
    """The learner of another supernet, on the same data and devices."""

  def inherited(self, variables: Packed, before: Self) -> np.ndarray:
    """Where, among parameters or running statistics of a larger supernet, those of this one are; all by default."""
    del before
    return np.arange(variables.vector.size)

  def carried(self) -> Halves:
    """What the first batches begin with."""
    return Halves((), ())

  def feed(self, halves: Sequence[Any], places: PyTree, reads_valid: Callable[[np.ndarray], np.ndarray]) -> Feed | None:
    """What reads the data while the search goes on; None, as by default, if they lie on the devices, whole.

    Args:
      halves: of every search, see `Task.halves`.
      places: shardings of what `batches` and `measure` get, a pytree prefix.
      reads_valid: of steps, counted from 0, those that read a batch of the architecture's half.
    """
    del halves, places, reads_valid
    return None

  def step_metrics(self, moment: Moment, data: Any) -> dict[str, Array]:
    """Metrics of a step that no pass of it knows, `[]` each."""
    del moment, data
    return {}

  def rate(self, moment: Moment, data: Any) -> Array | None:
    """`[]`: the factor of the weights' learning rate at a step; None for 1 throughout."""
    del moment, data
    return None


def check_sizes(sizes: Sequence[int], usual: int, num_devices: int, most: int, unit: str) -> None:
  """Raises a ValueError unless batches can be read that have grown from the usual size.

  Args:
    sizes: the examples of a batch in every epoch.
    usual: `config.batch_size`.
    num_devices: that share a batch.
    most: examples in the smaller half.
    unit: what examples are called.
  """
  for size in sizes:
    grown = f'config.batch_size: {usual} grows to {size} by the decisions, which'
    hint = 'see config.strategy.batch_growth'
    if size != usual and size % num_devices:
      raise ValueError(f'{grown} does not divide evenly over the devices ({num_devices} devices); {hint}')
    if size != usual and size > most:
      raise ValueError(f'{grown} is more than half of the {unit} ({most} {unit} in the smaller half); {hint}')


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC, Generic[Data]):
  """A task; its fields that are groups stand beside `config.task` in a config, `config.data` for one.

  Attributes:
    name: by which configs call it, its key in `TASKS`.
    unit: what its examples are called in messages.
    defaults: fields of a config whose default is another one than that of `darts_jax.search.settings.Search`.
    strategies: by the name of a strategy, likewise of the group `strategy`.
  """

  name: ClassVar[str]
  unit: ClassVar[str] = 'examples'
  defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
  strategies: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

  def check(self, space: CellSpace, conditions: Conditions, stages: Sequence[Stage], seeds: int) -> None:
    """Checks what can be without the data.

    Args:
      space: the searched space.
      conditions: of the search.
      stages: of the strategy.
      seeds: number of searches side by side.

    Raises:
      ValueError: the task cannot be learnt in such a search; one line that names a field of the config.
    """
    del space, conditions, stages, seeds

  @property
  @abc.abstractmethod
  def source(self) -> str:
    """What the data are called in messages."""

  @abc.abstractmethod
  def load(self) -> Data:
    """The data, on the host; raises ValueErrors that name the field."""

  def given(self, x: Any, y: Any) -> Data:
    """The data from arrays that are handed over in Python; raises a ValueError if the task takes none."""
    del x, y
    raise ValueError(f'data: the task {self.name} takes no arrays')

  @abc.abstractmethod
  def fingerprint(self, data: Data) -> Any:
    """JSON values that tell the data from others."""

  @abc.abstractmethod
  def halves(self, data: Data, conditions: Conditions, seed: int) -> Halves:
    """The two halves of the data, pytrees of NumPy arrays.

    Args:
      data: all of them.
      conditions: of the search.
      seed: of this search.

    Raises:
      ValueError: a half is too small.
    """

  @abc.abstractmethod
  def learner(self, data: Data, conditions: Conditions, supernet: SupernetSpec, mesh: Mesh) -> Learner:
    """Builds the supernet; compiles nothing.

    Args:
      data: for their shapes and classes; the halves are placed on the devices by the search.
      conditions: of the search.
      supernet: which one.
      mesh: devices with the axes `seed` and `data`.

    Raises:
      ValueError: supernet, batches and data do not fit into each other.
    """
