"""The search step: one update of α by the hypergradient, then one of the weights [DARTS Alg. 1].

A step is a pure function of state and data. All its gradients, those the estimator asks for and the one of the
weight update, are passes of one `lax.while_loop`: the gradient of the supernet's loss, by far the largest piece of the
program, stands in it once, which divides the time to compile and, for second-order estimators, the memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding

from darts_jax.data.batches import Examples
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
from darts_jax.nets.conv import Supernet
from darts_jax.nets.layers import running_average
from darts_jax.nets.materialise import materialise
from darts_jax.optimizers import clip_by_global_norm, decayed_sgd
from darts_jax.runtime.packed import Packed
from darts_jax.runtime.precision import precisely
from darts_jax.search.settings import Search
from darts_jax.search.state import SearchState
from darts_jax.search.strategy import Strategy

Array = jax.Array
PyTree = Any

#: What the random key of a step is folded with to relax α; the purposes of `darts_jax.search.searcher` follow.
RELAX = 0


class Halves(NamedTuple):
  """The training images, divided: `train` moves the weights and `valid` moves α."""

  train: Examples
  valid: Examples


class Measured(NamedTuple):
  """A batch's mean loss in nats and share of correct answers, `[]` each."""

  loss: Array
  accuracy: Array


def loss_and_aux(
  net: Supernet, weights: PyTree, mixing: Mapping[str, Array], images: Array, labels: Array
) -> tuple[Array, tuple[Array, PyTree]]:
  """Mean cross-entropy in training mode, with the accuracy and the moments for the running statistics."""
  logits, updated = net.apply({'params': weights}, images, mixing, train=True, mutable=['moments'])
  loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
  accuracy = jnp.mean(jnp.argmax(logits, -1) == labels, dtype=loss.dtype)
  return loss, (accuracy, updated['moments'])


