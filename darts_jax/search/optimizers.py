"""The two optimisers of a search: one of the weights, one of α."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from darts_jax.hypergradient import InnerOptimizer, from_optax
from darts_jax.optimizers import clip_by_global_norm, decayed_sgd, scaled_to_batch, warmed_up
from darts_jax.runtime.materialise import materialise
from darts_jax.search.settings import Search
from darts_jax.search.state import SearchState

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Optimizers:
  """The two optimisers of a search; `weights` and `inner` update the weights as one vector (see `Packed`).

  Attributes:
    weights: optimiser of the weights: clipping by global norm, then SGD.
    inner: SGD whose update is the virtual step of the hypergradient, with the clipping and momentum of
      `config.hypergradient`; it takes the optimiser state of `weights`.
    alphas: optimiser of α: Adam with L2 decay in the gradient.
    learning_rate: learning rate of the weights, a function of the step.
    clip_norm: largest norm of the weights' gradient.
    weight_decay: decay of the weights, a number or `[]`.
    clip_outer: whether the outer loss's gradient in the weights is clipped, too, before the hypergradient uses it.
  """

  weights: optax.GradientTransformation
  inner: optax.GradientTransformation
  alphas: optax.GradientTransformation
  learning_rate: Callable[[Array], Array]
  clip_norm: float
  weight_decay: Any
  clip_outer: bool = False

  @classmethod
  def from_settings(
    cls, settings: Search, epoch_ends: Sequence[int], weight_decay: Array | None = None
  ) -> 'Optimizers':
    """SGD with a cosine learning rate by epoch, and Adam, as the settings say [DARTS §A.1].

    Learning rates are scaled to the batch size and warmed up if the settings say so.

    Args:
      settings: the settings of the search.
      epoch_ends: steps taken by the end of every epoch.
      weight_decay: `[]`, decay of the weights; None for `settings.weights.weight_decay`.
    """
    rates, alphas = settings.weights, settings.alphas
    first, alphas_rate = (
      scaled_to_batch(group.learning_rate, settings.batch_size, group.reference_batch_size) for group in (rates, alphas)
    )
    cosine = optax.cosine_decay_schedule(first, settings.epochs, rates.final_learning_rate / rates.learning_rate)

    def steps(epochs: float) -> float:
      return float(np.interp(epochs, range(len(epoch_ends) + 1), [0, *epoch_ends]))

    weights_warmup = steps(rates.warmup_epochs)
    # Adam's step count is the number of updates of α.
    alphas_warmup = (steps(alphas.from_epoch + alphas.warmup_epochs) - steps(alphas.from_epoch)) / alphas.every
    warmed = warmed_up(lambda step: cosine(jnp.sum(step >= np.array(epoch_ends), dtype=jnp.int32)), weights_warmup)

    def learning_rate(step: Array) -> Array:
      # XLA would recompute the cosine in every kernel that reads it, hundreds of them in the exact estimator. Each
      # would call the C library, and XLA overflows its stack when it loads such a program from the compilation cache.
      return materialise(warmed(step))

    alphas_schedule = warmed_up(lambda step: jnp.float32(alphas_rate), alphas_warmup) if alphas_warmup else alphas_rate
    momentum = rates.momentum or None
    decay = rates.weight_decay if weight_decay is None else weight_decay
    step = decayed_sgd(learning_rate, momentum, decay, rates.nesterov)
    heavy_ball = settings.hypergradient.virtual_step == 'heavy_ball'
    virtual = decayed_sgd(learning_rate, momentum, decay) if heavy_ball else step
    clip = clip_by_global_norm(rates.clip_norm)
    inner_clip = {
      'none': optax.stateless(lambda updates, params: updates),
      'differentiated': clip,
      'constant': clip_by_global_norm(rates.clip_norm, constant=True),
    }[settings.hypergradient.clipping]
    return cls(
      optax.chain(clip, step),
      optax.chain(inner_clip, virtual),
      optax.chain(
        optax.add_decayed_weights(alphas.weight_decay),
        optax.adam(alphas_schedule, alphas.beta1, alphas.beta2),
      ),
      learning_rate,
      rates.clip_norm,
      decay,
      settings.hypergradient.clip_outer,
    )

  def scaled(self, factor: Array) -> 'Optimizers':
    """The optimisers with the learning rate of the weights times a factor, which may be traced."""

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
    """The state after an update of α by a gradient."""
    updates, optimizer = self.alphas.update(gradient, state.alphas_optimizer, state.alphas)
    return state.replace(alphas=optax.apply_updates(state.alphas, updates), alphas_optimizer=optimizer)

  def move_weights(self, state: SearchState, gradient: Array, active: Array | None = None) -> SearchState:
    """The state after an update of the weights, with `step` increased by one.

    Args:
      state: the state before the update.
      gradient: `[P]`, gradient in the weights.
      active: `[P]` bool, the weights that move; None for all. The others and their momentum stay as they are: with a
        gradient of zero, decay and momentum would still move them. The virtual step moves all weights, since no loss
        depends on the inactive ones while the mixing weights are the same.
    """
    vector, before = state.weights.vector, state.weights_optimizer
    updates, after = self.weights.update(gradient, before, vector)
    moved = optax.apply_updates(vector, updates)
    if active is not None:
      chex.assert_equal_shape([active, vector])

      def gated(new: Array, old: Array) -> Array:
        return jnp.where(active, new, old) if new.shape == vector.shape else new

      moved, after = jax.tree.map(gated, (moved, after), (vector, before))
    return state.replace(step=state.step + 1, weights=state.weights.replace(moved), weights_optimizer=after)

  def inner_optimizer(self, state: PyTree) -> InnerOptimizer:
    """The inner optimiser that a hypergradient unrolls, started from a state of the optimiser `weights`."""
    inner = from_optax(self.inner, state, self.weight_decay)
    if not self.clip_outer:
      return inner
    clip = clip_by_global_norm(self.clip_norm)
    return dataclasses.replace(inner, limit=lambda gradient: clip.update(gradient, optax.EmptyState())[0])
