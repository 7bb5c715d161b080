"""What the command lines of the benchmarks have in common."""

import sys
from collections.abc import Callable

from absl import flags

from darts_jax.runtime.terminal import prepare_streams


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
