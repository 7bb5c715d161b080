"""A search by proposals in a working directory, from a config to the best architecture; resumable at any time."""

import dataclasses
import math
import pathlib
import pickle
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from darts_jax import report, spaces
from darts_jax.report.sections import measured
from darts_jax.runtime import metrics, modules
from darts_jax.runtime.files import one_line, user_path
from darts_jax.runtime.interrupts import InterruptGuard
from darts_jax.runtime.lock import locked
from darts_jax.runtime.metrics import MetricsLogs, Writer
from darts_jax.runtime.workdir import claim, named_errors
from darts_jax.settings import as_config
from darts_jax.spaces import Genotype
from darts_jax.strategies.sampled import Outcome, better
from darts_jax.training.comparison import Interrupted
from darts_jax.trials import loop
from darts_jax.trials.evaluators import Evaluator
from darts_jax.trials.executors import InProcess, Processes
from darts_jax.trials.journal import Journal
from darts_jax.trials.settings import TrialSearch, read

#: Kind of the run in messages about its working directory, and name of the folder that evaluations write to.
KIND, FOLDER = 'search by proposals', 'trials'
# Shortest time in seconds from one report to the next.
_REPORT_EVERY = 20.0


class Failed(RuntimeError):
  """All evaluations have failed."""


@dataclasses.dataclass(frozen=True)
class TrialsResult:
  """The result of a search by proposals.

  Attributes:
    genotype: the best architecture so far, according to the strategy; None if no evaluation has succeeded yet.
    reward: reward of the best architecture; NaN if there is none.
    measure: name of the reward, see `Evaluator`.
    test: measures of the best architecture on test data, by name, if there are any.
    outcomes: outcomes of all evaluations, in the order told.
    finished: whether all proposals have been evaluated and the best architecture tested; False after an interruption.
    report: path of the report page.
  """

  genotype: Genotype | None
  reward: float
  measure: str
  test: Mapping[str, float]
  outcomes: tuple[Outcome, ...]
  finished: bool
  report: pathlib.Path

  @property
  def lines(self) -> list[str]:
    """Lines for the terminal with the reward and the test measures of the best architecture."""
    return [
      f'{measured(self.measure)} of the best architecture: {_shown(self.measure, self.reward)}',
      *(f'{measured(name)}: {_shown(name, value)}' for name, value in self.test.items() if math.isfinite(value)),
    ]


def run(
  config: Mapping[str, Any],
  workdir: str | pathlib.Path,
  note: Callable[[str], None] = lambda message: None,
  writers: Sequence[Writer] = (),
) -> TrialsResult:
  """Proposes and evaluates architectures, or resumes the search that `workdir` holds.

  Rewards do not depend on test data. After the last evaluation, the evaluator may test the best architecture.

  Args:
    config: fields of `darts_jax.trials.settings.TrialSearch`, as nested mappings or `ConfigDict`.
    workdir: the working directory; the search writes `config.json`, `trials.jsonl` (see `darts_jax.trials.journal`),
      `genotype.json` of the best architecture so far, `metrics.jsonl` (one step per outcome), `tensorboard/` and
      `report.html`; with trainings from scratch also `trials/0`, … and `pick`. A search that was stopped or killed
      resumes to the same result; a finished one continues if `config.trials` is larger.
    note: is called with one line about every evaluation and event.
    writers: receive all metrics as they are logged.

  Returns:
    The result so far; `finished` tells whether the search was interrupted.

  Raises:
    ValueError: a setting, the data or the working directory is invalid.
    Failed: all evaluations have failed.
  """
  settings = read(config)
  workdir = user_path(workdir, '--workdir')
  with locked(workdir):
    evaluator = settings.evaluator.open(workdir / FOLDER)
    evaluator.check(settings.space)
    dataset = evaluator.fingerprint(settings.space)
    judge = settings.space.judge(evaluator.data_name())
    executor = _executor(settings, evaluator)
    claim(workdir, {**as_config(settings), 'dataset': dataset}, KIND, growing=('trials',))
    with InterruptGuard() as guard, Journal(workdir) as journal:
      return _Run(settings, evaluator, judge, workdir, journal, note, guard).run(executor, writers)


