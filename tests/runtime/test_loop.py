"""The loop of a run; whole runs that are stopped, killed and resumed are among the tests of searches."""

import math
import re
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.runtime import metrics, processes
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.loop import Checkpoint, Diverged, Loop, Plan, Sums


def test_what_only_some_steps_check_is_a_mean_over_these():
  sums = Sums({'steps': 2.0, 'seconds': 9.0, 'train_loss': 3.0, 'disagreement': 0.0, 'checks': 0.0})
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
    return {**state, 'step': jnp.int32(last)}, {
      'train_loss': float(sum(range(first, last + 1))) if finite else math.nan,
      'steps': float(num_steps),
      'finite': finite,
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


class TwoCounts(Counting):
  """Two runs side by side, the second of which diverges at the last step."""

  def advance(self, state, num_steps):
    state, found = super().advance(state, num_steps)
    loss = np.array([1.0, 2.0]) * found['train_loss']
    finite = np.array([True, int(state['step']) < self.total])
    return state, {'train_loss': loss, 'steps': np.full(2, found['steps']), 'finite': finite}

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
