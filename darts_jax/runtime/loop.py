"""The loop over the epochs of a run, with its checkpoints, logs and reports; a run can be resumed at any time.

A metric is a number, or an array `[N]` for N searches side by side. All processes of a run execute the loop, and the
first one writes.
"""

import abc
import bisect
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, NamedTuple, NoReturn, Self, TypeVar

import jax
import numpy as np

from darts_jax import limits
from darts_jax.runtime import metrics, processes
from darts_jax.runtime.checkpoint import Checkpoints, Restored
from darts_jax.runtime.compilation import compile_with_report
from darts_jax.runtime.durable import holds, sync_to_disk, write_whole
from darts_jax.runtime.interrupts import SIGNALS, InterruptGuard, busy
from darts_jax.runtime.metrics import MetricsLogs, Writer
from darts_jax.runtime.progress import NoProgress, Progress
from darts_jax.runtime.workdir import CHECKPOINTS, named_errors
from darts_jax.settings import setting

State = TypeVar('State')

# Approximate duration of a call of the compiled steps, short enough for reacting to signals and showing progress.
_SECONDS_A_CALL = 2.0
# Time between reports, in times of writing them: where epochs are short, drawing would take as long as they do.
_PAUSE_OF_REPORTS = 20


class Diverged(RuntimeError):
  """A loss or gradient was not finite; the message names the step and the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Settings of checkpoints.

  Attributes:
    every: epochs from one checkpoint to the next.
    keep: number of checkpoints that are kept.
  """

  every: int = setting(1, at_least=1, at_most=limits.EPOCHS)
  keep: int = setting(3, at_least=1, at_most=limits.COUNT)


class Plan(NamedTuple):
  """The length of a run, and when it logs and saves.

  Attributes:
    name: name of the run, which is shown with the progress.
    epoch_ends: for every epoch, the number of steps from the beginning of the run to its end.
    log_every: steps from one line of the log to the next.
    checkpoint: see `Checkpoint`.
  """

  name: str
  epoch_ends: Sequence[int]
  log_every: int
  checkpoint: Checkpoint

  @classmethod
  def even(cls, name: str, epochs: int, steps_per_epoch: int, log_every: int, checkpoint: Checkpoint) -> Self:
    """A plan whose epochs have the same number of steps."""
    ends = range(steps_per_epoch, epochs * steps_per_epoch + 1, steps_per_epoch)
    return cls(name, ends, log_every, checkpoint)


class Sums:
  """Sums of metrics over steps, and the number of steps."""

  def __init__(
    self, values: Mapping[str, Any] | None = None, counted_by: Callable[[str], str] = lambda name: 'steps'
  ) -> None:
    """Starts from the given sums.

    Args:
      values: sums by name.
      counted_by: see `Loop.counted_by`.
    """
    self.values = dict(values or {})
    self._counted_by = counted_by

  def add(self, sums: Mapping[str, Any]) -> None:
    """Adds the sums of further steps."""
    for name, value in sums.items():
      self.values[name] = self.values.get(name, 0.0) + value

  def add_each(self, each: Mapping[str, np.ndarray], count: int) -> None:
    """Adds the metrics of further steps, one by one, so that sums do not depend on how steps are divided into calls.

    Args:
      each: metrics of every step, `[…, n]`.
      count: number of steps to add; the first ones are taken.
    """
    for i in range(count):
      self.add({'steps': 1.0, **_numbers({name: values[..., i] for name, values in each.items()})})

  def means(self) -> dict[str, Any]:
    """The means over steps; the mean of a metric that only some steps have is over these, and left out without any."""
    values = {name: value for name, value in self.values.items() if name != 'seconds'}
    counts = {'steps', *map(self._counted_by, values)}
    means = {}
    for name in sorted(values.keys() - counts):
      count = values.get(self._counted_by(name), values['steps'])
      if np.all(count):
        means[name] = values[name] / count
    return means


