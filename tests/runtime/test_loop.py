"""The loop of a run; whole runs that are stopped, killed and resumed are among the tests of searches."""

import math
import os
import pathlib
import re
import shutil
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax import report
from darts_jax.report import workdir as workdirs
from darts_jax.runtime import loop as runtime_loop
from darts_jax.runtime import metrics, processes
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.loop import Checkpoint, Diverged, Loop, Plan, Sums


def test_what_only_some_steps_check_is_a_mean_over_these():
  counts = {'disagreement': 'checks'}
  values = {'steps': 2.0, 'seconds': 9.0, 'train_loss': 3.0, 'disagreement': 0.0, 'checks': 0.0}
  sums = Sums(values, lambda name: counts.get(name, 'steps'))
  assert sums.means() == {'train_loss': 1.5}
  sums.add({'steps': 2.0, 'train_loss': 5.0, 'disagreement': 0.75, 'checks': 3.0})
  assert sums.means() == {'train_loss': 2.0, 'disagreement': 0.25}


def test_means_over_no_steps_are_none():
  assert Sums().means() == {}


def test_plan_of_epochs_that_are_all_alike():
  plan = Plan.even('even', 3, 4, 2, Checkpoint())
  assert list(plan.epoch_ends) == [4, 8, 12]
  assert plan == Plan('even', range(4, 13, 4), 2, Checkpoint(1, 3))


class Counting(Loop[dict[str, Any]]):
  """Counts its steps, of which step t, counted from 1, has a loss of t; and the epochs that it has turned.

  Attributes:
    calls: what was called, with the step.
    bad: calls of steps that end at one of these are not finite, once each.
    bad_evaluations: nor are evaluations at these, once each.
    stop_at: the step after which somebody asks for an end.
    recovers: whether there is something to go on with.
  """

  def __init__(self, workdir, ends=(3, 5, 9), *, log_every=4, every=1):
    self.guard: Any = types.SimpleNamespace(requested=None)
    super().__init__(workdir, Plan('count', ends, log_every, Checkpoint(every, 10)), self.guard)
    self.calls: list[tuple[Any, ...]] = []
    self.bad: set[int] = set()
    self.bad_evaluations: set[int] = set()
    self.stop_at = -1
    self.recovers = True

  def init(self):
    return {'step': jnp.int32(0), 'turned': jnp.int32(0), 'recovered': jnp.int32(0)}

  def template(self):
    return self.init()

  def prepare(self, state, step):
    self.calls.append(('prepare', step))

  def advance(self, state, num_steps):
    first = int(state['step']) + 1
    last = first + num_steps - 1
    self.calls.append(('advance', first, last))
    if last >= self.stop_at > 0:
      self.guard.requested = 'SIGTERM'
    finite = last not in self.bad
    self.bad.discard(last)
    losses = np.arange(first, last + 1, dtype=float)
    if not finite:
      losses[-1] = math.nan
    return {**state, 'step': jnp.int32(last)}, {
      'train_loss': losses.sum(),
      'steps': float(num_steps),
      'finite': finite,
      'each': {'train_loss': losses},
    }

  def evaluate(self, state, step):
    assert int(state['step']) == step
    self.calls.append(('evaluate', step))
    found = math.nan if step in self.bad_evaluations else step / 2 + float(state['recovered'])
    self.bad_evaluations.discard(step)
    return {'valid_loss': found}

  def turn_epoch(self, state, evaluation, step):
    self.calls.append(('turn', step, evaluation['valid_loss']))
    return {**state, 'turned': state['turned'] + 1}

  def epoch_done(self, state, step, epoch):
    self.calls.append(('done', step, epoch, int(state['turned'])))

  def recover(self, state, step):
    self.calls.append(('recover', step))
    return {**state, 'recovered': state['recovered'] + 1} if self.recovers else None

  def report(self, folder):
    return folder / 'report.html'

  def lacks(self):
    return '' if self.has_logged(lambda line: line.get('event') == 'finished') else 'the end'

  def finish(self, state):
    self.calls.append(('finish', int(state['step'])))

  def called(self, name):
    return [call[1:] for call in self.calls if call[0] == name]


def lines(workdir, kind):
  return [line for line in metrics.read(workdir) if line['kind'] == kind]


