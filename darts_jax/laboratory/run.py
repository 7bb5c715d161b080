"""A run of the laboratory: from a config to results, tables and a report page."""

import dataclasses
import io
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Mapping
from typing import Any

import jax

from darts_jax import search as searches
from darts_jax import spaces
from darts_jax.laboratory import page, studies
from darts_jax.laboratory.settings import Laboratory
from darts_jax.runtime import metrics
from darts_jax.runtime.compilation import enable_cache
from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.files import one_line, read_object, user_path
from darts_jax.runtime.lock import locked
from darts_jax.runtime.precision import in_float32
from darts_jax.runtime.terminal import say
from darts_jax.runtime.workdir import check_claimed, named_errors, remove_leftovers
from darts_jax.search.settings import Search, image_task, placed_task
from darts_jax.settings import as_config, build
from darts_jax.spaces import Genotype
from darts_jax.tasks import ImageTask


class Interrupted(RuntimeError):
  """A search of the laboratory was interrupted; its checkpoint is saved."""


@in_float32
def run(
  config: Mapping[str, Any], workdir: str | os.PathLike[str], *, checkpoint: str | None = None, search: bool = False
) -> dict[str, Any]:
  """Compares the estimators.

  Args:
    config: fields of `darts_jax.laboratory.settings.Laboratory`, as nested mappings or `ConfigDict`.
    workdir: directory for `results.json`, `results.md`, `report.html` and, if the supernet is measured, `radius.png`
      and `estimators.png`; with `search`, also `searches/NAME/`.
    checkpoint: working directory of a search, whose supernet, data and settings are used. Of `config.search`, only
      `hypergradient` (without `clipping`) and `data.dir` (if it is not the default) are then read.
    search: whether to also run a whole search with every estimator, from the same seed.

  Returns:
    The content of `results.json`.

  Raises:
    ValueError: a setting, the data or a directory is unfit; nothing has been written then.
    Interrupted: one of the searches was interrupted.
  """
  workdir = user_path(workdir, '--workdir')
  with locked(workdir):
    return _run(config, workdir, checkpoint, search)


def _run(config: Mapping[str, Any], workdir: pathlib.Path, checkpoint: str | None, search: bool) -> dict[str, Any]:
  start = time.monotonic()
  settings = build(Laboratory, config)
  if (workdir / 'metrics.jsonl').exists():
    raise ValueError(f'--workdir: {workdir} holds a search; choose another')
  if checkpoint is not None:
    settings = dataclasses.replace(settings, search=_search_of(checkpoint, settings.search))
  enable_cache()

  def note(message: str) -> None:
    say(f'[{time.monotonic() - start:4.0f} s] {message}')

  supernet = studies.SupernetLab(settings, checkpoint, note) if 'supernet' in settings.problems else None
  with named_errors(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    if (workdir / 'results.json').exists():
      remove_leftovers(workdir)
  note('toy problem')
  results: dict[str, Any] = {'setting': {}, 'toy': studies.toy(settings), 'quadratic': None, 'supernet': None}
  if 'quadratic' in settings.problems:
    note('quadratic problem')
    results['quadratic'] = studies.quadratic(settings)
  if supernet is not None:
    note(f'supernet on {settings.search.task.source}, {supernet.source}')
    results['supernet'] = supernet.results()
  results['search'] = None
  results['setting'] = {
    'jax': jax.__version__,
    'device': _device(),
    'seed': settings.search.seed,
    'estimators': {name: settings.hypergradient(name).fields for name in settings.estimators},
    'seconds': time.monotonic() - start,
  }
  results = _write(results, workdir)
  if search:
    # The results of the comparison are already on disk if a search is interrupted.
    results['search'] = _searches(settings, workdir)
    results['setting']['seconds'] = time.monotonic() - start
    results = _write(results, workdir)
  return results


def _write(results: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
  """Writes all files, and returns the results as JSON values."""
  values: dict[str, Any] = _finite(results)
  files = {
    'results.json': json.dumps(values, indent=1, allow_nan=False) + '\n',
    'results.md': page.markdown(values),
    'report.html': page.render(values),
  }
  with named_errors(workdir):
    for name, text in files.items():
      write_whole(workdir / name, text.encode())
    for name, figure in page.pictures(values).items():
      drawn = io.BytesIO()
      figure.savefig(drawn, format='png', dpi=144)
      write_whole(workdir / name, drawn.getvalue())
  return values


def _search_of(checkpoint: str, own: Search) -> Search:
  """The settings of the search in a working directory.

  Args:
    checkpoint: the working directory.
    own: `config.search` of this run; its `hypergradient` (without `clipping`) and a `data.dir` that is not the default
      replace those of the saved search.

  Raises:
    ValueError: the directory holds no search, or settings do not fit.
  """
  path = user_path(checkpoint, '--checkpoint') / 'config.json'
  try:
    fields = read_object(path, f'{checkpoint} holds no search')
    check_claimed(path.parent, fields)
    fields.pop('dataset', None)
    saved = build(Search, fields)
  except ValueError as error:
    raise ValueError(f'--checkpoint: {one_line(error)}') from error
  hypergradient = dataclasses.replace(own.hypergradient, clipping=saved.hypergradient.clipping)
  task, given = placed_task(saved, '--checkpoint: config'), image_task(own, 'config.search')
  folder = task.data.dir if given.data.dir == ImageTask().data.dir else given.data.dir
  task = dataclasses.replace(task, data=dataclasses.replace(task.data, dir=folder))
  return dataclasses.replace(saved, hypergradient=hypergradient, task=task)


def _searches(settings: Laboratory, workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Runs a whole search with every estimator, from the same seed, or resumes searches that were stopped."""
  rows: list[dict[str, Any]] = []
  first: set[Any] = set()
  for name in settings.estimators:
    config = as_config(dataclasses.replace(settings.search, hypergradient=settings.hypergradient(name)))
    folder = workdir / 'searches' / name
    try:
      [result] = searches.run_side_by_side(config, folder)
    except searches.Diverged as error:
      rows.append({'estimator': name, 'genotype': None, 'error': str(error)})
      continue
    if not result.finished:
      raise Interrupted(f'the search by {name} was interrupted; the same command goes on with it')
    seconds = sum(float(line.get('seconds', 0.0)) for line in metrics.read(folder) if line['kind'] == 'epoch')
    found = spaces.to_json(result.genotype)
    edges = _edges(result.genotype)
    first = first or edges
    rows.append(
      {
        'estimator': name,
        'genotype': found,
        'valid_loss': result.valid_loss,
        'valid_accuracy': result.valid_accuracy,
        'seconds': seconds,
        'shared_edges': len(edges & first),
        'edges': len(edges),
      }
    )
  return rows


def _edges(genotype: Genotype) -> set[tuple[str, int, str, int]]:
  """(kind of cell, node, operation, source) of every edge."""
  return {(kind, node, edge.operations[0], edge.source) for kind, cell in genotype.cells for node, edge in cell.edges}


def _device() -> str:
  device = jax.devices()[0]
  kind = platform.processor() or platform.machine() if device.platform == 'cpu' else device.device_kind
  cores = f', {len(os.sched_getaffinity(0))} cores' if hasattr(os, 'sched_getaffinity') else ''
  return f'{device.platform}: {kind}{cores if device.platform == "cpu" else ""}'


def _finite(value: Any) -> Any:
  """JSON values with None in place of numbers that are not finite."""
  if isinstance(value, dict):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
