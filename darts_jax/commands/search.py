"""Searches for an architecture.

darts-jax search --config=digits [--workdir=DIR] [--config.FIELD=VALUE ...]

On several hosts, run the same command in every process (see docs/pods.md):
darts-jax search --config=cifar --distributed
    [--coordinator=HOST:PORT --num_processes=N --process_id=I]
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from darts_jax import search, searches, spaces
from darts_jax.commands.entry import DISTRIBUTED_USAGE, Command
from darts_jax.data.sequences import perplexity
from darts_jax.runtime import processes
from darts_jax.runtime.terminal import say, show
from darts_jax.trials import Failed, TrialsResult


def run(config: Mapping[str, Any], workdir: pathlib.Path) -> int:
  """Runs or resumes a search and prints its result; returns the exit code."""
  try:
    results = searches.run(config, workdir, lambda message: say(f'== {message}'))
  except (search.Diverged, Failed) as error:
    if processes.is_first():
      say(f'error: {error}')
    return 1
  if isinstance(results, TrialsResult):
    return _told(results)
  if not results[0].finished:
    return 130
  for result in results if processes.is_first() else ():
    show(f'genotype: {spaces.to_json(result.genotype)}')
    if result.warning is not None:
      say(f'warning: {result.warning}')
    if any('valid_perplexity' in line for line in result.history):
      show(f'validation perplexity of the supernet: {perplexity(result.valid_loss):.2f}')
    elif math.isnan(result.valid_accuracy):
      show(f'validation loss of the supernet: {result.valid_loss:.4g}')
    else:
      show(f'validation accuracy in the supernet: {result.valid_accuracy:.2%}')
    show(f'report: {result.report}')
  return 0


def _told(result: TrialsResult) -> int:
  """Prints the result of a search by proposals; returns the exit code."""
  if not result.finished or result.genotype is None:
    return 130
  for line in (f'genotype: {spaces.to_json(result.genotype)}', *result.lines, f'report: {result.report}'):
    show(line)
  return 0


COMMAND = Command(
  run,
  f'--config=NAME|FILE [--workdir=DIR] [--config.FIELD=VALUE ...] {DISTRIBUTED_USAGE}',
  '--config=digits',
  distributed=True,
)
