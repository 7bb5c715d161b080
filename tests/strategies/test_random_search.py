import itertools

from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.strategies.random_search import RandomSearch
from darts_jax.strategies.sampled import Key, Outcome

SPACE = NasBench201()


def test_neither_proposals_nor_the_best_depend_on_when_outcomes_are_told():
  strategy = RandomSearch()
  state = strategy.init(SPACE, Key(0))
  proposals = []
  for i in range(4):
    state, proposal = strategy.ask(state, Key(0, spawn_key=(i,)))
    proposals.append(proposal)
  outcomes = [
    Outcome(proposal, 'done', reward) for proposal, reward in zip(proposals, (0.5, 0.7, 0.7, 0.1), strict=True)
  ]
  for order in itertools.permutations(outcomes):
    found = state
    for outcome in order:
      found = strategy.tell(found, outcome)
    assert strategy.best(found) == proposals[1].arch
    _, proposal = strategy.ask(found, Key(9))
    # The space says what is uniform.
    assert proposal.arch == strategy.sample(state, Key(9))
    assert (proposal.number, proposal.parent) == (4, None)
