"""A whole search, from a config to a genotype; it can be interrupted and resumed at any time."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from darts_jax.runtime import metrics, processes
from darts_jax.runtime.compilation import enable_cache
from darts_jax.runtime.files import one_line, user_path
from darts_jax.runtime.interrupts import InterruptGuard
from darts_jax.runtime.lock import locked
from darts_jax.runtime.mesh import check_batch, make_mesh
from darts_jax.runtime.metrics import Writer, check_writers
from darts_jax.runtime.precision import in_float32
from darts_jax.runtime.workdir import as_json, claim, claim_together
from darts_jax.search import records
from darts_jax.search.epochs import Epochs
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search, check_alone, read
from darts_jax.search.state import SearchState
from darts_jax.settings import as_config
from darts_jax.spaces import Genotype
from darts_jax.spaces.operations import is_own
from darts_jax.tasks import Feed


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a search.

  Attributes:
    genotype: the architecture derived from the final α.
    valid_loss: loss of the supernet on the architecture half, in nats, at the end of the last complete epoch; if the
      strategy returns the architecture of an earlier epoch, at the end of that one.
    valid_accuracy: accuracy at the same time, 0 to 1; NaN on text, whose perplexity is the exponential of the loss.
    state: the final state, shared by searches side by side.
    finished: whether all epochs are done, or the strategy has ended the search; False after an interruption.
    interrupted: whether a signal asked to stop, which ends a sequence of searches even if this one is finished.
    report: path of the report page.
    history: the log line of every epoch, in order; empty in other processes than the first.
    warning: one line if the genotype would change if α moved once more as far as in the last epoch (see
      `darts_jax.spaces.doubts`); None after an interruption, and in other processes than the first.
  """

  genotype: Genotype
  valid_loss: float
  valid_accuracy: float
  state: SearchState
  finished: bool
  interrupted: bool
  report: pathlib.Path
  warning: str | None = None
  history: tuple[Mapping[str, Any], ...] = ()


def run(config: Mapping[str, Any], workdir: str | pathlib.Path) -> Result:
  """Runs one search; see `run_side_by_side`. `config.mesh.seed` has to be 1."""
  check_alone(read(config))
  [result] = run_side_by_side(config, workdir)
  return result


@in_float32
def run_side_by_side(
  config: Mapping[str, Any],
  workdir: str | pathlib.Path,
  *,
  data: tuple[Any, Any] | None = None,
  writers: Sequence[Writer] = (),
) -> list[Result]:
  """Runs `config.mesh.seed` searches at once, or resumes those that `workdir` holds.

  Args:
    config: fields of `darts_jax.search.settings.Search`, as nested mappings or `ConfigDict`.
    workdir: the working directory; the search writes `config.json`, `metrics.jsonl`, `tensorboard/`, `genotype.json`,
      `alphas.npz`, `checkpoints/` and `report.html` into it. A search that was stopped resumes to the same result, bit
      for bit. Searches side by side share the checkpoints; each has its other files in a folder `seed_0`, `seed_1`, …
    data: inputs and targets that replace the data that the task would load; see `Task.given`.
    writers: receive the metrics as they are logged.

  Returns:
    The result of each search. It equals the result of a single search with the same seed, up to the rounding of sums
    that are added in another order.

  Raises:
    ValueError: a setting, the data or the working directory is invalid; nothing has been written then.
    Diverged: a loss or gradient was not finite.
  """
  check_writers(writers)
  settings = processes.together(lambda: read(config))
  workdir = user_path(workdir, '--workdir')
  folders = _folders(settings, workdir)
  with locked(workdir, folders):
    return _run(settings, workdir, folders, data, writers)


