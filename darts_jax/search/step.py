"""The search step: one update of α by the hypergradient, then one of the weights [DARTS Alg. 1].

A step is a pure function of state and data. All its gradients, those the estimator asks for and the one of the
weight update, are passes of one `lax.while_loop`: the gradient of the supernet's loss, by far the largest piece of the
program, stands in it once, which divides the time to compile and, for second-order estimators, the memory.

Where several devices share a batch, each makes the pass on its part and one all-reduce makes what it found the mean
over all of them. Besides, only statistics of BN cross devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from darts_jax.hypergradient import (
  Estimator,
  Gradients,
  InnerOptimizer,
  Memory,
  Pass,
  Problem,
  derivative,
  from_optax,
  global_norm,
  over,
)
from darts_jax.nets.bilinear import weights_gradient_if
from darts_jax.optimizers import clip_by_global_norm, decayed_sgd, scaled_to_batch, warmed_up
from darts_jax.runtime.materialise import materialise
from darts_jax.runtime.mesh import UNSHARED, Shards
from darts_jax.runtime.packed import Packed
from darts_jax.runtime.platforms import GPUS
from darts_jax.runtime.precision import precisely
from darts_jax.search.settings import Settings
from darts_jax.search.state import Halves, SearchState
from darts_jax.search.strategy import Alphas, Strategy

Array = jax.Array
PyTree = Any
T = TypeVar('T')

#: What the random key of a step is folded with to relax α; the purposes of `darts_jax.search.searcher` follow.
RELAX = 0


class Seen(NamedTuple):
  """What a network saw in a batch.

  Attributes:
    loss: `[]` nats; what is minimised may have regularisers besides.
    metrics: `[]` each, more to be logged.
    statistics: running BN statistics after the batch, as one vector.
    carried: what the next batch of the same half begins with.
  """

  loss: Array
  metrics: dict[str, Array]
  statistics: Array
  carried: PyTree


class Objective(Protocol):
  """The loss of a network on a batch."""

  def __call__(
    self, weights: PyTree, statistics: Packed, mixing: Alphas, batch: Any, precision: str, updating: Array
  ) -> tuple[Array, Seen]:
    """What is minimised, and what was seen.

    Args:
      weights: of the network.
      statistics: running BN statistics before the batch.
      mixing: mixing weights of every kind of cell.
      batch: of one half.
      precision: see `search_step`.
      updating: `[]` bool: whether the gradient updates the weights, where regularisers may count; the hypergradient
        is that of the losses alone.
    """
    ...


@dataclasses.dataclass(frozen=True)
class BatchLoss:
  """An objective as a function of weights, α and a batch.

  Attributes:
    objective: the loss.
    strategy: the relaxation of α.
    template: weights of the same structure.
    statistics: running BN statistics.
    key: for the relaxation, one for all passes of a step.
    step: `[]` for the relaxation.
    precision: see `search_step`.
  """

  objective: Objective
  strategy: Strategy
  template: Packed
  statistics: Packed
  key: Array
  step: Array
  precision: str = 'float32'

  @classmethod
  def at(cls, state: SearchState, objective: Objective, strategy: Strategy, precision: str) -> 'BatchLoss':
    """That of the step that a state is about to take."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), RELAX)
    return cls(objective, strategy, state.weights, state.statistics, key, state.step, precision)

  def __call__(self, weights: Array, alphas: PyTree, batch: Any, updating: Array | bool = False) -> tuple[Array, Seen]:
    """See `Objective`; weights are one vector."""
    mixing = self.strategy.relax(alphas, self.key, self.step)
    tree = self.template.replace(weights).tree
    with precisely(self.precision):
      return self.objective(tree, self.statistics, mixing, batch, self.precision, jnp.asarray(updating))

  @property
  def precisely(self) -> 'BatchLoss':
    """The same in the dtype of the weights."""
    return dataclasses.replace(self, precision='float32')


