"""Random search: architectures are drawn, each is trained from scratch, and the best by validation is kept."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from darts_jax import report, spaces, training
from darts_jax.report import architectures
from darts_jax.report.architectures import Architecture
from darts_jax.runtime import metrics
from darts_jax.runtime.files import user_path
from darts_jax.runtime.interrupts import InterruptGuard
from darts_jax.runtime.lock import locked
from darts_jax.runtime.metrics import MetricsLog
from darts_jax.runtime.workdir import claim, named_errors
from darts_jax.selection import trials
from darts_jax.selection.random_cells import random_genotype
from darts_jax.selection.settings import RandomSearch, checked
from darts_jax.selection.trials import Interrupted
from darts_jax.settings import as_config
from darts_jax.spaces import Genotype


@dataclasses.dataclass(frozen=True)
class RandomSearchResult:
  """What a random search found.

  Attributes:
    genotype: the best by validation so far; None before the first training has ended.
    valid_accuracy: its accuracy on held-out images, 0 to 1; NaN before.
    test_accuracy: its accuracy on the test images; NaN before all are trained, or if these are not to be read.
    finished: whether all architectures were trained, and the best one tested; not so after an interruption.
    report: path of the report page.
  """

  genotype: Genotype | None
  valid_accuracy: float
  test_accuracy: float
  finished: bool
  report: pathlib.Path


def run(
  config: Mapping[str, Any], workdir: str | pathlib.Path, note: Callable[[str], None] = lambda message: None
) -> RandomSearchResult:
  """Draws and trains architectures, or goes on with the random search that `workdir` holds.

  Architecture `i` is a function of the seed and `i` alone. No training that architectures are compared by reads the
  test images; once the best is known it is trained again, with the same seed and so to the same weights, and tested.

  Args:
    config: fields of `darts_jax.selection.settings.RandomSearch`, as nested mappings or `ConfigDict`.
    workdir: gets `config.json`, `genotype.json` of the best so far, `architectures.json`, `metrics.jsonl` (a step is
      an architecture), `tensorboard/`, `report.html`, and the trainings: `architectures/0`, …, and `pick`. A search
      that was stopped or killed goes on to the same result.
    note: is told what begins, and what came of it.

  Raises:
    ValueError: a setting, the data or the directory is unfit.
    Diverged: not one of the trainings stayed finite.
  """
  settings = RandomSearch.read(config)
  workdir = user_path(workdir, '--workdir')
  with locked(workdir):
    parts, dataset = checked('config.training', training.check, settings.training)
    claim(workdir, {**as_config(settings), 'dataset': dataset}, 'random search')
    with InterruptGuard() as guard:
      return _RandomSearch(settings, workdir, note, guard).run('test' in parts)


class _RandomSearch:
  def __init__(
    self, settings: RandomSearch, workdir: pathlib.Path, note: Callable[[str], None], guard: InterruptGuard
  ) -> None:
    self._settings = settings
    self._workdir = workdir
    self._note = note
    self._guard = guard
    self._done: list[Architecture] = []
    self._log: MetricsLog

  def run(self, has_test: bool) -> RandomSearchResult:
    total = self._settings.architectures
    try:
      self._done = architectures.read(self._workdir)
      if [each.number for each in self._done] != list(range(len(self._done))):
        raise ValueError(f'{self._workdir}: architectures are missing')
    except ValueError:
      # The trainings themselves are there, and say it all again.
      self._done = []
    is_new = not self._done and not (self._workdir / metrics.FILE).exists()
    with MetricsLog(self._workdir, resume_step=None if is_new else len(self._done), saved=b'') as self._log:
      self._log_again()
      has_ended = any(line.get('event') in ('finished', 'non_finite') for line in self._lines())
      if not is_new and not has_ended:
        self._event('resumed', f'resumed after {len(self._done)} of {total} architectures')
      try:
        while len(self._done) < total:
          self._next()
        best = self._best()
        if best is None:
          message = f'all {total} trainings diverged; the last one is in {self._folder(total - 1)}'
          if not has_ended:
            self._event('non_finite', message)
          self._report()
          raise training.Diverged(message)
        if has_test:
          self._test(best)
      except Interrupted as error:
        self._event('interrupted', str(error))
        return self._result(False)
      if not has_ended:
        self._event('finished', f'{total} architectures trained; the best by validation is {best.number}')
    return self._result(True)

  def _log_again(self) -> None:
    """Writes what follows from the architectures again, should a file have been lost or damaged."""
    there = {line['step'] for line in self._lines() if line['kind'] == 'step'}
    missing = [step for step in range(1, len(self._done) + 1) if step not in there]
    if missing:
      self._event('brought_back', f'metrics.jsonl lacked {len(missing)} architectures; they are back', missing[0])
    for step in missing:
      self._log.write('step', step, self._line(step))
    self._save_best()

  def _line(self, count: int) -> dict[str, float]:
    """What the log says after so many architectures."""
    done = self._done[count - 1]
    best = architectures.best(self._done[:count])
    values: dict[str, float] = {'parameters': done.parameters, 'seconds': done.seconds}
    if best is not None:
      values |= {'best_valid_accuracy': best.valid_accuracy}
    return values if done.diverged else {**values, 'valid_accuracy': done.valid_accuracy}

  def _save_best(self) -> None:
    best = self._best()
    if best is not None:
      with named_errors(self._workdir):
        spaces.save(best.genotype, self._workdir / 'genotype.json')

  def _next(self) -> None:
    """Trains one more architecture, and writes what it came to."""
    settings, number = self._settings, len(self._done)
    folder = self._folder(number)
    self._stop_if_asked()
    self._note(f'architecture {number}: training {number + 1} of {settings.architectures}')
    genotype = random_genotype(settings.space, settings.seed, number)

    def diverged(message: str) -> None:
      self._event('diverged', f'architecture {number}: {message}', number + 1)

    trial = trials.compare(trials.without_test(settings.training), genotype, folder, diverged)
    parameters = training.Model.read(folder).num_weights
    self._done.append(Architecture(number, genotype, parameters, **trial._asdict()))
    self._save_best()
    if not trial.diverged:
      self._note(f'architecture {number}: validation accuracy {trial.valid_accuracy:.2%}')
    self._log.write('step', number + 1, self._line(number + 1))
    # Comes last: an architecture that is not in it is looked at again, and all of the above written again.
    with named_errors(self._workdir):
      architectures.write(self._done, self._workdir)
    self._report()

  def _test(self, best: Architecture) -> None:
    """Trains the best one again, and measures the test images with it."""
    if any(line['kind'] == 'test' for line in self._lines()):
      return
    self._stop_if_asked()
    self._note(f'architecture {best.number}, the best by validation, is trained again and tested')
    result = trials.train(self._settings.training, best.genotype, self._workdir / 'pick')
    self._log.write('test', len(self._done), {'loss': result.test_loss, 'accuracy': result.test_accuracy})

  def _result(self, finished: bool) -> RandomSearchResult:
    best = self._best()
    tested = next((line for line in self._lines() if line['kind'] == 'test'), {})
    return RandomSearchResult(
      best.genotype if best else None,
      best.valid_accuracy if best else math.nan,
      tested.get('accuracy', math.nan),
      finished,
      self._report(),
    )

  def _stop_if_asked(self) -> None:
    if self._guard.requested is not None:
      raise Interrupted(f'{self._guard.requested} between two trainings; the same command goes on')

  def _folder(self, number: int) -> pathlib.Path:
    return self._workdir / 'architectures' / str(number)

  def _best(self) -> Architecture | None:
    return architectures.best(self._done)

  def _lines(self) -> list[dict[str, Any]]:
    return metrics.read(self._workdir)

  def _event(self, event: str, message: str, step: int | None = None) -> None:
    self._log.write('event', len(self._done) if step is None else step, {'event': event, 'message': message})
    self._note(message)

  def _report(self) -> pathlib.Path:
    return report.write(self._workdir)
