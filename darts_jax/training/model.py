"""What a trained network is besides its weights: architecture, sizes, classes, how images are normalised."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from darts_jax import genotype as genotypes
from darts_jax.genotype import Genotype
from darts_jax.nets.conv import Network
from darts_jax.runtime.workdir import write_whole

FILE = 'model.json'
#: Field of that file which says what kind of architecture it is; convolutional without it.
SPACE = 'space'
#: Weights that were not trained where they lie.
WEIGHTS = 'weights.safetensors'


@dataclasses.dataclass(frozen=True)
class Model:
  """A network and what it is for; all of it JSON values but the genotype.

  Attributes:
    genotype: its cells.
    channels: see `darts_jax.nets.conv.Network`, as for the fields down to `stem_multiplier`.
    layers: likewise.
    num_classes: likewise.
    stem: likewise.
    auxiliary: likewise.
    auxiliary_norm: likewise.
    stem_multiplier: likewise.
    image_shape: `(H, W, C)` it was trained on.
    mean: `[C]`, of raw pixel values.
    std: `[C]`, of raw pixel values; `(image − mean) / std` is what the network reads.
  """

  genotype: Genotype
  channels: int
  layers: int
  num_classes: int
  stem: str
  auxiliary: bool
  auxiliary_norm: bool
  stem_multiplier: int
  image_shape: tuple[int, int, int]
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def network(self, *, auxiliary: bool | None = None, remat: bool = False) -> Network:
    """The network, with its auxiliary head unless told otherwise."""
    return Network(
      self.genotype.cell('normal'),
      self.genotype.cell('reduce'),
      self.channels,
      self.layers,
      self.num_classes,
      self.stem,
      self.auxiliary if auxiliary is None else auxiliary,
      self.auxiliary_norm,
      self.stem_multiplier,
      remat,
    )

  def to_dict(self) -> dict[str, Any]:
    """As JSON values."""
    return {**dataclasses.asdict(self), 'genotype': genotypes.to_dict(self.genotype)}

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> 'Model':
    """From JSON values.

    Raises:
      ValueError: a field is missing or unknown, or the genotype is none of a convolutional network.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    if sorted(values) != sorted(names):
      wrong = sorted(set(values) ^ set(names))
      raise ValueError(f'{wrong[0]}: missing or unknown; a model has the fields {", ".join(names)}')
    found = genotypes.from_dict(values['genotype'])
    if not isinstance(found, Genotype):
      raise ValueError('genotype: a recurrent architecture; a convolutional one is needed')
    tuples = {name: tuple(values[name]) for name in ('image_shape', 'mean', 'std')}
    model = cls(**{**values, **tuples, 'genotype': found})
    numbers = (model.channels, model.layers, model.num_classes, model.stem_multiplier, *model.image_shape)
    if not all(isinstance(number, int) and number > 0 for number in numbers):
      raise ValueError('channels, layers, num_classes, stem_multiplier and image_shape are positive integers')
    return model


def num_weights(model: Model) -> int:
  """Parameters of the network without its auxiliary head, which is for training alone."""
  net = model.network(auxiliary=False)
  images = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
  variables = jax.eval_shape(lambda images: net.init(jax.random.key(0), images, train=False), images)
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def write(model: Model, workdir: pathlib.Path) -> None:
  """Writes `model.json` and, for other commands, `genotype.json` into a folder that exists."""
  genotypes.save(model.genotype, workdir / 'genotype.json')
  write_whole(workdir / FILE, (json.dumps(model.to_dict(), indent=2) + '\n').encode())


def read(workdir: pathlib.Path) -> Model:
  """The model of a training's working directory.

  Raises:
    ValueError: there is none, or it cannot be read.
  """
  path = workdir / FILE
  try:
    values = json.loads(path.read_text())
    if isinstance(values, Mapping) and SPACE in values:
      raise ValueError(f'its space is {values[SPACE]!r}; a convolutional network is needed')
    return Model.from_dict(values)
  except OSError as error:
    raise ValueError(f'{path}: cannot be read ({error.strerror}); a training writes it into its workdir') from error
  except (TypeError, ValueError) as error:
    raise ValueError(f'{path}: no model ({error})') from error
