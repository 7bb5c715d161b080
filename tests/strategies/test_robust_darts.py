"""When RobustDARTS stops or goes back, by curvatures that it is told; see test_parity.py for published decisions."""

import json

import jax
import numpy as np
import pytest

from darts_jax.search.searched import Searched
from darts_jax.spaces.darts import Darts as DartsSpace
from darts_jax.spaces.recurrent import Recurrent
from darts_jax.strategies.relaxed import Turn
from darts_jax.strategies.robust_darts import RobustDarts

SPACE = DartsSpace(1)
ARCH = {name: np.zeros((2, 8)) for name in SPACE.cells}


class Rows(DartsSpace):
  """A space of arrays."""

  name = 'rows'
  task = 'tabular'


class Told:
  """A probe that counts how often it is asked."""

  def __init__(self, value):
    self.value, self.asked = value, 0

  def curvature(self):
    self.asked += 1
    return self.value


def search(strategy, curvature_at, epochs=50):
  """What the strategy makes of epochs, up to its first decision that leads elsewhere; and the epochs it asked after."""
  searched, asked = Searched.start(strategy, SPACE), []
  for epoch in range(epochs):
    probe = Told(curvature_at(epoch))
    searched, turned = searched.turn(ARCH, epoch, probe)
    asked += [epoch] * probe.asked
    if turned.then != 'on':
      return epoch, turned, asked
  return None, turned, asked


def test_a_doubled_curvature_is_noticed_after_some_evaluations():
  """Of the means of five, (1, 1, 1, 2, 2) is the first that is more than 1.3 times (1, 1, 1, 1, 1)."""
  epoch, turned, asked = search(RobustDarts(), lambda epoch: 2.0 if epoch >= 24 else 1.0)
  assert (epoch, turned.then, turned.to_epoch) == (26, 'stop', 14)
  assert asked == list(range(0, 27, 2))
  assert turned.measures == {'curvature': 2.0, 'curvature_mean': pytest.approx(1.4)}
  assert turned.messages == (
    'epoch 27 has ended: the mean curvature is 1.4, and was 1; the search stops, with the architecture of epoch 15',
  )


@pytest.mark.parametrize(
  ('growth', 'expected'),
  # Eight epochs are four evaluations: 1.03⁴ = 1.126 and 1.07⁴ = 1.311; before epoch 22 there is nowhere to return to.
  [(1.0, None), (1.03, None), (1.0677, None), (1.07, 22), (0.9, None)],
)
def test_a_steady_growth_counts_by_its_rate(growth, expected):
  epoch, turned, _ = search(RobustDarts(), lambda epoch: growth ** (epoch / 2))
  assert epoch == expected
  assert turned.to_epoch == (None if expected is None else 10)


def test_the_first_means_are_of_fewer_evaluations():
  strategy = RobustDarts()
  assert strategy.means([1.0, 3.0]) == []
  assert strategy.means([1.0, 3.0, 5.0, 7.0, 9.0, 11.0]) == [3.0, 4.0, 5.0, 7.0]


def test_the_ridge_makes_small_curvatures_alike():
  assert search(RobustDarts(), lambda epoch: 1e-3 if epoch >= 24 else 1e-4)[0] == 24
  epoch, turned, _ = search(RobustDarts(ridge=1.0), lambda epoch: 1e-3 if epoch >= 24 else 1e-4, epochs=49)
  assert epoch is None
  assert turned.measures == {'curvature': pytest.approx(1.001), 'curvature_mean': pytest.approx(1.001)}


def test_curvatures_of_zero_are_no_division():
  assert search(RobustDarts(), lambda epoch: 0.0)[0] is None


