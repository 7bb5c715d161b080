"""What the command lines of the benchmarks have in common."""

import os
import pathlib
import sys
from collections.abc import Callable

from absl import flags

from darts_jax.runtime.files import user_path
from darts_jax.runtime.terminal import prepare_streams


def output_file(path: str | None, flag: str) -> pathlib.Path | None:
  """The file that a flag says results are written to; None if it says none.

  Raises:
    ValueError: no file can be written there; one line that names the flag.
  """
  if not path:
    return None
  found = user_path(path, flag)
  if found.is_dir():
    raise ValueError(f'{flag}: {found} is a folder; give a file')
  if not found.parent.is_dir():
    raise ValueError(f'{flag}: {found.parent} is not a folder; make it, or give a file in one that exists')
  if not os.access(found if found.exists() else found.parent, os.W_OK):
    raise ValueError(f'{flag}: {found} may not be written')
  return found


def exit_code(run: Callable[[], int | None], usage: str | None) -> int:
  """What a function returns, or 2, after one line that says so, if what the user asked for cannot be done.

  Args:
    run: parses the command line, and does what it says; None is 0.
    usage: printed instead if the command line asks for help: the text that a benchmark's module begins with.
  """
  prepare_streams()
  if {'-h', '-help', '--help'}.intersection(sys.argv):
    print(usage)
    return 0
  try:
    return run() or 0
  except (ValueError, flags.Error, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
