"""Averaged SGD and its trigger, against sequences computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.optimizers import Average, stagnates


def test_the_average_is_the_mean_of_the_iterates_that_count(x64):
  iterates = jnp.array([[9.0, 9.0], [1.0, 2.0], [4.0, 0.0], [1.0, 7.0], [2.0, -1.0]])
  counts = jnp.array([False, True, True, True, True])
  means = []
  average = Average.empty(iterates[0])
  add = jax.jit(Average.add)
  for iterate, one in zip(iterates, counts, strict=True):
    average = add(average, iterate, one)
    means.append(np.asarray(average.mean))
  # Nothing; 1; (1 + 4) / 2; (1 + 4 + 1) / 3; (1 + 4 + 1 + 2) / 4; and so on.
  np.testing.assert_allclose(means, [[0, 0], [1, 2], [2.5, 1], [2, 3], [2, 2]], rtol=0, atol=1e-15)
  assert int(average.num_iterates) == 4


def test_the_first_iterate_is_its_own_average_whatever_it_is():
  iterate = jnp.array([1e-30, 3.3333333, -1e30], jnp.float32)
  average = Average.empty(iterate).add(iterate, jnp.array(True))
  np.testing.assert_array_equal(average.mean, iterate)


@pytest.mark.parametrize(
  ('losses', 'interval', 'begins'),
  [
    # The loss of epoch 3 is compared with that of epoch 0 alone, the best of all but the last two.
    ([5.0, 4.0, 3.0, 3.5, 4.5, 3.0], 2, 4),
    # However bad, nothing is old enough before epoch 3.
    ([1.0, 2.0, 9.0, 9.0], 2, 3),
    ([1.0, 2.0, 9.0], 2, None),
    # Equal is not worse.
    ([3.0, 3.0, 3.0, 3.0, 3.0], 1, None),
    ([3.0, 2.0, 2.5, 2.5, 2.0], 1, 3),
    # Without an interval it is the best of all before.
    ([3.0, 2.0, 2.5], 0, 2),
  ],
)
def test_averaging_begins_when_a_loss_is_worse_than_the_best_that_is_old_enough(losses, interval, begins):
  found = [epoch for epoch, loss in enumerate(losses) if stagnates(losses[:epoch], loss, interval)]
  assert (found[0] if found else None) == begins
