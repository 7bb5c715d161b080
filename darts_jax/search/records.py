"""The history of α, and of what a strategy scores edges by, in a search's working directory."""

import contextlib
import io
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.files import read_npz
from darts_jax.search.searched import Searched
from darts_jax.spaces import CellSpec
from darts_jax.strategies.relaxed import Scores

#: The file of the history.
FILE = 'alphas.npz'


class AlphaHistory:
  """α over the search, in `alphas.npz`: `step` and `epoch` `[T]`, and `[T, E, O]` for every kind of cell.

  α of pruned operations are −∞. Further architecture parameters have names of their own. If the strategy has scores,
  there are `[T, E]` for every score and kind of cell, `importance_normal` for one, as they were before what was decided
  at that time. `temperature` `[T]`, unless it is 1 throughout, is what the supernet divides α by from that time on.
  """

  def __init__(self, workdir: pathlib.Path, searched: Searched, resume_step: int | None) -> None:
    """Reads what is there up to `resume_step`; None starts over."""
    specs = searched.space.cells
    self._path = workdir / FILE
    self._temperature_at = searched.temperature_at
    self._constants: dict[str, np.ndarray] = {'operations': np.array(next(iter(specs.values())).operations)}
    for name, spec in specs.items():
      self._constants[f'edges_{name}'] = np.array([(edge.source, target) for target, edge in spec.edges], np.int32)
    self._series: dict[str, list[Any]] = {name: [] for name in ('step', 'epoch', *specs)}
    if resume_step is not None and self._path.exists():
      # Whoever resumes is told by `steps`.
      with contextlib.suppress(ValueError):
        self._series = self._read(resume_step)

  @property
  def steps(self) -> list[int]:
    """Of the snapshots that there are."""
    return [int(step) for step in self._series['step']]

  def _read(self, resume_step: int) -> dict[str, list[Any]]:
    # Temperatures follow from steps.
    unkept = (*self._constants, 'temperature')
    saved = {name: values for name, values in read_npz(self._path).items() if name not in unkept}
    missing = self._series.keys() - saved.keys()
    if missing:
      raise ValueError(f'{self._path}: lacks {min(missing)}')
    steps = saved['step']
    if steps.ndim != 1 or steps.dtype.kind not in 'iu' or any(x.shape[:1] != steps.shape for x in saved.values()):
      raise ValueError(f'{self._path}: not a row for each of its steps')
    return {name: list(values[steps <= resume_step]) for name, values in saved.items()}

  def append(self, step: int, epoch: int, alphas: Mapping[str, np.ndarray], searched: Searched, scores: Scores) -> None:
    """Adds the α after `step` steps and `epoch` epochs, and writes the file.

    Args:
      step: taken so far.
      epoch: done so far.
      alphas: `[E, O]` for every kind of cell, and further architecture parameters by other names.
      searched: the strategy of the next step; tells what has been pruned.
      scores: of the epoch that has ended.
    """
    marked = dict(alphas)
    for name, spec in searched.space.cells.items():
      marked[name] = np.where(_left(spec, searched.cells[name]), alphas[name], -np.inf).astype(alphas[name].dtype)
    named = {f'{name}_{cell}': values for name, cells in scores.items() for cell, values in cells.items()}
    for name, value in {'step': step, 'epoch': epoch, **marked, **named}.items():
      self._series.setdefault(name, []).append(value)
    self.write()

  def write(self) -> None:
    """Writes the file. It need not be on the disk at once: checkpoints keep copies."""
    arrays = {**self._constants, **{k: np.array(v) for k, v in self._series.items()}}
    temperatures = np.array([self._temperature_at(int(each)) for each in self._series['step']])
    if np.any(temperatures != 1):
      arrays['temperature'] = temperatures
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_whole(self._path, content.getvalue(), sync=False)

  def last_epoch(self, names: Collection[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    """Architecture parameters before and after the last epoch that was done; None before there is one."""
    if len(self._series['step']) < 2:
      return None
    before, after = ({name: np.asarray(self._series[name][i]) for name in names} for i in (-2, -1))
    return before, after


def _left(space: CellSpec, spec: CellSpec) -> np.ndarray:
  """`[E, O]` bool: candidates of a search space that are in a smaller cell, too."""
  operations = {(edge.source, target): edge.operations for target, edge in spec.edges}
  return np.array(
    [[name in operations.get((edge.source, target), ()) for name in space.operations] for target, edge in space.edges]
  )
