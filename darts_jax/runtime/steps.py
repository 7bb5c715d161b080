"""Many steps in one call of a compiled function."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Metrics = dict[str, Array]
State = TypeVar('State')


def take_steps(
  step: Callable[[State], tuple[State, Metrics]], state: State, num_steps: Array, watched: Sequence[str]
) -> tuple[State, Metrics]:
  """Takes up to `num_steps` steps; stops after one of which a watched metric is not finite.

  Args:
    step: `state → (state, metrics)`.
    state: before the first.
    num_steps: `[]` int32; traced, so that any number is the same program.
    watched: names of metrics.

  Returns:
    The new state; and sums of the steps' metrics, with `steps`, their number, and `finite`, whether all watched were.
  """
  # Both asks below are answered by one trace.
  step = jax.jit(step)
  shapes = jax.eval_shape(step, state)[1]
  totals = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def unfinished(carry: tuple[State, Metrics, Array, Array]) -> Array:
    return (carry[2] < num_steps) & carry[3]

  def body(carry: tuple[State, Metrics, Array, Array]) -> tuple[State, Metrics, Array, Array]:
    after, metrics = step(carry[0])
    finite = jnp.all(jnp.array([jnp.isfinite(metrics[name]) for name in watched]))
    return after, jax.tree.map(jnp.add, carry[1], metrics), carry[2] + 1, finite

  start: Any = (state, totals, jnp.zeros((), jnp.int32), jnp.array(True))
  state, totals, taken, finite = lax.while_loop(unfinished, body, start)
  return state, {**totals, 'steps': taken, 'finite': finite}