def test_it_goes_back_with_one_weight_decay_after_the_other_and_then_on_to_the_end():
  strategy = RobustDarts(weight_decays=(3e-3, 3e-2))
  searched = Searched.start(strategy, SPACE)
  epoch, went, decays = 0, [], []
  while epoch < 50:
    decays.append(searched.weight_decay(3e-4))
    # It rises in the first round, in the second, and most in the third.
    rounds = searched.memory['raised']
    curvature = (1.0, 1.0, 1.0)[rounds] if epoch < (24, 30, 12)[rounds] else (2.0, 2.0, 50.0)[rounds]
    before = searched
    searched, turned = searched.turn(ARCH, epoch, Told(curvature))
    # A run that was killed comes to the same.
    memory = json.loads(json.dumps(before.memory))
    assert strategy.turn(memory, ARCH, SPACE, epoch, Told(curvature)) == turned
    if turned.then == 'back':
      went.append((epoch, turned.to_epoch))
      assert turned.to_epoch in before.may_return_to(epoch - 1)
      assert [each for each, _ in turned.memory['curvature']] == list(range(0, turned.to_epoch + 1, 2))
      epoch = turned.to_epoch
    epoch += 1
  assert went == [(26, 14), (32, 20)]
  assert list(dict.fromkeys(decays)) == [3e-4, 3e-3, 3e-2]
  assert searched.may_return_to(49) == ()
  # Evaluations go on, for the record.
  assert [each for each, _ in searched.memory['curvature']] == list(range(0, 50, 2))


def test_epochs_that_may_be_returned_to():
  strategy = RobustDarts()
  memory = strategy.start()
  assert strategy.may_return_to(memory, 8) == ()
  assert strategy.may_return_to(memory, 10) == (10,)
  # The next evaluation, after epoch 24, may return to epoch 12.
  assert strategy.may_return_to(memory, 22) == strategy.may_return_to(memory, 23) == (12, 14, 16, 18, 20, 22)
  # The very first epoch counts, if the settings say so.
  searched = Searched.start(RobustDarts(first_epoch=0), SPACE)
  assert [searched.may_return_to(epoch) for epoch in (-1, 0, 1, 2)] == [(), (0,), (0,), (0, 2)]


def test_without_weight_decays_that_of_the_config_is_a_constant():
  assert Searched.start(RobustDarts(), SPACE).weight_decay(3e-4) is None


def test_drop_path_grows_linearly_over_the_epochs_to_its_maximum():
  """By p·e/(E − 1), e the epoch counted from 0; the weights are those of DARTS."""
  ends = (4, 8, 12, 14, 18)
  searched, plain = (Searched.start(each, SPACE, ends) for each in (RobustDarts(drop_path=0.6), RobustDarts()))
  arch = searched.init(jax.random.key(0))
  for step in range(18):
    epoch = sum(step >= end for end in ends)
    expected = plain.mix(arch, step, None, 0)
    for name, each in searched.mix(arch, step, None, 0).items():
      np.testing.assert_allclose(each.drop, np.full(2, 0.6 * epoch / 4), rtol=1e-6)
      np.testing.assert_array_equal(each.operations, expected[name].operations)
      assert expected[name].drop is None
  assert (searched.drops, plain.drops) == (True, False)
  # There is nothing to grow in a single epoch.
  alone = Searched.start(RobustDarts(drop_path=0.6), SPACE, (4,)).mix(arch, 0, None, 0)
  assert not np.asarray(alone['normal'].drop).any()


@pytest.mark.parametrize(('space', 'name'), [(Recurrent(), 'recurrent'), (Rows(1), 'rows')])
def test_networks_without_drop_path_are_one_line(space, name):
  with pytest.raises(
    ValueError, match=f'^config.strategy.drop_path: 0.2 is not allowed; networks of the space {name} '
  ):
    Searched.start(RobustDarts(drop_path=0.2), space)


@pytest.mark.parametrize(
  ('turn', 'message'),
  [
    (Turn(0, then='back'), "config.strategy: told has nothing that follows epoch 6: then is 'back', and to_epoch None"),
    (Turn(0, then='wait'), "config.strategy: told has nothing that follows epoch 6: then is 'wait'"),
    (Turn(0, then='back', to_epoch=2), 'config.strategy: told returns to epoch 3 after epoch 6, whose checkpoint is'),
    (Turn(0, then='stop', to_epoch=7), 'config.strategy: told returns to epoch 8 after epoch 6, whose checkpoint is'),
  ],
)
def test_turns_that_lead_nowhere_are_one_line(turn, message):
  class Sets(RobustDarts):
    name = 'told'

    def turn(self, memory, arch, space, epoch, probe):
      return turn

    def may_return_to(self, memory, epoch):
      return (3, 4)

  searched = Searched.start(Sets(), SPACE)
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    searched.turn(ARCH, 5, Told(0.0))
