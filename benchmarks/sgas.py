"""Measures the search step of SGAS after every decision, relative to the step of the whole supernet.

python -m benchmarks.sgas --config=configs/cifar_sgas.py [--config.batch_size=16] [--repeats=3]

Images are random, in the shape of the config's dataset, and α are random at every decision; the batch size is constant,
so that steps can be compared. For each number of decisions in a cell the table gives: the number of candidate
operations left on the edges of a normal and a reduction cell, without `none`; the number of weights of the supernet;
the seconds to trace and compile the step; the median seconds of `--repeats` steps, made in turns with steps of the
whole supernet, and their ratio; and temporary memory as XLA reports it, and its ratio.
"""

import dataclasses
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from benchmarks.command import exit_code
from benchmarks.search_step import open_search
from darts_jax.runtime.compilation import compile_with_report
from darts_jax.search.settings import Search, placed_task, read
from darts_jax.strategies.sgas import Sgas

TITLES = ('decisions', 'candidates', 'weights', 'compile s', 'step s', 'of the whole', 'temporary MB', 'of the whole')


def run(settings: Search, repeats: int) -> None:
  """Measures and prints the table, row by row."""
  strategy = settings.strategy
  if not isinstance(strategy, Sgas):
    raise ValueError(f'config.strategy: {strategy.name} decides nothing; allowed is sgas')
  steady = dataclasses.replace(settings, strategy=dataclasses.replace(strategy, batch_growth=0))
  searcher, data, _, _ = open_search(steady)
  searched = searcher.searched
  generator = np.random.default_rng(settings.seed)
  state = searcher.init(jax.random.key(settings.seed))
  one = jnp.int32(1)
  # A copy, since steps donate their state.
  whole_state = jax.tree.map(jnp.copy, state)
  whole: Any = None
  whole_memory = 0
  print('| ' + ' | '.join(TITLES) + ' |\n|' + ' --- |' * len(TITLES), flush=True)
  for epoch in [None, *strategy.decision_epochs(searched.space)]:
    if epoch is not None:
      alphas = {
        name: generator.normal(size=(cell.num_edges, len(cell.operations)))
        for name, cell in searched.space.cells.items()
      }
      searched, _ = searched.turn(alphas, epoch)
      smaller = searcher.restage(searched, 0)
      state, searcher = smaller.inherit(state, searcher), smaller
    compilation = compile_with_report(searcher.run, state, data, one)
    step = compilation.compiled
    whole = whole or step
    seconds: dict[str, list[float]] = {'now': [], 'whole': []}
    for _ in range(repeats + 1):
      start = time.perf_counter()
      whole_state, _ = jax.block_until_ready(whole(whole_state, data, one))
      middle = time.perf_counter()
      state, sums = jax.block_until_ready(step(state, data, one))
      seconds['whole'].append(middle - start)
      seconds['now'].append(time.perf_counter() - middle)
    if not sums['finite']:
      raise ValueError('the search diverged; nothing more is measured')
    now, before = (statistics.median(times[1:]) for times in (seconds['now'], seconds['whole']))
    analysis = step.memory_analysis()
    assert analysis is not None
    memory = analysis.temp_size_in_bytes
    whole_memory = whole_memory or memory
    candidates = [
      sum(name != 'none' for _, edge in cell.edges for name in edge.operations) for cell in searched.cells.values()
    ]
    decided = len(searched.memory['decisions']) // len(searched.space.cells)
    print(
      f'| {decided} | {candidates[0]}, {candidates[1]} | {state.weights.vector.size:,} | {compilation.seconds:.1f} |'
      f' {now:.3f} | {now / before:.0%} | {memory / 1e6:,.0f} | {memory / whole_memory:.0%} |',
      flush=True,
    )


def main() -> int:
  """Parses the command line; returns the exit code."""
  config = config_flags.DEFINE_config_file('config', 'configs/cifar_sgas.py', 'Path of the config file.')
  repeats = flags.DEFINE_integer('repeats', 3, 'Timed steps of either kind.', lower_bound=1)

  def measured() -> None:
    flags.FLAGS(sys.argv)
    jax.config.update('jax_enable_compilation_cache', False)
    settings = read(config.value)
    placed_task(settings)
    run(settings, repeats.value)

  return exit_code(measured, __doc__)


if __name__ == '__main__':
  sys.exit(main())
