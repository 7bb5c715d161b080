"""The contract of a task, which defines what a supernet learns: data, batches, network, loss and metrics.

A task is its settings, a frozen dataclass. For given data and devices it builds a `Learner`, from which a search makes
its compiled functions. A task does not depend on the strategy, the optimisers or the hypergradient of a search.
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
#: Type of the data that a task loads.
Data = TypeVar('Data')


class Halves(NamedTuple):
  """A pair of values, one for each half of the data.

  Attributes:
    train: value of the weights' half, whose loss moves the weights; with a single-level estimator (see
      `darts_jax.hypergradient.Estimator`) it moves α, too.
    valid: value of the architecture half, whose loss moves α.
  """

  train: Any
  valid: Any


class Seen(NamedTuple):
  """Loss, metrics and statistics of a network on a batch.

  Attributes:
    loss: `[]`, the loss in nats, without regularisers that the minimised value may have.
    metrics: further metrics to log, `[]` each.
    statistics: running BN statistics after the batch, as one vector.
    carried: per-example values with which the next batch of the same half begins.
    active: `[P]` bool, the weights that an update moves (see `Mixing.active`); None for all.
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
    """Computes the loss.

    Args:
      weights: weights of the network, a pytree.
      statistics: running BN statistics before the batch.
      mixing: mixing weights of every kind of cell.
      batch: a batch of one half.
      precision: see `darts_jax.search.step.search_step`.
      updating: `[]` bool, whether the gradient updates the weights. Regularisers are added only then; the hypergradient
        is that of the losses alone.

    Returns:
      The value to minimise, `[]`, and loss, metrics and statistics of the batch.
    """
    ...


