"""Tasks on data that fit into arrays; a user's own task is a subclass with data and a network.

docs/tasks.md shows a task on tabular data.
"""

import abc
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from darts_jax import limits
from darts_jax.data.images import digest, split
from darts_jax.nets.array_cell import flagged, inherited
from darts_jax.nets.statistics import apply_with_own_statistics
from darts_jax.runtime.files import one_line
from darts_jax.runtime.mesh import Shards
from darts_jax.runtime.packed import Packed
from darts_jax.settings import setting
from darts_jax.spaces import CellSpace, CellSpec, Mixing
from darts_jax.strategies.relaxed import Stage
from darts_jax.streams import Stream
from darts_jax.tasks.base import Conditions, Halves, Learner, Moment, Seen, SupernetSpec, Task
from darts_jax.tasks.draws import Draws, check_sizes

Array = jax.Array
PyTree = Any


class Arrays(NamedTuple):
  """Examples: NumPy arrays of inputs `x` `[N, …]` and targets `y` `[N, …]`, and the number of a network's outputs."""

  x: np.ndarray
  y: np.ndarray
  num_outputs: int


class Pairs(NamedTuple):
  """A batch: inputs `[B, …]` and targets `[B, …]`."""

  x: Any
  y: Any


@dataclasses.dataclass(frozen=True)
class ArrayTask(Task[Arrays]):
  """A supervised task; a subclass defines `load` and `network`, and may override the other methods.

  Attributes:
    validation_fraction: fraction of the examples that trains α; the rest trains the weights.
  """

  name: ClassVar[str] = 'arrays'

  validation_fraction: float = setting(0.5, above=0, below=1)

  @abc.abstractmethod
  def network(self, data: Arrays, cells: Mapping[str, CellSpec]) -> nn.Module:
    """Builds the supernet.

    Args:
      data: the examples, whose shapes the network may depend on.
      cells: the present cells of the supernet by name; see `darts_jax.nets.array_cell.ArrayCell`.

    Returns:
      A module called as `net(x, mixing, train=…)`, with inputs `[B, …]` and mixing weights by kind of cell; it returns
      outputs `[B, …]`.
    """

  def prepare(self, x: Array, key: Array | None) -> Array:
    """Prepares inputs `[B, …]` for the network; the key is None in evaluations, else it may be used to augment them."""
    del key
    return x

  def loss(self, outputs: Array, targets: Array) -> Array:
    """The loss of every example, `[B]`; by default the cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)

  def measures(self, outputs: Array, targets: Array) -> dict[str, Array]:
    """Metrics of every example by name, `[B]` each, whose means are logged; by default the accuracy."""
    return {'accuracy': (jnp.argmax(outputs, -1) == targets).astype(outputs.dtype)}

  @property
  def source(self) -> str:
    """The name of the task."""
    return self.name

  def check(self, space: CellSpace, conditions: Conditions, stages: Sequence[Stage], seeds: int) -> None:
    """See `Task`."""
    del space, seeds
    for field, value, usual in (
      ('remat', conditions.remat, False),
      ('batch_norm.group_size', conditions.batch_norm.group_size, 0),
      ('batch_norm.tracked', conditions.batch_norm.tracked, True),
    ):
      if value != usual:
        raise ValueError(f'config.{field}: {value} is not allowed; the task {self.name} has {usual}')
    if any(stage.channel_part > 1 for stage in stages):
      raise ValueError(f'config.strategy.channel_part: it has to be 1; the task {self.name} has no partial channels')

  def given(self, x: Any, y: Any) -> Arrays:
    """See `Task`; targets are class numbers `[N]`. A task with other targets has to override this method."""
    try:
      inputs, targets = np.asarray(x), np.asarray(y)
    except ValueError as error:
      raise ValueError(f'data: no arrays ({one_line(error)})') from error
    are_classes = targets.ndim == 1 and targets.size and targets.dtype.kind in 'iu'
    if not are_classes or not 0 <= targets.min() <= targets.max() < limits.CLASSES:
      raise ValueError(
        f'data: targets {targets.dtype}{list(targets.shape)} are not allowed; there has to be one class number ≥ 0 and'
        f' < {limits.CLASSES} for each input'
      )
    return self.checked(Arrays(inputs, targets, int(targets.max()) + 1))

  def checked(self, data: Arrays) -> Arrays:
    """The data in dtypes that devices support: float32, int32, or smaller ones as they are.

    Raises:
      ValueError: the data are not arrays of numbers, differ in length, or have class numbers beyond the outputs; one
        line.
    """
    if not isinstance(data, Arrays) or not all(isinstance(each, np.ndarray) for each in data[:2]):
      raise ValueError(f'data: load() of the task {self.name} has to give Arrays(x, y, num_outputs) of NumPy arrays')
    found = []
    for name, each in (('x', data.x), ('y', data.y)):
      wide = each.astype(np.float32 if each.dtype.kind == 'f' else np.int32) if each.dtype.kind in 'biuf' else None
      if wide is None or not each.ndim or (each.dtype.kind in 'iu' and (wide != each).any()):
        raise ValueError(
          f'data: {name} is {each.dtype}{list(each.shape)}; it has to be numbers of a row for each example, and whole'
          ' ones fit into 32 bits'
        )
      found.append(each if each.dtype.kind in 'b' or each.dtype.itemsize < 4 else wide)
    x, y = found
    if len(x) != len(y):
      raise ValueError(f'data: {len(x)} inputs and {len(y)} targets; there has to be one for each')
    usual = type(self).loss is ArrayTask.loss
    if usual and (y.ndim != 1 or y.dtype.kind not in 'iu' or y.min() < 0 or y.max() >= data.num_outputs):
      raise ValueError(
        f'data: y is {y.dtype}{list(y.shape)} up to {y.max()}; by the loss of the task {self.name} it has to be class'
        f' numbers ≥ 0 and < {data.num_outputs}'
      )
    return Arrays(x, y, data.num_outputs)

  def fingerprint(self, data: Arrays) -> Any:
    """See `Task`."""
    return digest(data.x, data.y)

  def halves(self, data: Arrays, conditions: Conditions, seed: int) -> Halves:
    """The two halves of the examples, split at random by the seed.

    Raises:
      ValueError: a half has fewer examples than a batch.
    """
    data, parts = self.checked(data), []
    try:
      indices = split(len(data.y), self.validation_fraction, seed)
    except ValueError as error:
      raise ValueError(str(error).replace('config.data.', 'config.task.')) from error
    for name, chosen in zip(Halves._fields, indices, strict=True):
      if len(chosen) < conditions.batch_size:
        raise ValueError(
          f'config.batch_size: {conditions.batch_size} is larger than the {name} half of {self.source}, which has'
          f' {len(chosen)} examples'
        )
      parts.append(Pairs(data.x[chosen], data.y[chosen]))
    return Halves(*parts)

  def learner(self, data: Arrays, conditions: Conditions, supernet: SupernetSpec, mesh: Mesh) -> 'ArrayLearner':
    """See `Task`."""
    return ArrayLearner(self, self.checked(data), conditions, supernet, mesh)

  def found(self, outputs: Array, targets: Array) -> tuple[Array, dict[str, Array]]:
    """`loss` and `measures` of a batch, `[B]` each, after a check of their shapes and names.

    Raises:
      ValueError: one has another shape, or a measure has a name that logs do not allow.
    """
    loss, measures = self.loss(outputs, targets), self.measures(outputs, targets)
    for name, each in (('loss', loss), *measures.items()):
      if (name == 'loss' and each is not loss) or not re.fullmatch(r'\w+', name):
        raise ValueError(f'task {self.name}: a measure cannot be called {name!r}; letters, digits and _, and not loss')
      if jnp.shape(each) != (len(targets),):
        raise ValueError(
          f'task {self.name}: {name} gives {jnp.shape(each)}; one number is wanted for each of {len(targets)} examples'
        )
    return loss, measures


@dataclasses.dataclass(frozen=True)
class ArrayLoss:
  """The mean loss of a supernet in training mode; see `Objective`."""

  task: ArrayTask
  net: nn.Module
  cells: tuple[tuple[str, CellSpec], ...]

  def __call__(
    self,
    weights: PyTree,
    statistics: Packed,
    mixing: dict[str, Mixing],
    batch: Pairs,
    precision: str,
    updating: Array,
  ) -> tuple[Array, Seen]:
    """See `Objective`."""
    del updating
    x = _rounded(batch.x, precision)
    outputs, after = apply_with_own_statistics(self.net, weights, statistics, x, mixing)
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    losses, measured = self.task.found(outputs, batch.y)
    loss = jnp.mean(losses)
    measures = {name: jnp.mean(each, dtype=loss.dtype) for name, each in measured.items()}
    cells = dict(self.cells)
    computed = flagged(cells, statistics.tree, {name: each.computed for name, each in mixing.items()})
    if computed is not None:
      after = jnp.where(computed, after, statistics.vector)
    active = flagged(cells, weights, {name: each.active for name, each in mixing.items()})
    return loss, Seen(loss, measures, after, (), active)


def _rounded(x: Array, precision: str) -> Array:
  """Casts floating-point inputs to the precision of the network; integers stay as they are."""
  return x if precision == 'float32' or not jnp.issubdtype(x.dtype, jnp.floating) else x.astype(precision)


class _Found(NamedTuple):
  """The mean loss and measures of an evaluation, `[]` each."""

  loss: Array
  measures: dict[str, Array]


class ArrayLearner(Learner):
  """The learner of an `ArrayTask`; its data are the two halves of the examples.

  Attributes:
    batch_size: examples per batch.
    steps_per_epoch: full batches in the weights' half.
  """

  def __init__(self, task: ArrayTask, data: Arrays, conditions: Conditions, supernet: SupernetSpec, mesh: Mesh) -> None:
    """See `Task.learner`."""
    self._task, self._data, self._conditions, self._mesh = task, data, conditions, mesh
    self._supernet = supernet
    self._shards = Shards(mesh.shape['data'])
    num_train, num_valid = (len(part) for part in split(len(data.y), task.validation_fraction, 0))
    least = min(num_train, num_valid)
    check_sizes(supernet.batch_sizes, conditions.batch_size, self._shards.size, least, task.unit)
    self._draws = Draws.of(supernet, num_train, num_valid)
    self.epoch_ends, self.batch_size = self._draws.epoch_ends, self._draws.batch_size
    self.steps_per_epoch = self._draws.steps_per_epoch
    try:
      self.net = task.network(data, supernet.cells)
      self.objective = ArrayLoss(task, self.net, tuple(supernet.cells.items()))
      jax.eval_shape(self._first_loss, jax.random.key(0))
    except Exception as error:  # A user's network may raise any error.
      said = str(error) if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'
      # JAX appends lines about tracebacks to messages.
      line = said.partition('\n')[0]
      if line.startswith(('config.', 'task ')):
        raise ValueError(line) from error
      raise ValueError(
        f'config.task.name: the supernet of {task.name} on the space {supernet.space.name} cannot be built or computed'
        f' ({line})'
      ) from error

  def _first_loss(self, key: Array) -> Array:
    """The loss of a batch of two; it is traced only, so that errors of shapes are found before anything is written."""
    cells = self._supernet.cells.items()
    mixing = {name: Mixing(jnp.ones((spec.num_edges, len(spec.operations)))) for name, spec in cells}
    variables = self.variables(key, mixing)
    x, y = (jnp.asarray(each[:2]) for each in self._data[:2])
    batch = Pairs(self._task.prepare(x, key), y)
    statistics = Packed.pack(variables['batch_stats'])
    precision = self._conditions.precision
    return self.objective(variables['params'], statistics, mixing, batch, precision, jnp.array(True))[0]

  def variables(self, key: Array, mixing: dict[str, Mixing]) -> PyTree:
    """See `Learner`; the weights are drawn by the initialisers of the modules."""
    x = self._task.prepare(jnp.asarray(self._data.x[:1]), None)
    return {'batch_stats': {}, **self.net.init(key, x, mixing, train=False)}

  def batches(self, moment: Moment, data: Halves) -> Halves:
    """See `Learner` and `Draws`."""
    step_key = jax.random.fold_in(moment.key, moment.step)
    indices = self._draws.indices(moment, step_key)
    purposes = Stream.AUGMENT_TRAIN, Stream.AUGMENT_VALID
    parts = []
    for half, drawn, purpose in zip(data, indices, purposes, strict=True):
      # Every device prepares the whole batch, so that random numbers do not depend on the number of devices.
      x = self._task.prepare(half.x[drawn], jax.random.fold_in(step_key, purpose))
      parts.append(Pairs(self._shards.own(x), self._shards.own(half.y[drawn])))
    return Halves(*parts)

  def measure(self, variables: PyTree, mixing: dict[str, Mixing], data: Halves) -> _Found:
    """See `Learner`; the means are over the whole architecture half."""
    half, total, size = data.valid, self._draws.num_valid, self._conditions.batch_size
    # The last batch is padded with repeated examples, which `counts` excludes.
    indices = np.arange(-(-total // size) * size).reshape(-1, size)
    precision = self._conditions.precision

    def sums(chosen: Array) -> _Found:
      place, counts = chosen % total, chosen < total
      x = self._task.prepare(half.x[place], None)
      outputs: Any = self.net.apply(variables, _rounded(x, precision), mixing, train=False)
      outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
      found = _Found(*self._task.found(outputs, half.y[place]))
      return jax.tree.map(lambda each: jnp.sum(jnp.where(counts, each, 0)), found)

    def add(so_far: _Found, chosen: Array) -> tuple[_Found, None]:
      return jax.tree.map(jnp.add, so_far, sums(self._shards.own(chosen))), None

    shapes = jax.eval_shape(sums, self._shards.own(jnp.asarray(indices[0])))
    found, _ = lax.scan(add, jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes), jnp.asarray(indices))
    return jax.tree.map(lambda each: each / total * self._shards.size, self._shards.mean(found))

  def metrics(self, found: _Found) -> dict[str, float]:
    """See `Learner`."""
    return {'loss': float(found.loss), **{name: float(each) for name, each in found.measures.items()}}

  def summary(self, means: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
    """See `Learner`."""
    del means
    return {'examples_per_second': sums['steps'] * self.batch_size / sums['seconds']}

  def rebuilt(self, supernet: SupernetSpec) -> Self:
    """See `Learner`."""
    return type(self)(self._task, self._data, self._conditions, supernet, self._mesh)

  def inherited(self, variables: Packed, before: Self) -> np.ndarray:
    """See `Learner`."""
    del before
    mixing = {
      name: Mixing(jnp.zeros((spec.num_edges, len(spec.operations)))) for name, spec in self._supernet.cells.items()
    }
    own = jax.eval_shape(lambda key: self.variables(key, mixing), jax.random.key(0))
    paths = [{path for path, _ in jax.tree_util.tree_leaves_with_path(tree)} for tree in own.values()]
    given = {path for path, _ in jax.tree_util.tree_leaves_with_path(variables.tree)}
    # The variables are weights or BN statistics; the collection that has more of their paths is the right one.
    tree = max(zip(paths, own.values(), strict=True), key=lambda pair: len(pair[0] & given))[1]
    return inherited(variables.tree, tree)
