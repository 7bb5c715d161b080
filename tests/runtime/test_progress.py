import contextlib
import errno
import io
import os
import pathlib
import pty
import re
import sys
import termios
import types

import pytest

from darts_jax.runtime import progress
from darts_jax.runtime.progress import Progress
from darts_jax.runtime.terminal import say


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass only when a test says so."""
  clock = types.SimpleNamespace(now=1000.0)
  monkeypatch.setattr(progress, 'time', types.SimpleNamespace(monotonic=lambda: clock.now))
  return clock


def test_lines_come_first_last_and_at_the_interval(clock, capsys):
  with Progress(100, 40, 'search', interval=30) as bar:
    for step in range(41, 101):
      bar.update(step, {'loss': 100 / step})
      clock.now += 4
  lines = capsys.readouterr().err.splitlines()
  # A step takes 4 s, so 30 s have passed every 8 steps.
  assert [int(re.match(r'search (\d+)/100 ', line)[1]) for line in lines] == [*range(41, 101, 8), 100]
  assert lines[0] == 'search 41/100 (41%), loss 2.439'
  assert lines[1] == 'search 49/100 (49%), 4 s/step, 03:24 left, loss 2.041'
  assert lines[-1] == 'search 100/100 (100%), 4 s/step, 00:00 left, loss 1'


def test_update_that_was_printed_is_not_repeated_at_the_end(clock, capsys):
  with Progress(10, description='train', interval=30) as bar:
    bar.update(1, {})
    clock.now += 60
    bar.update(4, {})
  assert capsys.readouterr().err == 'train 1/10 (10%)\ntrain 4/10 (40%), 20 s/step, 02:00 left\n'


def test_speed_does_not_count_the_step_that_compiles(clock, capsys):
  with Progress(5, interval=0) as bar:
    clock.now += 300
    bar.update(1, {})
    clock.now += 2
    bar.update(2, {})
  assert capsys.readouterr().err == '1/5 (20%)\n2/5 (40%), 2 s/step, 00:06 left\n'


def test_unfinished_run_shows_how_far_it_came(clock, capsys):
  def run():
    with Progress(10, interval=30) as bar:
      for step in (1, 2, 3):
        clock.now += 1
        bar.update(step, {})
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    run()
  assert capsys.readouterr().err.splitlines() == ['1/10 (10%)', '3/10 (30%), 1 s/step, 00:07 left']


def test_notes_are_lines_at_once(clock, capsys):
  with Progress(10, interval=30) as bar:
    bar.update(1, {})
    bar.note('checkpoint 1 is damaged')
    assert capsys.readouterr() == ('', '1/10 (10%)\ncheckpoint 1 is damaged\n')


def read_all(master):
  """What was written to a terminal whose other end is closed; one read may give a part of it."""
  content = b''
  # At the end Linux raises an error, and other systems return nothing.
  with contextlib.suppress(OSError):
    while part := os.read(master, 1 << 16):
      content += part
  os.close(master)
  return content


def test_terminal_without_a_size_gets_lines(monkeypatch):
  master, slave = pty.openpty()
  with os.fdopen(slave, 'w') as stream:
    monkeypatch.setattr(sys, 'stderr', stream)
    with Progress(10) as bar:
      bar.update(1, {})
    monkeypatch.undo()
  assert read_all(master) == b'1/10 (10%)\r\n'


def test_terminal_shows_one_bar_with_an_estimate(monkeypatch):
  master, slave = pty.openpty()
  termios.tcsetwinsize(slave, (25, 100))
  with os.fdopen(slave, 'w') as stream:
    monkeypatch.setattr(sys, 'stderr', stream)
    with Progress(10, 4, 'search') as bar:
      bar.update(7, {'loss': 0.12345, 'accuracy': 0.5})
      bar.note('genotype written')
      bar.update(10, {'loss': 0.1, 'accuracy': 0.75})
    monkeypatch.undo()
  output = read_all(master).decode().replace('\r\n', '\n')
  # A run that goes on from step 4 of 10 begins at 40 %.
  assert re.match(r'\r?search:  40%\|[^|]*\| 4/10 \[', output)
  # What a line shows in the end is what was written after its last carriage return. The note has a line of its own,
  # below which the bar goes on and is left in its last state.
  note, last, end = [line.split('\r')[-1] for line in output.split('\n')]
  assert (note, end) == ('genotype written', '')
  assert re.fullmatch(r'search: 100%\|.*\| 10/10 \[\d\d:\d\d<00:00, .*, loss 0\.1, accuracy 0\.75\]', last)


class Gone(io.StringIO):
  """A stream that cannot be written any more."""

  def __init__(self, error, terminal=False):
    super().__init__()
    self._error, self._terminal = error, terminal

  def isatty(self):
    return self._terminal

  def fileno(self):
    raise self._error

  def write(self, text):
    raise self._error

  def flush(self):
    raise self._error


@pytest.mark.parametrize(
  'stream',
  [
    Gone(BrokenPipeError(errno.EPIPE, 'Broken pipe')),
    Gone(OSError(errno.ENOSPC, 'No space left on device')),
    Gone(ValueError('I/O operation on closed file')),
    Gone(OSError(errno.EIO, 'Input/output error'), terminal=True),
    None,
  ],
)
def test_a_run_goes_on_when_nobody_can_be_told(monkeypatch, capsys, stream):
  monkeypatch.setattr(sys, 'stderr', stream)
  with Progress(10, interval=0) as bar:
    bar.update(1, {'loss': 1.0})
    bar.note('a note')
    bar.update(2, {})
  say('a line')
  # Standard output is for results.
  assert capsys.readouterr().out == ''


def test_a_terminal_that_hangs_up_does_not_end_a_run(monkeypatch):
  master, slave = pty.openpty()
  termios.tcsetwinsize(slave, (25, 100))
  with os.fdopen(slave, 'w') as stream:
    monkeypatch.setattr(sys, 'stderr', stream)
    with Progress(10) as bar:
      bar.update(1, {})
      os.close(master)
      bar.update(2, {'loss': 1.0})
      bar.note('a note')
      bar.update(3, {})
    monkeypatch.undo()
    # What could not be written is written once more at the end.
    with pathlib.Path(os.devnull).open('w') as nowhere:
      os.dup2(nowhere.fileno(), slave)
