"""The loop of a search by proposals: ask while workers are free, wait for an evaluation to end, write it down, tell.

The random numbers of a proposal are a function of the seed and its number. The strategy is told outcomes in the order
in which evaluations end, or in the order of their proposals. The journal keeps that order, and a run resumes by
replaying it through the strategy. Proposals without an outcome are then evaluated again. A finished run continues if
there are more proposals to make.
"""

import dataclasses
import enum
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, Generic, NamedTuple, TypeVar

from darts_jax.runtime.files import UnfitFile, one_line
from darts_jax.spaces.base import Space
from darts_jax.strategies.sampled import Key, Outcome, Proposal, Sampled, failed
from darts_jax.trials.evaluators.base import Evaluator, evaluate
from darts_jax.trials.journal import Journal, ask_line, describe, outcome_of
from darts_jax.trials.settings import Trials

S = TypeVar('S')

# Seconds between two looks for a request to stop while evaluations run.
_PATIENCE = 0.5


class Draw(enum.IntEnum):
  """Purpose of a key."""

  INIT = 0
  PROPOSAL = 1


def key_of(seed: int, draw: Draw, number: int = 0) -> Key:
  """The key of a strategy's initial state, or of the proposal of that number."""
  return Key(seed, spawn_key=(draw, number))


class Result(NamedTuple, Generic[S]):
  """The result of a run.

  Attributes:
    state: state of the strategy, from which `Sampled.best` reads the best architecture.
    outcomes: outcomes of all evaluations, in the order told.
    finished: whether all proposals have been evaluated; False after a request to stop.
  """

  state: S
  outcomes: tuple[Outcome, ...]
  finished: bool


def run(
  strategy: Sampled[S],
  space: Space[Any],
  evaluator: Evaluator,
  settings: Trials,
  executor: futures.Executor,
  *,
  journal: Journal | None = None,
  stop: Callable[[], bool] = lambda: False,
  watch: Callable[[S, Sequence[Outcome]], None] = lambda state, outcomes: None,
) -> Result[S]:
  """Proposes and evaluates architectures, or resumes the run that the journal holds.

  Args:
    strategy: proposes architectures.
    space: the space of the architectures.
    evaluator: scores architectures.
    settings: number of proposals and of workers, and the order in which outcomes are told.
    executor: runs `settings.workers` evaluations at once. Evaluations may still be running when this function returns
      or raises; the caller has to shut the executor down.
    journal: receives proposals and outcomes; None writes nothing.
    stop: returns whether to stop; called between evaluations and while waiting for them.
    watch: called with the state of the strategy and all outcomes so far, first with those of the journal, then after
      every further one has been written and told.

  Returns:
    State and outcomes at the end, or at the request to stop.

  Raises:
    ValueError: the evaluator does not support this space, the journal is of another run or has more proposals than
      `settings.trials`, or the strategy breaks its contract; one line.
  """
  evaluator.check(space)
  trials = _Trials(strategy, space, settings.seed)
  later: list[Outcome] = []
  if journal is not None:
    journal.begin(_config(strategy, space, evaluator, settings))
    asked = sum(line['event'] == 'ask' for line in journal.lines)
    if asked > settings.trials:
      raise ValueError(
        f'config.trials: {settings.trials} is not allowed; {journal.path} has {asked} proposals, so that it has to be ≥'
        f' {asked}'
      )
    later = trials.replay(journal, settings)
  watch(trials.state, trials.outcomes)
  queue = [each for number, each in trials.pending.items() if number not in {each.proposal.number for each in later}]
  running: dict[int, futures.Future[Outcome]] = {}
  fitted = -1

  def ask() -> None:
    nonlocal fitted
    while trials.is_free(settings):
      if trials.asked % settings.fit_every == 0 and fitted != trials.asked:
        evaluator.fit(functools.partial(strategy.sample, trials.state))
        fitted = trials.asked
      proposal = trials.ask()
      if proposal is None:
        break
      if journal is not None:
        journal.ask(proposal, space)
      queue.append(proposal)

  def tell(outcome: Outcome) -> None:
    if journal is not None:
      journal.tell(outcome)
    trials.tell(outcome)
    watch(trials.state, trials.outcomes)

  for outcome in later:
    ask()
    tell(outcome)
  if journal is not None:
    journal.settle()
  while not stop():
    ask()
    # A run that is resumed with fewer workers has more pending proposals than that.
    while queue and len(running) < settings.workers:
      running[queue[0].number] = executor.submit(evaluate, evaluator, queue[0])
      del queue[0]
    if not running:
      return Result(trials.state, tuple(trials.outcomes), True)
    number = _ended(running, settings.tell == 'in_order', stop)
    if number is None:
      break
    tell(_outcome(running.pop(number), trials.pending[number]))
  return Result(trials.state, tuple(trials.outcomes), False)