def test_epochs_may_differ_in_length(tmp_path):
  loop = Counting(tmp_path)
  outcome = loop.run()
  assert (outcome.finished, outcome.requested, int(outcome.state['step'])) == (True, None, 9)
  # Calls end where an epoch or a line of the log does; before the first, it is not known how long a step takes.
  assert loop.called('advance') == [(1, 1), (2, 3), (4, 4), (5, 5), (6, 8), (9, 9)]
  assert loop.called('evaluate') == [(3,), (5,), (9,)]
  found = [(line['step'], line['epoch'], line['train_loss'], line['valid_loss']) for line in lines(tmp_path, 'epoch')]
  # Means of 1, 2, 3; of 4, 5; of 6, …, 9.
  assert found == [(3, 0, 2.0, 1.5), (5, 1, 4.5, 2.5), (9, 2, 7.5, 4.5)]
  assert outcome.last_epoch == {'train_loss': 7.5, 'valid_loss': 4.5}
  found = [(line['step'], line['epoch'], line['train_loss']) for line in lines(tmp_path, 'step')]
  assert found == [(4, 1, 2.5), (8, 2, 6.5)]
  assert Checkpoints(tmp_path / 'checkpoints').steps() == [3, 5, 9]
  assert loop.called('finish') == [(9,)]
  assert [(line['event'], line['message']) for line in lines(tmp_path, 'event')] == [('finished', '3 epochs done')]


@pytest.mark.parametrize(('epoch_seconds', 'reported'), [(1.1, [1, 6, 10]), (5.5, list(range(1, 11))), (0.0, [1, 10])])
def test_drawing_reports_takes_at_most_a_twentieth_of_the_time(tmp_path, monkeypatch, epoch_seconds, reported):
  """A report that takes a quarter of a second is left out until five have passed since the last one."""
  now, drawn = [0.0], []

  class Clocked(Counting):
    def advance(self, state, num_steps):
      now[0] += 1e-6
      return super().advance(state, num_steps)

    def evaluate(self, state, step):
      now[0] += epoch_seconds
      return super().evaluate(state, step)

    def report(self, folder):
      now[0] += 0.25
      drawn.append(int(self.calls[-1][1]) if self.calls[-1][0] == 'done' else self.total)
      return super().report(folder)

  monkeypatch.setattr(runtime_loop, 'time', types.SimpleNamespace(monotonic=lambda: now[0]))
  loop = Clocked(tmp_path, range(1, 11))
  loop.run()
  loop.reports()
  assert drawn == reported


@pytest.mark.parametrize('stop', [2, 4, 7])
def test_run_that_is_stopped_within_an_epoch_ends_like_another(tmp_path, stop):
  Counting(tmp_path / 'whole').run()
  stopped = Counting(tmp_path / 'stopped')
  stopped.stop_at = stop
  outcome = stopped.run()
  step = int(outcome.state['step'])
  assert (outcome.finished, outcome.requested) == (False, 'SIGTERM')
  # At the end of the call in which the signal came.
  assert step in (stop, stop + 1)
  again = Counting(tmp_path / 'stopped')
  assert again.run().finished
  assert again.called('prepare') == [(step,)]
  assert again.called('advance')[0][0] == step + 1
  for kind in ('epoch', 'step'):
    expected, found = (
      [{**line, 'seconds': 0} for line in lines(tmp_path / name, kind)] for name in ('whole', 'stopped')
    )
    assert found == expected


def test_checkpoint_of_an_epoch_is_what_the_next_begins_with(tmp_path):
  loop = Counting(tmp_path)
  loop.stop_at = 6
  loop.run()
  # After the evaluation, and before it is said that the epoch is done.
  assert [call for call in loop.calls if call[0] in ('evaluate', 'turn', 'done')] == [
    *(('evaluate', 3), ('turn', 3, 1.5), ('done', 3, 1, 1)),
    *(('evaluate', 5), ('turn', 5, 2.5), ('done', 5, 2, 2)),
  ]
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  for step, turned in ((3, 1), (5, 2)):
    assert checkpoints.restore(loop.template(), at=step).state['turned'] == turned
  # A resumed epoch is not turned once more at its beginning.
  again = Counting(tmp_path)
  assert int(again.run().state['turned']) == 3
  assert again.called('turn') == [(9, 4.5)]


