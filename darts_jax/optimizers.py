"""Parts of the optimisers of searches and trainings, in the conventions of the published experiments."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from jax import lax

from darts_jax.hypergradient import global_norm

Array = jax.Array
PyTree = Any


def clip_by_global_norm(max_norm: float, constant: bool = False) -> optax.GradientTransformation:
  """Scales updates by min(1, max_norm / (‖g‖ + 1e-6)), the rule of the published experiments.

  `optax.clip_by_global_norm` divides by ‖g‖ alone, which differs in the seventh digit.

  Args:
    max_norm: the norm above which updates are scaled.
    constant: whether derivatives treat the factor as a constant.
  """

  def clip(updates: PyTree, params: PyTree | None) -> PyTree:
    del params
    factor = jnp.minimum(1, max_norm / (global_norm(updates) + 1e-6))
    factor = lax.stop_gradient(factor) if constant else factor
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

  return optax.stateless(clip)


def decayed_sgd(
  learning_rate: Callable[[Array], Array],
  momentum: float | None,
  weight_decay: float | Array,
  nesterov: bool = False,
) -> optax.GradientTransformation:
  """SGD with momentum and L2 decay in the gradient, for all parameters: m ← μm + g + λw, w ← w − ξm.

  With Nesterov's momentum, w ← w − ξ(μm + g + λw) with the new m.

  Args:
    learning_rate: ξ as a function of the steps taken, `[]` int32.
    momentum: μ; None for no momentum.
    weight_decay: λ.
    nesterov: whether the momentum is Nesterov's.
  """
  step = optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov)
  return optax.chain(optax.add_decayed_weights(weight_decay), step)


def scaled_to_batch(learning_rate: float, batch_size: int, reference: int) -> float:
  """The learning rate times `batch_size / reference` [Goyal et al. 2017]; unchanged if `reference` is 0."""
  return learning_rate * batch_size / reference if reference else learning_rate


def warmed_up(learning_rate: Callable[[Array], Array], steps: float) -> Callable[[Array], Array]:
  """Multiplies a learning rate, a function of the steps taken, by a factor that grows linearly to 1 over `steps`."""
  if not steps:
    return learning_rate
  return lambda step: learning_rate(step) * jnp.minimum(1.0, (step + 1) / steps)


class Average(NamedTuple):
  """The mean of an optimiser's iterates, all of equal weight [Polyak & Juditsky 1992].

  Attributes:
    num_iterates: `[]` int32, number of iterates so far.
    mean: `[P]`, their mean; zeros before the first.
  """

  num_iterates: Array
  mean: Array

  @classmethod
  def empty(cls, weights: Array) -> Self:
    """The average of no iterates, for a weight vector of this shape and dtype."""
    return cls(jnp.zeros((), jnp.int32), jnp.zeros_like(weights))

  def add(self, iterate: Array, counts: Array) -> Self:
    """Adds an iterate w: m ← m + (w − m) / n.

    Args:
      iterate: `[P]`, w.
      counts: `[]` bool, may be traced; where it is false, the average stays as it is.
    """
    number = self.num_iterates + counts.astype(jnp.int32)
    # Before the first counted iterate the quotient is not used, but must not be 0 / 0.
    mean = self.mean + (iterate - self.mean) / jnp.maximum(number, 1).astype(iterate.dtype)
    return self._replace(num_iterates=number, mean=jnp.where(counts, mean, self.mean))


def stagnates(losses: Sequence[float], loss: float, interval: int) -> bool:
  """Whether averaging begins, by the non-monotone criterion [Merity et al. 2017, arXiv 1708.01009, §4].

  Args:
    losses: validation losses so far, without the latest.
    loss: the latest validation loss.
    interval: n; the latest loss is compared with the best of `losses` without its last n entries.
  """
  return len(losses) > interval and loss > min(losses[: len(losses) - interval])
