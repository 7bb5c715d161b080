"""Description of a trained network without its weights: architecture, sizes, classes, normalisation of images."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from darts_jax import limits, spaces
from darts_jax.data.arrays import LARGEST, SMALLEST
from darts_jax.nets.conv import Network
from darts_jax.spaces import Genotype, Plan
from darts_jax.training.workdir import SPACE, Described, check_numbers

_LIMITS = {
  'channels': limits.CHANNELS,
  'layers': limits.LAYERS,
  'num_classes': limits.CLASSES,
  'stem_multiplier': limits.STEM_MULTIPLIER,
  'height': limits.IMAGE_SIZE,
  'width': limits.IMAGE_SIZE,
  'image channels': limits.IMAGE_CHANNELS,
}


@dataclasses.dataclass(frozen=True)
class Model(Described):
  """A network and its images; all fields but the genotype are JSON values.

  Attributes:
    genotype: the architecture.
    channels: channels of the first cell.
    layers: number of cells (see `darts_jax.spaces.CellSpace.plan`).
    num_classes: number of classes.
    stem: `cifar` or `imagenet`.
    auxiliary: whether the network has an auxiliary head in training.
    auxiliary_norm: whether BN follows the last convolution of that head.
    stem_multiplier: channels of the stem for CIFAR, as a multiple of `channels`.
    image_shape: `(H, W, C)` of the training images.
    mean: `[C]`, mean of raw pixel values.
    std: `[C]`, standard deviation of raw pixel values; the network reads `(image − mean) / std`.
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
  def plan(self) -> Plan:
    """The layers of the network."""
    return spaces.space_of(self.genotype).plan(self.layers)

  @property
  def num_weights(self) -> int:
    """Number of parameters without the auxiliary head, which is used in training only."""
    net = self.network(auxiliary=False)
    images = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
    variables = jax.eval_shape(lambda images: net.init(jax.random.key(0), images, train=False), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))

  def network(self, *, auxiliary: bool | None = None, remat: bool = False) -> Network:
    """The Flax module.

    Args:
      auxiliary: whether it has the auxiliary head; by default as in training.
      remat: whether gradients recompute the inside of cells (gradient checkpointing).
    """
    return Network(
      self.genotype.cells,
      self.plan,
      self.channels,
      self.num_classes,
      self.stem,
      self.auxiliary if auxiliary is None else auxiliary,
      self.auxiliary_norm,
      self.stem_multiplier,
      remat,
    )

  def to_dict(self) -> dict[str, Any]:
    """The description as JSON values."""
    return {**dataclasses.asdict(self), 'genotype': spaces.to_json(self.genotype)}

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> Self:
    """See the base class."""
    if SPACE in values:
      raise ValueError(f'its space is {values[SPACE]!r}; a convolutional network is needed')
    fields = cls.fields(values)
    found = spaces.from_json(fields['genotype'])
    if spaces.space_of(found).task != 'images':
      raise ValueError(f'genotype: a {spaces.kind_of(found)} architecture; one for images is needed')
    tuples: dict[str, tuple[Any, ...]] = {}
    for name in ('image_shape', 'mean', 'std'):
      if not isinstance(fields[name], list | tuple):
        raise ValueError(f'{name}: {fields[name]!r} is not a list of numbers')
      tuples[name] = tuple(fields[name])
    if len(tuples['image_shape']) != 3:
      raise ValueError(f'image_shape: {fields["image_shape"]!r} is not height, width and channels')
    sizes = dict(zip(('height', 'width', 'image channels'), tuples['image_shape'], strict=True))
    check_numbers({**fields, **sizes}, 1, _LIMITS)
    if fields['channels'] % 2:
      raise ValueError(f'channels: {fields["channels"]} is not allowed; it is even')
    if fields['stem'] not in ('cifar', 'imagenet'):
      raise ValueError(f'stem: {fields["stem"]!r} is not known; allowed are cifar, imagenet')
    for name in ('auxiliary', 'auxiliary_norm'):
      if not isinstance(fields[name], bool):
        raise ValueError(f'{name}: {fields[name]!r} is neither true nor false')
    for name, least in (('mean', -LARGEST), ('std', SMALLEST)):
      numbers = [value for value in tuples[name] if isinstance(value, int | float) and not isinstance(value, bool)]
      if len(numbers) != len(tuples[name]) or len(numbers) != sizes['image channels']:
        raise ValueError(f'{name}: {fields[name]!r} is not a number for each of {sizes["image channels"]} channels')
      if not all(least <= value <= LARGEST for value in numbers):
        raise ValueError(f'{name}: {fields[name]!r} is not allowed; it is ≥ {least:g} and ≤ {LARGEST:g}')
    return cls(**{**fields, **tuples, 'genotype': found})
