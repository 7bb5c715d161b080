"""Lets a run end between two steps when the user or a scheduler sends a signal."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from darts_jax.runtime.terminal import say

#: Signals that ask a run to stop.
SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Seconds within which Python calls its signal handlers, unless the program is inside a library such as a compiler.
_PATIENCE = 1.0

# Names of current activities that cannot be interrupted, the innermost last; for messages.
_busy: list[str] = []


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
  """Context of an activity that a first signal does not interrupt; the message about the signal names it.

  Args:
    what: name of the activity, such as `'compilation'`.
  """
  _busy.append(what)
  try:
    yield
  finally:
    _busy.pop()


class InterruptGuard:
  """Context manager that turns the first SIGTERM or SIGINT into a flag, which a loop can check between its steps.

  If an activity has to end first, a message names it at once (see `busy`). A second signal raises KeyboardInterrupt in
  any place of the program; if the program is inside a library that does not return, the process ends. The previous
  handlers are restored on exit, and a signal that the program ignores stays ignored. Outside the main thread, where
  Python allows no handlers, the context manager does nothing.

  Attributes:
    requested: name of the first signal, such as `'SIGTERM'`; None before.
  """

  def __init__(self) -> None:
    """Creates the guard; its handlers are installed on entry."""
    self.requested: str | None = None
    self._previous: dict[signal.Signals, Any] = {}
    self._interrupted = threading.Event()
    self._seen = threading.Event()
    self._previous_wakeup = -1
    self._pipe: tuple[int, int] | None = None
    self._watcher: threading.Thread | None = None

  def __enter__(self) -> Self:
    if threading.current_thread() is threading.main_thread():
      # Programs that a shell starts in the background ignore SIGINT, which is meant for the foreground.
      heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
      self._previous = {number: signal.signal(number, self._handle) for number in heard}
      # Python's handlers wait until a library returns; the pipe is written immediately.
      self._pipe = os.pipe()
      for end in self._pipe:
        os.set_blocking(end, end == self._pipe[0])
      self._previous_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
      self._watcher = threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True)
      self._watcher.start()
    return self

  def __exit__(self, *exception: object) -> None:
    for number, handler in self._previous.items():
      # None stands for a handler that was not installed from Python and so cannot be put back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if self._pipe is not None and self._watcher is not None:
      signal.set_wakeup_fd(self._previous_wakeup)
      os.close(self._pipe[1])
      self._watcher.join()
      os.close(self._pipe[0])
      self._pipe = None

  def _handle(self, number: int, frame: FrameType | None) -> None:
    if self.requested is not None:
      self._interrupted.set()
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name
    self._seen.set()

  def _watch(self, pipe: int) -> None:
    """Waits for signals in a thread of its own, until the pipe is closed."""
    count = 0
    while received := os.read(pipe, 1):
      if received[0] not in SIGNALS:
        continue
      count += 1
      name = signal.Signals(received[0]).name
      innermost = _busy[-1:]
      if count == 1 and (innermost or not self._seen.wait(_PATIENCE)):
        what = f'the {innermost[0]} is' if innermost else 'the steps that are being taken are'
        say(f'{name}: stops when {what} done; again to stop now')
      elif count > 1 and not self._interrupted.wait(_PATIENCE):
        say(f'{name}: stopped; start again to go on from the last checkpoint')
        os._exit(128 + received[0])
