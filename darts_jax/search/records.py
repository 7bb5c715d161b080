"""The history of a search in its working directory: its mixing weights and architectures over the epochs."""

import contextlib
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.files import read_npz
from darts_jax.search.searched import Searched
from darts_jax.spaces import CellSpace, CellSpec
from darts_jax.spaces.topology import cell_to_json, cells_to_json
from darts_jax.strategies.relaxation import candidates, rows_of
from darts_jax.strategies.relaxed import Arch, Scores

#: Name of the file with the history.
FILE = 'alphas.npz'
# Arrays without an axis of snapshots, or that are computed from the steps; they are not read back.
_DERIVED = ('scores', 'temperature')
_NEEDED = ('step', 'epoch', 'genotype', 'cells', 'not_settled')
_ARRAYS = (*_NEEDED, *_DERIVED, 'topology', 'operations')
_PREFIXES = ('mixing_', 'left_', 'edge_weights_', 'edges_', 'parameters_')


class AlphaHistory:
  """The history in `alphas.npz`: a snapshot before the first step and one after every epoch, `T` in all.

  Rows and columns of `[E, O]` are edges and operations of the searched cells, also after the supernet has lost some.

  - `step`, `epoch`: `[T]`, steps taken and epochs done at the snapshot.
  - `mixing_CELL`: `[T, E, O]` mixing weights of every kind of cell, as logs show them (see `Searched.shown`), of the
    supernet of the following step; 0 for operations that it has lost.
  - `edge_weights_CELL`: `[T, E]` weights of the edges, for strategies that have them.
  - `left_CELL`: `[T, E, O]` bool, the operations of the supernet of the following step.
  - `CELL`: `[T, E, O]` α, if the architecture parameters have an array of that shape by the name of the cell; −∞ for
    operations that the supernet has lost.
  - `parameters_PATH`: `[T, …]`, the other arrays of the architecture parameters.
  - `genotype`: `[T]` texts, JSON of the architecture that the search would have returned, in the form of its space.
  - `cells`: `[T]` texts, the same architecture in the form of `darts_jax.spaces.topology`, common to all spaces.
  - `not_settled`: `[T]` texts, the warning about that architecture (see `darts_jax.spaces.doubts`); empty for none.
  - `SCORE_CELL`: `[T, E]`, the strategy's scores of the edges after the epoch; NaN where it computed none.
  - `scores`: names of these scores.
  - `temperature`: `[T]`, temperature of the softmax; absent if it is always 1.
  - `topology`: a JSON text with the name of the space, the searched cells and the strategy's legend for the report.
  - `operations`: names of the columns of the first kind of cell.
  - `edges_CELL`: `[E, 2]`, source and target of every edge.

  All of it is one file, so that a snapshot is written, copied to a checkpoint and restored as a whole.
  """

  def __init__(
    self, workdir: pathlib.Path, searched: Searched, resume_step: int | None, doubt: str | None = None
  ) -> None:
    """Reads the snapshots up to `resume_step`, if there are any.

    Args:
      workdir: folder with the file.
      searched: the strategy and its space.
      resume_step: steps taken so far; None starts an empty history.
      doubt: one-line warning about every architecture, however the architecture parameters move; None for none.
    """
    specs = searched.space.cells
    self._path = workdir / FILE
    self._temperature_at = searched.temperature_at
    self._doubt = doubt
    topology = {
      'space': searched.space.name,
      'legend': searched.strategy.legend,
      'cells': {name: cell_to_json(spec) for name, spec in specs.items()},
    }
    self._constants: dict[str, np.ndarray] = {
      'topology': np.array(json.dumps(topology, ensure_ascii=False)),
      'operations': np.array(next(iter(specs.values())).operations),
    }
    for name, spec in specs.items():
      self._constants[f'edges_{name}'] = np.array([(edge.source, target) for target, edge in spec.edges], np.int32)
    self._needed = [*_NEEDED]
    self._needed += [f'{kind}_{name}' for name in specs for kind in ('mixing', 'left')]
    self._series: dict[str, list[Any]] = {}
    self._scores: list[str] = []
    if resume_step is not None and self._path.exists():
      # An unreadable file leaves `steps` empty; `Epochs` then logs that the history is lost.
      with contextlib.suppress(ValueError):
        self._series, self._scores = self._read(resume_step)

  @property
  def steps(self) -> list[int]:
    """The steps of the snapshots."""
    return [int(step) for step in self._series.get('step', ())]

  @property
  def doubt(self) -> str | None:
    """One-line warning about the latest architecture; None if it is settled."""
    return str(self._series['not_settled'][-1]) or None if self._series else self._doubt

  def _read(self, resume_step: int) -> tuple[dict[str, list[Any]], list[str]]:
    found = read_npz(self._path)
    saved = {name: values for name, values in found.items() if name not in (*self._constants, *_DERIVED)}
    missing = set(self._needed) - saved.keys()
    if missing:
      raise ValueError(f'{self._path}: lacks {min(missing)}')
    steps = saved['step']
    if steps.ndim != 1 or steps.dtype.kind not in 'iu' or any(x.shape[:1] != steps.shape for x in saved.values()):
      raise ValueError(f'{self._path}: not a row for each of its steps')
    names = [str(name) for name in np.ravel(found.get('scores', []))]
    return {name: list(values[steps <= resume_step]) for name, values in saved.items()}, names

  def append(self, step: int, epoch: int, arch: Arch, key: jax.Array, searched: Searched, scores: Scores) -> None:
    """Adds the snapshot after `step` steps and `epoch` epochs, and writes the file.

    Args:
      step: steps taken so far.
      epoch: epochs done so far.
      arch: the architecture parameters, on the host.
      key: typed random key of the run.
      searched: the strategy of the next step, whose cells are those of the pruned supernet.
      scores: the strategy's scores of the epoch that has ended.

    Raises:
      ValueError: a score has the name of another array of the file.
    """
    specs, count, names = searched.space.cells, len(self.steps), _names(arch, searched.space.cells)
    found: dict[str, Any] = {'step': step, 'epoch': epoch}
    mixing = searched.shown(arch, np.int32(step), key)
    for name, spec in specs.items():
      cell, weights = searched.cells[name], mixing[name]
      found[f'mixing_{name}'] = _whole(weights.operations, cell, spec)
      found[f'left_{name}'] = _whole(candidates(cell), cell, spec)
      if weights.edges is not None:
        found[f'edge_weights_{name}'] = _whole(weights.edges, cell, spec)
    for name, leaf in zip(jax.tree.leaves(names), map(np.asarray, jax.tree.leaves(arch)), strict=True):
      found[name] = np.where(found[f'left_{name}'], leaf, -np.inf).astype(leaf.dtype) if name in specs else leaf
    genotype = searched.read(arch)
    found['genotype'] = json.dumps(searched.space.to_json(genotype), ensure_ascii=False)
    found['cells'] = json.dumps(cells_to_json(genotype), ensure_ascii=False)
    found['not_settled'] = self._doubts(found, names, searched) or ''
    for score, cells in scores.items():
      if any(f'{score}_{name}' in (*found, *self._constants) for name in cells):
        raise ValueError(f'config.strategy: {score!r} cannot be the name of a score; {FILE} has other arrays of it')
      found |= {f'{score}_{name}': values for name, values in cells.items()}
    self._scores = list(dict.fromkeys([*self._scores, *scores]))
    for name, value in found.items():
      self._series.setdefault(name, [np.full(np.shape(value), np.nan)] * count).append(value)
    for series in self._series.values():
      series += [np.full(np.shape(series[-1]), np.nan)] * (count + 1 - len(series))
    self.write()

  def _doubts(self, found: Mapping[str, Any], names: Any, searched: Searched) -> str | None:
    """The warning that follows from how far the architecture parameters moved since the last snapshot, if any."""
    if self._doubt is not None or not self.steps or not all(name in self._series for name in jax.tree.leaves(names)):
      return self._doubt
    before, after = (jax.tree.map(each.__getitem__, names) for each in (self._latest, found))
    doubts = searched.doubts(before, after)
    return None if doubts is None else doubts.message

  @property
  def _latest(self) -> dict[str, Any]:
    return {name: np.asarray(values[-1]) for name, values in self._series.items()}

  def go_back(self, step: int) -> None:
    """Removes the snapshots after a step from which the search goes on, and writes the file."""
    count = sum(then <= step for then in self.steps)
    self._series = {name: values[:count] for name, values in self._series.items()}
    self.write()

  def write(self) -> None:
    """Writes the file, without a sync to the disk, since checkpoints keep copies of it."""
    arrays = {**self._constants, **{k: np.array(v) for k, v in self._series.items()}}
    if self._scores:
      arrays['scores'] = np.array(self._scores)
    temperatures = np.array([self._temperature_at(step) for step in self.steps])
    if np.any(temperatures != 1):
      arrays['temperature'] = temperatures
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_whole(self._path, content.getvalue(), sync=False)


