"""Compares estimators of the hypergradient.

python -m experiments.hypergradients --config=configs/hypergradients.py [--checkpoint=WORKDIR] [--search]
    [--workdir=DIR] [--config.FIELD=VALUE ...]
"""

import pathlib
import sys

# For a script, sys.path begins with its folder, whose select.py would hide that of the standard library.
if not __package__:
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from collections.abc import Mapping
from typing import Any

from darts_jax import laboratory
from darts_jax.runtime.terminal import say, show
from experiments.entry import Flag, launch

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


if __name__ == '__main__':
  launch(
    run,
    'usage: python -m experiments.hypergradients --config=configs/hypergradients.py [--checkpoint=WORKDIR] [--search]'
    ' [--workdir=DIR] [--config.FIELD=VALUE]',
    FLAGS,
  )
