"""Repeats of a training with several seeds, and their mean and standard deviation."""

import math
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from darts_jax.runtime.files import user_path
from darts_jax.runtime.lock import locked
from darts_jax.settings import check_seeds
from darts_jax.spaces import Genotype
from darts_jax.training.language import LanguageResult
from darts_jax.training.loop import Result
from darts_jax.training.tasks import read, run

AnyResult = Result | LanguageResult


def run_seeds(
  config: Mapping[str, Any], workdir: str | pathlib.Path, genotype: Genotype, num_seeds: int
) -> list[AnyResult]:
  """Trains with the seeds `config.seed`, `config.seed + 1`, …; ends early at a training that is interrupted.

  Args:
    config: see `darts_jax.training.run`.
    workdir: working directory of the training; with several seeds, each has a folder `seed_N` in it.
    genotype: the architecture.
    num_seeds: number of seeds, at least 1.

  Returns:
    The results, by ascending seed.

  Raises:
    ValueError: as `darts_jax.training.run`, or the last seed would be too large.
    Diverged: a loss or gradient was not finite.
  """
  first = read(config).seed
  check_seeds(first, num_seeds, 'trainings', 'config.seed')
  if num_seeds == 1:
    return [run(config, workdir, genotype)]
  workdir = user_path(workdir, '--workdir')
  results: list[AnyResult] = []
  with locked(workdir):
    for seed in range(first, first + num_seeds):
      results.append(run({**dict(config.items()), 'seed': seed}, workdir / f'seed_{seed}', genotype))
      if results[-1].interrupted or not results[-1].finished:
        break
  return results


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
  """Mean and sample standard deviation; of one value the latter is NaN, and both are NaN if a value is not finite."""
  if not all(map(math.isfinite, values)):
    return math.nan, math.nan
  return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def summarise(results: Sequence[AnyResult]) -> Iterator[str]:
  """Yields lines of text that summarise the results of trainings."""
  if isinstance(results[0], LanguageResult):
    without, measure, factor, unit = '', 'perplexity', 1, ''
  else:
    without, measure, factor, unit = ', without the auxiliary head', 'accuracy', 100, ' %'
  yield f'parameters: {results[0].num_weights:,}{without}'
  for part, name in (('valid', 'validation'), ('test', 'test')):
    values = [factor * getattr(result, f'{part}_{measure}') for result in results]
    if not any(map(math.isnan, values)):
      mean, std = mean_and_std(values)
      each = f' ± {std:.2f}{unit} over {len(values)} seeds' if len(values) > 1 else unit
      yield f'{name} {measure}: {mean:.2f}{each}'
  for result in results:
    yield f'report: {result.report}'