@dataclasses.dataclass(frozen=True)
class BatchLoss:
  """The loss of a supernet as a function of weights, α and a batch.

  Attributes:
    net: the supernet.
    strategy: the relaxation of α.
    template: weights of the same structure.
    key: for the relaxation, one for all passes of a step.
    step: `[]` for the relaxation.
    precision: see `search_step`.
  """

  net: Supernet
  strategy: Strategy
  template: Packed
  key: Array
  step: Array
  precision: str = 'float32'

  @classmethod
  def at(cls, state: SearchState, net: Supernet, strategy: Strategy, precision: str) -> 'BatchLoss':
    """That of the step that a state is about to take."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), RELAX)
    return cls(net, strategy, state.weights, key, state.step, precision)

  def __call__(self, weights: Array, alphas: PyTree, batch: Examples) -> tuple[Array, tuple[Array, PyTree]]:
    """See `loss_and_aux`; weights are one vector."""
    mixing = self.strategy.relax(alphas, self.key, self.step)
    tree = self.template.replace(weights).tree
    # In float32 images keep their dtype, which is float64 where exactness is tested.
    images = batch.images if self.precision == 'float32' else batch.images.astype(self.precision)
    with precisely(self.precision):
      return loss_and_aux(self.net, tree, mixing, images, batch.labels)

  @property
  def precisely(self) -> 'BatchLoss':
    """The same in the dtype of the images."""
    return dataclasses.replace(self, precision='float32')


class StepInfo(NamedTuple):
  """What a step saw.

  Attributes:
    metrics: `[]` each: losses in nats and accuracies on both batches (`train_…` at the new α and the old weights,
      `valid_…` where the estimator differentiates the outer loss); norms of both gradients before clipping, and whether
      that of the weights was clipped; the learning rate; the norm of the hypergradient's second-order term as a
      fraction of that of ∇α L_val; and what the estimator reports.
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
  """

  weights: optax.GradientTransformation
  inner: optax.GradientTransformation
  alphas: optax.GradientTransformation
  learning_rate: Callable[[Array], Array]
  clip_norm: float
  weight_decay: float

  @classmethod
  def from_settings(cls, settings: Search, steps_per_epoch: int) -> 'Optimizers':
    """Cosine by epoch from the first to the final learning rate; SGD and Adam as the settings say [DARTS §A.1]."""
    rates, alphas = settings.weights, settings.alphas
    cosine = optax.cosine_decay_schedule(
      rates.learning_rate, settings.epochs, rates.final_learning_rate / rates.learning_rate
    )

    def learning_rate(step: Array) -> Array:
      # XLA would compute the cosine again in every kernel that reads it, which are hundreds in the exact estimator; and
      # each would call the C library, which makes a stored program overflow the stack that XLA loads it on.
      return materialise(cosine(step // steps_per_epoch))

    step = decayed_sgd(learning_rate, rates.momentum, rates.weight_decay)
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
        optax.adam(alphas.learning_rate, alphas.beta1, alphas.beta2),
      ),
      learning_rate,
      rates.clip_norm,
      rates.weight_decay,
    )

  def move_alphas(self, state: SearchState, gradient: PyTree) -> SearchState:
    """The state after an update of α."""
    updates, after = self.alphas.update(gradient, state.alphas_optimizer, state.alphas)
    return state.replace(alphas=optax.apply_updates(state.alphas, updates), alphas_optimizer=after)

  def move_weights(self, state: SearchState, gradient: Array) -> SearchState:
    """The state after an update of the weights, which ends a step; their gradient is one vector."""
    vector = state.weights.vector
    updates, after = self.weights.update(gradient, state.weights_optimizer, vector)
    weights = state.weights.replace(optax.apply_updates(vector, updates))
    return state.replace(step=state.step + 1, weights=weights, weights_optimizer=after)

  def inner_optimizer(self, state: PyTree) -> InnerOptimizer:
    """What a hypergradient unrolls, from a state of `weights`."""
    return from_optax(self.inner, state, self.weight_decay)


class _Carry(NamedTuple):
  """What the passes of a step hand on.

  Attributes:
    number: `[]` of the next pass.
    memory: the estimator's.
    state: as far as it has got.
    outer: loss and accuracy where the estimator differentiates the outer loss.
    inner: those of the weight update.
    weights_gradient_norm, alphas_gradient_norm: `[]` each.
  """

  number: Array
  memory: Memory
  state: SearchState
  outer: Measured
  inner: Measured
  weights_gradient_norm: Array
  alphas_gradient_norm: Array


def search_step(
  state: SearchState,
  train: Examples,
  valid: Examples,
  *,
  net: Supernet,
  strategy: Strategy,
  estimator: Estimator,
  optimizers: Optimizers,
  precision: str = 'float32',
  check: Array | bool = False,
  batch_sharding: NamedSharding | None = None,
) -> tuple[SearchState, StepInfo]:
  """One search step on two batches.

  Args:
    state: before the step.
    train: batch of the weights' half: normalised images `[B, H, W, C]`, labels `[B]`.
    valid: batch of the architecture's half, of the same size.
    net: the supernet.
    strategy: the relaxation of α.
    estimator: of the hypergradient.
    optimizers: of weights and α.
    precision: `'float32'`: all in the dtype of the images, products not rounded to less. `'bfloat16'`: images are
      bfloat16 throughout the network; weights, BN statistics, α, losses and gradients stay as they are, and so does
      all of a pass that asks for precision.
    check: `[]` whether the estimator makes its checks, too; may be traced, so that a step without them pays nothing.
    batch_sharding: how the stacked batches `[2, B, …]` lie on the devices.

  Returns:
    The state after the step, and what the step saw.
  """
  batches = jax.tree.map(lambda *arrays: jnp.stack(arrays), train, valid)
  if batch_sharding is not None:
    batches = lax.with_sharding_constraint(batches, batch_sharding)
  problem = Problem(optimizers.inner_optimizer(state.weights_optimizer), state.weights.vector, state.alphas)

  loss = BatchLoss.at(state, net, strategy, precision)

  def update_alphas(carry: _Carry) -> _Carry:
    gradient = carry.memory.estimate
    now = optimizers.move_alphas(carry.state, gradient)
    # The next pass is that of the weight update, at the weights of the state.
    memory = carry.memory._replace(at=now.weights.vector)
    return carry._replace(
      memory=memory, state=now, number=jnp.int32(len(passes)), alphas_gradient_norm=global_norm(gradient)
    )

  def weights_pass(carry: _Carry, gradients: Gradients, evaluation: Measured, moments: Array) -> _Carry:
    statistics = carry.state.statistics
    now = optimizers.move_weights(carry.state, gradients.weights)
    now = now.replace(statistics=statistics.replace(running_average(statistics.vector, moments)))
    return carry._replace(
      number=carry.number + 1, state=now, inner=evaluation, weights_gradient_norm=global_norm(gradients.weights)
    )

  def estimator_pass(
    each: Pass, last: bool, carry: _Carry, gradients: Gradients, evaluation: Measured, moments: Array
  ) -> _Carry:
    del moments
    carry = carry._replace(number=carry.number + 1, memory=each.advance(problem, carry.memory, gradients))
    if each.loss == 'valid':
      carry = carry._replace(outer=evaluation)
    if not last:
      return carry
    # The checks, if there are any, are made before α moves.
    checks_follow = (carry.number == len(estimator.passes)) & check & bool(estimator.checks)
    return lax.cond(checks_follow, lambda carry: carry, update_alphas, carry)

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

  def gradient_at(memory: Memory, alphas: PyTree, batch: Examples, number: Array) -> Any:
    rough, fine = (jax.value_and_grad(each, (0, 1), has_aux=True) for each in (loss, loss.precisely))
    arguments = memory.at, alphas, batch
    # Two gradients in the program only where they differ.
    if precision == 'float32' or not any(precise):
      return rough(*arguments)
    return lax.cond(jnp.array(precise)[number], fine, rough, *arguments)

  def product_at(memory: Memory, alphas: PyTree, batch: Examples) -> Gradients:
    def value(weights: Array, alphas: PyTree) -> Array:
      return loss(weights, alphas, batch)[0]

    wanted = any(each.weights for each in passes if each.derivative != 'gradient')
    return derivative(products[0], value, memory.at, alphas, memory.direction, wanted)

  def run_pass(carry: _Carry) -> _Carry:
    number = carry.number
    batch = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, half_of[number], keepdims=False), batches)
    arguments = carry.memory, carry.state.alphas, batch

    def gradient() -> tuple[Gradients, Measured, Array]:
      (value, (accuracy, moments)), gradients = gradient_at(*arguments, number)
      moments = Packed.pack(moments)
      assert moments.treedef == state.statistics.treedef, 'moments are to lie where the running statistics are'
      return Gradients(*gradients), Measured(value, accuracy), moments.vector

    def product() -> tuple[Gradients, Measured, Array]:
      return product_at(*arguments), nothing, jnp.zeros_like(state.statistics.vector)

    with weights_gradient_if(wants_weights[number]):
      if products:
        is_product = jnp.array([name != 'gradient' for name in derivatives])[number]
        found = lax.cond(is_product, product, gradient)
      else:
        found = gradient()
    return lax.switch(branch_of[number], branches, carry, *found)

  zero = jnp.zeros((), jax.tree.leaves(state.alphas)[0].dtype)
  nothing = Measured(zero, zero)
  carry = _Carry(jnp.int32(0), estimator.start(problem), state, nothing, nothing, zero, zero)
  carry = lax.while_loop(lambda carry: carry.number <= len(passes), run_pass, carry)
  memory = carry.memory
  outer = global_norm(memory.outer)
  term = global_norm(jax.tree.map(jnp.subtract, memory.estimate, memory.outer))
  metrics = {
    'train_loss': carry.inner.loss,
    'train_accuracy': carry.inner.accuracy,
    'valid_loss': carry.outer.loss,
    'valid_accuracy': carry.outer.accuracy,
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
  return carry.state, StepInfo(metrics, memory.estimate)
