"""A search as compiled functions: the state, many steps in a call, the evaluation."""

import abc
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from darts_jax.runtime.compilation import compiler_options
from darts_jax.runtime.mesh import replicated, template
from darts_jax.runtime.packed import Packed
from darts_jax.runtime.steps import take_steps
from darts_jax.search.settings import Settings
from darts_jax.search.state import Halves, SearchState
from darts_jax.search.step import RELAX, Objective, Optimizers, search_step
from darts_jax.search.strategy import Alphas, Strategy

Array = jax.Array
PyTree = Any
Data = TypeVar('Data')
AnySettings = TypeVar('AnySettings', bound=Settings)

#: The random key of a step is folded with these and further numbers for every other purpose.
FIRST_PURPOSE = RELAX + 1


class Searcher(abc.ABC, Generic[AnySettings, Data]):
  """A search as compiled functions: `init`, `run` steps, `evaluate`; what is searched on is up to subclasses.

  Attributes:
    settings: of the search.
    strategy: of the search; its specs are those of the supernet.
    mesh: devices with an axis `data`.
    epoch_ends: steps taken by the end of every epoch.
    objective: the loss of the supernet on a batch.
    batch_sharding: how the stacked batches of a step lie on the devices.
  """

  objective: Objective
  batch_sharding: PyTree

  def __init__(self, settings: AnySettings, strategy: Strategy, mesh: Mesh, epoch_ends: Sequence[int]) -> None:
    """Builds the functions; compiles nothing."""
    self.settings, self.mesh, self.epoch_ends = settings, mesh, epoch_ends
    self.strategy = strategy.over(epoch_ends[-1])
    everything = all(rows.all() for rows in strategy.active.values())
    self._optimizers = Optimizers.from_settings(settings, epoch_ends, None if everything else strategy.active)
    self._estimator = settings.hypergradient.estimator()
    same = replicated(mesh)
    self.init = jax.jit(self._init, out_shardings=same)
    options = compiler_options()
    self.run = jax.jit(self._run, donate_argnums=0, out_shardings=same, compiler_options=options)
    self.evaluate = jax.jit(self._evaluate, out_shardings=same, compiler_options=options)

  @abc.abstractmethod
  def variables(self, key: Array, mixing: Alphas) -> PyTree:
    """Variables of the supernet before the first step, `params` and `batch_stats`; consumes the key."""

  @abc.abstractmethod
  def batches(self, state: SearchState, data: Data) -> Halves:
    """The batches of a step."""

  @abc.abstractmethod
  def measure(self, state: SearchState, mixing: Alphas, data: Data) -> NamedTuple:
    """What an evaluation of the supernet finds, `[]` each."""

  @abc.abstractmethod
  def metrics(self, found: Any) -> dict[str, float]:
    """An evaluation, fetched from the devices, as it is logged."""

  @abc.abstractmethod
  def summary(self, means: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
    """What is logged besides the means of metrics over `sums['steps']` steps in `sums['seconds']`."""

  @abc.abstractmethod
  def restage(self, strategy: Strategy, first_epoch: int) -> Self:
    """The same search with another strategy, whose supernet may be smaller, from an epoch on, counted from 0."""

  def pruned(self, variables: PyTree, before: Self) -> PyTree:
    """Of parameters or running statistics of a search whose supernet was larger, those that this one has."""
    del before
    return variables

  def inherit(self, state: SearchState, before: Self) -> SearchState:
    """The state of a search whose supernet was larger, with the weights, momentum and statistics that are left."""

    def left(packed: Packed) -> tuple[Packed, np.ndarray]:
      """The structure of what is left, and where it was."""
      numbers: Any = np.arange(packed.vector.size)
      places = packed.replace(numbers)
      kept = Packed.pack(self.pruned(places.tree, before))
      return kept, np.asarray(kept.vector)

    (weights, chosen), (statistics, others) = left(state.weights), left(state.statistics)
    size = state.weights.vector.shape
    momentum = jax.tree.map(lambda leaf: leaf[chosen] if leaf.shape == size else leaf, state.weights_optimizer)
    after = state.replace(
      weights=weights.replace(state.weights.vector[chosen]),
      statistics=statistics.replace(state.statistics.vector[others]),
      weights_optimizer=momentum,
    )
    return jax.device_put(after, replicated(self.mesh))

  def carried(self) -> Halves:
    """What the first batches begin with."""
    return Halves((), ())

  def step_metrics(self, state: SearchState, data: Data) -> dict[str, Array]:
    """Metrics of the next step that no pass of it knows, `[]` each."""
    del state, data
    return {}

  def optimizers(self, state: SearchState, data: Data) -> Optimizers:
    """Those of the next step."""
    del state, data
    return self._optimizers

  def template(self) -> SearchState:
    """Shapes, dtypes and places of the state, without arrays."""
    return template(self.init, self.mesh, jax.random.key(0))

  def _init(self, key: Array) -> SearchState:
    """The state before the first step, from the typed key of the run."""
    run_key, weights_key, alphas_key = jax.random.split(key, 3)
    alphas = self.strategy.init(alphas_key)
    mixing = self.strategy.relax(alphas, alphas_key, jnp.zeros((), jnp.int32))
    variables = self.variables(weights_key, mixing)
    weights = Packed.pack(variables['params'])
    return SearchState(
      step=jnp.zeros((), jnp.int32),
      key=run_key,
      weights=weights,
      statistics=Packed.pack(variables['batch_stats']),
      alphas=alphas,
      weights_optimizer=self._optimizers.weights.init(weights.vector),
      alphas_optimizer=self._optimizers.alphas.init(alphas),
      carried=self.carried(),
    )

  def _run(self, state: SearchState, data: Data, num_steps: Array) -> tuple[SearchState, dict[str, Array]]:
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
    watched = ('train_loss', 'valid_loss', 'weights_gradient_norm', 'alphas_gradient_norm')
    return take_steps(step, state, num_steps, watched)

  def _step(self, state: SearchState, data: Data) -> tuple[SearchState, dict[str, Array]]:
    train, valid = self.batches(state, data)
    metrics = self.step_metrics(state, data)
    state, info = search_step(
      state,
      train,
      valid,
      objective=self.objective,
      strategy=self.strategy,
      estimator=self._estimator,
      optimizers=self.optimizers(state, data),
      precision=self.settings.precision,
      check=(state.step + 1) % self.settings.log_every == 0,
      batch_sharding=self.batch_sharding,
    )
    return state, {**info.metrics, **metrics}

  def _evaluate(self, state: SearchState, data: Data) -> NamedTuple:
    return self.measure(state, self.strategy.relax(state.alphas, state.key, state.step), data)
