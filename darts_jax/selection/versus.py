"""A found architecture against random ones of its space, each trained from scratch by the same config and seed."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from darts_jax import training
from darts_jax.runtime import processes
from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.terminal import aligned
from darts_jax.runtime.workdir import named_errors
from darts_jax.selection.random_cells import random_genotype
from darts_jax.spaces import CellSpace, Genotype, to_json
from darts_jax.training import language, tasks
from darts_jax.training.comparison import Interrupted
from darts_jax.training.language import LanguageTraining

#: The file in the working directory of a search with the rows of a comparison.
FILE = 'comparison.json'
_FOLDER = 'comparison'
# Draws for an architecture that is not among the others yet; a space may have few.
_DRAWS = 1000


class Row(NamedTuple):
  """What one architecture comes to.

  Attributes:
    name: `found`, or `random` with a number.
    genotype: the architecture.
    parameters: number of parameters, without an auxiliary head.
    valid: accuracy, 0 to 1, or perplexity on the held-out data; NaN without any.
    test: the same on the test data; NaN without any.
  """

  name: str
  genotype: Genotype
  parameters: int
  valid: float
  test: float


@dataclasses.dataclass(frozen=True)
class Versus:
  """Trainings of several architectures.

  Attributes:
    measure: `accuracy` or `perplexity`.
    epochs: number of epochs of each training.
    seed: the seed of each training.
    rows: the found architecture first, then the random ones.
  """

  measure: str
  epochs: int
  seed: int
  rows: Sequence[Row]

  def lines(self) -> list[str]:
    """The comparison as text, a line each."""
    kinds = [kind for kind in ('valid', 'test') if not all(math.isnan(getattr(row, kind)) for row in self.rows)]
    titles = {'valid': 'validation', 'test': 'test'}
    table = [('', 'parameters', *(f'{titles[kind]} {self.measure}' for kind in kinds))]
    for row in self.rows:
      table.append((row.name, f'{row.parameters:,}', *(self._shown(getattr(row, kind)) for kind in kinds)))
    return [f'trained from scratch, {self.epochs} epochs each, with seed {self.seed}:', *aligned(table, 1)]

  def _shown(self, value: float) -> str:
    return f'{100 * value:.2f} %' if self.measure == 'accuracy' else f'{value:.2f}'

  def to_json(self) -> str:
    """The content of `comparison.json`."""
    rows = [
      {
        **row._asdict(),
        'genotype': to_json(row.genotype),
        **{kind: None if math.isnan(value) else value for kind, value in (('valid', row.valid), ('test', row.test))},
      }
      for row in self.rows
    ]
    return (
      json.dumps({'measure': self.measure, 'epochs': self.epochs, 'seed': self.seed, 'rows': rows}, indent=1) + '\n'
    )


def check(config: Mapping[str, Any], space: Any) -> None:
  """Checks that architectures of a space can be drawn, and trained by a config on its data.

  Raises:
    ValueError: they cannot, or as `darts_jax.training.run`.
  """
  if not isinstance(space, CellSpace):
    raise ValueError(f'architectures of the space {space.name} are not trained from scratch by a config')
  genotype = random_genotype(space, 0, 0)
  training.check_genotype(config, genotype, 'what is searched')
  settings = tasks.read(config)
  if isinstance(settings, LanguageTraining):
    language.check(settings)
  else:
    training.check(settings, genotype, space.cells)


def _trained(config: Mapping[str, Any], folder: pathlib.Path, genotype: Genotype) -> Any:
  try:
    return training.run(config, folder, genotype)
  except ValueError as error:
    remedy = f'; or remove {folder.parent}' if 'another config' in str(error) else ''
    raise ValueError(f'--compare: {error}{remedy}') from error


def against_random(
  config: Mapping[str, Any],
  genotype: Genotype,
  space: CellSpace,
  workdir: pathlib.Path,
  *,
  num_random: int = 2,
  note: Callable[[str], None] = lambda message: None,
) -> Versus:
  """Trains an architecture and random ones of its space, or goes on with these trainings, and writes the comparison.

  Args:
    config: the config of a training, see `darts_jax.training.run`; all have its seed, which also decides what is drawn.
    genotype: the architecture that was found.
    space: the space that it was searched in.
    workdir: working directory of the search; gets `comparison.json`, and a folder `comparison/NAME` for every training.
    num_random: number of random architectures, all different; a small space may have fewer.
    note: called with a message when a training begins.

  Returns:
    The comparison.

  Raises:
    ValueError: the config, its data or the directory cannot be used.
    Interrupted: a signal ended a training; the same call goes on with it.
    Diverged: a loss or gradient was not finite.
  """
  settings = tasks.read(config)
  seed = settings.seed
  different = dict.fromkeys([genotype])
  for number in range(_DRAWS):
    if len(different) > num_random:
      break
    different.setdefault(random_genotype(space, seed, number))
  if len(different) <= num_random:
    note(f'the space has only {len(different) - 1} other architectures')
  if processes.is_first():
    with named_errors(workdir):
      # That of an earlier comparison says nothing about this one.
      (workdir / FILE).unlink(missing_ok=True)
  is_text = isinstance(settings, LanguageTraining)
  measure = 'perplexity' if is_text else 'accuracy'
  rows = []
  for number, arch in enumerate(different):
    name = f'random {number}' if number else 'found'
    note(f'training {number + 1} of {len(different)}: the {name} architecture, {settings.epochs} epochs')
    folder = workdir / _FOLDER / name.replace(' ', '_')
    result = _trained(config, folder, arch)
    if result.interrupted or not result.finished:
      raise Interrupted(f'the training in {folder} was interrupted; the same command goes on with it')
    values = (getattr(result, f'{part}_{measure}') for part in ('valid', 'test'))
    rows.append(Row(name, arch, result.num_weights, *values))
  versus = Versus(measure, settings.epochs, seed, rows)
  if processes.is_first():
    with named_errors(workdir):
      write_whole(workdir / FILE, versus.to_json().encode())
  return versus
