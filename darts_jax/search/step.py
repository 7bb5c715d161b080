"""The search step: one update of α by the hypergradient, then one of the weights [DARTS Alg. 1], or the reverse.

A step is a pure function of state and data. All its gradients, those of the estimator and the one of the weight
update, are passes of one `lax.while_loop` (`darts_jax.hypergradient.program`). So the program holds the gradient of the
supernet's loss, by far its largest part, only once, which shortens compilation and, for second-order estimators, saves
memory.

If several devices share a batch, each runs the pass on its shard, and one all-reduce averages the results. Apart from
these, only cross-replica BN statistics are communicated.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.hypergradient import Estimator, Memory, Pass, Problem, global_norm, over
from darts_jax.hypergradient.program import Carry, Found, Line, Losses, Passes, Program, one_of, stacked
from darts_jax.nets.bilinear import weights_gradient_if
from darts_jax.runtime.mesh import UNSHARED, Shards
from darts_jax.runtime.packed import Packed
from darts_jax.runtime.precision import precisely
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.searched import Searched
from darts_jax.search.state import SearchState
from darts_jax.search.timing import ALWAYS, Timing
from darts_jax.strategies.relaxed import ALPHAS, WEIGHTS
from darts_jax.streams import Stream
from darts_jax.tasks.base import Halves, Objective, Seen

Array = jax.Array
PyTree = Any

#: Name of the metric that is 1 at steps at which α move and 0 at others; absent if α move at every step.
UPDATES = 'alphas_updates'


@dataclasses.dataclass(frozen=True)
class BatchLoss:
  """An objective as a function of weights, α and a batch.

  Attributes:
    objective: the loss of the supernet, a function of mixing weights.
    searched: the strategy, which turns α into mixing weights.
    template: weights whose pytree structure those of the call have.
    statistics: running BN statistics.
    key: typed random key of the mixing weights, the same in all passes of a step.
    step: `[]`, steps taken, for schedules of the strategy.
    precision: see `search_step`.
  """

  objective: Objective
  searched: Searched
  template: Packed
  statistics: Packed
  key: Array
  step: Array
  precision: str = 'float32'

  @classmethod
  def at(cls, state: SearchState, objective: Objective, searched: Searched, precision: str) -> 'BatchLoss':
    """The loss at the next step of a state."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), Stream.MIX)
    return cls(objective, searched, state.weights, state.statistics, key, state.step, precision)

  def __call__(self, weights: Array, alphas: PyTree, batch: Any, updating: Array | bool = False) -> tuple[Array, Seen]:
    """See `Objective`; `weights` is one vector, `[P]`."""
    updating = jnp.asarray(updating)
    mixing = self.searched.mix(alphas, self.step, self.key, jnp.where(updating, WEIGHTS, ALPHAS))
    tree = self.template.replace(weights).tree
    with precisely(self.precision):
      return self.objective(tree, self.statistics, mixing, batch, self.precision, updating)

  @property
  def precisely(self) -> 'BatchLoss':
    """A copy that computes in the dtype of the weights."""
    return dataclasses.replace(self, precision='float32')


class StepInfo(NamedTuple):
  """The metrics and the hypergradient of a step.

  Attributes:
    metrics: `[]` each: losses in nats and the objective's other metrics, `train_…` at the weight update and `valid_…`
      where the estimator differentiates the outer loss; the norms of both gradients before clipping, and whether the
      weights' gradient was clipped; the learning rate; the norm of the hypergradient's second-order term as a fraction
      of the norm of ∇α L_val; and the estimator's reports. Metrics of the outer loss are absent for an estimator
      without one, and `alphas_gradient_norm` for an estimator without passes.
    hypergradient: the estimate by which α was updated, a pytree like α.
  """

  metrics: dict[str, Array]
  hypergradient: PyTree


class _Rest(NamedTuple):
  """The values that passes of a step carry besides the estimator's memory.

  Attributes:
    state: the state after the updates made so far.
    outer: loss and metrics where the estimator differentiates the outer loss.
    inner: loss and metrics at the weight update.
    weights_gradient_norm, alphas_gradient_norm: `[]` each.
  """

  state: SearchState
  outer: Seen
  inner: Seen
  weights_gradient_norm: Array
  alphas_gradient_norm: Array


# The pass of the weight update; it does not change the estimator's memory.
_UPDATE = Pass('train', lambda problem, memory, gradients: memory)


