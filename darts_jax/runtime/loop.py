"""The loop over the epochs of a run, resumable at every moment, with everything that it writes.

A metric is a number or, of runs side by side, an array `[N]` with one for each. Of several processes all go through the
loop and the first one writes.
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

# A call of the compiled steps lasts about so long, so that signals are heard and progress is seen.
_SECONDS_A_CALL = 2.0


class Diverged(RuntimeError):
  """A loss or gradient was not finite; the message names the step and the checkpoint to go back to."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Epochs from one checkpoint to the next, and how many are kept."""

  every: int = setting(1, at_least=1, at_most=limits.EPOCHS)
  keep: int = setting(3, at_least=1, at_most=limits.COUNT)


class Plan(NamedTuple):
  """How long a run is, and what it writes when.

  Attributes:
    name: is shown beside the progress.
    epoch_ends: steps taken by the end of every epoch.
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
  """Sums of metrics over steps, and the steps."""

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
    """Adds those of further steps."""
    for name, value in sums.items():
      self.values[name] = self.values.get(name, 0.0) + value

  def add_each(self, each: Mapping[str, np.ndarray], count: int) -> None:
    """Adds those of further steps, `[…, n]`, of which the first ones count; one by one, so that only steps matter."""
    for i in range(count):
      self.add({'steps': 1.0, **_numbers({name: values[..., i] for name, values in each.items()})})

  def means(self) -> dict[str, Any]:
    """Means over the steps; a metric of some steps alone has the mean over those, and is left out if there are none."""
    values = {name: value for name, value in self.values.items() if name != 'seconds'}
    counts = {'steps', *map(self._counted_by, values)}
    means = {}
    for name in sorted(values.keys() - counts):
      count = values.get(self._counted_by(name), values['steps'])
      if np.all(count):
        means[name] = values[name] / count
    return means


class Outcome(NamedTuple, Generic[State]):
  """How a run ended.

  Attributes:
    state: the last one.
    last_epoch: metrics of the last complete epoch, none before the first.
    finished: whether all epochs were done; not so after an interruption.
    requested: the signal that asked for an end, perhaps when there was nothing left to do; None if none did.
  """

  state: State
  last_epoch: dict[str, float]
  finished: bool
  requested: str | None


class Loop(abc.ABC, Generic[State]):
  """A run of epochs; what it trains is up to subclasses.

  Attributes:
    workdir: of the run.
    folders: of its logs, one for each of several runs side by side; otherwise the working directory.
    plan: see `Plan`.
    total: steps of the whole run; fewer than planned once it is known that it ends early.
    shown: names of the metrics beside the progress.
    writers: are told of metrics as they are logged.
    derived: names of files, in all folders, that change with the epochs; a run that goes on brings them back as they
      were at its checkpoint.
    back_to: set by `turn_epoch` if the run is to go on from an earlier checkpoint: its step.
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
    """Opens the checkpoints, which say whose run this is, if that is given.

    The guard is asked between calls whether the run is to stop.
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

  @abc.abstractmethod
  def init(self) -> State:
    """The state before the first step."""

  @abc.abstractmethod
  def template(self) -> State:
    """Shapes, dtypes and places of the state, without arrays."""

  @abc.abstractmethod
  def prepare(self, state: State, step: int) -> None:
    """Makes `advance` ready to be called."""

  @abc.abstractmethod
  def advance(self, state: State, num_steps: int) -> tuple[State, Mapping[str, Any]]:
    """Takes up to so many steps: the new state, and sums of metrics, among them `steps` and `finite`.

    Besides, `each`: the metrics of every step, `[…, n]`. What is logged is summed up from these, so that it does not
    depend on where calls end.
    """

  @abc.abstractmethod
  def evaluate(self, state: State, step: int) -> dict[str, Any]:
    """Metrics at the end of an epoch."""

  @abc.abstractmethod
  def report(self, folder: pathlib.Path) -> pathlib.Path:
    """Renews the report in one of the folders; returns its path."""

  def opened(self, state: State, resume_step: int | None) -> None:
    """Is called when the log is open; without a step, the run begins."""

  def counted_by(self, name: str) -> str:
    """The metric that counts the steps that another one is of, by 1 or 0; if there is none, these are all steps."""
    del name
    return 'steps'

  def summary(self, state: State, sums: Sums) -> dict[str, Any]:
    """What a line of the log holds beside the means of metrics."""
    del state
    return {'seconds': sums.values['seconds']}

  def epoch_done(self, state: State, step: int, epoch: int) -> None:
    """Is called after every epoch, counted from 1, before its checkpoint."""

  def turn_epoch(self, state: State, evaluation: Mapping[str, Any], step: int) -> State:
    """The state that the next epoch begins with, after an evaluation; it is what the checkpoint of the epoch holds."""
    del evaluation, step
    return state

  def went_back(self, state: State, step: int) -> State:
    """The state to go on with, from that of the earlier checkpoint that `back_to` names.

    `recall` has been called with the memory that the checkpoint holds.
    """
    del step
    return state

  def needed(self, step: int) -> Collection[int]:
    """Steps whose checkpoints the run may go back to from this step or a later one; they are kept."""
    del step
    return ()

  def recover(self, state: State, step: int) -> State | None:
    """The state to go on with after one whose loss or evaluation is not finite; None ends the run."""
    del state, step
    return None

  @property
  def memory(self) -> Any:
    """What there is to remember besides the state, as JSON values; checkpoints keep it."""
    return None

  def recall(self, memory: Any) -> None:
    """Is called with the memory of a checkpoint, before its state is restored."""

  def finish(self, state: State) -> None:
    """Is called after the last epoch, and when a finished run is started again, if the log lacks something."""

  def lacks(self) -> str:
    """Names, for a message, the result that `finish` writes and that the log lacks; empty if the log lacks none.

    All processes have to call this, and get the same.
    """
    return ''

  def run(self) -> Outcome[State]:
    """Starts, or goes on with what the working directory holds."""
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
            # The others are in the middle of the step.
            raise
          # Data that cannot be read any more; the steps that were taken are as good as any.
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
        # The last step is the one that is not.
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
            # The last step's loss was that before its update; these weights are not worth a checkpoint.
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
            # Before anything else is logged, so that the decision is in the log once.
            self._save(step, state, epoch_sums, log_sums, last_epoch)
            if step < self.total:
              self.prepare(state, step)
          elif (epoch + 1) % plan.checkpoint.every == 0 or step == self.total or step in self.needed(step):
            self._save(step, state, epoch_sums, log_sums, last_epoch)
          if step < self.total:
            self.reports()
      if step == self.total:
        self._end(state)
      else:
        self._save(step, state, epoch_sums, log_sums, last_epoch)
        message = f'{requested}: saved at step {step} of {self.total}; start again to resume'
        self.note(step, 'interrupted', message)
      self._sync()
      # A signal that came when nothing was left to do ends a sequence of runs, in all processes.
      requested = requested or self._agree(1)[0]
    return Outcome(state, last_epoch, step == self.total, requested)

  def _end(self, state: State) -> None:
    """Writes what the log lacks of the end of a run; no checkpoint has a copy of that."""
    finished, lacks = self.has_logged(lambda line: line.get('event') == 'finished'), self.lacks()
    if finished and lacks:
      self.note(self.total, 'brought_back', f'{metrics.FILE}: {lacks} was lost; it is found out again')
    if lacks:
      self.finish(state)
    if not finished:
      done = bisect.bisect_right(self.plan.epoch_ends, self.total)
      self._log.write('event', self.total, {'event': 'finished', 'message': f'{done} epochs done'})

  def compile(self, step: int, name: str, function: Any, *args: Any, detail: str = '') -> Any:
    """A jitted function compiled for arguments, with an event that says how long that took."""
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
    """Whether a line of the log is as wanted; all processes have to call this."""
    first = processes.is_first()
    found = first and all(any(map(wanted, metrics.read(folder))) for folder in self.folders)
    return bool(processes.gather([found])[0, 0])

  def reports(self) -> list[pathlib.Path]:
    """The paths of the reports in all folders, which the first process renews."""
    return [self.report(folder) if processes.is_first() else folder / 'report.html' for folder in self.folders]

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
    """The signal that any process has got, and how many steps the first one plans to take in the next call."""
    names = [None, *(number.name for number in SIGNALS)]
    found = processes.gather([names.index(self._guard.requested), planned])
    return names[int(found[:, 0].max())], int(found[0, 1])

  def _sums_of(self, metadata: Mapping[str, Any]) -> tuple[Sums, Sums, dict[str, Any]]:
    """The sums of an epoch and of a line of the log, and the metrics of the last epoch, that a checkpoint holds."""
    epoch, line = (Sums(_numbers(metadata.get(name, {})), self.counted_by) for name in ('epoch_sums', 'log_sums'))
    return epoch, line, _numbers(metadata.get('last_epoch', {}))

  def _restored_then(self, step: int) -> Restored:
    """An earlier checkpoint; raises a ValueError if it is gone."""
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
    """The files that checkpoints keep copies of, by name."""
    paths = [folder / name for folder in self.folders for name in (metrics.FILE, *self.derived)]
    return {path.relative_to(self.workdir).as_posix(): path for path in paths}

  def _copies(self, restored: Restored | None) -> list[bytes] | None:
    """Of the logs that the first process opens."""
    if restored is None or not processes.is_first():
      return None
    names = [(folder / metrics.FILE).relative_to(self.workdir).as_posix() for folder in self.folders]
    return [restored.files.get(name, b'') for name in names]

  def _bring_back(self, restored: Restored | None) -> None:
    """Makes files what they were at the checkpoint, and tells what had been lost."""
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
    """Whether a derived file is there and undamaged."""
    return path.is_file()

  def _sync(self) -> None:
    """Waits until what a run has written is on the disk."""
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
    # Of runs side by side, those that it is about.
    named = [folder.name for folder, fine in zip(self.folders, np.ravel(finite), strict=True) if not fine]
    which = f' of {", ".join(named)}' if len(self.folders) > 1 else ''
    message = f'step {step}: a loss or gradient{which} is not finite; {good}, in {self.workdir}'
    self.note(step, 'non_finite', message)
    self.reports()
    raise Diverged(message)


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
  """Metrics as Python floats, and as arrays of them where there are several."""
  found = {name: np.asarray(value, np.float64) for name, value in values.items()}
  return {name: value if value.ndim else float(value) for name, value in found.items()}


def _finite(values: Mapping[str, Any]) -> Any:
  """Whether all values are finite; of runs side by side `[N]`."""
  return np.all([np.isfinite(value) for value in values.values()], axis=0) if values else True


def _all_finite(values: Mapping[str, Any]) -> bool:
  return bool(np.all(_finite(values)))


def _named_step(step: float) -> str:
  return 'no checkpoint' if step < 0 else f'one of step {int(step)}'
