"""Ends a run at a point of its own choosing when the user or a scheduler asks it to stop."""

import signal
import threading
from types import FrameType
from typing import Any, Self

#: What asks a run to stop.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptGuard:
  """Context manager that turns the first SIGTERM or SIGINT into a flag, for a loop to look at between its steps.

  A second one raises KeyboardInterrupt wherever the program is. The old handlers return on exit. Outside the main
  thread, where Python allows no handlers, it does nothing and nothing is ever requested.

  Attributes:
    requested: name of the first signal, such as `'SIGTERM'`; None before.
  """

  def __init__(self) -> None:
    """Handlers are installed on entry, not here."""
    self.requested: str | None = None
    self._previous: dict[signal.Signals, Any] = {}

  def __enter__(self) -> Self:
    if threading.current_thread() is threading.main_thread():
      self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
    return self

  def __exit__(self, *exception: object) -> None:
    for number, handler in self._previous.items():
      # None stands for a handler that was not installed from Python and so cannot be put back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    if self.requested is not None:
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name
