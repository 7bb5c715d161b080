"""Many steps in one call of a compiled function."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Metrics = dict[str, Array]
State = TypeVar('State')

#: Steps of a call at most, by the room for their metrics.
MAX_STEPS = 512


def take_steps(
  step: Callable[[State], tuple[State, Metrics]], state: State, num_steps: Array, watched: Sequence[str]
) -> tuple[State, dict[str, Any]]:
  """Takes up to `num_steps` steps, and `MAX_STEPS` at most; stops after one of which a watched metric is not finite.

  Args:
    step: `state → (state, metrics)`.
    state: before the first.
    num_steps: `[]` int32; traced, so that any number is the same program.
    watched: names of metrics.

  Returns:
    The new state; and sums of the steps' metrics, with `steps`, their number, `finite`, whether all watched were, and
    `each`, the metrics of every step, `[MAX_STEPS]`: sums of these do not depend on how steps are shared out to calls.
  """
  # Both asks below are answered by one trace.
  step = jax.jit(step)
  shapes = jax.eval_shape(step, state)[1]
  names = sorted(shapes)
  # One array, so that a step has to write only once.
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