def _executor(settings: TrialSearch, evaluator: Evaluator) -> futures.Executor:
  """The executor of the evaluations.

  Raises:
    ValueError: the evaluator or the architectures cannot be sent to worker processes.
  """
  if settings.workers == 1:
    return InProcess()
  kinds = type(settings.space), type(evaluator)
  try:
    pickle.dumps((evaluator, settings.space.sample(np.random.default_rng(0))))
    missing = [kind.__name__ for kind in kinds if kind.__module__ not in sys.modules]
    if missing:
      raise pickle.PicklingError(f'{missing[0]} is not in a module')
  except (AttributeError, TypeError, pickle.PicklingError) as error:
    raise ValueError(
      f'config.workers: {settings.workers} is not allowed; processes cannot be given the evaluator or the architectures'
      f' ({one_line(error)}); define both in a module that can be imported'
    ) from error
  return Processes(settings.workers, [*modules.imported(), *(kind.__module__ for kind in kinds)])


class _Run:
  """A running search, and all its files apart from the journal, from which they can be written again."""

  def __init__(
    self,
    settings: TrialSearch,
    evaluator: Evaluator,
    judge: Callable[[Any], Mapping[str, float]] | None,
    workdir: pathlib.Path,
    journal: Journal,
    note: Callable[[str], None],
    guard: InterruptGuard,
  ) -> None:
    self._settings = settings
    self._evaluator = evaluator
    self._judge = judge
    self._workdir = workdir
    self._journal = journal
    self._note = note
    self._guard = guard
    self._outcomes: Sequence[Outcome] = ()
    # Number of outcomes that `_watch` has seen, and the one with the highest reward; None before the first call.
    self._count: int | None = None
    self._highest: Outcome | None = None
    # By architecture the outcome with the highest reward; `_best` is that of the strategy's best architecture.
    self._of: dict[Any, Outcome | None] = {}
    self._best: Outcome | None = None
    self._saved: Any = None
    self._report_due = -math.inf
    # Steps that have a line in the log, and steps with an event about a failure.
    self._logged: set[int] = set()
    self._failures: set[int] = set()
    self._log: MetricsLogs

  def run(self, executor: futures.Executor, writers: Sequence[Writer]) -> TrialsResult:
    """Evaluates the remaining proposals, and tests the best architecture."""
    settings, total = self._settings, self._settings.trials
    told = sum(line['event'] == 'tell' for line in self._journal.lines)
    is_new = not self._journal.lines and not (self._workdir / metrics.FILE).exists()
    resume_step = None if is_new else told
    with MetricsLogs([self._workdir], resume_step=resume_step, saved=[b''], writers=writers) as self._log:
      lines = metrics.read(self._workdir)
      # Not so if there were fewer trials when it did.
      has_ended = any(line.get('event') in ('finished', 'failed') and line['step'] == total for line in lines)
      self._begin(lines, told)
      if not is_new and not has_ended:
        self._event('resumed', f'resumed after {told} of {total} evaluations', told)
      try:
        with executor:
          found = loop.run(
            settings.strategy,
            settings.space,
            self._evaluator,
            settings,
            executor,
            journal=self._journal,
            stop=lambda: self._guard.requested is not None,
            watch=self._watch,
          )
        self._check_not_stopped()
        if self._best is None:
          message = f'all {total} evaluations failed; the last one: {found.outcomes[-1].failure}'
          if not has_ended:
            self._event('failed', message)
          self._report()
          raise Failed(message)
        self._test(self._best)
      except Interrupted as error:
        self._event('interrupted', str(error))
        return self._result(False)
      if not has_ended:
        self._event('finished', f'{total} evaluations; the best is trial {self._best.proposal.number}')
    return self._result(True)

  def _begin(self, lines: Sequence[Mapping[str, Any]], told: int) -> None:
    """Logs the values known before the first outcome, and an event about lost lines, which `_watch` writes again."""
    self._logged = {line['step'] for line in lines if line['kind'] == 'step'}
    self._failures = {line['step'] for line in lines if line.get('event') == 'trial_failed'}
    known = {name: value for name, value in self._evaluator.known().items() if math.isfinite(value)}
    if known and 0 not in self._logged:
      self._log.write('step', 0, known)
    missing = [step for step in range(1, told + 1) if step not in self._logged]
    # A kill can come between the journal's line of an outcome and the log's, so only the last line may be missing.
    if missing not in ([], [told]):
      self._event('brought_back', f'metrics.jsonl lacked {len(missing)} evaluations; they are back', missing[0])

  def _watch(self, state: Any, outcomes: Sequence[Outcome]) -> None:
    """Updates log, genotype and report: once after the replay of the journal, then after every outcome."""
    is_replayed, first = self._count is None, self._count or 0
    for count, outcome in enumerate(outcomes[first:], first + 1):
      self._highest = better(self._highest, outcome)
      arch = outcome.proposal.arch
      self._of[arch] = better(self._of.get(arch), outcome)
      if outcome.status == 'failed' and count not in self._failures:
        self._event('trial_failed', f'trial {outcome.proposal.number}: {outcome.failure}', count)
      if count not in self._logged:
        self._log.write('step', count, self._line(outcome))
      if not is_replayed:
        self._note(self._progress(outcome, count))
    self._outcomes, self._count = outcomes, len(outcomes)
    if self._highest is not None:
      self._choose(self._settings.strategy.best(state))
    if time.monotonic() > self._report_due:
      self._report()

  def _line(self, outcome: Outcome) -> dict[str, float]:
    """The values of an outcome's line in the log."""
    measure = self._evaluator.measure
    values: dict[str, float] = {**outcome.measures, 'seconds': outcome.seconds}
    if outcome.status != 'failed':
      values[measure] = outcome.reward
    if self._highest is not None:
      values[f'best_{measure}'] = self._highest.reward
      if self._judge is not None:
        values |= self._judge(self._highest.proposal.arch)
    return values

  def _progress(self, outcome: Outcome, count: int) -> str:
    measure = self._evaluator.measure
    said = f'trial {outcome.proposal.number}, {count} of {self._settings.trials}'
    if outcome.status == 'failed':
      return f'{said}: failed ({outcome.failure})'
    said += f': {measured(measure)} {_shown(measure, outcome.reward)}'
    assert self._highest is not None
    return f'{said}, best {_shown(measure, self._highest.reward)} (trial {self._highest.proposal.number})'

  def _choose(self, arch: Any) -> None:
    """Saves the architecture that the strategy calls the best, if it has changed."""
    self._best = self._of.get(arch)
    if self._best is None:
      raise ValueError(
        f'config.strategy: {self._settings.strategy} calls an architecture the best of which no evaluation has'
        ' succeeded'
      )
    if arch != self._saved:
      with named_errors(self._workdir):
        spaces.save(arch, self._workdir / 'genotype.json')
      self._saved = arch

  def _test(self, best: Outcome) -> None:
    """Measures the best architecture on test data and logs the result, once."""
    if self._tested():
      return
    found = self._evaluator.test(best)
    if found:
      values = {name.removeprefix('test_'): value for name, value in found.items()}
      self._log.write('test', len(self._outcomes), {'loss': math.nan, **values})

  def _tested(self) -> dict[str, float]:
    """The measures that `_test` has logged of the best of all outcomes; not those of an earlier best one."""
    lines = metrics.read(self._workdir)
    [*_, tested] = [{}, *(line for line in lines if line['kind'] == 'test' and line['step'] == len(self._outcomes))]
    return {f'test_{name}': value for name, value in tested.items() if name not in ('kind', 'step')}

  def _result(self, finished: bool) -> TrialsResult:
    best, measure = self._best, self._evaluator.measure
    path = self._report()
    if best is None:
      return TrialsResult(None, math.nan, measure, {}, tuple(self._outcomes), finished, path)
    test = {**best.test, **self._tested()} if finished else dict(best.test)
    return TrialsResult(best.proposal.arch, best.reward, measure, test, tuple(self._outcomes), finished, path)

  def _check_not_stopped(self) -> None:
    if self._guard.requested is not None:
      raise Interrupted(f'{self._guard.requested} between two evaluations; the same command goes on')

  def _event(self, event: str, message: str, step: int | None = None) -> None:
    self._log.write('event', len(self._outcomes) if step is None else step, {'event': event, 'message': message})
    if event != 'trial_failed':
      self._note(message)

  def _report(self) -> pathlib.Path:
    start = time.monotonic()
    path = report.write(self._workdir)
    end = time.monotonic()
    # The report of many trials takes long; it may take up to a tenth of the time.
    self._report_due = end + max(_REPORT_EVERY, 10 * (end - start))
    return path


def _shown(measure: str, value: float) -> str:
  return f'{value:.2%}' if 'accuracy' in measure else f'{value:.6g}'
