"""A search as compiled functions: the state, many steps in a call, the evaluation."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from darts_jax.hypergradient.lanczos import Tridiagonal
from darts_jax.limits import check_steps
from darts_jax.nets.bilinear import traced_for
from darts_jax.runtime.compilation import compiler_options
from darts_jax.runtime.mesh import Shards, put, template
from darts_jax.runtime.packed import Packed
from darts_jax.runtime.steps import take_steps
from darts_jax.search.curvature import architecture_curvature
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.searched import Searched
from darts_jax.search.settings import Search
from darts_jax.search.state import SearchState
from darts_jax.search.step import BatchLoss, search_step, watched
from darts_jax.search.timing import Timing
from darts_jax.spaces import Mixing
from darts_jax.tasks import Feed, Halves, Learner, Moment, Placed, SupernetSpec

Array = jax.Array
PyTree = Any

# `carried` is per example, hence sharded; everything else is replicated.
_STATE_AXES: dict[str, Any] = {field.name: PartitionSpec() for field in dataclasses.fields(SearchState)} | {
  'carried': PartitionSpec('data')
}


class Searcher:
  """A search as compiled functions: `init`, `run` steps, `evaluate`; and for strategies `curvature` and `measure`.

  Every device runs them by itself on its part of each batch (see `Shards`). If the axis `seed` of the mesh has more
  than one device, they are as many searches side by side, and everything has a first axis for these: the key that
  `init` gets, data, state, metrics and evaluations.

  Attributes:
    settings: of the search.
    searched: the strategy, whose cells are those of the supernet.
    learner: the supernet and what it learns.
    mesh: devices with the axes `seed` and `data`.
    shards: how the examples of a batch are shared out.
    epoch_ends: steps taken by the end of every epoch.
    timing: at which steps α move.
    state_axes: how the state lies on the devices of a search, as `PartitionSpec`s, a pytree prefix.
  """

  state_axes: PyTree = SearchState(**_STATE_AXES)

  @classmethod
  def open(cls, settings: Search, data: Any, mesh: Mesh) -> 'Searcher':
    """The search that the settings describe, in its first stage, on data that its task has loaded.

    Raises:
      ValueError: settings and data do not fit into each other.
    """
    searched = Searched.from_settings(settings)
    learner = settings.task.learner(data, settings, supernet_of(settings, searched), mesh)
    return cls(settings, searched, learner, mesh)

  def __init__(self, settings: Search, searched: Searched, learner: Learner, mesh: Mesh) -> None:
    """Builds the functions; compiles nothing.

    Raises:
      ValueError: all epochs have too many steps, or too few for α to move at any.
    """
    epoch_ends = learner.epoch_ends
    check_steps(settings.epochs, epoch_ends[-1])
    self.timing = Timing.from_settings(settings, epoch_ends)
    self.settings, self.learner, self.mesh, self.epoch_ends = settings, learner, mesh, epoch_ends
    self.searched = searched.over(epoch_ends)
    self._optimizers = Optimizers.from_settings(settings, epoch_ends)
    self._estimator = settings.hypergradient.estimator()
    if self._estimator.passes and not self.timing.always and not self.timing.updates(epoch_ends[-1]):
      raise ValueError(
        f'config.alphas.every: {settings.alphas.every} is not allowed; α would move at none of {epoch_ends[-1]} steps'
      )
    self.shards = Shards(mesh.shape['data'])
    self._seeds = mesh.shape['seed']
    same = PartitionSpec()
    state, data = self.state_axes, learner.data_axes
    self._shardings = self._places(state)
    options = compiler_options(mesh)
    # A search by itself starts as one on one device, in global arrays.
    init = self.spread(self._init, (same,), state) if self._seeds > 1 else self._init
    self.init = jax.jit(init, out_shardings=self._shardings)
    self.run = jax.jit(
      self.spread(self._run, (state, data), (state, same), same),
      donate_argnums=0,
      out_shardings=(self._shardings, self._places(same)),
      compiler_options=options,
    )
    found: dict[str, Any] = {'out_shardings': self._places(same), 'compiler_options': options}
    self.evaluate = jax.jit(self.spread(self._evaluate, (state, data), same), **found)
    self.curvature = jax.jit(self.spread(self._curvature, (state, data), same), **found)
    self.measure = jax.jit(self.spread(self._measure, (state, data), same, same), **found)

  def restage(self, searched: Searched, first_epoch: int) -> 'Searcher':
    """The same search in another stage, whose supernet may be smaller, from an epoch on, counted from 0."""
    learner = self.learner.rebuilt(supernet_of(self.settings, searched, first_epoch))
    return Searcher(self.settings, searched, learner, self.mesh)

  def inherit(self, state: SearchState, before: 'Searcher') -> SearchState:
    """The state of a search whose supernet was larger, with the weights, momentum and statistics that are left."""
    template = self.template()
    chosen, others = (self.learner.inherited(packed, before.learner) for packed in (state.weights, state.statistics))
    size = state.weights.vector.shape
    momentum = jax.tree.map(lambda leaf: leaf[chosen] if leaf.shape == size else leaf, state.weights_optimizer)
    after = state.replace(
      weights=template.weights.replace(state.weights.vector[chosen]),
      statistics=template.statistics.replace(state.statistics.vector[others]),
      weights_optimizer=momentum,
    )
    return jax.device_put(after, jax.tree.broadcast(self._shardings, after))

  def latest_update(self, step: Any) -> Any:
    """The last step before that many at which α may have moved, counted from 0."""
    every = self.timing.every
    return (jnp if isinstance(step, Array) else np).maximum(step // every * every - 1, 0)

  def moment(self, state: SearchState) -> Moment:
    """The step that a state is about to take."""
    return Moment(state.key, state.step, jnp.asarray(self.timing.updates(state.step)), state.carried)

  def batches(self, state: SearchState, data: Any) -> Halves:
    """This device's part of the batches of the next step."""
    return self.learner.batches(self.moment(state), data)

  def optimizers(self, state: SearchState, data: Any) -> Optimizers:
    """The optimisers of the next step."""
    rate, found = self.learner.rate(self.moment(state), data), self._optimizers
    if state.weight_decay is not None:
      found = Optimizers.from_settings(self.settings, self.epoch_ends, state.weight_decay)
    return found if rate is None else found.scaled(rate)

  def with_weight_decay(self, state: SearchState, searched: Searched) -> SearchState:
    """The state with the decay of the weights that the strategy wants with what it has learnt, if it says any."""
    value = searched.weight_decay(self.settings.weights.weight_decay)
    if value is None:
      return state
    decay: Any = np.full((self._seeds,) if self._seeds > 1 else (), value, np.float32)
    return state.replace(weight_decay=put(decay, self._shardings.weight_decay))

  def template(self) -> SearchState:
    """Shapes, dtypes and places of the state, without arrays."""
    return template(self.init, self._shardings, self.keys())

  def keys(self) -> Array:
    """The typed key of the run, which `init` takes; one for each of several searches, whose seeds follow each other."""
    if self._seeds == 1:
      return jax.random.key(self.settings.seed)
    seeds = range(self.settings.seed, self.settings.seed + self._seeds)
    data = np.stack([np.asarray(jax.random.key_data(jax.random.key(seed))) for seed in seeds])
    placed: Any = put(data, self._places(PartitionSpec()))
    return jax.random.wrap_key_data(placed)

  def place(self, data: Sequence[Any]) -> Any:
    """The data of every search, as NumPy arrays, on the devices."""
    whole = data[0] if self._seeds == 1 else jax.tree.map(lambda *arrays: np.stack(arrays), *data)
    return put(whole, self._places(self.learner.data_axes))

  def feed(self, halves: Sequence[Any]) -> Feed:
    """What hands the data of every search, as NumPy arrays, to the compiled functions."""

    def reads_valid(steps: np.ndarray) -> np.ndarray:
      return self.timing.moves(steps) & self._estimator.has_outer_loss

    found = self.learner.feed(halves, self._places(self.learner.data_axes), reads_valid)
    return Placed(self.place(halves)) if found is None else found

  def spread(self, function: Callable[..., Any], axes: tuple[Any, ...], out: PyTree, *further: Any) -> Any:
    """A function of global arrays that runs on every device, from one for the devices of a single search.

    Args:
      function: of this device's part of every argument.
      axes: how its first arguments lie on the devices of a search, such as `state_axes`.
      out: how its result does.
      *further: how arguments do that are the same for all searches.
    """
    function = traced_for(self.mesh, function)
    if self.mesh.size == 1:
      return function
    each = function
    if self._seeds > 1:

      def each(*args: Any) -> Any:
        own = jax.tree.map(lambda x: x[0], args[: len(axes)])
        return jax.tree.map(lambda x: x[None], function(*own, *args[len(axes) :]))

    in_specs, out_specs = (*self._side_by_side(axes), *further), self._side_by_side(out)
    # What is the same on all devices is so by construction; JAX's check of that knows none of the primitives.
    return jax.shard_map(each, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

  def _side_by_side(self, axes: PyTree) -> PyTree:
    """Adds the axis `seed` to `PartitionSpec`s."""
    return axes if self._seeds == 1 else jax.tree.map(lambda spec: PartitionSpec('seed', *spec), axes)

  def _places(self, axes: PyTree) -> PyTree:
    """Likewise, as shardings."""
    return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self._side_by_side(axes))

  def _init(self, key: Array) -> SearchState:
    """The state before the first step, from the typed key of the run."""
    run_key, weights_key, alphas_key = jax.random.split(key, 3)
    alphas = self.searched.init(alphas_key)
    step = jnp.zeros((), jnp.int32)
    variables = self.learner.variables(weights_key, self.searched.look(alphas, step, run_key))
    weights = Packed.pack(variables['params'])
    decay = self.searched.weight_decay(self.settings.weights.weight_decay)
    return SearchState(
      step=step,
      key=run_key,
      weights=weights,
      statistics=Packed.pack(variables['batch_stats']),
      alphas=alphas,
      weights_optimizer=self._optimizers.weights.init(weights.vector),
      alphas_optimizer=self._optimizers.alphas.init(alphas),
      carried=self.learner.carried(),
      weight_decay=None if decay is None else jnp.float32(decay),
    )

  def _run(self, state: SearchState, data: Any, num_steps: Array) -> tuple[SearchState, dict[str, Array]]:
    """Takes up to `num_steps` steps; stops after one whose loss is not finite.

    Args:
      state: donated.
      data: on the devices.
      num_steps: `[]` int32; traced, so that any number is the same program.

    Returns:
      The new state; and sums of the steps' metrics (see `search_step`), with `steps`, their number, and `finite`,
      whether all losses were.
    """
    step = functools.partial(self._step, data=data)
    return take_steps(step, state, num_steps, watched(self._estimator))

  def _step(self, state: SearchState, data: Any) -> tuple[SearchState, dict[str, Array]]:
    train, valid = self.batches(state, data)
    metrics = self.learner.step_metrics(self.moment(state), data)
    state, info = search_step(
      state,
      train,
      valid,
      objective=self.learner.objective,
      searched=self.searched,
      estimator=self._estimator,
      optimizers=self.optimizers(state, data),
      precision=self.settings.precision,
      check=self.timing.is_last(state.step, self.settings.log_every),
      shards=self.shards,
      timing=self.timing,
    )
    return state, {**info.metrics, **metrics}

  def _evaluate(self, state: SearchState, data: Any) -> NamedTuple:
    return self._measure(state, data, self.searched.look(state.alphas, state.step, state.key))

  def _measure(self, state: SearchState, data: Any, mixing: Mapping[str, Mixing]) -> NamedTuple:
    variables = {'params': state.weights.tree, 'batch_stats': state.statistics.tree}
    return self.learner.measure(variables, dict(mixing), data)

  def _curvature(self, state: SearchState, data: Any) -> Tridiagonal:
    """See `architecture_curvature`, of the batch of the latest step at which α moved."""
    then = state.replace(step=self.latest_update(state.step))
    loss = BatchLoss.at(then, self.learner.objective, self.searched, 'float32')
    batch = self.batches(then, data).valid
    return architecture_curvature(loss, state.weights.vector, state.alphas, batch, self.shards)


def supernet_of(settings: Search, searched: Searched, first_epoch: int = 0) -> SupernetSpec:
  """The supernet of a stage of a search that begins with an epoch, counted from 0."""
  stages = [stage for stage in searched.plan(settings.epochs) for _ in range(stage.epochs)]
  sizes = [settings.batch_size + stage.batch_growth for stage in stages]
  part = stages[min(first_epoch, settings.epochs - 1)].channel_part
  return SupernetSpec(searched.space, searched.cells, sizes, first_epoch, part, searched.drops)