def test_checkpoints_are_as_rare_as_wanted(tmp_path):
  Counting(tmp_path, (2, 3, 5, 6, 9), every=2).run()
  assert Checkpoints(tmp_path / 'checkpoints').steps() == [3, 6, 9]


def test_run_goes_on_with_what_it_recovers(tmp_path):
  loop = Counting(tmp_path)
  loop.bad = {4}
  outcome = loop.run()
  assert outcome.finished
  assert loop.called('recover') == [(4,)]
  assert int(outcome.state['recovered']) == 1
  # Step 4 counts in no mean, and the run goes on with what was recovered.
  epochs = lines(tmp_path, 'epoch')
  assert [line['train_loss'] for line in epochs] == [2.0, 5.0, 7.5]
  assert [line['valid_loss'] for line in epochs] == [1.5, 3.5, 5.5]
  # Of the line at step 4, what is left are the first three.
  assert [(line['step'], line['train_loss']) for line in lines(tmp_path, 'step')] == [(4, 2.0), (8, 6.5)]


def test_evaluation_that_is_not_finite_is_made_again_after_recovery(tmp_path):
  loop = Counting(tmp_path)
  loop.bad_evaluations = {5}
  outcome = loop.run()
  assert loop.called('evaluate') == [(3,), (5,), (5,), (9,)]
  assert loop.called('recover') == [(5,)]
  assert loop.called('turn')[1] == (5, 3.5)
  assert [line['valid_loss'] for line in lines(tmp_path, 'epoch')] == [1.5, 3.5, 5.5]
  assert outcome.last_epoch['valid_loss'] == 5.5
  restored = Checkpoints(tmp_path / 'checkpoints').restore(loop.template(), at=5)
  np.testing.assert_array_equal(restored.state['recovered'], 1)


def test_recovered_state_whose_evaluation_is_not_finite_either_ends_the_run(tmp_path):
  loop = Counting(tmp_path)
  loop.evaluate = lambda state, step: {'valid_loss': math.nan if step == 5 else 1.0}
  with pytest.raises(Diverged, match='^step 5: '):
    loop.run()
  assert loop.called('recover') == [(5,)]
  assert Checkpoints(tmp_path / 'checkpoints').steps() == [3]


def test_epoch_without_a_finite_step_has_an_evaluation_still(tmp_path):
  loop = Counting(tmp_path, (3, 4, 7))
  loop.bad = {4}
  assert loop.run().finished
  assert [('train_loss' in line, line['valid_loss']) for line in lines(tmp_path, 'epoch')] == [
    (True, 1.5),
    (False, 3.0),
    (True, 4.5),
  ]


@pytest.mark.parametrize(('where', 'step', 'kept'), [('bad', 1, []), ('bad', 4, [3]), ('bad_evaluations', 5, [3])])
def test_run_without_anything_to_recover_ends(tmp_path, where, step, kept):
  loop = Counting(tmp_path)
  setattr(loop, where, {step})
  loop.recovers = False
  good = 'the last good checkpoint is that of step 3' if kept else 'there is no checkpoint yet'
  message = f'step {step}: a loss or gradient is not finite; {good}, in {tmp_path}'
  with pytest.raises(Diverged, match=f'^{re.escape(message)}$'):
    loop.run()
  assert [(line['step'], line['event'], line['message']) for line in lines(tmp_path, 'event')] == [
    (step, 'non_finite', message)
  ]
  assert [line['step'] for line in lines(tmp_path, 'epoch')] == kept
  assert Checkpoints(tmp_path / 'checkpoints').steps() == kept


def test_processes_that_see_other_checkpoints_are_told_so(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, 'gather', lambda values: np.array([[-1.0], [-1.0], [40.0]]))
  with pytest.raises(
    processes.AgreedError, match=r'process 0 finds no checkpoint in it, and process 2 one of step 40$'
  ):
    Counting(tmp_path).run()


def test_the_first_process_and_any_signal_decide_for_all(tmp_path, monkeypatch):
  loop = Counting(tmp_path)
  said = []

  def gather(values):
    said.append(values)
    return np.array([[0.0, 7.0], values, [2.0, 9.0]])

  monkeypatch.setattr(processes, 'gather', gather)
  assert loop._agree(3) == ('SIGINT', 7)
  assert said == [[0, 3]]


