"""The loop of a run; whole runs that are stopped, killed and resumed are among the tests of searches."""

from darts_jax.runtime.loop import Sums


def test_what_only_some_steps_check_is_a_mean_over_these():
  sums = Sums({'steps': 2.0, 'seconds': 9.0, 'train_loss': 3.0, 'disagreement': 0.0, 'checks': 0.0})
  assert sums.means() == {'train_loss': 1.5}
  sums.add({'steps': 2.0, 'train_loss': 5.0, 'disagreement': 0.75, 'checks': 3.0})
  assert sums.means() == {'train_loss': 2.0, 'disagreement': 0.25}