def _config(strategy: Sampled[Any], space: Space[Any], evaluator: Evaluator, settings: Trials) -> dict[str, Any]:
  """JSON values of the settings on which the result of a run depends."""
  names = ['seed', 'tell', 'fit_every']
  if settings.tell == 'in_order':
    # Otherwise the order in which evaluations end decides anyway, so the number of workers may change.
    names.append('workers')
  return {
    'space': {**describe(space), 'name': space.name},
    'strategy': describe(strategy),
    'evaluator': evaluator.identity(),
    **{name: getattr(settings, name) for name in names},
  }


class _Trials(Generic[S]):
  """The proposals and outcomes of a run so far.

  Attributes:
    state: state of the strategy.
    asked: number of proposals.
    pending: proposals without an outcome, by number, in the order of numbers.
    outcomes: in the order told.
  """

  def __init__(self, strategy: Sampled[S], space: Space[Any], seed: int) -> None:
    """Initialises the strategy; asks for nothing yet."""
    self._strategy = strategy
    self._space = space
    self._seed = seed
    self.state = strategy.init(space, key_of(seed, Draw.INIT))
    self.asked = 0
    self.pending: dict[int, Proposal] = {}
    self.outcomes: list[Outcome] = []

  def ask(self) -> Proposal | None:
    """The next proposal; None if the strategy waits for an outcome.

    Raises:
      ValueError: the strategy waits although no proposal is pending, or numbers the proposal wrongly.
    """
    state, proposal = self._strategy.ask(self.state, key_of(self._seed, Draw.PROPOSAL, self.asked))
    if proposal is None:
      if not self.pending:
        raise ValueError(f'config.strategy: {self._strategy} waits for an outcome, but no proposal is pending')
      return None
    if proposal.number != self.asked:
      raise ValueError(f'config.strategy: {self._strategy} calls proposal {self.asked} number {proposal.number}')
    self.state = state
    self.pending[proposal.number] = proposal
    self.asked += 1
    return proposal

  def tell(self, outcome: Outcome) -> None:
    """Tells the strategy an outcome without its test measures, by which nothing may be chosen."""
    del self.pending[outcome.proposal.number]
    self.state = self._strategy.tell(self.state, dataclasses.replace(outcome, test={}))
    self.outcomes.append(outcome)

  def is_free(self, settings: Trials) -> bool:
    """Whether there are proposals to be asked for, and workers for them."""
    return self.asked < settings.trials and len(self.pending) < settings.workers

  def replay(self, journal: Journal, settings: Trials) -> list[Outcome]:
    """Asks and tells again what a journal holds.

    A run in order that had asked for all its proposals was told the last outcomes while workers were free. If there are
    more proposals now, the next ones are asked for in between, as if there had been so many from the start: the journal
    is cut before these outcomes, and rewritten when all of them have been told again.

    Returns:
      The outcomes behind the cut, in their order.
    """
    told: list[Outcome] = []
    cut: int | None = None
    last = max((count for count, line in enumerate(journal.lines) if line['event'] == 'ask'), default=-1)
    for count, line in enumerate(journal.lines):
      try:
        if cut is None and count > last and settings.tell == 'in_order' and self._could_ask(settings):
          cut = count
        if line['event'] == 'ask':
          proposal = self.ask()
          if proposal is None or json.loads(json.dumps(ask_line(proposal, self._space))) != line:
            raise UnfitFile('another proposal than that of this strategy, space and seed')
        elif line['number'] not in self.pending or line['number'] in {each.proposal.number for each in told}:
          raise UnfitFile(f'proposal {line["number"]} is not pending')
        elif cut is None:
          self.tell(outcome_of(line, self.pending[line['number']]))
        else:
          told.append(outcome_of(line, self.pending[line['number']]))
      except UnfitFile as error:
        raise ValueError(f'{journal.path}: line {count + 2}: {error}') from error
    if cut is not None:
      journal.cut(cut)
    return told

  def _could_ask(self, settings: Trials) -> bool:
    """Whether the strategy has a proposal for a free worker."""
    key = key_of(self._seed, Draw.PROPOSAL, self.asked)
    return self.is_free(settings) and self._strategy.ask(self.state, key)[1] is not None


def _ended(running: Mapping[int, futures.Future[Any]], in_order: bool, stop: Callable[[], bool]) -> int | None:
  """Waits for an evaluation to end and returns its number; None after a request to stop.

  With `in_order` it waits for the smallest number of all; otherwise, if several have ended, it returns the smallest.
  """
  waited = [min(running)] if in_order else sorted(running)
  while True:
    done, _ = futures.wait([running[number] for number in waited], _PATIENCE, futures.FIRST_COMPLETED)
    if done:
      return next(number for number in waited if running[number] in done)
    if stop():
      return None


def _outcome(future: futures.Future[Outcome], proposal: Proposal) -> Outcome:
  """The outcome of an evaluation that has ended; it has failed if its process was lost."""
  try:
    # A worker process returns a copy of the proposal.
    return dataclasses.replace(future.result(), proposal=proposal)
  except futures.BrokenExecutor as error:
    return failed(proposal, f'the process of the evaluation ended: {one_line(error)}')