class Returning(Counting):
  """Goes back from step 9 to step 3, the first time, and counts how often."""

  keeps: tuple[int, ...] = (3,)

  def __init__(self, workdir, **further):
    super().__init__(workdir, **further)
    self.returns = 0

  @property
  def memory(self):
    return {'returns': self.returns}

  def recall(self, memory):
    self.calls.append(('recall', memory['returns']))
    self.returns = memory['returns']

  def turn_epoch(self, state, evaluation, step):
    if step == 9 and not self.returns:
      self.back_to = 3
      self.note(step, 'decided', 'back')
    return super().turn_epoch(state, evaluation, step)

  def went_back(self, state, step):
    self.calls.append(('went_back', step, int(state['step'])))
    self.returns = 1
    return {**state, 'recovered': jnp.int32(7)}

  def needed(self, step):
    return self.keeps


def test_a_run_goes_on_from_an_earlier_checkpoint(tmp_path):
  """Every third epoch is saved, of which the last two; and those that the run may go back to."""
  loop = Returning(tmp_path, every=3)
  assert loop.run().finished
  # The memory of the checkpoint is recalled before the state is what it was; then comes what was learnt since.
  assert loop.called('recall') == [(0,)]
  assert loop.called('went_back') == [(3, 3)]
  assert loop.called('prepare') == [(0,), (3,)]
  steps = [line['step'] for line in lines(tmp_path, 'epoch')]
  assert steps == [3, 5, 9, 5, 9]
  # The second time evaluations are those of the state that was made when the run went back.
  assert [line['valid_loss'] for line in lines(tmp_path, 'epoch')] == [1.5, 2.5, 4.5, 9.5, 11.5]
  # Sums of the line of the log go on from those of the checkpoint: of steps 1 to 4, and of 5 to 8.
  found = [(line['step'], line['train_loss']) for line in lines(tmp_path, 'step')]
  assert found == [(4, 2.5), (8, 6.5), (4, 2.5), (8, 6.5)]
  assert [line['message'] for line in lines(tmp_path, 'event')] == ['back', '3 epochs done']
  assert Checkpoints(tmp_path / 'checkpoints').steps() == [3, 9]


@pytest.mark.parametrize('stop', [4, 6])
def test_a_run_that_is_stopped_after_it_went_back_has_the_log_of_one_that_was_not(tmp_path, stop):
  Returning(tmp_path / 'whole').run()
  stopped = Returning(tmp_path / 'stopped')
  turn, asked = stopped.turn_epoch, []

  def stop_later(state, evaluation, step):
    if step == 9:
      asked.append(step)
      stopped.stop_at = stop
    return turn(state, evaluation, step)

  stopped.turn_epoch = stop_later
  assert not stopped.run().finished
  again = Returning(tmp_path / 'stopped')
  assert again.run().finished
  assert again.returns == 1
  assert again.called('went_back') == []
  for kind in ('epoch', 'step'):
    expected, found = (
      [{**line, 'seconds': 0} for line in lines(tmp_path / name, kind)] for name in ('whole', 'stopped')
    )
    assert found == expected


def test_a_checkpoint_to_go_back_to_has_to_be_there(tmp_path):
  loop = Returning(tmp_path, every=3)
  loop.keeps = ()
  with pytest.raises(ValueError, match='^[^\n]*: the checkpoint of step 3, which the run is to go back to, is gone$'):
    loop.run()


class TwoCounts(Counting):
  """Two runs side by side, the second of which diverges at the last step."""

  def advance(self, state, num_steps):
    state, found = super().advance(state, num_steps)
    losses = np.array([[1.0], [2.0]]) * found['each']['train_loss']
    finite = np.array([True, int(state['step']) < self.total])
    steps = np.full(2, found['steps'])
    return state, {'train_loss': losses.sum(1), 'steps': steps, 'finite': finite, 'each': {'train_loss': losses}}

  def evaluate(self, state, step):
    return {'valid_loss': np.array([1.0, 2.0]) * super().evaluate(state, step)['valid_loss']}

  def turn_epoch(self, state, evaluation, step):
    return state


