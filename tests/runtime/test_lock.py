"""One run at a time in a working directory, whatever became of the run before."""

import errno
import fcntl
import json
import math
import os
import pathlib
import queue
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from darts_jax.runtime import lock
from darts_jax.runtime.lock import locked

ROOT = pathlib.Path(__file__).parents[2]
HOLD = """
import pathlib, sys
from darts_jax.runtime.lock import locked
with locked(pathlib.Path(sys.argv[1])):
  print('locked', flush=True)
  sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def short_pause(monkeypatch):
  monkeypatch.setattr(lock, '_PAUSE', 0.001)


def test_another_process_is_named_and_a_killed_one_leaves_no_lock(tmp_path):
  workdir = tmp_path / 'run'
  command = [sys.executable, '-c', HOLD, str(workdir)]
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  with subprocess.Popen(command, env=environment, text=True, stdin=-1, stdout=-1) as process:
    try:
      assert process.stdout.readline() == 'locked\n'
      who = f'in use by process {process.pid} on {re.escape(socket.gethostname())} since \\d{{4}}-\\d\\d-\\d\\d [^\n]*$'
      with pytest.raises(ValueError, match=f'^--workdir: {re.escape(str(workdir))} is {who}'), locked(workdir):
        raise AssertionError
      # Runs below it write into it, too.
      inside = workdir / 'search' / 'seed_0'
      message = f'^--workdir: {re.escape(str(inside))} lies in {re.escape(str(workdir))}, which is {who}'
      with pytest.raises(ValueError, match=message), locked(inside):
        raise AssertionError
      assert [path.name for path in workdir.iterdir()] == [lock.FILE]
      # One above it would come to it in the end.
      message = f'^--workdir: {re.escape(str(tmp_path))} holds {re.escape(str(workdir))}, which is {who}'
      with pytest.raises(ValueError, match=message), locked(tmp_path):
        raise AssertionError
      assert [path.name for path in tmp_path.iterdir()] == ['run']
      # One beside it is another run's.
      with locked(tmp_path / 'other'):
        pass
    finally:
      process.send_signal(signal.SIGKILL)
  assert [path.name for path in workdir.iterdir()] == [lock.FILE]
  with locked(workdir):
    assert json.loads((workdir / lock.FILE).read_text())['pid'] == os.getpid()
  assert list(workdir.iterdir()) == []


def test_a_run_locks_directories_inside_its_own_but_none_twice(tmp_path):
  seeds = [tmp_path / 'run' / name for name in ('seed_0', 'seed_1')]
  with locked(tmp_path / 'run', seeds):
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*.lock')} == {
      *(f'run/{name}' for name in ('run.lock', 'seed_0/run.lock', 'seed_1/run.lock'))
    }
    with locked(tmp_path / 'run' / 'final' / 'seed_0'):
      pass
    with pytest.raises(ValueError, match='seed_1 is in use by this process already$'), locked(seeds[1]):
      raise AssertionError
  # What was made for nothing is gone.
  assert list(tmp_path.iterdir()) == []


def record_lock_is_free(workdir):
  """Whether another process gets the lock of the file itself, whatever the file says."""
  attempt = 'import fcntl, sys; fcntl.lockf(open(sys.argv[1], "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)'
  process = subprocess.run(
    [sys.executable, '-I', '-S', '-c', attempt, str(workdir / lock.FILE)], stderr=-1, text=True, check=False
  )
  if process.returncode:
    assert 'BlockingIOError' in process.stderr
  return process.returncode == 0


@pytest.mark.parametrize(('first', 'second'), [('run', 'run/inside'), ('run/inside', 'run')])
def test_a_directory_stays_locked_when_one_inside_or_around_it_was_locked_and_left(tmp_path, first, second):
  with locked(tmp_path / first):
    with locked(tmp_path / second):
      assert not record_lock_is_free(tmp_path / second)
    assert not record_lock_is_free(tmp_path / first)


def test_runs_are_looked_for_three_levels_below(tmp_path):
  third, fourth = tmp_path / 'a' / 'b' / 'c', tmp_path / 'a' / 'b' / 'c' / 'd'
  fourth.mkdir(parents=True)
  write_owner(fourth)
  with locked(tmp_path):
    pass
  write_owner(third)
  with pytest.raises(ValueError, match=f'holds {re.escape(str(third))}, which is in use by'), locked(tmp_path):
    raise AssertionError


def test_what_a_run_has_written_stays(tmp_path):
  with locked(tmp_path / 'a' / 'b'):
    (tmp_path / 'a' / 'b' / 'config.json').write_text('{}')
  assert [path.name for path in (tmp_path / 'a' / 'b').iterdir()] == ['config.json']


@pytest.fixture
def without_locks(monkeypatch):
  def lockf(*arguments):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'lockf', lockf)


def write_owner(workdir, **changes):
  owner = {'host': socket.gethostname(), 'pid': os.getppid(), 'since': 'noon', 'begun': lock._begun(os.getppid())}
  (workdir / lock.FILE).write_text(json.dumps(owner | changes))


def test_file_system_without_locks_goes_by_what_the_file_says(tmp_path, without_locks):
  write_owner(tmp_path)
  remedy = f'.if it has ended, remove {re.escape(str(tmp_path / lock.FILE))}.; wait for it'
  message = f'in use by process {os.getppid()} on {re.escape(socket.gethostname())} since noon {remedy}'
  with pytest.raises(ValueError, match=message), locked(tmp_path):
    raise AssertionError
  # Nobody here knows of processes elsewhere.
  write_owner(tmp_path, host='else\nwhere\x1b[31m')
  with pytest.raises(ValueError, match=rf'on else where \[31m since noon {remedy}'), locked(tmp_path):
    raise AssertionError


@pytest.mark.parametrize(
  'changes',
  [
    *({'pid': 2**22 + 1}, {'begun': 'long ago'}, {'pid': os.getpid()}),
    # Nobody's, or those of whole groups of processes.
    *({'pid': pid, 'begun': None} for pid in (10**30, 2**31, 0, -1, math.inf)),
  ],
)
def test_owner_that_is_gone_has_no_lock(tmp_path, without_locks, changes):
  write_owner(tmp_path, **changes)
  with locked(tmp_path):
    assert json.loads((tmp_path / lock.FILE).read_text())['pid'] == os.getpid()
  assert list(tmp_path.iterdir()) == []


def test_lock_that_its_process_lost_by_reading_the_file_is_held_as_long_as_the_process_is_there(tmp_path):
  write_owner(tmp_path)
  with pytest.raises(ValueError, match=f'in use by process {os.getppid()} '), locked(tmp_path):
    raise AssertionError


def test_file_that_cannot_be_removed_says_that_nobody_holds_the_lock(tmp_path, monkeypatch):
  def refuse(path):
    raise PermissionError

  with locked(tmp_path):
    monkeypatch.setattr(pathlib.Path, 'unlink', refuse)
  assert (tmp_path / lock.FILE).read_bytes() == b''


def test_process_that_has_ended_but_was_not_waited_for_is_not_there():
  with subprocess.Popen(['true']) as process:
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert lock._begun(process.pid) is None


def test_run_that_takes_over_from_another_host_says_so(tmp_path, caplog):
  write_owner(tmp_path, host='elsewhere')
  with locked(tmp_path):
    assert json.loads((tmp_path / lock.FILE).read_text())['host'] == socket.gethostname()
  [message] = caplog.messages
  assert message.startswith(f'run.lock is from process {os.getppid()} on elsewhere since noon, which did not end')


def test_threads_do_not_share_a_directory(tmp_path, monkeypatch):
  acquire, found, end = lock._acquire, queue.SimpleQueue(), threading.Event()

  def slowly(*arguments):
    number = acquire(*arguments)
    end.wait(0.1)
    return number

  def run():
    try:
      with locked(tmp_path):
        found.put('locked')
        end.wait(10)
    except ValueError as error:
      found.put(str(error))

  monkeypatch.setattr(lock, '_acquire', slowly)
  threads = [threading.Thread(target=run) for _ in range(2)]
  for thread in threads:
    thread.start()
  said = sorted(found.get(timeout=10) for _ in threads)
  end.set()
  for thread in threads:
    thread.join()
  assert said == [f'--workdir: {tmp_path} is in use by this process already', 'locked']
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('kind', ['a link', 'a folder', 'a pipe'])
def test_what_is_no_file_of_a_lock_is_not_written_to(tmp_path, kind):
  workdir, other = tmp_path / 'run', tmp_path / 'important'
  workdir.mkdir()
  other.write_text('data')
  place = workdir / lock.FILE
  {'a link': lambda: place.symlink_to(other), 'a folder': place.mkdir, 'a pipe': lambda: os.mkfifo(place)}[kind]()
  with (
    pytest.raises(ValueError, match=f'^--workdir: .*run.lock is {kind}, in the place of the file of the lock; remove'),
    locked(workdir),
  ):
    raise AssertionError
  assert other.read_text() == 'data'
  # In a folder above, it is nobody's lock.
  with locked(workdir / 'inside'):
    pass
  assert [path.name for path in workdir.iterdir()] == [lock.FILE]


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'{"pid": 1',
    b'\xff',
    b'[]',
    b'{"pid": "x", "host": 1, "since": [], "begun": 0}',
    b'{"pid": 1e400, "host": "h", "since": "", "begun": null}',
  ],
)
def test_what_the_file_says_may_be_damaged(tmp_path, content):
  (tmp_path / lock.FILE).write_bytes(content)
  with locked(tmp_path):
    pass
  assert list(tmp_path.iterdir()) == []