def search_step(
  state: SearchState,
  train: Any,
  valid: Any,
  *,
  objective: Objective,
  searched: Searched,
  estimator: Estimator,
  optimizers: Optimizers,
  precision: str = 'float32',
  check: Array | bool = False,
  shards: Shards = UNSHARED,
  timing: Timing = ALWAYS,
) -> tuple[SearchState, StepInfo]:
  """One search step on two batches.

  Args:
    state: the state before the step.
    train: this device's shard of the batch of the weights' half.
    valid: this device's shard of the batch of the architecture half, with the same shapes; not read if the estimator
      has no outer loss.
    objective: the loss of the supernet on a batch.
    searched: the strategy, which turns α into mixing weights.
    estimator: the estimator of the hypergradient.
    optimizers: the optimisers of weights and α.
    precision: `'float32'`: everything is in the dtype of the weights, and products are not rounded to less.
      `'bfloat16'`: inputs and activations of the network are rounded (see the objective); weights, BN statistics, α,
      losses and gradients are not, and neither is anything in passes that are marked `precise`.
    check: `[]`, whether the estimator runs its checks, too; may be traced, so that a step without checks costs nothing.
    shards: how the batches are sharded over devices, each of which runs this function.
    timing: the steps at which α move. Other steps run the pass of the weight update alone, and their metrics of α
      are 0.

  Returns:
    The state after the step, and its metrics.
  """
  passes = *estimator.passes, *estimator.checks
  gated = bool(passes) and not timing.always
  weights_first = timing.weights_first and not estimator.single_level
  batches = stacked(train, valid) if estimator.has_outer_loss else stacked(train)

  def problem_at(now: SearchState) -> Problem:
    return Problem(optimizers.inner_optimizer(now.weights_optimizer), now.weights.vector, now.alphas)

  problem = problem_at(state)
  loss = BatchLoss.at(state, objective, searched, precision)
  moves = timing.moves(state.step) if gated else jnp.array(True)

  def update_alphas(carry: Carry) -> Carry:
    rest, gradient = carry.rest, carry.memory.estimate
    now = optimizers.move_alphas(rest.state, gradient)
    now = now.replace(alphas=searched.project(rest.state.alphas, now.alphas))
    # If the weight update is the next pass, it needs the gradient at the weights of the state.
    return Carry(
      number=jnp.int32(len(lines) if weights_first else update),
      memory=carry.memory._replace(at=now.weights.vector),
      rest=rest._replace(state=now, alphas_gradient_norm=global_norm(gradient)),
    )

  def follow_update(carry: Carry, found: Found) -> Carry:
    gradient, seen = found.gradients.weights, found.seen
    now = optimizers.move_weights(carry.rest.state, gradient, seen.active)
    now = now.replace(statistics=now.statistics.replace(seen.statistics))
    number, memory = carry.number + 1, carry.memory
    if weights_first:
      memory = estimator.start(problem_at(now))
      number = jnp.where(moves, number, len(lines)) if gated else number
    rest = carry.rest._replace(state=now, inner=seen, weights_gradient_norm=global_norm(gradient))
    return Carry(number, memory, rest)

  def follow_pass(each: Pass, last: bool, carry: Carry, found: Found) -> Carry:
    number = carry.number + 1
    memory = each.follow(problem_at(carry.rest.state) if weights_first else problem, carry.memory, found.gradients)
    rest = carry.rest._replace(outer=found.seen) if each.loss == 'valid' else carry.rest
    carry = Carry(number, memory, rest)
    if not last:
      return carry
    # Checks, if there are any, run before α move.
    checks_follow = (carry.number == first + len(estimator.passes)) & check & bool(estimator.checks)
    after: Carry = one_of(checks_follow.astype(jnp.int32), (update_alphas, lambda carry: carry), carry)
    return after

  def follow_both(carry: Carry, found: Found) -> Carry:
    [each] = passes
    carry = follow_pass(each, False, carry, found)
    if gated:
      carry = one_of(moves.astype(jnp.int32), (lambda carry: carry, update_alphas), carry)
    else:
      carry = update_alphas(carry)
    return follow_update(carry, found)

  if estimator.single_level:
    lines, update = [Line(passes[0], follow_both, updating=True)], 0
  else:
    ends = len(estimator.passes) - 1, len(passes) - 1
    kinds = [(each, i in ends) for i, each in enumerate(passes)]
    followers = {kind: functools.partial(follow_pass, *kind) for kind in kinds}
    lines = [Line(kind[0], followers[kind]) for kind in kinds]
    update = 0 if weights_first else len(passes)
    lines.insert(update, Line(_UPDATE, follow_update, updating=True))
  first = 1 if weights_first else 0
  program = Program(lines, one_of)

  def mean_of_all(found: Found) -> Found:
    seen = found.seen
    whole = found.gradients, seen.loss, seen.metrics, seen.statistics
    gradients, value, metrics, statistics = shards.mean(whole)
    return Found(gradients, seen._replace(loss=value, metrics=metrics, statistics=statistics))

  def mean_without_weights(found: Found) -> Found:
    # If the gradient in the weights is not wanted, only these are used.
    alphas, value, metrics = shards.mean((found.gradients.alphas, found.seen.loss, found.seen.metrics))
    return Found(found.gradients._replace(alphas=alphas), found.seen._replace(loss=value, metrics=metrics))

  def mean(wanted: Array, found: Found) -> Found:
    whole: Found = lax.cond(wanted, mean_of_all, mean_without_weights, found)
    return whole

  fine = None if precision == 'float32' else loss.precisely
  losses = Losses(loss, fine, weights_gradient_if, mean if shards.size > 1 else None)
  found_by = Passes(losses, lines, batches)
  zero = jnp.zeros((), jax.tree.leaves(state.alphas)[0].dtype)
  nothing = found_by.nothing(problem.weights, problem.alphas)
  outer = nothing
  if gated or not estimator.has_outer_loss:
    # Without a pass on this half, its carried values stay for its next batch.
    outer = nothing._replace(carried=state.carried.valid)
  number = jnp.int32(0)
  if gated and not weights_first and not estimator.single_level:
    number = jnp.where(moves, number, update)
  start = Carry(number, estimator.start(problem), _Rest(state, outer, nothing, zero, zero))

  def find(carry: Carry) -> Found:
    return found_by.find(carry.number, carry.memory, carry.rest.state.alphas, nothing)

  # With checks, or if α do not always move, the number of passes is only known when a step begins. On a GPU the host
  # then reads after every pass whether another follows, which takes microseconds. The alternatives are no better: the
  # host would read a conditional around the passes, too, and two loops would hold the gradient of the loss twice.
  memory, rest = program.run(find, start, counted=not estimator.checks and not gated)[1:]
  outer_norm = global_norm(memory.outer)
  term = global_norm(jax.tree.map(jnp.subtract, memory.estimate, memory.outer))
  of_alphas = {'alphas_gradient_norm': rest.alphas_gradient_norm} if passes else {}
  metrics = {
    **_named('train', rest.inner),
    **(_named('valid', rest.outer) if estimator.has_outer_loss else {}),
    'weights_gradient_norm': rest.weights_gradient_norm,
    'clipped': jnp.asarray(rest.weights_gradient_norm > optimizers.clip_norm, zero.dtype),
    **of_alphas,
    **({'second_order_fraction': over(term, outer_norm)} if estimator.has_outer_loss else {}),
    'learning_rate': jnp.asarray(optimizers.learning_rate(state.step), zero.dtype),
    **{name: getattr(memory, name) for name in estimator.reports},
  }
  if gated:
    metrics[UPDATES] = jnp.asarray(moves, zero.dtype)
  if estimator.checks:
    metrics['disagreement'] = memory.disagreement
    metrics['checks'] = jnp.asarray(check & moves if gated else check, zero.dtype)
  after = rest.state.replace(carried=Halves(rest.inner.carried, rest.outer.carried))
  return after, StepInfo(metrics, memory.estimate)


def watched(estimator: Estimator) -> tuple[str, ...]:
  """Names of the metrics that have to be finite; a search stops after a step at which one is not."""
  of_alphas = ('alphas_gradient_norm',) if estimator.passes else ()
  return 'train_loss', *(('valid_loss',) if estimator.has_outer_loss else ()), 'weights_gradient_norm', *of_alphas


def counted_by(name: str) -> str:
  """Name of the metric that is 1 at the steps at which the metric `name` is measured, and 0 at others.

  If a search does not have the returned metric, `name` is measured at every step.
  """
  if name == 'disagreement':
    return 'checks'
  of_alphas = name in ('alphas_gradient_norm', 'second_order_fraction', *Memory._fields) or name.startswith('valid_')
  return UPDATES if of_alphas else 'steps'


def _named(half: str, seen: Seen) -> dict[str, Array]:
  return {f'{half}_loss': seen.loss, **{f'{half}_{name}': value for name, value in seen.metrics.items()}}
