"""Compares sampled strategies with reference results on NAS-Bench-201.

python -m benchmarks.rulers --table=DIR [--seeds=40] [--json=FILE]

The folder holds the benchmark's table, see `darts_jax.spaces.nasbench201_table`. With every seed, each strategy
evaluates 100 architectures and chooses the best by validation accuracy after 12 epochs on CIFAR-10; the result is the
test accuracy of this architecture after 200 epochs. The printed table gives the mean and standard deviation over seeds,
in percent; the mean and standard deviation of 200 runs of another implementation; the difference of the means; and the
allowed difference, which is three standard errors: 3·√(s²/n + s_f²/n_f). The exit code is 1 if a difference is larger
than allowed, and 0 otherwise.

The JSON file holds an object keyed by strategy, each with `mean, std, figure_mean, figure_std, figure_runs, difference,
allowed, test_accuracies`, the last by seed.
"""

import json
import math
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from benchmarks.command import exit_code, output_file
from darts_jax import limits
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.spaces.nasbench201_table import Table
from darts_jax.strategies.random_search import RandomSearch
from darts_jax.strategies.regularized_evolution import RegularizedEvolution
from darts_jax.strategies.sampled import Sampled
from darts_jax.trials import InProcess, Trials, run
from darts_jax.trials.evaluators.table import TableEvaluator

TRIALS = 100


class Figure(NamedTuple):
  """Reference result of a strategy: mean and standard deviation of test accuracies in percent, and number of runs."""

  mean: float
  std: float
  runs: int


class Ruler(NamedTuple):
  """A strategy and its reference result."""

  strategy: Sampled[Any]
  figure: Figure


RULERS = {
  'random_search': Ruler(RandomSearch(), Figure(93.72660833, 0.38106991, 200)),
  'regularized_evolution': Ruler(RegularizedEvolution(population=20, sample_size=5), Figure(94.0558, 0.33616710, 200)),
}


class Measured(NamedTuple):
  """Measured results of a strategy.

  Attributes:
    test_accuracies: test accuracies of the chosen architectures, in percent, by seed.
    figure: the reference result.
  """

  test_accuracies: Sequence[float]
  figure: Figure

  @property
  def mean(self) -> float:
    """Mean over seeds."""
    return statistics.mean(self.test_accuracies)

  @property
  def std(self) -> float:
    """Sample standard deviation over seeds."""
    return statistics.stdev(self.test_accuracies)

  @property
  def difference(self) -> float:
    """Difference of the mean from that of the reference."""
    return self.mean - self.figure.mean

  @property
  def allowed(self) -> float:
    """Three standard errors of the difference."""
    return 3 * math.sqrt(self.std**2 / len(self.test_accuracies) + self.figure.std**2 / self.figure.runs)

  @property
  def agrees(self) -> bool:
    """Whether the difference is allowed."""
    return abs(self.difference) <= self.allowed

  def to_dict(self) -> dict[str, Any]:
    """The results as JSON values."""
    figure = {f'figure_{name}': value for name, value in self.figure._asdict().items()}
    measured = {name: getattr(self, name) for name in ('mean', 'std', 'difference', 'allowed', 'test_accuracies')}
    return {**measured, **figure}


def measure(ruler: Ruler, path: str, table: Table, seeds: int) -> Measured:
  """Runs a strategy with each seed on the table in the folder `path`."""
  space, evaluator = NasBench201(), TableEvaluator(path)
  accuracies = []
  for seed in range(seeds):
    found = run(ruler.strategy, space, evaluator, Trials(seed=seed, trials=TRIALS), InProcess())
    accuracies.append(100 * table.accuracies(ruler.strategy.best(found.state)).test_200)
  return Measured(accuracies, ruler.figure)


def compare(path: str, seeds: int, output: pathlib.Path | None) -> int:
  """Prints the comparison, and writes it as JSON if asked to; returns the exit code."""
  table = Table.read(path, '--table')
  print(
    '| strategy | seeds | mean | std | figure | difference | allowed |\n| --- | --- | --- | --- | --- | --- | --- |'
  )
  results = {}
  for name, ruler in RULERS.items():
    results[name] = found = measure(ruler, path, table, seeds)
    print(
      f'| {name} | {seeds} | {found.mean:.3f} | {found.std:.3f} | {ruler.figure.mean:.3f} ± {ruler.figure.std:.3f}'
      f' | {found.difference:+.3f} | {found.allowed:.3f} |',
      flush=True,
    )
  if output is not None:
    output.write_text(json.dumps({name: found.to_dict() for name, found in results.items()}, indent=2) + '\n')
  wrong = [name for name, found in results.items() if not found.agrees]
  for name in wrong:
    print(f'{name}: differs by more than three standard errors', file=sys.stderr)
  return 1 if wrong else 0


def main() -> int:
  """Parses the command line; returns the exit code."""
  table = flags.DEFINE_string('table', None, 'Folder with the table of NAS-Bench-201.')
  seeds = flags.DEFINE_integer('seeds', 40, 'Runs of each strategy.', lower_bound=2, upper_bound=limits.RUNS)
  output = flags.DEFINE_string('json', None, 'File that the results are written to.')

  def compared() -> int:
    flags.FLAGS(sys.argv)
    if table.value is None:
      raise ValueError('--table: missing; give the folder with the table of NAS-Bench-201')
    return compare(table.value, seeds.value, output_file(output.value, '--json'))

  return exit_code(compared, __doc__)


if __name__ == '__main__':
  sys.exit(main())
