"""Many steps in one call of a compiled function."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Metrics = dict[str, Array]
State = TypeVar('State')

#: Largest number of steps of a call: the size of the arrays of metrics.
MAX_STEPS = 512


def take_steps(
  step: Callable[[State], tuple[State, Metrics]], state: State, num_steps: Array, watched: Sequence[str]
) -> tuple[State, dict[str, Any]]:
  """Takes up to `num_steps` steps, at most `MAX_STEPS`; stops after a step with a watched metric that is not finite.

  Args:
    step: function `state → (state, metrics)`.
    state: state before the first step.
    num_steps: `[]` int32; traced, so that one program serves any number.
    watched: names of the metrics that have to be finite.

  Returns:
    The new state; and sums of the metrics over the steps, with `steps`, the number of steps, `finite`, whether all
    watched metrics were finite, and `each`, the metrics of every step, `[MAX_STEPS]`. Sums of the latter over steps do
    not depend on how steps are divided into calls.
  """
  # With jit, the two uses below share one trace.
  step = jax.jit(step)
  shapes = jax.eval_shape(step, state)[1]
  names = sorted(shapes)
  # One array for all metrics, so that a step writes only once.
  found = jnp.zeros((MAX_STEPS, len(names)), jnp.result_type(*(shapes[name].dtype for name in names)))
  limit = jnp.minimum(num_steps, MAX_STEPS)

  def unfinished(carry: tuple[State, Array, Array, Array]) -> Array:
    return (carry[2] < limit) & carry[3]

  def body(carry: tuple[State, Array, Array, Array]) -> tuple[State, Array, Array, Array]:
    after, metrics = step(carry[0])
    finite = jnp.all(jnp.array([jnp.isfinite(metrics[name]) for name in watched]))
    row = jnp.stack([metrics[name].astype(carry[1].dtype) for name in names])
    return after, lax.dynamic_update_index_in_dim(carry[1], row, carry[2], 0), carry[2] + 1, finite

  start: Any = (state, found, jnp.zeros((), jnp.int32), jnp.array(True))
  state, found, taken, finite = lax.while_loop(unfinished, body, start)
  totals = dict(zip(names, jnp.sum(found, axis=0), strict=True))
  each = {name: found[:, i] for i, name in enumerate(names)}
  return state, {**totals, 'steps': taken, 'finite': finite, 'each': each}