class Moment(NamedTuple):
  """The step for which batches are read.

  Attributes:
    key: typed random key of the run.
    step: `[]` int32, steps taken before this one.
    updates: `[]` int32, updates of α before this step.
    carried: `Seen.carried` of the latest batch of each half.
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
  """The description of a supernet to build.

  Attributes:
    space: the searched space.
    cells: the cells of the supernet by name: those of the space, or with fewer edges and operations.
    batch_sizes: batch size of every epoch of the search.
    first_epoch: the first epoch in which the supernet is trained, counted from 0.
    channel_part: K, if edges compute one in K channels (see `darts_jax.nets.conv.Supernet`); 1 for all.
    drops: whether the mixing weights have rates of drop path.
  """

  space: CellSpace
  cells: Mapping[str, CellSpec]
  batch_sizes: Sequence[int]
  first_epoch: int = 0
  channel_part: int = 1
  drops: bool = False


#: A function `(step, event, message)` that logs an event and shows its message.
Note = Callable[[int, str, str], None]


class Feed(abc.ABC):
  """Provides the data of a search to its compiled functions.

  Attributes:
    shapes: the data, or `ShapeDtypeStruct`s with shardings, for which the steps are compiled.
  """

  shapes: PyTree

  @abc.abstractmethod
  def read(self, step: Array, keys: Array, num_steps: int, note: Note) -> tuple[PyTree, int]:
    """The data of the next steps.

    Args:
      step: steps taken, `[]` or, of searches side by side, `[S]`; on the devices.
      keys: typed random keys of the runs, of the same shape as `step`.
      num_steps: largest number of steps that will be taken.
      note: logs an event.

    Returns:
      The data, and the number of steps for which they suffice, from 1 to `num_steps`.

    Raises:
      ValueError: the data cannot be read.
    """

  @abc.abstractmethod
  def at(self, step: int, keys: Array, note: Note) -> PyTree:
    """The data of one step, counted from 0, always with batches of both halves; see `read`."""

  @abc.abstractmethod
  def evaluation(self, step: int, note: Note) -> Iterator[PyTree]:
    """Yields the data of an evaluation in parts; the results of `Learner.measure` on the parts add up."""

  @abc.abstractmethod
  def again(self, make: Callable[[Sequence[Any]], 'Feed']) -> 'Feed':
    """The feed for another supernet of the same search.

    Args:
      make: builds a feed from the halves of every search, if a new one is needed.
    """

  @abc.abstractmethod
  def close(self) -> None:
    """Stops reading data ahead."""


class Placed(Feed):
  """The feed of data that are entirely in device memory."""

  def __init__(self, data: PyTree) -> None:
    """Keeps the arrays, which are on the devices already."""
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
  """A supernet with its loss, batches and evaluation; traced methods run per device, inside `shard_map`.

  Attributes:
    net: the supernet, a Flax module.
    objective: the loss of the supernet on a batch.
    epoch_ends: steps taken by the end of every epoch.
    data_axes: sharding of the data over the devices of a search, a pytree prefix of `PartitionSpec`s.
  """

  net: Any
  objective: Objective
  epoch_ends: Sequence[int]
  data_axes: PyTree = PartitionSpec()

  @abc.abstractmethod
  def variables(self, key: Array, mixing: dict[str, Mixing]) -> PyTree:
    """Draws the initial variables of the supernet, `params` and `batch_stats`; consumes the key."""

  @abc.abstractmethod
  def batches(self, moment: Moment, data: Any) -> Halves:
    """This device's shard of the batches of a step, one of each half."""

  @abc.abstractmethod
  def measure(self, variables: PyTree, mixing: dict[str, Mixing], data: Any) -> NamedTuple:
    """Evaluates the supernet on the architecture half, or on a part of it (see `Feed.evaluation`).

    Returns:
      Means over the half, `[]` each and equal on all devices; of a part, its contribution to them.
    """

  @abc.abstractmethod
  def metrics(self, found: Any) -> dict[str, float]:
    """The metrics to log of a result of `measure`, which is on the host."""

  @abc.abstractmethod
  def summary(self, means: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
    """Further values of a log line, such as the throughput.

    Args:
      means: means of the step metrics.
      sums: their sums over `sums['steps']` steps, which took `sums['seconds']` seconds.
    """

  @abc.abstractmethod
  def rebuilt(self, supernet: SupernetSpec) -> Self:
    """The learner of another supernet, on the same data and devices."""

  def inherited(self, variables: Packed, before: Self) -> np.ndarray:
    """Indices of the weights or BN statistics of a larger supernet that this one keeps; all of them by default.

    Args:
      variables: weights or BN statistics of the larger supernet.
      before: the learner of the larger supernet.

    Returns:
      Ascending indices into `variables.vector`.
    """
    del before
    return np.arange(variables.vector.size)

  def carried(self) -> Halves:
    """Per-example values with which the first batch of each half begins; none by default."""
    return Halves((), ())

  def feed(self, halves: Sequence[Any], places: PyTree, reads_valid: Callable[[np.ndarray], np.ndarray]) -> Feed | None:
    """The feed that streams the data during the search; None, the default, if all data are in device memory.

    Args:
      halves: the halves of every search, see `Task.halves`.
      places: shardings of the data that `batches` and `measure` get, a pytree prefix.
      reads_valid: for steps `[n]`, counted from 0, whether each reads a batch of the architecture half, `[n]` bool.
    """
    del halves, places, reads_valid
    return None

  def step_metrics(self, moment: Moment, data: Any) -> dict[str, Array]:
    """Metrics of a step besides those of its losses, `[]` each; none by default."""
    del moment, data
    return {}

  def rate(self, moment: Moment, data: Any) -> Array | None:
    """Factor of the weights' learning rate at a step, `[]`; None, the default, if it is always 1."""
    del moment, data
    return None


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC, Generic[Data]):
  """A task. Its fields that are groups, such as `data`, are groups of the config itself: `config.data`.

  Attributes:
    name: name of the task in configs, its key in `TASKS`.
    unit: name of its examples in messages.
    defaults: defaults of config fields that replace those of `darts_jax.search.settings.Search`.
    strategies: by name of a strategy, defaults that replace those of its fields.
  """

  name: ClassVar[str]
  unit: ClassVar[str] = 'examples'
  defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
  strategies: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

  def check(self, space: CellSpace, conditions: Conditions, stages: Sequence[Stage], seeds: int) -> None:
    """Checks the settings of a search, before data are loaded.

    Args:
      space: the searched space.
      conditions: settings of the search.
      stages: stages of the strategy.
      seeds: number of searches side by side.

    Raises:
      ValueError: the task does not support such a search; one line that names a field of the config.
    """
    del space, conditions, stages, seeds

  @property
  @abc.abstractmethod
  def source(self) -> str:
    """Name of the data in messages."""

  @abc.abstractmethod
  def load(self) -> Data:
    """Loads the data to the host.

    Raises:
      ValueError: the data cannot be loaded; one line that names the field.
    """

  def given(self, x: Any, y: Any) -> Data:
    """The data from arrays that a caller passes in Python.

    Args:
      x: inputs `[N, …]`.
      y: targets `[N, …]`.

    Raises:
      ValueError: the task takes no arrays (the default), or not these.
    """
    del x, y
    raise ValueError(f'data: the task {self.name} takes no arrays')

  @abc.abstractmethod
  def fingerprint(self, data: Data) -> Any:
    """JSON values that identify the data; a search resumes only if they are the same."""

  @abc.abstractmethod
  def halves(self, data: Data, conditions: Conditions, seed: int) -> Halves:
    """The two halves of the data, pytrees of NumPy arrays.

    Args:
      data: the whole data.
      conditions: settings of the search.
      seed: seed of this search.

    Raises:
      ValueError: a half is too small.
    """

  @abc.abstractmethod
  def learner(self, data: Data, conditions: Conditions, supernet: SupernetSpec, mesh: Mesh) -> Learner:
    """Builds the supernet; compiles nothing.

    Args:
      data: the whole data, for shapes and number of classes; the search puts the halves on the devices.
      conditions: settings of the search.
      supernet: description of the supernet.
      mesh: devices with the axes `seed` and `data`.

    Raises:
      ValueError: the supernet or the batches do not fit the data or the devices.
    """
