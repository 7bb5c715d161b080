"""Worker processes: each has one evaluation, and takes no other one with it."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import BrokenExecutor

import pytest

from darts_jax.runtime.lock import locked
from darts_jax.trials import InProcess, Processes


def test_in_process_results_and_errors_are_there_at_once():
  executor = InProcess()
  assert executor.submit(pow, 2, exp=5).result(0) == 32
  with pytest.raises(ZeroDivisionError):
    executor.submit(divmod, 1, 0).result(0)


def test_processes_are_others_and_used_again():
  with Processes(2) as executor:
    first = executor.submit(os.getpid).result()
    assert first != os.getpid()
    assert executor.submit(os.getpid).result() == first
    # A terminal's SIGINT, which reaches a group of processes, does not reach it.
    assert executor.submit(os.getpgrp).result() == first
    with pytest.raises(ZeroDivisionError):
      executor.submit(divmod, 1, 0).result()
    assert executor.submit(os.getpid).result() == first


def test_the_end_of_a_process_fails_its_evaluation_alone():
  with Processes(2) as executor:
    patient = executor.submit(time.sleep, 0.5)
    with pytest.raises(BrokenExecutor):
      executor.submit(os._exit, 1).result()
    assert executor.submit(pow, 2, 5).result() == 32
    assert patient.result() is None


def test_a_process_that_cannot_import_what_it_needs_is_one_line():
  message = r'^config.workers: a new process ended before its first evaluation; [^\n]*$'
  with Processes(1, ['nowhere_to_be_found']) as executor, pytest.raises(ValueError, match=message):
    executor.submit(os.getpid)


def test_a_process_that_ended_between_two_evaluations_is_replaced():
  with Processes(1) as executor:
    worker = executor.submit(os.getpid).result()
    os.kill(worker, signal.SIGKILL)
    # The parent hears of it before long.
    found = worker
    while found == worker:
      future = executor.submit(os.getpid)
      try:
        found = future.result()
      except BrokenExecutor:
        continue
    assert found not in (worker, os.getpid())


def test_there_are_no_more_processes_than_asked_for_and_they_end_with_the_executor():
  with Processes(1) as executor:
    pid = executor.submit(os.getpid).result()
    # Would go on for an hour.
    future = executor.submit(time.sleep, 3600)
    with pytest.raises(RuntimeError, match='^all 1 processes are busy$'):
      executor.submit(pow, 2, 5)
  # The process may not have begun yet.
  assert future.cancelled() or isinstance(future.exception(), BrokenExecutor)
  with pytest.raises(ProcessLookupError):
    os.kill(pid, 0)


PARENT = """
import os, time
from darts_jax.trials import Processes
if __name__ == '__main__':
  executor = Processes(2)
  print(executor.submit(os.getpid).result(), flush=True)
  print(executor.submit(os.getpid).result(), flush=True)
  executor.submit(time.sleep, 3600)
  time.sleep(3600)
"""


def is_there(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  # The system may leave it to nobody to ask what became of an orphan.
  return ') Z ' not in pathlib.Path(f'/proc/{pid}/stat').read_text()


@pytest.mark.skipif(not pathlib.Path('/proc/self/stat').exists(), reason='needs /proc to see what processes there are')
def test_processes_do_not_outlive_a_parent_that_was_killed(tmp_path):
  (tmp_path / 'parent.py').write_text(PARENT)
  command = [sys.executable, str(tmp_path / 'parent.py')]
  environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[2])}
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
    workers = {int(parent.stdout.readline()) for _ in range(2)}
    assert all(is_there(worker) for worker in workers)
    parent.kill()
  deadline = time.monotonic() + 60
  while any(is_there(worker) for worker in workers):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_processes_may_run_below_the_directory_of_their_parent(tmp_path):
  script = 'import pathlib; from darts_jax.runtime.lock import locked\nwith locked(pathlib.Path(folder)): pass'
  with locked(tmp_path), Processes(2) as executor:
    executor.submit(exec, script, {'folder': str(tmp_path / 'trials' / '0')}).result()
    # But not in it.
    with pytest.raises(ValueError, match=f'^--workdir: {tmp_path} is in use by process {os.getpid()} on '):
      executor.submit(exec, script, {'folder': str(tmp_path)}).result()
  with tempfile.TemporaryDirectory() as other, Processes(1) as executor:
    # Nor below the directory of somebody else.
    holder = executor.submit(exec, HOLD, {'folder': other})
    while not (pathlib.Path(other) / 'held').exists():
      assert not holder.done()
      time.sleep(0.05)
    with Processes(1) as second:
      message = f'lies in {other}, which is in use by process '
      with pytest.raises(ValueError, match=message):
        second.submit(exec, script, {'folder': f'{other}/below'}).result()
    (pathlib.Path(other) / 'held').unlink()
    holder.result()


HOLD = """
import pathlib, time
from darts_jax.runtime.lock import locked
with locked(pathlib.Path(folder)):
  (pathlib.Path(folder) / 'held').touch()
  while (pathlib.Path(folder) / 'held').exists():
    time.sleep(0.05)
"""
