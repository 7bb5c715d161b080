"""What a random search has trained so far, as the `architectures.json` of its working directory holds it."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from darts_jax import limits, spaces
from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.files import one_line, read_json
from darts_jax.spaces import Genotype

FILE = 'architectures.json'


@dataclasses.dataclass(frozen=True)
class Architecture:
  """An architecture and what its training came to.

  Attributes:
    number: of the draw, from 0.
    genotype: its cells.
    parameters: in the network, without its auxiliary head.
    valid_accuracy: on the held-out images after the last epoch, 0 to 1; 0 if the training diverged.
    seconds: in epochs.
    diverged: whether a loss or gradient was not finite.
  """

  number: int
  genotype: Genotype
  parameters: int
  valid_accuracy: float
  seconds: float
  diverged: bool


def best(architectures: Sequence[Architecture]) -> Architecture | None:
  """The first of those with the highest validation accuracy; none of those that diverged."""
  sound = [architecture for architecture in architectures if not architecture.diverged]
  return max(sound, key=lambda architecture: architecture.valid_accuracy, default=None)


def write(architectures: Sequence[Architecture], workdir: pathlib.Path) -> None:
  """Writes the file, which is never seen half-written."""
  values = [{**dataclasses.asdict(each), 'genotype': spaces.to_json(each.genotype)} for each in architectures]
  write_whole(workdir / FILE, (json.dumps(values, indent=1) + '\n').encode())


def read(workdir: pathlib.Path) -> list[Architecture]:
  """Architectures in the order of their numbers; none before the first has been trained.

  Raises:
    ValueError: the file is there and cannot be read.
  """
  path = workdir / FILE
  if not path.exists():
    return []
  values = read_json(path)
  if not isinstance(values, list):
    raise ValueError(f'{path}: cannot be read (not a list of architectures)')
  if len(values) > limits.RUNS:
    raise ValueError(f'{path}: {len(values):,} architectures; there are up to {limits.RUNS:,}')
  try:
    return [_from_dict(each) for each in values]
  except ValueError as error:
    raise ValueError(f'{path}: cannot be read ({one_line(error)})') from error


def _from_dict(values: Any) -> Architecture:
  names = {field.name for field in dataclasses.fields(Architecture)}
  if not isinstance(values, dict) or set(values) != names:
    raise ValueError(f'an architecture has the fields {", ".join(sorted(names))}')
  genotype = spaces.from_json(values['genotype'])
  if spaces.space_of(genotype).task != 'images':
    raise ValueError(f'genotype: a {spaces.kind_of(genotype)} architecture')
  # They are about trainings that have ended; 2⁵³ is the first whole number that a float cannot tell from the next.
  for name, most in (('number', 2**53), ('parameters', 2**53), ('valid_accuracy', 1.0), ('seconds', 2.0**53)):
    value = values[name]
    kinds = int | float if isinstance(most, float) else int
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= most:
      raise ValueError(f'{name}: {value!r} is no such number')
  if not isinstance(values['diverged'], bool):
    raise ValueError(f'diverged: {values["diverged"]!r} is neither true nor false')
  return Architecture(**{**values, 'genotype': genotype})
