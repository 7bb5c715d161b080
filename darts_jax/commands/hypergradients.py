"""Compares estimators of the hypergradient.

darts-jax hypergradients --config=hypergradients [--checkpoint=WORKDIR] [--search]
    [--workdir=DIR] [--config.FIELD=VALUE ...]
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from darts_jax import laboratory
from darts_jax.commands.entry import Command, Flag
from darts_jax.runtime.terminal import say, show

FLAGS = (
  Flag('checkpoint', None, 'Working directory of a search, at whose checkpoints estimators are compared.'),
  Flag('search', False, 'Whether to search with every estimator, too, from the same seed.'),
)


def run(config: Mapping[str, Any], workdir: pathlib.Path, checkpoint: str | None, search: bool) -> int:
  """Runs the laboratory and prints its table; returns the exit code."""
  try:
    laboratory.run(config, workdir, checkpoint=checkpoint, search=search)
  except laboratory.Interrupted as error:
    say(error)
    return 130
  show((workdir / 'results.md').read_text(encoding='utf-8'))
  show(f'report: {workdir / "report.html"}')
  return 0


COMMAND = Command(
  run,
  '--config=NAME|FILE [--checkpoint=WORKDIR] [--search] [--workdir=DIR] [--config.FIELD=VALUE ...]',
  '--config=hypergradients',
  FLAGS,
)
