"""Trains the network of an architecture from scratch and tests it, on images or, if it is recurrent, on text.

darts-jax train --config=digits_eval --genotype=NAME|PATH [--seeds=N] [--workdir=DIR]
  [--config.FIELD=VALUE ...] [--distributed [--coordinator=HOST:PORT --num_processes=N --process_id=I]]
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from darts_jax import limits, spaces, training
from darts_jax.commands.entry import DISTRIBUTED_USAGE, GENOTYPE_HELP, Command, Flag, require, whole_number
from darts_jax.runtime import processes
from darts_jax.runtime.terminal import say, show
from darts_jax.spaces import Genotype

FLAGS = (
  Flag('genotype', None, f'{GENOTYPE_HELP} Of the config’s kind.'),
  Flag('seeds', '1', 'Trainings with as many seeds from config.seed on, each in a folder seed_N of the workdir.'),
)


def run(config: Mapping[str, Any], workdir: pathlib.Path, genotype: str | None, seeds: str) -> int:
  """Runs or resumes trainings and prints their results; returns the exit code."""

  def resolve() -> Genotype:
    require(genotype=genotype)
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


COMMAND = Command(
  run,
  f'--config=NAME|FILE --genotype=NAME|PATH [--seeds=N] [--workdir=DIR] [--config.FIELD=VALUE ...] {DISTRIBUTED_USAGE}',
  '--config=digits_eval --genotype=DARTS_V2 --seeds=3',
  FLAGS,
  distributed=True,
)
