"""What commands print, on terminals and into files and pipes that cannot take all of it.

A run goes on when what shows its progress is gone: its log is in its working directory. Results that cannot be printed
are an error.
"""

import contextlib
import io
import os
import pathlib
import sys
from collections.abc import Iterator


class OutputError(OSError):
  """Standard output cannot be written; its cause is the error of the system."""


def prepare_streams() -> None:
  """Makes standard output and standard error such that a program can print whatever it wants.

  A character that their encoding lacks is written by its number; Python would raise an error. A stream that was closed
  before the program began becomes one that goes nowhere, lest a file that is opened later get what is printed.
  """
  # The system gives the lowest number that is free.
  while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
  os.close(number)
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if stream is None:
      setattr(sys, name, pathlib.Path(os.devnull).open('w', encoding='utf-8'))  # noqa: SIM115  It stays open.
    elif isinstance(stream, io.TextIOWrapper) and stream.errors == 'strict':
      stream.reconfigure(errors='backslashreplace')


def settle_streams() -> None:
  """Leaves nothing for Python to write at its end, where it would complain of a stream that cannot be written."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def unheard() -> Iterator[None]:
  """Within, it does not matter whether standard error can be written."""
  # Of a closed file it is a ValueError.
  with contextlib.suppress(OSError, ValueError):
    yield


def say(message: object) -> None:
  """Prints a line on standard error, if there is one that takes it."""
  if sys.stderr is not None:
    with unheard():
      print(message, file=sys.stderr, flush=True)


def show(text: object) -> None:
  """Prints a result.

  Raises:
    OutputError: standard output cannot be written.
  """
  try:
    print(text, flush=True)
  except OSError as error:
    raise OutputError(*error.args) from error
