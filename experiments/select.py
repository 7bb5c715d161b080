"""Searches with several seeds, selects a cell by validation, trains it from scratch, compares it with random cells.

python -m experiments.select --config=configs/digits_select.py [--workdir=DIR] [--config.FIELD=VALUE ...]
"""

import pathlib
import sys

# For a script, sys.path begins with its folder, whose select.py would hide that of the standard library.
if not __package__:
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from collections.abc import Mapping
from typing import Any

from darts_jax import selection
from darts_jax.runtime.terminal import say, show
from experiments.entry import launch


def run(config: Mapping[str, Any], workdir: pathlib.Path) -> int:
  """Runs or resumes a selection and prints its table; returns the exit code."""
  try:
    results = selection.run(config, workdir, lambda message: say(f'== {message}'))
  except selection.Interrupted as error:
    say(error)
    return 130
  except selection.Diverged as error:
    say(f'error: {error}')
    return 1
  show(selection.markdown(results))
  show(f'report: {workdir / "report.html"}')
  return 0


if __name__ == '__main__':
  launch(run, 'usage: python -m experiments.select --config=configs/digits_select.py [--workdir=DIR]')