class StepInfo(NamedTuple):
  """What a step saw.

  Attributes:
    metrics: `[]` each: losses in nats, and what else the objective reports, on both batches (`train_…` at the new α
      and the old weights, `valid_…` where the estimator differentiates the outer loss); norms of both gradients before
      clipping, and whether that of the weights was clipped; the learning rate; the norm of the hypergradient's
      second-order term as a fraction of that of ∇α L_val; and what the estimator reports.
    hypergradient: the estimate that α was updated with, like the α.
  """

  metrics: dict[str, Array]
  hypergradient: PyTree


@dataclasses.dataclass(frozen=True)
class Optimizers:
  """The two optimisers of a search; the weights' work on the weights as one vector (see `Packed`).

  Attributes:
    weights: clipping by global norm, then SGD.
    inner: the same steps, clipping as the settings say, whose update is the virtual step of the hypergradient; its
      state is that of `weights`.
    alphas: Adam with decay in the gradient.
    learning_rate: the weights' learning rate at a step.
    clip_norm: of the weights' gradient.
    weight_decay: of the weights.
    clip_outer: whether the outer loss's gradient in the weights is clipped, too, before it becomes a part of the
      hypergradient.
    active: rows of α that are trained; None for all of them.
  """

  weights: optax.GradientTransformation
  inner: optax.GradientTransformation
  alphas: optax.GradientTransformation
  learning_rate: Callable[[Array], Array]
  clip_norm: float
  weight_decay: float
  clip_outer: bool = False
  active: Mapping[str, np.ndarray] | None = None

  @classmethod
  def from_settings(
    cls, settings: Settings, epoch_ends: Sequence[int], active: Mapping[str, np.ndarray] | None = None
  ) -> 'Optimizers':
    """Cosine by epoch from the first to the final learning rate; SGD and Adam as the settings say [DARTS §A.1].

    Learning rates are scaled to the batch and warmed up if the settings say so.

    Args:
      settings: `Search` or another with weights, α and hypergradient.
      epoch_ends: steps taken by the end of every epoch.
      active: rows of α that are trained (see `Strategy`); None for all of them.
    """
    rates, alphas = settings.weights, settings.alphas
    first, alphas_rate = (
      scaled_to_batch(group.learning_rate, settings.batch_size, group.reference_batch_size) for group in (rates, alphas)
    )
    cosine = optax.cosine_decay_schedule(first, settings.epochs, rates.final_learning_rate / rates.learning_rate)
    weights_warmup, alphas_warmup = (
      float(np.interp(group.warmup_epochs, range(len(epoch_ends) + 1), [0, *epoch_ends])) for group in (rates, alphas)
    )
    warmed = warmed_up(lambda step: cosine(jnp.sum(step >= np.array(epoch_ends), dtype=jnp.int32)), weights_warmup)

    def learning_rate(step: Array) -> Array:
      # XLA would compute the cosine again in every kernel that reads it, which are hundreds in the exact estimator; and
      # each would call the C library, which makes a stored program overflow the stack that XLA loads it on.
      return materialise(warmed(step))

    # Adam counts its own steps, one a search step.
    alphas_schedule = warmed_up(lambda step: jnp.float32(alphas_rate), alphas_warmup) if alphas_warmup else alphas_rate
    step = decayed_sgd(learning_rate, rates.momentum or None, rates.weight_decay)
    clip = clip_by_global_norm(rates.clip_norm)
    inner_clip = {
      'none': optax.stateless(lambda updates, params: updates),
      'differentiated': clip,
      'constant': clip_by_global_norm(rates.clip_norm, constant=True),
    }[settings.hypergradient.clipping]
    return cls(
      optax.chain(clip, step),
      optax.chain(inner_clip, step),
      optax.chain(
        optax.add_decayed_weights(alphas.weight_decay),
        optax.adam(alphas_schedule, alphas.beta1, alphas.beta2),
      ),
      learning_rate,
      rates.clip_norm,
      rates.weight_decay,
      settings.hypergradient.clip_outer,
      active,
    )

  def scaled(self, factor: Array) -> 'Optimizers':
    """The same with another learning rate of the weights; the factor may be traced."""

    def scale(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
      def update(updates: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = optimizer.update(updates, state, params)
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state

      return optax.GradientTransformation(optimizer.init, update)

    return dataclasses.replace(
      self,
      weights=scale(self.weights),
      inner=scale(self.inner),
      learning_rate=lambda step: factor * self.learning_rate(step),
    )

  def move_alphas(self, state: SearchState, gradient: PyTree) -> SearchState:
    """The state after an update of α."""
    updates, optimizer = self.alphas.update(gradient, state.alphas_optimizer, state.alphas)
    after = optax.apply_updates(state.alphas, updates), optimizer
    if self.active is not None:
      # Without a gradient, decay and momentum would still move them.
      before = state.alphas, state.alphas_optimizer
      after = jax.tree.map(self._frozen, after, before, is_leaf=lambda x: isinstance(x, dict))
    return state.replace(alphas=after[0], alphas_optimizer=after[1])

  def _frozen(self, after: Any, before: Any) -> Any:
    """What there is for every kind of cell, where rows that are not trained stay; anything else as it is."""
    if not isinstance(after, dict):
      return after
    assert self.active is not None
    rows = {name: jnp.asarray(active)[:, None] for name, active in self.active.items()}
    return {name: jnp.where(rows[name], value, before[name]) for name, value in after.items()}

  def move_weights(self, state: SearchState, gradient: Array) -> SearchState:
    """The state after an update of the weights, which ends a step; their gradient is one vector."""
    vector = state.weights.vector
    updates, after = self.weights.update(gradient, state.weights_optimizer, vector)
    weights = state.weights.replace(optax.apply_updates(vector, updates))
    return state.replace(step=state.step + 1, weights=weights, weights_optimizer=after)

  def inner_optimizer(self, state: PyTree) -> InnerOptimizer:
    """What a hypergradient unrolls, from a state of `weights`."""
    inner = from_optax(self.inner, state, self.weight_decay)
    if not self.clip_outer:
      return inner
    clip = clip_by_global_norm(self.clip_norm)
    return dataclasses.replace(inner, limit=lambda gradient: clip.update(gradient, optax.EmptyState())[0])


class _Carry(NamedTuple):
  """What the passes of a step hand on.

  Attributes:
    number: `[]` of the next pass.
    memory: the estimator's.
    state: as far as it has got.
    outer: what was seen where the estimator differentiates the outer loss.
    inner: what the weight update saw.
    weights_gradient_norm, alphas_gradient_norm: `[]` each.
  """

  number: Array
  memory: Memory
  state: SearchState
  outer: Seen
  inner: Seen
  weights_gradient_norm: Array
  alphas_gradient_norm: Array


def search_step(
  state: SearchState,
  train: Any,
  valid: Any,
  *,
  objective: Objective,
  strategy: Strategy,
  estimator: Estimator,
  optimizers: Optimizers,
  precision: str = 'float32',
  check: Array | bool = False,
  shards: Shards = UNSHARED,
) -> tuple[SearchState, StepInfo]:
  """One search step on two batches.

  Args:
    state: before the step.
    train: this device's part of the batch of the weights' half.
    valid: of that of the architecture's half, of the same shapes.
    objective: the loss of the supernet on a batch.
    strategy: the relaxation of α.
    estimator: of the hypergradient.
    optimizers: of weights and α.
    precision: `'float32'`: all in the dtype of the weights, products not rounded to less. `'bfloat16'`: what
      the network computes on is rounded (see the objective); weights, BN statistics, α, losses and gradients stay as
      they are, and so does all of a pass that asks for precision.
    check: `[]` whether the estimator makes its checks, too; may be traced, so that a step without them pays nothing.
    shards: how the batches are shared out among devices, each of which runs this function.

  Returns:
    The state after the step, and what the step saw.
  """
  batches = jax.tree.map(lambda *arrays: jnp.stack(arrays), train, valid)
  problem = Problem(optimizers.inner_optimizer(state.weights_optimizer), state.weights.vector, state.alphas)

  loss = BatchLoss.at(state, objective, strategy, precision)
  # One trace of the network answers all that is asked of it below; so what differs between passes is an argument.
  rough, fine = (jax.jit(functools.partial(_gated, each)) for each in (loss, loss.precisely))

  def update_alphas(carry: _Carry) -> _Carry:
    gradient = carry.memory.estimate
    now = optimizers.move_alphas(carry.state, gradient)
    # The next pass is that of the weight update, at the weights of the state.
    memory = carry.memory._replace(at=now.weights.vector)
    return carry._replace(
      memory=memory, state=now, number=jnp.int32(len(passes)), alphas_gradient_norm=global_norm(gradient)
    )

  def weights_pass(carry: _Carry, gradients: Gradients, seen: Seen) -> _Carry:
    now = optimizers.move_weights(carry.state, gradients.weights)
    now = now.replace(statistics=now.statistics.replace(seen.statistics))
    return carry._replace(
      number=carry.number + 1, state=now, inner=seen, weights_gradient_norm=global_norm(gradients.weights)
    )

  def estimator_pass(each: Pass, last: bool, carry: _Carry, gradients: Gradients, seen: Seen) -> _Carry:
    carry = carry._replace(number=carry.number + 1, memory=each.follow(problem, carry.memory, gradients))
    if each.loss == 'valid':
      carry = carry._replace(outer=seen)
    if not last:
      return carry
    # The checks, if there are any, are made before α moves.
    checks_follow = (carry.number == len(estimator.passes)) & check & bool(estimator.checks)
    return _one_of(checks_follow.astype(jnp.int32), (update_alphas, lambda carry: carry), carry)

  passes = (*estimator.passes, *estimator.checks)
  ends = len(estimator.passes) - 1, len(passes) - 1
  kinds = [(each, i in ends) for i, each in enumerate(passes)]
  distinct = list(dict.fromkeys(kinds))
  branches = [functools.partial(estimator_pass, *kind) for kind in distinct] + [weights_pass]
  # For every pass, the weight update last: its branch, its half of the data, and what it asks for (see `Pass`).
  branch_of = jnp.array([distinct.index(kind) for kind in kinds] + [len(distinct)])
  half_of = jnp.array([Halves._fields.index(each.loss) for each in passes] + [0])
  wants_weights = jnp.array([each.weights for each in passes] + [True])
  precise = [each.precise for each in passes] + [False]
  derivatives = [each.derivative for each in passes] + ['gradient']
  products = sorted({name for name in derivatives if name != 'gradient'})
  assert len(products) <= 1, 'an estimator differentiates gradients in one way'
  assert not any(each.precise for each in passes if each.derivative != 'gradient'), (
    'products are as precise as the rest'
  )

  def gradient_at(memory: Memory, alphas: PyTree, batch: Any, number: Array) -> Any:
    roughly, finely = (jax.value_and_grad(each, (0, 1), has_aux=True) for each in (rough, fine))
    arguments = memory.at, alphas, batch, number == len(passes), wants_weights[number]
    # Two gradients in the program only where they differ.
    if precision == 'float32' or not any(precise):
      return roughly(*arguments)
    return lax.cond(jnp.array(precise)[number], finely, roughly, *arguments)

  def product_at(memory: Memory, alphas: PyTree, batch: Any, number: Array) -> Gradients:
    def value(weights: Array, alphas: PyTree) -> Array:
      return rough(weights, alphas, batch, jnp.array(False), wants_weights[number])[0]

    wanted = any(each.weights for each in passes if each.derivative != 'gradient')
    return derivative(products[0], value, memory.at, alphas, memory.direction, wanted)

  def mean_of_all(gradients: Gradients, seen: Seen) -> tuple[Gradients, Seen]:
    whole = gradients, seen.loss, seen.metrics, seen.statistics
    gradients, value, metrics, statistics = shards.mean(whole)
    return gradients, seen._replace(loss=value, metrics=metrics, statistics=statistics)

  def mean_without_weights(gradients: Gradients, seen: Seen) -> tuple[Gradients, Seen]:
    # Nobody reads the rest.
    alphas, value, metrics = shards.mean((gradients.alphas, seen.loss, seen.metrics))
    return gradients._replace(alphas=alphas), seen._replace(loss=value, metrics=metrics)

  def run_pass(carry: _Carry) -> _Carry:
    number = carry.number
    batch = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, half_of[number], keepdims=False), batches)
    arguments = carry.memory, carry.state.alphas, batch

    def gradient() -> tuple[Gradients, Seen]:
      (_, seen), gradients = gradient_at(*arguments, number)
      return Gradients(*gradients), seen

    def product() -> tuple[Gradients, Seen]:
      return product_at(*arguments, number), nothing

    if products:
      is_product = jnp.array([name != 'gradient' for name in derivatives])[number]
      found = lax.cond(is_product, product, gradient)
    else:
      found = gradient()
    if shards.size > 1:
      found = lax.cond(wants_weights[number], mean_of_all, mean_without_weights, *found)
    return _one_of(branch_of[number], branches, carry, *found)

  zero = jnp.zeros((), jax.tree.leaves(state.alphas)[0].dtype)
  one_batch = jax.tree.map(lambda x: x[0], batches)
  shapes = jax.eval_shape(rough, problem.weights, problem.alphas, one_batch, jnp.array(False), jnp.array(True))[1]
  nothing: Seen = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  carry = _Carry(jnp.int32(0), estimator.start(problem), state, nothing, nothing, zero, zero)
  if estimator.checks:
    carry = lax.while_loop(lambda carry: carry.number <= len(passes), run_pass, carry)
  else:
    # Counted, so that the compiler knows how many there are, and the host does not wait for each to ask for another.
    every = jnp.int32(len(passes) + 1)
    counted = lax.while_loop(lambda c: c[0] < every, lambda c: (c[0] + 1, run_pass(c[1])), (jnp.int32(0), carry))
    carry = counted[1]
  memory = carry.memory
  outer = global_norm(memory.outer)
  term = global_norm(jax.tree.map(jnp.subtract, memory.estimate, memory.outer))
  metrics = {
    **_named('train', carry.inner),
    **_named('valid', carry.outer),
    'weights_gradient_norm': carry.weights_gradient_norm,
    'clipped': jnp.asarray(carry.weights_gradient_norm > optimizers.clip_norm, zero.dtype),
    'alphas_gradient_norm': carry.alphas_gradient_norm,
    'second_order_fraction': over(term, outer),
    'learning_rate': jnp.asarray(optimizers.learning_rate(state.step), zero.dtype),
    **{name: getattr(memory, name) for name in estimator.reports},
  }
  if estimator.checks:
    metrics['disagreement'] = memory.disagreement
    metrics['checks'] = jnp.asarray(check, zero.dtype)
  after = carry.state.replace(carried=Halves(carry.inner.carried, carry.outer.carried))
  return after, StepInfo(metrics, memory.estimate)


def _one_of(index: Array, branches: Sequence[Callable[..., T]], *args: Any) -> T:
  """What one of several functions that compute little returns; on GPUs all are called.

  That costs less than to wait until the host has read which of them it is to be.
  """

  def one(index: Array, *args: Any) -> T:
    found: T = lax.switch(index, branches, *args)
    return found

  def of_all(index: Array, *args: Any) -> T:
    results = [branch(*args) for branch in branches]
    found: T = jax.tree.map(lambda *leaves: lax.select_n(index, *leaves), *results)
    return found

  chosen: T = lax.platform_dependent(index, *args, **dict.fromkeys(GPUS, of_all), default=one)
  return chosen


def _gated(
  loss: BatchLoss, weights: Array, alphas: PyTree, batch: Any, updating: Array, weights_wanted: Array
) -> tuple[Array, Seen]:
  with weights_gradient_if(weights_wanted):
    return loss(weights, alphas, batch, updating)


def _named(half: str, seen: Seen) -> dict[str, Array]:
  return {f'{half}_loss': seen.loss, **{f'{half}_{name}': value for name, value in seen.metrics.items()}}
