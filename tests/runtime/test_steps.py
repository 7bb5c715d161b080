import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.runtime import steps


def step(state):
  """Step t, counted from 0, has a loss of 1 / (t + 1)⁷, and is not finite from 600 on."""
  loss = jnp.where(state < 600, 1 / (1.0 + state) ** 7, jnp.nan)
  return state + 1, {'loss': loss, 'checks': state % 2}


def test_metrics_of_every_step_do_not_depend_on_calls():
  run = jax.jit(lambda state, count: steps.take_steps(step, state, count, ('loss',)))
  state, found = run(jnp.int32(0), jnp.int32(7))
  assert (int(state), int(found['steps']), bool(found['finite'])) == (7, 7, True)
  np.testing.assert_allclose(found['loss'], sum(1 / t**7 for t in range(1, 8)), rtol=1e-6)
  assert float(found['checks']) == 3.0
  rows = []
  state = jnp.int32(0)
  for count in (1, 4, 2):
    state, part = run(state, jnp.int32(count))
    rows.append(part['each']['loss'][:count])
  np.testing.assert_array_equal(np.concatenate(rows), found['each']['loss'][:7])
  # There is room for so many at once; a call ends with the step that is not finite.
  state, found = run(jnp.int32(0), jnp.int32(10**6))
  assert (int(state), int(found['steps'])) == (steps.MAX_STEPS, steps.MAX_STEPS)
  state, found = run(state, jnp.int32(10**6))
  assert (int(state), bool(found['finite'])) == (601, False)
