"""What the command lines of the benchmarks have in common."""

import sys
from collections.abc import Callable

from absl import flags


def exit_code(run: Callable[[], None]) -> int:
  """0 if a function returns; 2, after one line that says so, if what the user asked for cannot be done."""
  try:
    run()
  except (ValueError, flags.Error, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  return 0
