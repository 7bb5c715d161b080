"""Searches with several seeds, selects a cell by validation, trains it from scratch, compares it with random cells.

darts-jax select --config=digits_select [--workdir=DIR] [--config.FIELD=VALUE ...]
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from darts_jax import selection
from darts_jax.commands.entry import Command
from darts_jax.runtime.terminal import say, show


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


COMMAND = Command(run, '--config=NAME|FILE [--workdir=DIR] [--config.FIELD=VALUE ...]', '--config=digits_select')
