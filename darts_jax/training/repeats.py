"""The same training with several seeds, and what it comes to on the average."""

import math
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from darts_jax.genotype import Genotype
from darts_jax.settings import build
from darts_jax.training.loop import Result, run
from darts_jax.training.settings import Training


def run_seeds(
  config: Mapping[str, Any], workdir: str | pathlib.Path, genotype: Genotype, num_seeds: int
) -> list[Result]:
  """Trains with the seeds `config.seed`, `config.seed + 1`, …; ends early at a training that is interrupted.

  Args:
    config: see `darts_jax.training.run`.
    workdir: of the training; with several seeds each has a folder `seed_N` in it.
    genotype: the architecture.
    num_seeds: at least 1.
  """
  first = build(Training, config).seed
  results: list[Result] = []
  for seed in range(first, first + num_seeds):
    folder = pathlib.Path(workdir) / f'seed_{seed}' if num_seeds > 1 else workdir
    results.append(run({**dict(config.items()), 'seed': seed}, folder, genotype))
    if results[-1].interrupted or not results[-1].finished:
      break
  return results


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
  """Mean and sample standard deviation; NaN for the latter of a single value, and for both if a value is not finite."""
  if not all(map(math.isfinite, values)):
    return math.nan, math.nan
  return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def summarise(results: Sequence[Result]) -> Iterator[str]:
  """Lines that say what trainings came to."""
  yield f'parameters: {results[0].num_weights:,}, without the auxiliary head'
  for name, values in (
    ('validation accuracy', [result.valid_accuracy for result in results]),
    ('test accuracy', [result.test_accuracy for result in results]),
  ):
    if not any(map(math.isnan, values)):
      mean, std = mean_and_std(values)
      each = f' ± {100 * std:.2f} % over {len(values)} seeds' if len(values) > 1 else ' %'
      yield f'{name}: {100 * mean:.2f}{each}'
  for result in results:
    yield f'report: {result.report}'
