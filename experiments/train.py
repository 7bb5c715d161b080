"""Trains the network of an architecture from scratch and tests it, on images or, if it is recurrent, on text.

python -m experiments.train --config=configs/digits_eval.py --genotype=NAME|PATH [--seeds=N] [--workdir=DIR]
  [--config.FIELD=VALUE ...] [--distributed [--coordinator=HOST:PORT --num_processes=N --process_id=I]]
"""

import pathlib
import sys

# For a script, sys.path begins with its folder, whose select.py would hide that of the standard library.
if not __package__:
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from collections.abc import Mapping
from typing import Any

from darts_jax import limits, spaces, training
from darts_jax.runtime import processes
from darts_jax.runtime.terminal import say, show
from darts_jax.spaces import Genotype
from experiments.entry import DISTRIBUTED_USAGE, GENOTYPE_HELP, Flag, launch, require, whole_number

USAGE = (
  'usage: python -m experiments.train --config=configs/digits_eval.py --genotype=NAME|PATH [--seeds=N] [--workdir=DIR]'
  ' [--config.FIELD=VALUE]'
  f' {DISTRIBUTED_USAGE}'
)
FLAGS = (
  Flag('genotype', None, f'{GENOTYPE_HELP} Of the config’s kind.'),
  Flag('seeds', '1', 'Trainings with as many seeds from config.seed on, each in a folder seed_N of the workdir.'),
)


def run(config: Mapping[str, Any], workdir: pathlib.Path, genotype: str | None, seeds: str) -> int:
  """Runs or resumes trainings and prints their results; returns the exit code."""

  def resolve() -> Genotype:
    require(USAGE, genotype=genotype)
    whole_number('seeds', seeds, limits.RUNS)
    found = spaces.resolve(str(genotype))
    training.check_genotype(config, found, f'--genotype: {genotype}')
    return found

  found = processes.together(resolve)
  try:
    results = training.run_seeds(config, workdir, found, int(seeds))
  except training.Diverged as error:
    if processes.is_first():
      say(f'error: {error}')
    return 1
  if len(results) < int(seeds) or not results[-1].finished:
    return 130
  for line in training.summarise(results) if processes.is_first() else ():
    show(line)
  return 0


if __name__ == '__main__':
  launch(run, USAGE, FLAGS, distributed=True)
