"""What all sampled strategies have in common."""

import math

import numpy as np
import pytest

from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.strategies import SAMPLED
from darts_jax.strategies.sampled import Key, Outcome, Proposal, better, failed

SPACE = NasBench201()


def played(strategy, seed, number):
  """The state after outcomes whose rewards are architectures' numbers, told as they come."""
  state = strategy.init(SPACE, Key(seed))
  proposals = []
  for i in range(number):
    state, proposal = strategy.ask(state, Key(seed, spawn_key=(i,)))
    proposals.append(proposal)
    state = strategy.tell(state, Outcome(proposal, 'done', float(SPACE.index(proposal.arch))))
  return state, proposals


@pytest.fixture(params=SAMPLED)
def strategy(request):
  fields = {'population': 6, 'sample_size': 3} if request.param == 'regularized_evolution' else {}
  return SAMPLED[request.param](**fields)


def test_a_strategy_is_a_function_of_its_keys(strategy):
  state, proposals = played(strategy, 1, 20)
  again, repeated = played(strategy, 1, 20)
  assert (state, proposals) == (again, repeated)
  assert [proposal.number for proposal in proposals] == list(range(20))
  _, others = played(strategy, 2, 20)
  assert sum(one.arch == other.arch for one, other in zip(proposals, others, strict=True)) < 3
  # One key, one proposal, whatever was asked with it before.
  assert strategy.ask(state, Key(7)) == strategy.ask(state, Key(7))
  assert strategy.sample(state, Key(7)) == strategy.sample(state, Key(7))
  assert played(strategy, 1, 20)[0] == state


def test_the_best_is_the_best_of_all_that_was_told(strategy):
  state, proposals = played(strategy, 3, 40)
  expected = max(proposals, key=lambda proposal: SPACE.index(proposal.arch)).arch
  assert strategy.best(state) == expected
  assert strategy.front(state) == (expected,)


def test_without_a_success_nothing_is_best(strategy):
  state = strategy.init(SPACE, Key(0))
  state, proposal = strategy.ask(state, Key(0))
  state = strategy.tell(state, failed(proposal, 'out of memory'))
  with pytest.raises(ValueError, match='^config.strategy: no evaluation has succeeded, so there is no best'):
    strategy.best(state)


def test_of_equal_rewards_the_earlier_proposal_is_better_and_failures_are_not():
  outcomes = [Outcome(Proposal(number, None), 'done', reward) for number, reward in enumerate((1.0, 3.0, 3.0, 2.0))]
  outcomes += [failed(Proposal(4, None), ''), Outcome(Proposal(5, None), 'stopped', 2.5)]
  assert outcomes[4].reward == -math.inf
  for seed in range(20):
    best = None
    for place in np.random.default_rng(seed).permutation(6):
      best = better(best, outcomes[place])
    assert best is outcomes[1]
  assert better(None, outcomes[4]) is None
  assert better(outcomes[0], outcomes[5]) is outcomes[5]
