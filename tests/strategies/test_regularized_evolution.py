"""Regularised evolution against sequences played by hand, frequencies, and known results of a toy."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
from scipy import stats

from darts_jax.settings import build
from darts_jax.spaces.base import Space
from darts_jax.strategies.regularized_evolution import RegularizedEvolution
from darts_jax.strategies.sampled import Key, Outcome, failed


@dataclasses.dataclass(frozen=True)
class Line(Space[int]):
  """Whole numbers; the only neighbour of one is 1000 more, so that a child says who its parent was."""

  name: ClassVar[str] = 'line'

  def sample(self, rng):
    return int(rng.integers(1000))

  def neighbours(self, arch):
    yield arch + 1000

  def key(self, arch):
    return str(arch)

  def to_json(self, arch):
    return arch

  def from_json(self, values):
    return values


class Drawing(RegularizedEvolution):
  """Draws for a tournament more often than there are members, so that the best of them is drawn for certain."""

  def __post_init__(self):
    pass


class Game:
  """A search whose outcomes are told by hand."""

  def __init__(self, population, sample_size, space=Line()):
    self.strategy = (Drawing if sample_size > population else RegularizedEvolution)(population, sample_size)
    self.state = self.strategy.init(space, Key(0))
    self.proposals = []

  def ask(self):
    self.state, proposal = self.strategy.ask(self.state, Key(1, spawn_key=(len(self.proposals),)))
    if proposal is not None:
      self.proposals.append(proposal)
    return proposal

  def tell(self, number, reward):
    proposal = self.proposals[number]
    outcome = failed(proposal, 'why') if reward is None else Outcome(proposal, 'done', reward)
    self.state = self.strategy.tell(self.state, outcome)

  def fill(self, number):
    """Members 0, 1, …, the later the better."""
    for each in range(number):
      self.ask()
      self.tell(each, each / 10)

  @property
  def living(self):
    return [outcome.proposal.number for outcome in self.state.population]


def test_the_oldest_dies_even_if_it_is_the_best():
  # With 50 draws, the best of three wins but for a chance of 2 · (2/3)^50 < 10⁻⁸.
  game = Game(3, 50)
  for number, reward in enumerate((0.9, 0.1, 0.5)):
    assert game.ask().parent is None
    game.tell(number, reward)
  assert game.living == [0, 1, 2]
  first, _, third = (proposal.arch for proposal in game.proposals)
  assert game.ask()[:3] == (3, first + 1000, 0)
  game.tell(3, 0.2)
  assert game.living == [1, 2, 3]
  # 0.9 is dead, and 0.5 the best that lives.
  assert game.ask()[:3] == (4, third + 1000, 2)
  game.tell(4, 0.3)
  assert game.living == [2, 3, 4]
  assert game.ask().parent == 2
  game.tell(5, 0.4)
  assert game.living == [3, 4, 5]
  assert game.ask()[:3] == (6, third + 2000, 5)
  assert game.strategy.best(game.state) == first


def test_age_is_the_order_in_which_outcomes_are_told():
  game = Game(2, 50)
  for _ in range(2):
    game.ask()
  # Nothing can be a parent yet, and waiting changes nothing.
  before = game.state
  assert game.ask() is None
  assert game.state == before
  game.tell(1, 0.9)
  assert game.ask().parent == game.ask().parent == 1
  game.tell(3, 0.1)
  game.tell(0, 0.2)
  assert game.living == [3, 0]
  game.tell(2, 0.0)
  assert game.living == [0, 2]


def test_failures_are_not_members_and_are_replaced_at_the_beginning():
  game = Game(2, 50)
  for number, reward in enumerate((None, 0.5, None, None)):
    assert game.ask().parent is None
    game.tell(number, reward)
  assert game.living == [1]
  assert game.ask().parent is None
  game.tell(4, 0.6)
  assert game.ask().parent == 4
  game.tell(5, None)
  assert game.living == [1, 4]
  # One that was ended early has a reward.
  game.ask()
  game.state = game.strategy.tell(game.state, Outcome(game.proposals[6], 'stopped', 0.7))
  assert game.living == [4, 6]


def test_a_tournament_of_one_is_a_uniform_draw():
  game = Game(5, 1)
  game.fill(5)
  parents = [game.ask().parent for _ in range(2000)]
  assert stats.chisquare(np.bincount(parents, minlength=5)).pvalue > 1e-3
  drawn = [game.strategy.sample(game.state, Key(2, spawn_key=(i,))) for i in range(2000)]
  counts = [drawn.count(proposal.arch + 1000) for proposal in game.proposals[:5]]
  assert sum(counts) == 2000
  assert stats.chisquare(counts).pvalue > 1e-3


def test_the_best_of_three_drawn_with_replacement_wins():
  game = Game(5, 3)
  game.fill(5)
  parents = [game.ask().parent for _ in range(3000)]
  # Member k wins if no draw is above it and not all are below it.
  expected = [((k + 1) ** 3 - k**3) / 125 for k in range(5)]
  assert stats.chisquare(np.bincount(parents, minlength=5), 3000 * np.array(expected)).pvalue > 1e-3


def test_equal_architectures_are_members_of_their_own():
  game = Game(3, 2)
  for number in range(3):
    game.ask()
    game.proposals[number] = game.proposals[number]._replace(arch=7)
    game.tell(number, 0.5)
  assert [outcome.proposal.arch for outcome in game.state.population] == [7, 7, 7]
  assert game.ask().arch == 1007


@dataclasses.dataclass(frozen=True)
class Bits(Line):
  """A hundred bits; a neighbour has another one."""

  def sample(self, rng):
    return tuple(rng.integers(2, size=100).tolist())

  def mutate(self, arch, rng):
    place = int(rng.integers(100))
    return (*arch[:place], 1 - arch[place], *arch[place + 1 :])


def test_noisy_rewards_are_withstood_as_well_as_they_are_known_to_be():
  """The fraction of ones, with noise of 0.05; 0.713 ± 0.036 of 30 runs are known, and 0.667 if the worst dies."""
  found = []
  for seed in range(10):
    game, noise = Game(100, 10, Bits()), np.random.default_rng(seed)
    for number in range(1000):
      game.state, proposal = game.strategy.ask(game.state, Key(seed, spawn_key=(number,)))
      reward = np.mean(proposal.arch) + 0.05 * noise.standard_normal()
      game.state = game.strategy.tell(game.state, Outcome(proposal, 'done', float(reward)))
    found.append(np.mean(game.strategy.best(game.state)))
  assert abs(np.mean(found) - 0.713) < 3 * np.sqrt(np.var(found, ddof=1) / 10 + 0.036**2 / 30)


@pytest.mark.parametrize('fields', [{'population': 0}, {'sample_size': 0}])
def test_numbers_are_checked(fields):
  [name] = fields
  with pytest.raises(ValueError, match=f'^config.strategy.{name}: 0 is not allowed; it has to be ≥ 1'):
    build(RegularizedEvolution, fields, 'config.strategy')
  with pytest.raises(ValueError, match=f'^config.{name}: 0 is not allowed; it has to be ≥ 1'):
    RegularizedEvolution(**fields)


def test_tournaments_are_no_larger_than_the_population():
  with pytest.raises(ValueError, match="^config.population: 'a' is not of type int$"):
    RegularizedEvolution(population='a')
  assert RegularizedEvolution(population=5, sample_size=5).sample_size == 5
  message = 'sample_size: 6 is not allowed; it has to be ≤ '
  with pytest.raises(ValueError, match=f'^config.{message}config.population, 5$'):
    RegularizedEvolution(population=5, sample_size=6)
  with pytest.raises(ValueError, match=f'^config.strategy.{message}config.strategy.population, 5$'):
    build(RegularizedEvolution, {'population': 5, 'sample_size': 6}, 'config.strategy')
