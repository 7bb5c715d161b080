"""A search as compiled functions: the initial state, many steps in a call, and the evaluation."""

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

  The functions run per device, on its shard of each batch (see `Shards`). If the mesh axis `seed` has size S > 1, they
  are S searches side by side, and keys, data, state, metrics and evaluations have a leading axis of size S.

  Attributes:
    settings: the settings of the search.
    searched: the strategy, whose cells are those of the supernet.
    learner: the supernet and its task, on the devices.
    mesh: devices with the axes `seed` and `data`.
    shards: how a batch is sharded over the axis `data`.
    epoch_ends: steps taken by the end of every epoch.
    timing: the steps at which α move.
    state_axes: sharding of the state over the devices of one search, a pytree prefix of `PartitionSpec`s.
  """

  state_axes: PyTree = SearchState(**_STATE_AXES)

  @classmethod
  def open(cls, settings: Search, data: Any, mesh: Mesh) -> 'Searcher':
    """The search that the settings describe, in its first stage.

    Args:
      settings: the settings of the search.
      data: the data that the task has loaded.
      mesh: devices with the axes `seed` and `data`.

    Raises:
      ValueError: the settings do not fit the data or the devices.
    """
    searched = Searched.from_settings(settings)
    learner = settings.task.learner(data, settings, supernet_of(settings, searched), mesh)
    return cls(settings, searched, learner, mesh)

  def __init__(self, settings: Search, searched: Searched, learner: Learner, mesh: Mesh) -> None:
    """Builds the functions; compiles nothing.

    Raises:
      ValueError: the search has more steps than are allowed, or too few for α to move at all.
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
    # A single search needs no `shard_map` here: `out_shardings` distribute its initial state.
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
    """The search in another stage, which may have a smaller supernet and begins with `first_epoch`, counted from 0."""
    learner = self.learner.rebuilt(supernet_of(self.settings, searched, first_epoch))
    return Searcher(self.settings, searched, learner, self.mesh)

  def inherit(self, state: SearchState, before: 'Searcher') -> SearchState:
    """The state for a smaller supernet: it keeps the weights, momentum and BN statistics of the operations that remain.

    Args:
      state: state of the search with the larger supernet.
      before: the search with the larger supernet.
    """
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
    """Index of the latest of the first `step` steps at which α move by `config.alphas.every`, counted from 0."""
    every = self.timing.every
    return (jnp if isinstance(step, Array) else np).maximum(step // every * every - 1, 0)

  def moment(self, state: SearchState) -> Moment:
    """The moment of the next step of a state."""
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
    """The state with the weight decay that the strategy asks for; the same state if it asks for none."""
    value = searched.weight_decay(self.settings.weights.weight_decay)
    if value is None:
      return state
    decay: Any = np.full((self._seeds,) if self._seeds > 1 else (), value, np.float32)
    return state.replace(weight_decay=put(decay, self._shardings.weight_decay))

  def template(self) -> SearchState:
    """The state as `ShapeDtypeStruct`s with shardings, without arrays."""
    return template(self.init, self._shardings, self.keys())

  def keys(self) -> Array:
    """The argument of `init`: the typed key of the run, `[]`, or of searches side by side, `[S]`.

    The seeds of searches side by side are consecutive numbers from `config.seed` on.
    """
    if self._seeds == 1:
      return jax.random.key(self.settings.seed)
    seeds = range(self.settings.seed, self.settings.seed + self._seeds)
    data = np.stack([np.asarray(jax.random.key_data(jax.random.key(seed))) for seed in seeds])
    placed: Any = put(data, self._places(PartitionSpec()))
    return jax.random.wrap_key_data(placed)

  def place(self, data: Sequence[Any]) -> Any:
    """Puts the data of every search, pytrees of NumPy arrays, on the devices."""
    whole = data[0] if self._seeds == 1 else jax.tree.map(lambda *arrays: np.stack(arrays), *data)
    return put(whole, self._places(self.learner.data_axes))

  def feed(self, halves: Sequence[Any]) -> Feed:
    """The feed of the compiled functions; `halves` are the data of every search, pytrees of NumPy arrays."""

    def reads_valid(steps: np.ndarray) -> np.ndarray:
      return self.timing.moves(steps) & self._estimator.has_outer_loss

    found = self.learner.feed(halves, self._places(self.learner.data_axes), reads_valid)
    return Placed(self.place(halves)) if found is None else found

  def spread(self, function: Callable[..., Any], axes: tuple[Any, ...], out: PyTree, *further: Any) -> Any:
    """Maps a per-device function of one search over the mesh, by `shard_map`; it then takes global arrays.

    Args:
      function: takes this device's shard of every argument.
      axes: shardings of its first arguments over the devices of a search, such as `state_axes`; with searches side by
        side, these arguments have a leading axis of searches.
      out: sharding of its result.
      *further: shardings of the other arguments, which all searches share.
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
    # Replicated results are equal by construction; JAX's check of that does not know this package's primitives.
    return jax.shard_map(each, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

  def _side_by_side(self, axes: PyTree) -> PyTree:
    """Adds the axis `seed` to `PartitionSpec`s."""
    return axes if self._seeds == 1 else jax.tree.map(lambda spec: PartitionSpec('seed', *spec), axes)

  def _places(self, axes: PyTree) -> PyTree:
    """`NamedSharding`s for `PartitionSpec`s of one search; see `_side_by_side`."""
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
    """Takes up to `num_steps` steps; stops after one whose loss or gradient is not finite.

    Args:
      state: the state before the steps; donated.
      data: the data, on the devices.
      num_steps: `[]` int32; traced, so that one program serves every number.

    Returns:
      The new state, and metrics (see `take_steps`): their sums over the steps (see `search_step` for the names), the
      number of steps `steps`, and whether all losses and gradients were finite, `finite`.
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
    """See `architecture_curvature`; on the batch of the latest step at which α moved."""
    then = state.replace(step=self.latest_update(state.step))
    loss = BatchLoss.at(then, self.learner.objective, self.searched, 'float32')
    batch = self.batches(then, data).valid
    return architecture_curvature(loss, state.weights.vector, state.alphas, batch, self.shards)


def supernet_of(settings: Search, searched: Searched, first_epoch: int = 0) -> SupernetSpec:
  """The supernet of the stage of a search that begins with `first_epoch`, counted from 0."""
  stages = [stage for stage in searched.plan(settings.epochs) for _ in range(stage.epochs)]
  sizes = [settings.batch_size + stage.batch_growth for stage in stages]
  part = stages[min(first_epoch, settings.epochs - 1)].channel_part
  return SupernetSpec(searched.space, searched.cells, sizes, first_epoch, part, searched.drops)
