"""What searches and trainings build their optimisers of, in the published experiments' conventions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from darts_jax.hypergradient import global_norm

Array = jax.Array
PyTree = Any


def clip_by_global_norm(max_norm: float, constant: bool = False) -> optax.GradientTransformation:
  """Scales updates by min(1, max_norm / (‖g‖ + 1e-6)), the rule of the published experiments.

  Optax's own divides by ‖g‖ alone, which differs in the seventh digit.

  Args:
    max_norm: the largest norm that passes.
    constant: whether the factor is a constant to derivatives.
  """

  def clip(updates: PyTree, params: PyTree | None) -> PyTree:
    del params
    factor = jnp.minimum(1, max_norm / (global_norm(updates) + 1e-6))
    factor = lax.stop_gradient(factor) if constant else factor
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

  return optax.stateless(clip)


def decayed_sgd(
  learning_rate: Callable[[Array], Array], momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """SGD with L2 decay in the gradient, of all parameters alike, and momentum: m ← μm + g + λw, w ← w − ξm."""
  return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum))
