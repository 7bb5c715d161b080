import os
import signal
import threading

import pytest

from darts_jax.runtime.interrupts import InterruptGuard

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
