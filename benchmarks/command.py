"""Parts that the command lines of the benchmarks share."""

import os
import pathlib
import sys
from collections.abc import Callable

from absl import flags

from darts_jax.runtime.files import user_path
from darts_jax.runtime.terminal import prepare_streams


def output_file(path: str | None, flag: str) -> pathlib.Path | None:
  """The output file that a flag names; None if the flag is not set.

  Raises:
    ValueError: the file cannot be written; one line that names the flag.
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
  """Runs a command and returns its exit code; an error that the user caused is printed as one line and gives 2.

  Args:
    run: parses the command line and runs the command; returns the exit code, where None is 0.
    usage: printed instead if the command line asks for help; the docstring of a benchmark's module.
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
