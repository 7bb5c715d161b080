"""What a trained network is besides its weights: architecture, sizes, classes, how images are normalised."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from darts_jax import genotype as genotypes
from darts_jax.data.arrays import LARGEST, SMALLEST
from darts_jax.genotype import Genotype
from darts_jax.nets.conv import Network
from darts_jax.training.workdir import SPACE, Described


@dataclasses.dataclass(frozen=True)
class Model(Described):
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

  kind: ClassVar[str] = 'model'

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

  @property
  def num_weights(self) -> int:
    """Parameters of the network without its auxiliary head, which is for training alone."""
    net = self.network(auxiliary=False)
    images = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
    variables = jax.eval_shape(lambda images: net.init(jax.random.key(0), images, train=False), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))

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
  def from_dict(cls, values: Mapping[str, Any]) -> Self:
    """See the base class."""
    if SPACE in values:
      raise ValueError(f'its space is {values[SPACE]!r}; a convolutional network is needed')
    fields = cls.fields(values)
    found = genotypes.from_dict(fields['genotype'])
    if not isinstance(found, Genotype):
      raise ValueError('genotype: a recurrent architecture; a convolutional one is needed')
    tuples = {name: tuple(fields[name]) for name in ('image_shape', 'mean', 'std')}
    model = cls(**{**fields, **tuples, 'genotype': found})
    numbers = (model.channels, model.layers, model.num_classes, model.stem_multiplier, *model.image_shape)
    if not all(isinstance(number, int) and number > 0 for number in numbers):
      raise ValueError('channels, layers, num_classes, stem_multiplier and image_shape are positive integers')
    for name, least in (('mean', -LARGEST), ('std', SMALLEST)):
      values_of = tuples[name]
      if len(values_of) != model.image_shape[-1] or not all(
        isinstance(value, int | float) and least <= value <= LARGEST for value in values_of
      ):
        raise ValueError(f'{name}: one number in {least}..{LARGEST} for each channel of image_shape')
    return model
