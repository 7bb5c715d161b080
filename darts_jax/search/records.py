"""The history of α in a search's working directory."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from darts_jax.genotype import CellSpec


class AlphaHistory:
  """α over the search, in `alphas.npz`: `step` and `epoch` `[T]`, and `[T, E, O]` for every kind of cell."""

  def __init__(self, workdir: pathlib.Path, specs: Mapping[str, CellSpec], resume_step: int | None) -> None:
    """Reads what is there up to `resume_step`; None starts over."""
    self._path = workdir / 'alphas.npz'
    self._constants: dict[str, np.ndarray] = {'operations': np.array(next(iter(specs.values())).operations)}
    for name, spec in specs.items():
      self._constants[f'edges_{name}'] = np.array([(edge.source, target) for target, edge in spec.edges], np.int32)
    self._series: dict[str, list[Any]] = {name: [] for name in ('step', 'epoch', *specs)}
    if resume_step is not None and self._path.exists():
      with np.load(self._path) as saved:
        kept = saved['step'] <= resume_step
        self._series = {name: list(saved[name][kept]) for name in self._series}

  def append(self, step: int, epoch: int, alphas: Mapping[str, np.ndarray]) -> None:
    """Adds the α after `step` steps and `epoch` epochs, and writes the file."""
    for name, value in {'step': step, 'epoch': epoch, **alphas}.items():
      self._series[name].append(value)
    partial = self._path.with_name('alphas.partial.npz')
    np.savez(partial, allow_pickle=False, **self._constants, **{k: np.array(v) for k, v in self._series.items()})
    partial.replace(self._path)