def test_runs_side_by_side_have_logs_of_their_own_and_one_that_diverges_is_named(tmp_path):
  loop = TwoCounts(tmp_path)
  loop.folders, loop.recovers = (tmp_path / 'seed_0', tmp_path / 'seed_1'), False
  with pytest.raises(
    Diverged, match=r'^step 9: a loss or gradient of seed_1 is not finite; the last good checkpoint is '
  ):
    loop.run()
  first, second = (lines(folder, 'epoch') for folder in loop.folders)
  assert [line['train_loss'] for line in first] == [2.0, 4.5]
  assert [line['train_loss'] for line in second] == [4.0, 9.0]
  assert [line['valid_loss'] for line in second] == [2 * line['valid_loss'] for line in first]


class Rounding(Counting):
  """Losses whose sums depend on how they are grouped, in calls that end where a clock or somebody else says."""

  derived = ('derived.txt',)

  def __init__(self, workdir, call, **arguments):
    super().__init__(workdir, **arguments)
    self.call = call

  def advance(self, state, num_steps):
    num_steps = min(num_steps, self.call)
    state, found = super().advance(state, num_steps)
    steps = np.arange(int(state['step']) - num_steps + 1, int(state['step']) + 1)
    losses = np.zeros(8, np.float32)
    losses[:num_steps] = np.float32(1) / steps.astype(np.float32) ** 7
    return state, {**found, 'train_loss': losses.sum(), 'each': {'train_loss': losses}}

  def epoch_done(self, state, step, epoch):
    (self.workdir / 'derived.txt').write_text(f'epoch {epoch}')


def untimed(workdir):
  return [{**line, 'seconds': 0} for kind in ('epoch', 'step') for line in lines(workdir, kind)]


@pytest.mark.parametrize('call', [1, 2, 3])
def test_logs_repeat_exactly_whatever_the_calls_and_the_stops(tmp_path, call):
  Rounding(tmp_path / 'whole', 8, ends=(7, 16), log_every=5).run()
  for stop in (2, 9, 12):
    stopped = Rounding(tmp_path / 'stopped', call, ends=(7, 16), log_every=5)
    stopped.stop_at = stop
    assert not stopped.run().finished
  assert Rounding(tmp_path / 'stopped', 8, ends=(7, 16), log_every=5).run().finished
  assert untimed(tmp_path / 'stopped') == untimed(tmp_path / 'whole')
  losses = [float(np.float32(1) / np.float32(step) ** 7) for step in range(1, 8)]
  assert lines(tmp_path / 'whole', 'epoch')[0]['train_loss'] == sum(losses) / 7


def test_steps_before_one_that_is_not_finite_count(tmp_path):
  for name, call in (('one', 1), ('many', 8)):
    loop = Rounding(tmp_path / name, call, ends=(4, 8))
    loop.bad = {4}
    assert loop.run().finished
  assert untimed(tmp_path / 'one') == untimed(tmp_path / 'many')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('finished')
  Rounding(workdir, 8, ends=(3, 6)).run()
  return workdir


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize('damage', [pathlib.Path.unlink, lambda path: path.write_bytes(b''), cut])
def test_log_that_was_lost_comes_back_from_the_checkpoint(finished, tmp_path, damage):
  workdir = shutil.copytree(finished, tmp_path / 'run')
  damage(workdir / 'metrics.jsonl')
  (workdir / 'derived.txt').unlink()
  assert Rounding(workdir, 8, ends=(3, 6)).run().finished
  assert untimed(workdir) == untimed(finished)
  assert (workdir / 'derived.txt').read_text() == 'epoch 2'
  events = {line['event']: line['message'] for line in lines(workdir, 'event')}
  assert re.fullmatch(r'derived.txt: lost .* the checkpoint of step 6', events['brought_back'])
  [told, _] = [line['message'] for line in lines(workdir, 'event') if line['event'] == 'brought_back']
  assert re.fullmatch(r'metrics.jsonl: \d lines were lost or damaged; they are back .* of step 6', told)
  assert 'finished' in events
  found = workdirs.read(workdir)
  assert found.status == 'finished'
  # Nothing is told twice.
  before = (workdir / 'metrics.jsonl').read_bytes()
  assert Rounding(workdir, 8, ends=(3, 6)).run().finished
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_log_that_falls_short_of_its_checkpoint_is_an_event_that_the_report_shows(finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / 'run')
  for path in (workdir / 'checkpoints').rglob('metrics.jsonl*'):
    path.unlink()
  (workdir / 'metrics.jsonl').write_text(
    '{"kind": "epoch", "step": 3, "epoch": 0, "train_loss": 1}\n{"kind": "ep\n{}\n'
  )
  for _ in range(2):
    assert Rounding(workdir, 8, ends=(3, 6)).run().finished
    message = 'metrics.jsonl falls short of the checkpoint of step 6: it holds 1 of 2 epochs'
    assert [line['message'] for line in lines(workdir, 'event') if line['event'] == 'incomplete_log'] == [message]
    text = report.write(workdir).read_text()
    assert text.count(message) == 2  # Among the warnings and the events.


