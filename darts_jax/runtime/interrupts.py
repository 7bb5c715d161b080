"""Ends a run at a point of its own choosing when the user or a scheduler asks it to stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from darts_jax.runtime.terminal import say

#: What asks a run to stop.
SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Seconds in which Python's own handlers come to their turn, unless the program is inside a library: a compiler, say.
_PATIENCE = 1.0

# What cannot be stopped at present, the innermost last; for messages.
_busy: list[str] = []


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
  """Within, a first signal has to wait for the end of this, and the message says so at once."""
  _busy.append(what)
  try:
    yield
  finally:
    _busy.pop()


class InterruptGuard:
  """Context manager that turns the first SIGTERM or SIGINT into a flag, for a loop to look at between its steps.

  If something has to end first, a line says at once what (see `busy`). A second signal raises KeyboardInterrupt
  wherever the program is; if it is inside a library that does not return, the process ends. The old handlers return on
  exit, and a signal that the program ignores stays ignored. Outside the main thread, where Python allows no handlers,
  it does nothing and nothing is ever requested.

  Attributes:
    requested: name of the first signal, such as `'SIGTERM'`; None before.
  """

  def __init__(self) -> None:
    """Handlers are installed on entry, not here."""
    self.requested: str | None = None
    self._previous: dict[signal.Signals, Any] = {}
    self._interrupted = threading.Event()
    self._seen = threading.Event()
    self._previous_wakeup = -1
    self._pipe: tuple[int, int] | None = None
    self._watcher: threading.Thread | None = None

  def __enter__(self) -> Self:
    if threading.current_thread() is threading.main_thread():
      # What a shell starts in the background ignores SIGINT, which is meant for what is in the foreground.
      heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
      self._previous = {number: signal.signal(number, self._handle) for number in heard}
      # Python's handlers wait for a library to return; the pipe is written at once.
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
    """Sees signals as they come, in a thread of its own, until the pipe is closed."""
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
