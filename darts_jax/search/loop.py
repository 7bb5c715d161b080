"""A whole search: from a config to a genotype, resumable at every moment."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from darts_jax.runtime import metrics, processes
from darts_jax.runtime.compilation import enable_cache
from darts_jax.runtime.files import user_path
from darts_jax.runtime.interrupts import InterruptGuard
from darts_jax.runtime.lock import locked
from darts_jax.runtime.mesh import check_batch, make_mesh
from darts_jax.runtime.metrics import Writer, check_writers
from darts_jax.runtime.precision import in_float32
from darts_jax.runtime.workdir import as_json, claim, claim_together
from darts_jax.search.epochs import Epochs
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search, check_alone, read
from darts_jax.search.state import SearchState
from darts_jax.settings import as_config
from darts_jax.spaces import Genotype
from darts_jax.tasks import Feed


@dataclasses.dataclass(frozen=True)
class Result:
  """What a search found.

  Attributes:
    genotype: derived from the final α.
    valid_loss: of the supernet on the architecture half, in nats, at the end of the last complete epoch, or of the one
      that the strategy returns the architecture of.
    valid_accuracy: likewise, 0 to 1; NaN on text, whose perplexity is the exponential of the loss.
    state: final state; of all searches side by side.
    finished: whether all epochs were done, or as many as the strategy wanted; not so after an interruption.
    interrupted: whether a signal asked for an end, which ends a sequence of searches even if this one is finished.
    report: path of the report page.
    history: what was logged of every epoch, in their order; empty in other processes than the first.
    warning: one line if the genotype would be another one if α moved once more as far as in the last epoch (see
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
  """One search, see `run_side_by_side`, where `config.mesh.seed` has to be 1."""
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
  """Searches, or goes on with the search or the searches that `workdir` holds.

  Args:
    config: fields of `darts_jax.search.settings.Search`, as nested mappings or `ConfigDict`.
    workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `genotype.json`, `alphas.npz`, `checkpoints/` and
      `report.html`. A search that was stopped resumes to the same result, bit for bit. Searches side by side have all
      but the checkpoints in folders `seed_0`, `seed_1`, … of their own.
    data: inputs and targets that take the place of those that the task would load; see `Task.given`.
    writers: are told of the metrics as they are logged.

  Returns:
    What each of the `config.mesh.seed` searches found; it is what a search by itself with the same seed finds, but for
    the order of additions.

  Raises:
    ValueError: a setting, the data or the directory is unfit; nothing has been written then.
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
  searcher, feed, fingerprint = processes.together(lambda: _open(settings, given))
  config = as_json({**as_config(settings), 'dataset': fingerprint})
  claim_together(workdir, lambda: _claim(config, workdir, folders), lambda: config)
  enable_cache()
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
  """Where the searches write."""
  if settings.mesh.seed == 1:
    return [workdir]
  return [workdir / f'seed_{settings.seed + i}' for i in range(settings.mesh.seed)]


def _claim(config: Mapping[str, Any], workdir: pathlib.Path, folders: Sequence[pathlib.Path]) -> None:
  """See `claim`; folders of searches side by side get the config with their seed."""
  claim(workdir, config, 'search')
  if len(folders) > 1:
    for i, folder in enumerate(folders):
      claim(folder, {**config, 'seed': config['seed'] + i}, 'search')


@in_float32
def check(settings: Search) -> Any:
  """Raises the ValueError that `run` would, before anything is searched.

  Returns:
    JSON values that tell the data from others.
  """
  return _open(settings)[2]


def _open(settings: Search, given: tuple[Any, Any] | None = None) -> tuple[Searcher, Feed, Any]:
  """The search, what feeds it with data, and JSON values of these, with which alone a search goes on."""
  mesh = make_mesh(seeds=settings.mesh.seed)
  check_batch(settings.batch_size, mesh)
  task = settings.task
  # Before anything is written.
  settings.space.judge(task.source)
  found = task.load() if given is None else task.given(*given)
  seeds = range(settings.seed, settings.seed + settings.mesh.seed)
  halves = [task.halves(found, settings, seed) for seed in seeds]
  searcher = Searcher.open(settings, found, mesh)
  return searcher, searcher.feed(halves), task.fingerprint(found)