class WithTest(Rounding):
  """What the end of the run writes is a test."""

  def lacks(self):
    return '' if self.has_logged(lambda line: line['kind'] == 'test') else 'the test'

  def finish(self, state):
    super().finish(state)
    self.write('test', self.total, {'loss': 1.0})


def test_end_of_a_finished_run_that_was_lost_is_made_again(finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / 'run')
  # The checkpoint, which is older than the end of the run, has no copy of it.
  for again in (True, False):
    loop = WithTest(workdir, 8, ends=(3, 6))
    assert loop.run().finished
    assert loop.called('finish') == [(6,)] * again
    assert [line['step'] for line in lines(workdir, 'test')] == [6]
    events = [(line['event'], line['message']) for line in lines(workdir, 'event')]
    message = 'metrics.jsonl: the test was lost; it is found out again'
    assert events == [('finished', '2 epochs done'), ('brought_back', message)]


def test_lost_checkpoints_are_told_and_what_a_kill_left_of_one_is_removed(finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / 'run')
  shutil.rmtree(workdir / 'checkpoints')
  (workdir / 'checkpoints' / '6.partial' / 'state').mkdir(parents=True)
  loop = Rounding(workdir, 8, ends=(3, 6))
  loop.stop_at = 1
  loop.prepare = lambda state, step: loop.calls.append(sorted(path.name for path in loop.workdir.rglob('*.partial')))
  loop.run()
  assert loop.calls[0] == []
  message = 'there is no checkpoint; steps that metrics.jsonl had, up to 6, are taken again'
  assert [line['message'] for line in lines(workdir, 'event') if line['event'] == 'restarted'] == [message]


def test_checkpoint_and_what_is_in_it_are_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  synced, names = set(), []
  fsync, rename = os.fsync, pathlib.Path.rename

  def record(number):
    synced.add((os.fstat(number).st_dev, os.fstat(number).st_ino))
    fsync(number)

  def renamed(path, target):
    if path.name.endswith('.partial') and not names:
      inside = [path, *path.rglob('*')]
      names.extend(inner.relative_to(path).as_posix() for inner in inside if identity(inner) not in synced)
      names.append('looked at')
    return rename(path, target)

  def identity(path):
    return path.stat().st_dev, path.stat().st_ino

  monkeypatch.setattr(os, 'fsync', record)
  monkeypatch.setattr(pathlib.Path, 'rename', renamed)
  Checkpoints(tmp_path).save(1, {'weights': np.ones(3)}, {}, files={'a/metrics.jsonl': b'{}'})
  assert names == ['looked at']
  assert identity(tmp_path) in synced
  assert Checkpoints(tmp_path).restore({'weights': np.ones(3)}).files == {'a/metrics.jsonl': b'{}'}


def test_copy_that_is_damaged_is_no_damage_to_the_checkpoint(tmp_path):
  Checkpoints(tmp_path).save(1, {'weights': np.ones(3)}, {}, files={'a': b'12', 'b': b'34'})
  [path] = tmp_path.rglob('a.*')
  path.write_bytes(b'other')
  restored = Checkpoints(tmp_path).restore({'weights': np.ones(3)})
  assert (restored.step, restored.files, restored.damaged) == (1, {'b': b'34'}, ())
