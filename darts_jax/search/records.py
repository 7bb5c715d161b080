"""The small files of a search's working directory: config, history of α, genotype."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from darts_jax.genotype import CellSpec
from darts_jax.settings import differences


@contextlib.contextmanager
def named_errors(workdir: pathlib.Path) -> Iterator[None]:
  """Turns an error of the file system into one line that names the working directory."""
  try:
    yield
  except OSError as error:
    raise ValueError(f'--workdir: {workdir} cannot be written ({error.strerror or error})') from error


def claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Makes `workdir` the directory of a search with this config, or finds that it is.

  Raises:
    ValueError: it cannot be written, or belongs to a search with another config, whose differing fields are named.
  """
  path = workdir / 'config.json'
  config = json.loads(json.dumps(config))
  with named_errors(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists():
      try:
        old = json.loads(path.read_text())
      except ValueError as error:
        raise ValueError(f'{path}: not JSON ({error}); choose another --workdir') from error
      changed = differences(old, config)
      if changed:
        raise ValueError(
          f'--workdir: {workdir} holds a search with another config ({"; ".join(changed)});'
          ' choose another --workdir or the same config'
        )
    else:
      _write(path, (json.dumps(config, indent=2) + '\n').encode())


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


def _write(path: pathlib.Path, content: bytes) -> None:
  partial = path.with_name(path.name + '.partial')
  partial.write_bytes(content)
  partial.replace(path)
