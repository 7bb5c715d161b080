"""Searches for an architecture.

darts-jax search --config=digits [--workdir=DIR] [--config.FIELD=VALUE ...] [--compare=digits_eval [--random=N]]

On several hosts, run the same command in every process (see docs/pods.md):
darts-jax search --config=cifar --distributed
    [--coordinator=HOST:PORT --num_processes=N --process_id=I]
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from darts_jax import limits, report, search, searches, selection, spaces
from darts_jax.commands.entry import DISTRIBUTED_USAGE, Command, Flag, load_config, whole_number
from darts_jax.data.sequences import perplexity
from darts_jax.runtime import processes, progress
from darts_jax.runtime.terminal import say, show
from darts_jax.selection import versus
from darts_jax.trials import Failed, TrialsResult

FLAGS = (
  Flag(
    'compare',
    None,
    'Config of a training, by its name or file. After the search, what was found and random architectures are trained'
    ' by it, and their accuracies are printed side by side.',
  ),
  Flag('random', None, 'How many random architectures --compare trains; 2 by default.'),
)


def run(config: Mapping[str, Any], workdir: pathlib.Path, compare: str | None = None, random: str | None = None) -> int:
  """Runs or resumes a search and prints its result, and with `compare` that of trainings; returns the exit code."""
  training, num_random = processes.together(lambda: _training(compare, random, config))
  try:
    results = searches.run(config, workdir, _note)
    code = _told_trials(results) if isinstance(results, TrialsResult) else _told(results)
    if code or training is None:
      return code
    space = searches.read(config).space
    # The cost of the config is that of the search.
    progress.begin_with('')
    for result in [results] if isinstance(results, TrialsResult) else results:
      assert result.genotype is not None  # With an exit code of 0 there is one.
      folder = result.report.parent
      compared = selection.against_random(training, result.genotype, space, folder, num_random=num_random, note=_note)
      if processes.is_first():
        report.write(folder)
        for line in compared.lines():
          show(line)
  except (search.Diverged, Failed) as error:
    if processes.is_first():
      say(f'error: {error}')
    return 1
  except selection.Interrupted as error:
    say(error)
    return 130
  return 0


def _note(message: str) -> None:
  if processes.is_first():
    say(f'== {message}')


def _training(
  compare: str | None, random: str | None, config: Mapping[str, Any]
) -> tuple[Mapping[str, Any] | None, int]:
  """The config that --compare names, if any, and how many random architectures are trained by it.

  Raises:
    ValueError: what is searched cannot be trained by it.
  """
  if compare is None:
    if random is not None:
      raise ValueError(f'--random: {random} is given without --compare')
    return None, 0
  number = whole_number('random', '2' if random is None else random, limits.RUNS)
  loaded, space = load_config(compare, '--compare'), searches.read(config).space
  try:
    versus.check(loaded, space)
  except ValueError as error:
    raise ValueError(f'--compare: {compare}: {error}') from error
  return loaded, number


def _told(results: Sequence[search.Result]) -> int:
  """Prints the results of searches by gradients; returns the exit code."""
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


def _told_trials(result: TrialsResult) -> int:
  """Prints the result of a search by proposals; returns the exit code."""
  if not result.finished or result.genotype is None:
    return 130
  for line in (f'genotype: {spaces.to_json(result.genotype)}', *result.lines, f'report: {result.report}'):
    show(line)
  return 0


COMMAND = Command(
  run,
  f'--config=NAME|FILE [--workdir=DIR] [--config.FIELD=VALUE ...] [--compare=NAME|FILE [--random=N]]'
  f' {DISTRIBUTED_USAGE}',
  '--config=digits --compare=digits_eval',
  FLAGS,
  distributed=True,
)
