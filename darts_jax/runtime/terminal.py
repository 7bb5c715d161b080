"""What commands print, on terminals that cannot show all of it."""

import io
import sys


def escape_what_cannot_be_shown() -> None:
  """Makes standard output write a character that its encoding lacks by its number; Python would raise an error."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper) and stream.errors == 'strict':
      stream.reconfigure(errors='backslashreplace')
