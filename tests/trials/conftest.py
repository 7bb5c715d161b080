"""Evaluators and executors whose order is known."""

import dataclasses
from concurrent import futures

import numpy as np
import pytest

from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.strategies.sampled import Outcome, failed
from darts_jax.trials import Evaluator

SPACE = NasBench201()


@dataclasses.dataclass(frozen=True)
class Numbers(Evaluator):
  """The reward is the architecture's number, scrambled; every seventh fails, and every fifth is ended early."""

  def __call__(self, proposal):
    number = SPACE.index(proposal.arch) * 7919 % 15_625
    if number % 7 == 0:
      return failed(proposal, f'{number} is a multiple of 7', 0.25)
    status = 'done' if number % 5 else 'stopped'
    measures = {'number': float(number), 'none': float('nan')}
    return Outcome(proposal, status, number / 15_625, measures, {'test': -1.0}, (0.5, number / 10), 0.5, f'{number}')


class Shuffled(futures.Executor):
  """Ends what was submitted in a random order, one evaluation whenever somebody waits for some."""

  def __init__(self, seed):
    self.rng = np.random.default_rng(seed)
    self.queue = []
    self.most = 0
    self.ended = []

  def submit(self, function, /, *args):
    self.queue.append((futures.Future(), function, args))
    self.most = max(self.most, len(self.queue))
    return self.queue[-1][0]

  def wait(self, wanted, timeout, return_when):
    while not any(future.done() for future in wanted):
      future, function, args = self.queue.pop(int(self.rng.integers(len(self.queue))))
      future.set_result(function(*args))
      self.ended.append(args[1].number)
    return {future for future in wanted if future.done()}, set()


@pytest.fixture
def evaluator():
  return Numbers()


@pytest.fixture
def shuffled(monkeypatch):
  """Makes an executor that ends evaluations in the random order of a seed."""

  def make(seed):
    executor = Shuffled(seed)
    monkeypatch.setattr(futures, 'wait', executor.wait)
    return executor

  return make
