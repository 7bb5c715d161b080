"""Prints the output of commands, also to streams that cannot be written.

A run continues if its progress cannot be printed, since the working directory has its log. It is an error if results
cannot be printed.
"""

import contextlib
import io
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence


class OutputError(OSError):
  """Standard output cannot be written; the cause of the exception is the system's error."""


def prepare_streams() -> None:
  """Prepares standard output and standard error, so that a program can print any text.

  Characters that their encoding lacks are escaped, for which Python would raise an error. A stream that was closed
  before the program began is replaced by the null device; otherwise a file that is opened later could get its output.
  """
  # The system assigns the lowest free file descriptor.
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
  """Flushes both streams or discards their buffers, since Python would print an error if it cannot flush at exit."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def unheard() -> Iterator[None]:
  """Context that ignores errors of writing to standard error."""
  # Writing to a closed stream raises a ValueError.
  with contextlib.suppress(OSError, ValueError):
    yield


def say(message: object) -> None:
  """Prints a line on standard error, if it can be written."""
  if sys.stderr is not None:
    with unheard():
      print(message, file=sys.stderr, flush=True)


def show(text: object) -> None:
  """Prints a result on standard output.

  Raises:
    OutputError: standard output cannot be written.
  """
  try:
    print(text, flush=True)
  except OSError as error:
    raise OutputError(*error.args) from error


def aligned(rows: Sequence[Sequence[str]], num_left: int) -> list[str]:
  """The lines of a table, the first `num_left` columns aligned to the left and the others to the right."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return [
    '  '.join(
      cell.ljust(width) if i < num_left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def complain_of_output(error: OutputError) -> int:
  """Prints that standard output cannot be written, unless its reader closed it early; returns the exit code."""
  if isinstance(error.__cause__, BrokenPipeError):  # The reader may be `head`.
    return 0
  say(f'error: standard output cannot be written ({error.strerror or error})')
  return 2