class Outcome(NamedTuple, Generic[State]):
  """The outcome of a run.

  Attributes:
    state: the last state.
    last_epoch: metrics of the last complete epoch; empty if there is none.
    finished: whether all epochs are done; False after an interruption.
    requested: name of the signal that asked the run to stop, even if all epochs are done; None without a signal.
  """

  state: State
  last_epoch: dict[str, float]
  finished: bool
  requested: str | None


class Loop(abc.ABC, Generic[State]):
  """A run of epochs; subclasses define what is trained.

  Attributes:
    workdir: working directory of the run.
    folders: folders of its logs, one for each of several searches side by side; otherwise the working directory.
    plan: see `Plan`.
    total: number of steps of the whole run; smaller than planned once it is known that the run ends early.
    shown: names of the metrics that are shown with the progress.
    writers: objects that receive all metrics that are logged.
    derived: names of files, in all folders, that change from epoch to epoch; a resumed run restores them from its
      checkpoint.
    back_to: step of an earlier checkpoint, set by `turn_epoch` if the run is to go back to it; None otherwise.
  """

  shown: tuple[str, ...] = ('train_loss',)
  writers: Sequence[Writer] = ()
  derived: tuple[str, ...] = ()

  def __init__(
    self,
    workdir: pathlib.Path,
    plan: Plan,
    guard: InterruptGuard,
    folders: Sequence[pathlib.Path] = (),
    claim: Mapping[str, Any] | None = None,
  ) -> None:
    """Opens the checkpoints.

    Args:
      workdir: working directory of the run.
      plan: length of the run, and when it logs and saves.
      guard: checked between calls of the compiled steps for a signal to stop.
      folders: folders of the logs of searches side by side; by default the working directory.
      claim: JSON values that identify the run, for its checkpoints (see `Checkpoints.save`).
    """
    self.workdir = workdir
    self.folders = tuple(folders) or (workdir,)
    self._claim = claim
    self.plan = plan
    self.total = plan.epoch_ends[-1]
    self.back_to: int | None = None
    self._guard = guard
    self._checkpoints = Checkpoints(workdir / CHECKPOINTS, keep=plan.checkpoint.keep)
    self._log: MetricsLogs
    self._progress: Progress | NoProgress
    self._next_reports = -math.inf

  @abc.abstractmethod
  def init(self) -> State:
    """Makes the state before the first step."""

  @abc.abstractmethod
  def template(self) -> State:
    """Shapes, dtypes and shardings of the state, without arrays."""

  @abc.abstractmethod
  def prepare(self, state: State, step: int) -> None:
    """Prepares calls of `advance`; compiles its programs."""

  @abc.abstractmethod
  def advance(self, state: State, num_steps: int) -> tuple[State, Mapping[str, Any]]:
    """Takes up to `num_steps` steps.

    Returns:
      The new state, and sums of metrics over the steps, with `steps`, `finite` and `each` (see
      `darts_jax.runtime.steps.take_steps`). Logged means are computed from `each`, the metrics of every step `[…, n]`,
      so that they do not depend on how steps are divided into calls.
    """

  @abc.abstractmethod
  def evaluate(self, state: State, step: int) -> dict[str, Any]:
    """Computes metrics at the end of an epoch."""

  @abc.abstractmethod
  def report(self, folder: pathlib.Path) -> pathlib.Path:
    """Writes the report in one of the folders; returns its path."""

  def opened(self, state: State, resume_step: int | None) -> None:
    """Called when the log is open; `resume_step` is None if the run begins."""

  def counted_by(self, name: str) -> str:
    """Name of the metric that counts, by 1 or 0, the steps that have the metric `name`; `'steps'` if all have it."""
    del name
    return 'steps'

  def summary(self, state: State, sums: Sums) -> dict[str, Any]:
    """Values of a line of the log in addition to the means of metrics."""
    del state
    return {'seconds': sums.values['seconds']}

  def epoch_done(self, state: State, step: int, epoch: int) -> None:
    """Called after every epoch, counted from 1, before its checkpoint is saved."""

  def turn_epoch(self, state: State, evaluation: Mapping[str, Any], step: int) -> State:
    """Called after the evaluation of an epoch; returns the state for its checkpoint and for the next epoch."""
    del evaluation, step
    return state

  def went_back(self, state: State, step: int) -> State:
    """Called after going back to an earlier checkpoint (see `back_to`); returns the state to continue with.

    `recall` has been called with the memory of the checkpoint.

    Args:
      state: state of the checkpoint.
      step: step of the checkpoint.
    """
    del step
    return state

  def needed(self, step: int) -> Collection[int]:
    """Steps to which the run may go back from this step or a later one; their checkpoints are kept."""
    del step
    return ()

  def recover(self, state: State, step: int) -> State | None:
    """Called after a loss or evaluation that is not finite; returns the state to continue with, or None to stop."""
    del state, step
    return None

  @property
  def memory(self) -> Any:
    """JSON values that checkpoints keep in addition to the state; None for nothing."""
    return None

  def recall(self, memory: Any) -> None:
    """Called with the memory of a checkpoint, before its state is restored."""

  def finish(self, state: State) -> None:
    """Writes the final results; called after the last epoch, or by a finished run again, if `lacks` names a result."""

  def lacks(self) -> str:
    """Name, for a message, of a result that `finish` writes and that the log lacks; empty if the log lacks none.

    All processes have to call this, and get the same name.
    """
    return ''

  def run(self) -> Outcome[State]:
    """Starts the run, or resumes it from the latest checkpoint in the working directory.

    Raises:
      Diverged: a loss or gradient was not finite, and `recover` returned None.
      ValueError: the working directory or the data cannot be used.
    """
    plan = self.plan
    self._check_shared(max(self._checkpoints.steps(), default=None))
    self._checkpoints.remove_leftovers()
    restored = self._checkpoints.restore(self._template_of)
    if restored is None:
      with busy('compilation'):
        state = self.init()
    else:
      state = restored.state
    resume_step = None if restored is None else restored.step
    saved = {} if restored is None else restored.metadata
    epoch_sums, log_sums, last_epoch = self._sums_of(saved)
    first = processes.is_first()
    step = resume_step or 0
    with (
      MetricsLogs(
        self.folders if first else (), resume_step=resume_step, saved=self._copies(restored), writers=self.writers
      ) as self._log,
      Progress(self.total, step, plan.name) if first else NoProgress() as self._progress,
    ):
      self._bring_back(restored)
      self.opened(state, resume_step)
      for line in () if restored is None else restored.damaged:
        self.note(step, 'damaged_checkpoint', line)
      if resume_step is not None and step < self.total:
        self.note(step, 'resumed', f'resumed at step {step} of {self.total}')
      if step < self.total:
        if jax.process_count() == 1:
          self._progress.note(f'devices: {processes.topology()}')
        self.prepare(state, step)
      seconds_a_step = math.inf
      requested: str | None = None
      while step < self.total:
        requested, planned = self._agree(max(1, int(_SECONDS_A_CALL / seconds_a_step)))
        if requested is not None:
          break
        until_line = plan.log_every - step % plan.log_every
        until_epoch = plan.epoch_ends[bisect.bisect_right(plan.epoch_ends, step)] - step
        start = time.monotonic()
        try:
          state, found = self.advance(state, min(until_line, until_epoch, planned))
        except ValueError as error:
          if jax.process_count() > 1:
            # The other processes are in the middle of the step, so that nothing can be saved together.
            raise
          # Data cannot be read any more; the steps before that are valid, and are saved.
          self._save(step, state, epoch_sums, log_sums, last_epoch)
          self.note(step, 'failed', f'{error}; saved at step {step} of {self.total}, start again to resume')
          self.reports()
          raise
        fetched = processes.fetch(dict(found))
        each = fetched.pop('each')
        sums = _numbers(fetched)
        seconds = time.monotonic() - start
        taken = int(np.max(sums['steps']))
        seconds_a_step = seconds / taken
        step += taken
        finite = sums.pop('finite')
        # Steps end after the first one that is not finite, so it is the last.
        sound = taken if np.all(finite) else taken - 1
        for totals in (epoch_sums, log_sums) if sound else ():
          totals.add_each(each, sound)
          totals.add({'seconds': seconds})
        if np.all(finite):
          means = Sums(sums, self.counted_by).means()
          self._progress.update(step, {name: float(np.mean(means[name])) for name in self.shown if name in means})
        else:
          state = self._recovered(state, step, finite)
        epoch = bisect.bisect_left(plan.epoch_ends, step)
        if step % plan.log_every == 0 and log_sums.values:
          details = self.summary(state, log_sums)
          details.pop('seconds', None)
          self._log.write('step', step, {'epoch': epoch, **log_sums.means(), **details})
          log_sums = Sums(counted_by=self.counted_by)
        if step == plan.epoch_ends[epoch]:
          evaluation = self.evaluate(state, step)
          if not _all_finite(evaluation):
            # The last step's loss was computed before its update, so it can be finite although the weights are not.
            state = self._recovered(state, step, _finite(evaluation))
            evaluation = self.evaluate(state, step)
            self.check_finite(evaluation, step)
          last_epoch = {**epoch_sums.means(), **evaluation}
          details = self.summary(state, epoch_sums) if epoch_sums.values else {}
          self._log.write('epoch', step, {'epoch': epoch, **last_epoch, **details})
          epoch_sums = Sums(counted_by=self.counted_by)
          state = self.turn_epoch(state, evaluation, step)
          self.epoch_done(state, step, epoch + 1)
          if self.back_to is not None:
            back = self._restored_then(self.back_to)
            step, self.back_to = back.step, None
            epoch_sums, log_sums, last_epoch = self._sums_of(back.metadata)
            state = self.went_back(back.state, step)
            self._log.go_back(step)
            # Saved before anything else is logged, so that the log contains the decision only once.
            self._save(step, state, epoch_sums, log_sums, last_epoch)
            if step < self.total:
              self.prepare(state, step)
          elif (epoch + 1) % plan.checkpoint.every == 0 or step == self.total or step in self.needed(step):
            self._save(step, state, epoch_sums, log_sums, last_epoch)
          if step < self.total and time.monotonic() >= self._next_reports:
            self.reports()
      if step == self.total:
        self._end(state)
      else:
        self._save(step, state, epoch_sums, log_sums, last_epoch)
        message = f'{requested}: saved at step {step} of {self.total}; start again to resume'
        self.note(step, 'interrupted', message)
      self._sync()
      # A signal that arrives after the last step still ends a sequence of runs, in all processes.
      requested = requested or self._agree(1)[0]
    return Outcome(state, last_epoch, step == self.total, requested)

  def _end(self, state: State) -> None:
    """Logs the end of a run and its final results, unless they are logged; no checkpoint has a copy of them."""
    finished, lacks = self.has_logged(lambda line: line.get('event') == 'finished'), self.lacks()
    if finished and lacks:
      self.note(self.total, 'brought_back', f'{metrics.FILE}: {lacks} was lost; it is found out again')
    if lacks:
      self.finish(state)
    if not finished:
      done = bisect.bisect_right(self.plan.epoch_ends, self.total)
      self._log.write('event', self.total, {'event': 'finished', 'message': f'{done} epochs done'})

  def compile(self, step: int, name: str, function: Any, *args: Any, detail: str = '') -> Any:
    """Compiles a jitted function ahead of time, and logs an event with the duration.

    Args:
      step: current step.
      name: name of the function, for messages.
      function: the jitted function.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.
      detail: further text for the message.
    """
    self._progress.note(f'compiling the {name}{detail} ...')
    with busy('compilation'):
      compilation = compile_with_report(function, *args)
    how = 'loaded from the compilation cache' if compilation.cached else 'compiled'
    self.note(step, 'compiled', f'{name} {how} in {compilation.seconds:.1f} s')
    return compilation.compiled

  def note(self, step: int, event: str, message: str, **values: float) -> None:
    """Logs an event, and shows its message."""
    self._log.write('event', step, {'event': event, 'message': message, **values})
    self._progress.note(message)

  def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
    """Logs a line of another kind."""
    self._log.write(kind, step, values)

  def has_logged(self, wanted: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Whether the log of every folder has a line for which `wanted` is True; all processes have to call this."""
    first = processes.is_first()
    found = first and all(any(map(wanted, metrics.read(folder))) for folder in self.folders)
    return bool(processes.gather([found])[0, 0])

  def reports(self) -> list[pathlib.Path]:
    """Writes the reports in all folders, in the first process; returns their paths."""
    start = time.monotonic()
    found = [self.report(folder) if processes.is_first() else folder / 'report.html' for folder in self.folders]
    end = time.monotonic()
    self._next_reports = end + _PAUSE_OF_REPORTS * (end - start)
    return found

  def check_finite(self, values: Mapping[str, Any], step: int) -> None:
    """Raises Diverged unless all values are finite."""
    if not _all_finite(values):
      self._stop_diverged(step, _finite(values))

  def _check_shared(self, resume_step: int | None) -> None:
    """Raises a ValueError unless all processes see the same checkpoints."""
    steps = processes.gather([-1 if resume_step is None else resume_step])[:, 0]
    for index in np.flatnonzero(steps != steps[0]):
      raise processes.AgreedError(
        f'--workdir: {self.workdir} has to be the same folder for all processes; process 0 finds'
        f' {_named_step(steps[0])} in it, and process {index} {_named_step(steps[index])}'
      )

  def _agree(self, planned: int) -> tuple[str | None, int]:
    """Makes all processes agree on a signal that one of them has received, and on the first one's planned steps."""
    names = [None, *(number.name for number in SIGNALS)]
    found = processes.gather([names.index(self._guard.requested), planned])
    return names[int(found[:, 0].max())], int(found[0, 1])

  def _sums_of(self, metadata: Mapping[str, Any]) -> tuple[Sums, Sums, dict[str, Any]]:
    """Reads from the metadata of a checkpoint: sums of the epoch, sums of the log line, metrics of the last epoch."""
    epoch, line = (Sums(_numbers(metadata.get(name, {})), self.counted_by) for name in ('epoch_sums', 'log_sums'))
    return epoch, line, _numbers(metadata.get('last_epoch', {}))

  def _restored_then(self, step: int) -> Restored:
    """Restores an earlier checkpoint; raises a ValueError if it does not exist any more."""
    restored = self._checkpoints.restore(self._template_of, at=step)
    if restored is None:
      raise ValueError(f'{self.workdir}: the checkpoint of step {step}, which the run is to go back to, is gone')
    return restored

  def _save(self, step: int, state: State, epoch_sums: Sums, log_sums: Sums, last_epoch: Mapping[str, Any]) -> None:
    values = {'epoch_sums': epoch_sums.values, 'log_sums': log_sums.values, 'last_epoch': last_epoch}
    metadata: dict[str, Any] = {
      name: {key: np.asarray(value).tolist() for key, value in group.items()} for name, group in values.items()
    }
    if self.memory is not None:
      metadata['memory'] = self.memory
    files = {name: path.read_bytes() for name, path in self._kept().items() if processes.is_first() and path.is_file()}
    self._checkpoints.save(step, state, metadata, claim=self._claim, files=files, needed=self.needed(step))

  def _kept(self) -> dict[str, pathlib.Path]:
    """The files of which checkpoints keep copies, by name."""
    paths = [folder / name for folder in self.folders for name in (metrics.FILE, *self.derived)]
    return {path.relative_to(self.workdir).as_posix(): path for path in paths}

  def _copies(self, restored: Restored | None) -> list[bytes] | None:
    """A checkpoint's copies of the logs; None in other processes than the first, and without a checkpoint."""
    if restored is None or not processes.is_first():
      return None
    names = [(folder / metrics.FILE).relative_to(self.workdir).as_posix() for folder in self.folders]
    return [restored.files.get(name, b'') for name in names]

  def _bring_back(self, restored: Restored | None) -> None:
    """Restores files from the copies in a checkpoint, and logs which were lost or damaged."""
    if not processes.is_first():
      return
    for folder, opened in zip(self.folders, self._log.opened, strict=True):
      name = (folder / metrics.FILE).relative_to(self.workdir)
      if restored is None:
        if opened.last_step > 0:
          self.note(
            0, 'restarted', f'there is no checkpoint; steps that {name} had, up to {opened.last_step}, are taken again'
          )
        continue
      step = restored.step
      if opened.brought_back:
        message = f'{name}: {opened.brought_back} lines were lost or damaged; they are back from the checkpoint'
        self.note(step, 'brought_back', f'{message} of step {step}')
      wanted = bisect.bisect_right(self.plan.epoch_ends, step)
      there = len({line.get('epoch') for line in opened.lines if line['kind'] == 'epoch'})
      message = f'{name} falls short of the checkpoint of step {step}: it holds {there} of {wanted} epochs'
      if there < wanted and not any(line.get('message') == message for line in opened.lines):
        self.note(step, 'incomplete_log', message)
      for path in (folder / name for name in self.derived):
        content = restored.files.get(path.relative_to(self.workdir).as_posix())
        if content is None or holds(path, content):
          continue
        lost = not self.is_readable(path)
        with named_errors(self.workdir):
          write_whole(path, content)
        if lost:
          message = f'{path.relative_to(self.workdir)}: lost or damaged; it is back from the checkpoint of step {step}'
          self.note(step, 'brought_back', message)

  def is_readable(self, path: pathlib.Path) -> bool:
    """Whether a derived file exists and is not damaged."""
    return path.is_file()

  def _sync(self) -> None:
    """Waits until the files of the run are on the disk."""
    if processes.is_first():
      with named_errors(self.workdir):
        sync_to_disk([*(path for path in self._kept().values() if path.is_file()), *self.folders])

  def _template_of(self, metadata: Mapping[str, Any]) -> State:
    if 'memory' in metadata:
      self.recall(metadata['memory'])
    return self.template()

  def _recovered(self, state: State, step: int, finite: Any) -> State:
    recovered = self.recover(state, step)
    return recovered if recovered is not None else self._stop_diverged(step, finite)

  def _stop_diverged(self, step: int, finite: Any) -> NoReturn:
    steps = self._checkpoints.steps()
    good = f'the last good checkpoint is that of step {max(steps)}' if steps else 'there is no checkpoint yet'
    # Names of those searches side by side that have diverged.
    named = [folder.name for folder, fine in zip(self.folders, np.ravel(finite), strict=True) if not fine]
    which = f' of {", ".join(named)}' if len(self.folders) > 1 else ''
    message = f'step {step}: a loss or gradient{which} is not finite; {good}, in {self.workdir}'
    self.note(step, 'non_finite', message)
    self.reports()
    raise Diverged(message)


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
  """Converts metrics to Python floats, and to float64 arrays where they have axes."""
  found = {name: np.asarray(value, np.float64) for name, value in values.items()}
  return {name: value if value.ndim else float(value) for name, value in found.items()}


def _finite(values: Mapping[str, Any]) -> Any:
  """Whether all values are finite: a bool, or `[N]` bools for searches side by side."""
  return np.all([np.isfinite(value) for value in values.values()], axis=0) if values else True


def _all_finite(values: Mapping[str, Any]) -> bool:
  return bool(np.all(_finite(values)))


def _named_step(step: float) -> str:
  return 'no checkpoint' if step < 0 else f'one of step {int(step)}'