def check_names(space: CellSpace) -> None:
  """Raises a ValueError, one line, if α of a kind of cell would have the name of another array of `AlphaHistory`."""
  for name in space.cells:
    if name in _ARRAYS or name.startswith(_PREFIXES):
      raise ValueError(
        f'config.space.name: {space.name!r} is not allowed; its kind of cell {name!r} has the name of another array of'
        f' {FILE}; not allowed are {", ".join(_ARRAYS)}, and names that begin with {", ".join(_PREFIXES)}'
      )


def _names(arch: Arch, specs: Mapping[str, CellSpec]) -> Any:
  """The pytree of the names that the arrays of the architecture parameters have in the file."""

  def name(path: Any, leaf: Any) -> str:
    own = jax.tree_util.keystr(path, simple=True, separator='_')
    is_alphas = own in specs and np.shape(leaf) == (specs[own].num_edges, len(specs[own].operations))
    return own if is_alphas else f'parameters_{own}'

  return jax.tree_util.tree_map_with_path(name, arch)


def _whole(values: Any, cell: CellSpec, searched: CellSpec) -> np.ndarray:
  """Expands rows of a smaller cell's edges to rows of the searched cell; lost edges have zeros."""
  values = np.asarray(values)
  found = np.zeros((searched.num_edges, *values.shape[1:]), values.dtype)
  found[rows_of(cell, searched)] = values
  return found
