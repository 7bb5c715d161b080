"""What a random search has trained so far, as the `architectures.json` of its working directory holds it."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from darts_jax import genotype as genotypes
from darts_jax.genotype import Genotype
from darts_jax.runtime.durable import write_whole

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
  values = [{**dataclasses.asdict(each), 'genotype': genotypes.to_dict(each.genotype)} for each in architectures]
  write_whole(workdir / FILE, (json.dumps(values, indent=1) + '\n').encode())


def read(workdir: pathlib.Path) -> list[Architecture]:
  """Architectures in the order of their numbers; none before the first has been trained.

  Raises:
    ValueError: the file is there and cannot be read.
  """
  path = workdir / FILE
  try:
    return [_from_dict(values) for values in json.loads(path.read_text())]
  except FileNotFoundError:
    return []
  except (KeyError, OSError, TypeError, ValueError) as error:
    raise ValueError(f'{path}: cannot be read ({error})') from error


def _from_dict(values: Mapping[str, Any]) -> Architecture:
  genotype = genotypes.from_dict(values['genotype'])
  if not isinstance(genotype, Genotype):
    raise ValueError('genotype: a recurrent architecture')
  return Architecture(
    int(values['number']),
    genotype,
    int(values['parameters']),
    float(values['valid_accuracy']),
    float(values['seconds']),
    bool(values['diverged']),
  )
