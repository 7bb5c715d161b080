"""The convolutional networks: the supernet of a search, and the network of a found architecture [DARTS §3.1]."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from darts_jax.nets.cell import Cell, prune_cell
from darts_jax.nets.dense import dense_conv
from darts_jax.nets.layers import WHOLE_BATCH, BatchNorm, NormGroups, activate, uniform_fan_in
from darts_jax.spaces import CellSpec

Array = jax.Array


def reduction_cells(num_layers: int) -> tuple[int, ...]:
  """Indices of the cells that halve the image: ⌊L/3⌋ and ⌊2L/3⌋."""
  return tuple(sorted({num_layers // 3, 2 * num_layers // 3}))


class Supernet(nn.Module):
  """A stack of cells whose edges mix candidate operations; normal cells share mixing weights, reduction cells too.

  Attributes:
    normal: spec of the normal cells.
    reduce: spec of the reduction cells.
    channels: channels `C` of the nodes of the first cell; they double in every reduction cell.
    num_layers: number of cells `L`.
    num_classes: number of logits.
    stem_multiplier: of the stem `'cifar'`, which has `stem_multiplier · C` channels.
    remat: whether a gradient may compute the inside of cells once more instead of keeping it; see `jax.checkpoint`.
    smooth: whether this is the smooth twin of a network, with SiLU for ReLU and average for maximum pooling and the
      same parameters: where kinks are suspected, what differs between the two is due to them.
    groups: the examples that share statistics of BN.
    stem: see `Network`.
  """

  normal: CellSpec
  reduce: CellSpec
  channels: int
  num_layers: int
  num_classes: int
  stem_multiplier: int = 3
  remat: bool = False
  smooth: bool = False
  groups: NormGroups = WHOLE_BATCH
  stem: str = 'cifar'

  @nn.compact
  def __call__(self, images: Array, mixing: Mapping[str, Array], *, train: bool) -> Array:
    """Classifies images.

    Args:
      images: `[N, H, W, ·]`, normalised; their dtype is the dtype of computation.
      mixing: `[E, O]` mixing weights of the cells `'normal'` and `'reduce'`.
      train: whether BN uses the statistics of the batch.

    Returns:
      `[N, num_classes]` logits, at least float32.
    """
    before_last, last = _stem(self, images, self.groups, train=train, smooth=self.smooth)

    def compute(cell: Cell, before_last: Array, last: Array, mixing: Array) -> Array:
      return cell(before_last, last, mixing, train=train)

    compute_cell = nn.remat(compute) if self.remat else compute
    style: dict[str, Any] = {'smooth': self.smooth, 'groups': self.groups, 'reduction_before': self.stem == 'imagenet'}
    for kind, cell in _cells(self.normal, self.reduce, self.channels, self.num_layers, **style):
      before_last, last = last, compute_cell(cell, before_last, last, mixing[kind])
    return _classify(self, 'classifier', last, self.num_classes)


def prune_supernet(variables: Mapping[str, Any], before: Supernet, after: Supernet) -> dict[str, Any]:
  """Of the variables of a supernet, those of one whose cells have lost edges or operations.

  Args:
    variables: parameters or running statistics, NumPy arrays nested by module.
    before: the supernet.
    after: the smaller one, otherwise the same.

  Raises:
    ValueError: the smaller one has something that the supernet has not.
  """
  reductions = reduction_cells(before.num_layers)
  found = dict(variables)
  for layer in range(before.num_layers):
    name, kind = f'cell{layer}', 'reduce' if layer in reductions else 'normal'
    specs = getattr(before, kind), getattr(after, kind)
    found[name] = prune_cell(variables[name], *specs, reduction=layer in reductions)
  return found


class Logits(NamedTuple):
  """What a network says of images.

  Attributes:
    main: `[N, num_classes]`, at least float32.
    auxiliary: the same of the auxiliary head, in training; None otherwise.
  """

  main: Array
  auxiliary: Array | None


class Network(nn.Module):
  """The network of a found architecture, trained from scratch [DARTS §3.2, §A.2].

  Attributes:
    normal: spec of the normal cells, one operation an edge.
    reduce: spec of the reduction cells.
    channels: channels `C` of the nodes of the first cell; they double in every reduction cell.
    num_layers: number of cells `L`.
    num_classes: number of logits.
    stem: `'cifar'`, one 3×3 convolution to `stem_multiplier · C` channels; or `'imagenet'`, three of stride 2 to C/2, C
      and C channels, of which the last two are the inputs of the first cell.
    auxiliary: whether a second classifier reads the output of cell ⌊2L/3⌋ in training (see `AuxiliaryHead`).
    auxiliary_norm: whether its last convolution is followed by BN; not so in the published network for ImageNet.
    stem_multiplier: of the stem `'cifar'`.
    remat: whether a gradient may compute the inside of cells once more instead of keeping it; see `jax.checkpoint`.
  """

  normal: CellSpec
  reduce: CellSpec
  channels: int
  num_layers: int
  num_classes: int
  stem: str = 'cifar'
  auxiliary: bool = False
  auxiliary_norm: bool = True
  stem_multiplier: int = 3
  remat: bool = False

  @nn.compact
  def __call__(self, images: Array, *, train: bool, drop_path: Array | float = 0.0, key: Array | None = None) -> Logits:
    """Classifies images.

    Args:
      images: `[N, H, W, ·]`, normalised; their dtype is the dtype of computation.
      train: whether BN uses the statistics of the batch, and the auxiliary head is computed.
      drop_path: `[]`, probability in [0, 1) that an edge is dropped for an image; the others are scaled up by
        1/(1 − `drop_path`), so that expectations stay. Identities are never dropped [DARTS §A.2].
      key: draws what is dropped, in training; None for no drop path.
    """
    imagenet = self.stem == 'imagenet'
    before_last, last = _stem(self, images, WHOLE_BATCH, train=train)
    factors: Array | None = None
    if train and key is not None:
      # Drawn for all cells at once: each draw of its own would add a copy of the random generator to the program.
      num_edges = max(self.normal.num_edges, self.reduce.num_edges)
      factors = drop_path_factors(key, drop_path, (self.num_layers, num_edges, len(images)))

    def compute(cell: Cell, before_last: Array, last: Array, factors: Array | None) -> Array:
      return cell(before_last, last, None, factors, train=train)

    compute_cell: Callable[..., Array] = nn.remat(compute) if self.remat else compute
    auxiliary = None
    cells = _cells(self.normal, self.reduce, self.channels, self.num_layers, reduction_before=imagenet, discrete=True)
    for layer, (_, cell) in enumerate(cells):
      before_last, last = last, compute_cell(cell, before_last, last, None if factors is None else factors[layer])
      if self.auxiliary and layer == 2 * self.num_layers // 3 and (train or self.is_initializing()):
        head = AuxiliaryHead(self.num_classes, _auxiliary_stride(self.stem), self.auxiliary_norm, name='auxiliary')
        auxiliary = head(last, train=train)
    return Logits(_classify(self, 'classifier', last, self.num_classes), auxiliary)


class AuxiliaryHead(nn.Module):
  """A second classifier half way [DARTS §A.2], which strengthens the gradient of early cells.

  ReLU, 5×5 average pooling, 1×1 convolution to 128 channels, BN, ReLU, 2×2 convolution to 768, BN, ReLU, linear.
  The published one is made for images that come down to one pixel, and others are averaged over what is left.

  Attributes:
    num_classes: number of logits.
    stride: of the pooling, 3 for CIFAR and 2 for ImageNet.
    norm: whether BN follows the last convolution.
  """

  num_classes: int
  stride: int
  norm: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """`[N, num_classes]` logits, at least float32, of `[N, H, W, C]`.

    Raises:
      ValueError: the image is too small for the pooling and the convolution.
    """
    if min(x.shape[1:3]) < auxiliary_size(self.stride):
      raise ValueError(
        f'auxiliary: {x.shape[1]}×{x.shape[2]} pixels reach the auxiliary head, which needs'
        f' {auxiliary_size(self.stride)} a side; larger images, or no auxiliary head'
      )
    x = nn.avg_pool(nn.relu(x), (5, 5), (self.stride, self.stride))
    x = nn.relu(BatchNorm(affine=True, name='bn0')(_conv(self, 'conv0', x, 128, 1), train=train))
    x = _conv(self, 'conv1', x, 768, 2, padding=0)
    if self.norm:
      x = BatchNorm(affine=True, name='bn1')(x, train=train)
    return _classify(self, 'classifier', nn.relu(x), self.num_classes)


def drop_path_factors(key: Array, rate: Array | float, shape: tuple[int, ...]) -> Array:
  """What drop path multiplies edges with: float32 of `shape`, 0 with probability `rate`, otherwise 1/(1 − `rate`)."""
  kept = 1 - jnp.asarray(rate, jnp.float32)
  return jax.random.bernoulli(key, kept, shape) / kept


def _auxiliary_stride(stem: str) -> int:
  return 2 if stem == 'imagenet' else 3


def auxiliary_size(stride: int) -> int:
  """The smallest image, in pixels a side, that an auxiliary head can read: a 2×2 convolution after a pool of 5×5."""
  return 5 + stride


def check_image_size(height: int, width: int, *, stem: str = 'cifar', auxiliary: bool = False) -> None:
  """Raises a ValueError, which names `image_size`, unless a network can be built for images of this size."""
  # The head reads the output of the second reduction cell.
  factor = 4 * (8 if stem == 'imagenet' else 1)
  needed = (auxiliary_size(_auxiliary_stride(stem)) - 1) * factor + 1
  if auxiliary and min(height, width) < needed:
    raise ValueError(
      f'image_size: {height}×{width} is too small for an auxiliary head; it needs sides of {needed} pixels'
    )


def check_statistics(
  field: str, examples: int, height: int, width: int, num_layers: int, *, stem: str = 'cifar', auxiliary: bool = False
) -> None:
  """Raises a ValueError unless BN, in training, sees more than one number of every channel, which it would make zero.

  Args:
    field: the setting that says how many examples share statistics.
    examples: their number.
    height: of images.
    width: likewise.
    num_layers: of the network.
    stem: of the network.
    auxiliary: whether the network has an auxiliary head whose last convolution is followed by BN.
  """
  halvings = len(reduction_cells(num_layers)) + (3 if stem == 'imagenet' else 0)
  # Rounded up at each.
  sides = [-(-side // 2**halvings) for side in (height, width)]
  pixels = math.prod(sides)
  if auxiliary:
    stride = _auxiliary_stride(stem)
    pixels = min(pixels, math.prod((side - 5) // stride for side in sides))
  if examples * pixels == 1:
    raise ValueError(
      f'{field}: {examples} is not allowed with images of {height}×{width} pixels, of which the network leaves 1×1:'
      ' batch normalisation would make a single number of every channel zero; larger batches or images are needed'
    )


def _stem(
  net: Supernet | Network, images: Array, groups: NormGroups, *, train: bool, smooth: bool = False
) -> tuple[Array, Array]:
  """What the first cell of the network that is being built reads, as it names its stem."""
  channels = net.channels
  if net.stem == 'cifar':
    wide = _conv(net, 'stem', images, net.stem_multiplier * channels, 3)
    normalised = BatchNorm(True, groups, name='stem_bn')(wide, train=train)
    return normalised, normalised

  def strided(name: str, x: Array, features: int) -> Array:
    return BatchNorm(True, groups, name=f'{name}_bn')(_conv(net, name, x, features, 3, stride=2), train=train)

  first = strided('stem0_first', images, channels // 2)
  before_last = strided('stem0_second', activate(first, smooth), channels)
  return before_last, strided('stem1', activate(before_last, smooth), channels)


def _cells(
  normal: CellSpec,
  reduce: CellSpec,
  channels: int,
  num_layers: int,
  *,
  reduction_before: bool = False,
  discrete: bool = False,
  smooth: bool = False,
  groups: NormGroups = WHOLE_BATCH,
) -> Iterator[tuple[str, Cell]]:
  """The cells of the network that is being built, with their kinds."""
  for layer in range(num_layers):
    reduction = layer in reduction_cells(num_layers)
    channels *= 2 if reduction else 1
    kind, spec = ('reduce', reduce) if reduction else ('normal', normal)
    yield kind, Cell(spec, channels, reduction, reduction_before, discrete, smooth, groups, name=f'cell{layer}')
    reduction_before = reduction


def _conv(
  module: nn.Module, name: str, images: Array, features: int, size: int, *, stride: int = 1, padding: int | None = None
) -> Array:
  """A dense convolution of a module, without bias; keeps the size unless told otherwise."""
  channels = images.shape[-1]
  kernel = module.param(name, uniform_fan_in(size * size * channels), (size, size, channels, features))
  return dense_conv(images, kernel, stride=stride, padding=size // 2 if padding is None else padding)


def _classify(module: nn.Module, name: str, images: Array, num_classes: int) -> Array:
  """Logits from the mean over all pixels, at least float32."""
  features = jnp.mean(images.astype(jnp.promote_types(images.dtype, jnp.float32)), axis=(1, 2))
  width = features.shape[-1]
  weights = module.param(name, uniform_fan_in(width), (width, num_classes))
  return features @ weights + module.param(f'{name}_bias', uniform_fan_in(width), (num_classes,))
