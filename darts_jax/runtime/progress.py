"""Shows the progress of a run: a bar on a terminal, occasional lines elsewhere, both with an estimate of the end."""

import os
import sys
import time
from collections.abc import Mapping
from typing import Self

from tqdm import tqdm

from darts_jax.runtime.terminal import say, unheard

# The line that `begin_with` was given.
_beginning: list[str] = []


def begin_with(line: str) -> None:
  """Has the next run's progress begin with a line; an empty one takes it back.

  A command knows what a run is, but only the run knows that nothing stands in its way.
  """
  _beginning[:] = [line] if line else []


class NoProgress:
  """Replaces `Progress` where nothing is to be shown; a context manager."""

  def update(self, step: int, values: Mapping[str, float]) -> None:
    """Shows nothing."""

  def note(self, message: str) -> None:
    """Prints nothing."""

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    pass


class Progress:
  """Shows progress on stderr, if it can be written; a context manager.

  On a terminal this is a tqdm bar. Elsewhere, such as in a log file, lines are printed: the first update, the last one,
  and between them at most one every `interval` seconds.
  """

  def __init__(self, total_steps: int, initial: int = 0, description: str = '', *, interval: float = 30.0) -> None:
    """Starts the display.

    Args:
      total_steps: number of steps of the whole run.
      initial: number of steps that were done before the run was resumed.
      description: text that is shown in front.
      interval: seconds between lines; not used by a bar.
    """
    self._total = total_steps
    self._description = description
    self._interval = interval
    self._bar: tqdm | None = None
    self._first: tuple[float, int] | None = None
    self._printed = -float('inf')
    self._pending: str | None = None
    # On terminals of size 0, as in some containers, tqdm shows nothing, so that lines are printed there.
    with unheard():
      if sys.stderr is not None and sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0:
        self._bar = tqdm(
          total=total_steps,
          initial=initial,
          desc=description,
          unit='step',
          dynamic_ncols=True,
          miniters=1,
          file=sys.stderr,
        )

  def update(self, step: int, values: Mapping[str, float]) -> None:
    """Shows that `step` steps of the whole run are done, and the values beside it."""
    shown = ', '.join(f'{name} {value:.4g}' for name, value in values.items())
    if self._bar is not None:
      with unheard():
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(step - self._bar.n)
      return
    now = time.monotonic()
    if self._first is None:
      # The first step includes compilation, so speed is measured from its end.
      self._first = now, step
    self._pending = self._line(step, now, shown)
    if now - self._printed >= self._interval:
      self._flush(now)

  def note(self, message: str) -> None:
    """Prints a message on its own line, above the bar if there is one."""
    lines = [*_beginning, message]
    _beginning.clear()
    for line in lines:
      self._say(line)

  def _say(self, message: str) -> None:
    if self._bar is not None:
      with unheard():
        self._bar.write(message, file=sys.stderr)
    else:
      say(message)

  def close(self) -> None:
    """Ends the display, which stays visible in its last state."""
    if self._bar is not None:
      with unheard():
        self._bar.close()
    elif self._pending is not None:
      self._flush(time.monotonic())

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _flush(self, now: float) -> None:
    say(self._pending)
    self._pending = None
    self._printed = now

  def _line(self, step: int, now: float, shown: str) -> str:
    assert self._first is not None
    start, first_step = self._first
    parts = [f'{self._description} {step}/{self._total} ({step / max(self._total, 1):.0%})'.strip()]
    if step > first_step and now > start:
      seconds = (now - start) / (step - first_step)
      parts.append(f'{seconds:.3g} s/step, {tqdm.format_interval((self._total - step) * seconds)} left')
    return ', '.join([*parts, shown] if shown else parts)
