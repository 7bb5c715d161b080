import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from darts_jax.runtime import interrupts
from darts_jax.runtime.interrupts import InterruptGuard, busy

ROOT = pathlib.Path(__file__).parents[2]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def received():
  """Signals that reach the handlers a program had before the guard."""
  numbers = []
  previous = {number: signal.signal(number, lambda number, frame: numbers.append(number)) for number in SIGNALS}
  yield numbers
  for number, handler in previous.items():
    signal.signal(number, handler)


@pytest.mark.parametrize('number', SIGNALS)
def test_first_signal_is_a_flag(number, received):
  with InterruptGuard() as guard:
    assert guard.requested is None
    os.kill(os.getpid(), number)
    assert guard.requested == number.name
  assert guard.requested == number.name
  assert received == []


@pytest.mark.parametrize('first', SIGNALS)
@pytest.mark.parametrize('second', SIGNALS)
def test_second_signal_interrupts(first, second, received):
  with InterruptGuard() as guard:
    os.kill(os.getpid(), first)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), second)
  assert guard.requested == first.name
  assert received == []


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_that_is_ignored_stays_so(number, received):
  signal.signal(number, signal.SIG_IGN)
  with InterruptGuard() as guard:
    os.kill(os.getpid(), number)
    assert guard.requested is None
  assert signal.getsignal(number) is signal.SIG_IGN


@pytest.mark.parametrize('number', SIGNALS)
def test_old_handlers_return(number, received):
  with pytest.raises(ZeroDivisionError), InterruptGuard():
    raise ZeroDivisionError
  os.kill(os.getpid(), number)
  assert received == [number]


def test_other_threads_leave_signals_alone(received):
  inside, leave, guards = threading.Event(), threading.Event(), []

  def work():
    with InterruptGuard() as guard:
      guards.append(guard)
      inside.set()
      leave.wait(10)

  thread = threading.Thread(target=work)
  thread.start()
  assert inside.wait(10)
  os.kill(os.getpid(), signal.SIGTERM)
  leave.set()
  thread.join()
  assert guards[0].requested is None
  assert received == [signal.SIGTERM]


def test_first_signal_says_at_once_what_it_waits_for(monkeypatch):
  told, said = [], threading.Event()
  monkeypatch.setattr(interrupts, 'say', lambda message: (told.append(message), said.set()))
  with InterruptGuard() as guard, busy('compilation'):
    os.kill(os.getpid(), signal.SIGTERM)
    assert guard.requested == 'SIGTERM'
    assert said.wait(60)
  # Where nothing has to be waited for, nothing is said.
  with InterruptGuard():
    os.kill(os.getpid(), signal.SIGTERM)
  assert told == ['SIGTERM: stops when the compilation is done; again to stop now']


# Python's handlers do not come to their turn in a call of C that goes on after a signal, as a compiler does.
INSIDE = """
import ctypes, os, signal, sys, threading
from darts_jax.runtime import interrupts
with interrupts.InterruptGuard() as guard, interrupts.busy('compilation'):
  signal.siginterrupt(signal.SIGTERM, False)
  signal.siginterrupt(signal.SIGINT, False)
  read, pipe, buffer, ready = ctypes.CDLL(None).read, os.pipe()[0], ctypes.create_string_buffer(1), threading.Event()
  # It is printed once this thread hands over the interpreter, which it does in the call alone.
  sys.setswitchinterval(1e6)
  threading.Thread(target=lambda: ready.wait() and print('inside', flush=True), daemon=True).start()
  ready.set()
  read(pipe, buffer, 1)
"""


def test_second_signal_ends_a_process_that_is_inside_a_library():
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  command = [sys.executable, '-c', INSIDE]
  with subprocess.Popen(command, env=environment, text=True, stdout=-1, stderr=-1) as process:
    try:
      assert process.stdout.readline() == 'inside\n'
      process.send_signal(signal.SIGTERM)
      assert process.stderr.readline() == 'SIGTERM: stops when the compilation is done; again to stop now\n'
      process.send_signal(signal.SIGINT)
      assert process.stderr.read() == 'SIGINT: stopped; start again to go on from the last checkpoint\n'
      assert process.wait(60) == 130
    finally:
      process.kill()