def _run(
  settings: Search,
  workdir: pathlib.Path,
  folders: Sequence[pathlib.Path],
  given: tuple[Any, Any] | None,
  writers: Sequence[Writer],
) -> list[Result]:
  # Before anything is compiled, of which JAX would say in its own words that it cannot be cached.
  enable_cache()
  searcher, feed, fingerprint = processes.together(lambda: _open(settings, given))
  config = as_json({**as_config(settings), 'dataset': fingerprint})
  claim_together(workdir, lambda: _claim(config, workdir, folders), lambda: config)
  with InterruptGuard() as guard:
    loop = Epochs(settings, workdir, searcher, feed, guard, folders, config)
    loop.writers = writers
    with contextlib.closing(loop):
      state, last_epoch, finished, requested = loop.run()
  alphas = loop.alphas(state)
  reports, warnings = loop.reports(), loop.warnings()
  return [
    Result(
      loop.searched.read(alphas[i]),
      float(np.ravel(last_epoch.get('valid_loss', math.nan))[i]),
      float(np.ravel(last_epoch.get('valid_accuracy', [math.nan] * len(folders)))[i]),
      state,
      finished,
      requested is not None,
      reports[i],
      warnings[i] if finished else None,
      metrics.epochs(folders[i]) if processes.is_first() else (),
    )
    for i in range(len(folders))
  ]


def _folders(settings: Search, workdir: pathlib.Path) -> list[pathlib.Path]:
  """The folder that each search writes to."""
  if settings.mesh.seed == 1:
    return [workdir]
  return [workdir / f'seed_{settings.seed + i}' for i in range(settings.mesh.seed)]


def _claim(config: Mapping[str, Any], workdir: pathlib.Path, folders: Sequence[pathlib.Path]) -> None:
  """Claims the working directory (see `claim`), and for searches side by side each folder with its own seed."""
  claim(workdir, config, 'search')
  if len(folders) > 1:
    for i, folder in enumerate(folders):
      claim(folder, {**config, 'seed': config['seed'] + i}, 'search')


@in_float32
def check(settings: Search) -> Any:
  """Loads the data and builds the search, without running it.

  Returns:
    JSON values that identify the data.

  Raises:
    ValueError: a setting or the data is invalid; `run` would raise the same error.
  """
  return _open(settings)[2]


def _open(settings: Search, given: tuple[Any, Any] | None = None) -> tuple[Searcher, Feed, Any]:
  """The search, the feed of its data, and JSON values that identify the data: a search resumes only on the same."""
  mesh = make_mesh(seeds=settings.mesh.seed)
  check_batch(settings.batch_size, mesh)
  task = settings.task
  # An unreadable table is an error that has to come before anything is written.
  settings.space.judge(task.source)
  found = task.load() if given is None else task.given(*given)
  records.check_names(settings.space)
  seeds = range(settings.seed, settings.seed + settings.mesh.seed)
  halves = [task.halves(found, settings, seed) for seed in seeds]
  searcher = Searcher.open(settings, found, mesh)
  feed = searcher.feed(halves)
  _check_own_parts(settings, searcher, feed)
  return searcher, feed, task.fingerprint(found)


def _check_own_parts(settings: Search, searcher: Searcher, feed: Feed) -> None:
  """Raises a ValueError, one line, if the search step cannot be lowered and has parts that users have added."""
  operations = dict.fromkeys(name for spec in settings.space.cells.values() for name in spec.operations)
  own = [f'operation {name}' for name in operations if is_own(name)]
  for kind, part in (('strategy', settings.strategy), ('space', settings.space), ('task', settings.task)):
    if type(part).__module__.partition('.')[0] != __name__.partition('.')[0]:
      own.append(f'{kind} {part.name}')
  if not own:
    return
  try:
    # The products of Hessians are differentiated when the step is lowered. JAX keeps the trace for the compilation.
    searcher.run.lower(searcher.template(), feed.shapes, np.int32(1))
  except Exception as error:  # A user's own code may raise anything.
    line = one_line(str(error).partition('\n')[0])
    if isinstance(error, ValueError) and line.startswith(('config.', 'operation ', 'task ')):
      raise ValueError(line) from error
    raise ValueError(
      f'{", ".join(own)}: the search step by {settings.hypergradient.name} cannot be computed'
      f' ({type(error).__name__}: {line})'
    ) from error
