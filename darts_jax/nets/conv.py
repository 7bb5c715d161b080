"""The convolutional networks: the supernet of a search, and the network of a found architecture [DARTS §3.1]."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from darts_jax.nets.blocks import Residual, conv
from darts_jax.nets.cell import Cell, folded
from darts_jax.nets.layers import WHOLE_BATCH, BatchNorm, NormGroups, activate, uniform_fan_in
from darts_jax.nets.operations import check_own
from darts_jax.spaces import CellSpec, Mixing, Plan
from darts_jax.spaces.operations import NOISE, is_own
from darts_jax.streams import Stream

Array = jax.Array
T = TypeVar('T')
#: Specs of the kinds of cells by name.
Cells = tuple[tuple[str, CellSpec], ...]


class Supernet(nn.Module):
  """A stack of cells whose edges mix candidate operations; cells of one kind share mixing weights.

  Attributes:
    cells: specs of the kinds of cells.
    plan: the layers.
    channels: base number of channels `C`; each layer has a multiple of it.
    num_classes: number of logits.
    stem_multiplier: the stem `'cifar'` has `stem_multiplier · C` channels.
    remat: whether cells use gradient checkpointing, see `jax.checkpoint`.
    smooth: whether this is the smooth twin of a network, with the same parameters, SiLU instead of ReLU and average
      instead of maximum pooling. Differences between a network and its twin are due to the kinks.
    groups: groups of examples that share BN statistics.
    stem: see `Network`.
    tracked: whether BN in cells has running statistics; if not, evaluation uses the statistics of the batch, too. The
      stem, blocks and the last BN always have running statistics.
    channel_part: K for partial channels, see `Cell`.
  """

  cells: Cells
  plan: Plan
  channels: int
  num_classes: int
  stem_multiplier: int = 3
  remat: bool = False
  smooth: bool = False
  groups: NormGroups = WHOLE_BATCH
  stem: str = 'cifar'
  tracked: bool = True
  channel_part: int = 1

  @nn.compact
  def __call__(
    self, images: Array, mixing: Mapping[str, Mixing | Array], *, train: bool, keys: Array | None = None
  ) -> Array:
    """Classifies images.

    Args:
      images: `[N, H, W, ·]`, normalised; their dtype is the dtype of computation.
      mixing: mixing weights for each kind of cell, or the weights of operations alone, `[E, O]`.
      train: whether BN uses the statistics of the batch.
      keys: `[N, …]` uint32, the data of a random key for every image, by which noise is drawn, and drop path leaves
        edges out in training. None for noise that is always the same, and the same for all images, and no drop path.

    Returns:
      `[N, num_classes]` logits, at least float32.

    Raises:
      ValueError: the plan has a layer that cannot be built, or there is no drop path for such mixing weights.
    """
    factors, typed = None, None if keys is None else jax.random.wrap_key_data(keys)
    if train and typed is not None:
      num_edges = max(spec.num_edges for _, spec in self.cells)
      factors = mixed_drop_path(mixing, self.plan, num_edges, folded(typed, Stream.IMAGE_DROP_PATH))
      if factors is not None and self.channel_part > 1:
        raise ValueError('config.strategy: there is no drop path where edges compute a part of the channels')

    def compute(
      cell: Cell, inputs: Sequence[Array], mixing: Mixing | Array, factors: Array | None, keys: Array | None
    ) -> Array:
      return cell(inputs, mixing, factors, keys, train=train)

    outputs = _stem(self, images, self.groups, train=train, smooth=self.smooth)
    compute_cell = nn.remat(compute) if self.remat else compute
    style: dict[str, Any] = {'smooth': self.smooth, 'groups': self.groups}
    own: dict[str, Any] = {'tracked': self.tracked, 'channel_part': self.channel_part}
    for index, (kind, module, count) in enumerate(_layers(self, discrete=False, **own, **style)):
      if isinstance(module, Cell):
        chosen = None if factors is None else factors[index]
        own_keys = _noise_keys(module, index, typed)
        outputs.append(compute_cell(module, last_of(outputs, count), mixing[kind], chosen, own_keys))
      else:
        outputs.append(module(outputs[-1], train=train))
    last = _normalised(self, outputs[-1], self.groups, train=train, smooth=self.smooth)
    return _classify(self, 'classifier', last, self.num_classes)


class Logits(NamedTuple):
  """The outputs of a network.

  Attributes:
    main: `[N, num_classes]` logits, at least float32.
    auxiliary: `[N, num_classes]` logits of the auxiliary head in training; None in evaluation and without such a head.
  """

  main: Array
  auxiliary: Array | None


class Network(nn.Module):
  """The network of a found architecture, trained from scratch [DARTS §3.2, §A.2].

  Attributes:
    cells: specs of the kinds of cells, one operation per edge.
    plan: the layers.
    channels: base number of channels `C`; each layer has a multiple of it.
    num_classes: number of logits.
    stem: `'cifar'`: one 3×3 convolution to `stem_multiplier · C` channels; or `'imagenet'`: three 3×3 convolutions of
      stride 2 to C/2, C and C channels, where the outputs of the last two are the inputs of the first cell.
    auxiliary: whether, in training, an auxiliary head reads the layer that the plan names (see `AuxiliaryHead`).
    auxiliary_norm: whether BN follows its last convolution; it does not in the published network for ImageNet.
    stem_multiplier: the stem `'cifar'` has `stem_multiplier · C` channels.
    remat: whether cells use gradient checkpointing, see `jax.checkpoint`.
  """

  cells: Cells
  plan: Plan
  channels: int
  num_classes: int
  stem: str = 'cifar'
  auxiliary: bool = False
  auxiliary_norm: bool = True
  stem_multiplier: int = 3
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    images: Array,
    *,
    train: bool,
    drop_path: Array | float = 0.0,
    key: Array | None = None,
    keys: Array | None = None,
  ) -> Logits:
    """Classifies images.

    Args:
      images: `[N, H, W, ·]`, normalised; their dtype is the dtype of computation.
      train: whether BN uses the statistics of the batch, and the auxiliary head is computed.
      drop_path: `[]`, probability in [0, 1) that an edge is dropped for an image; edges that stay are scaled by
        1/(1 − `drop_path`), which keeps the expectation. Identities are never dropped [DARTS §A.2].
      key: key for drop path, used in training only; None for no drop path.
      keys: `[N]` typed random keys for the noise of each image; None for constant noise, the same for all images.

    Raises:
      ValueError: the plan has a layer that cannot be built, or images are too small for the auxiliary head.
    """
    outputs = _stem(self, images, WHOLE_BATCH, train=train)
    factors: Array | None = None
    if train and key is not None:
      # One draw for all cells: every draw adds a copy of the random number generator to the program.
      num_edges = max(spec.num_edges for _, spec in self.cells)
      factors = drop_path_factors(key, drop_path, (len(self.plan.layers), num_edges, len(images)))

    def compute(cell: Cell, inputs: Sequence[Array], factors: Array | None, keys: Array | None) -> Array:
      return cell(inputs, None, factors, keys, train=train)

    compute_cell: Callable[..., Array] = nn.remat(compute) if self.remat else compute
    auxiliary = None
    for index, (_, module, count) in enumerate(_layers(self, discrete=True)):
      if isinstance(module, Cell):
        chosen = None if factors is None else factors[index]
        outputs.append(compute_cell(module, last_of(outputs, count), chosen, _noise_keys(module, index, keys)))
      else:
        outputs.append(module(outputs[-1], train=train))
      if self.auxiliary and index == self.plan.auxiliary and (train or self.is_initializing()):
        head = AuxiliaryHead(self.num_classes, _auxiliary_stride(self.stem), self.auxiliary_norm, name='auxiliary')
        auxiliary = head(outputs[-1], train=train)
    last = _normalised(self, outputs[-1], WHOLE_BATCH, train=train)
    return Logits(_classify(self, 'classifier', last, self.num_classes), auxiliary)


class AuxiliaryHead(nn.Module):
  """A second classifier, on an intermediate layer [DARTS §A.2], which strengthens the gradient of early cells.

  ReLU, 5×5 average pooling, 1×1 convolution to 128 channels, BN, ReLU, 2×2 convolution to 768, BN, ReLU, linear.
  The published head requires that one pixel is left for the linear layer; here the mean over all that are left is used.

  Attributes:
    num_classes: number of logits.
    stride: stride of the pooling, 3 for CIFAR and 2 for ImageNet.
    norm: whether BN follows the last convolution.
  """

  num_classes: int
  stride: int
  norm: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Maps `[N, H, W, C]` to `[N, num_classes]` logits, at least float32.

    Raises:
      ValueError: the image is too small for the pooling and the convolution.
    """
    if min(x.shape[1:3]) < auxiliary_size(self.stride):
      raise ValueError(
        f'auxiliary: {x.shape[1]}×{x.shape[2]} pixels reach the auxiliary head, which needs'
        f' {auxiliary_size(self.stride)} a side; larger images, or no auxiliary head'
      )
    x = nn.avg_pool(nn.relu(x), (5, 5), (self.stride, self.stride))
    x = nn.relu(BatchNorm(affine=True, name='bn0')(conv(self, 'conv0', x, 128, 1), train=train))
    x = conv(self, 'conv1', x, 768, 2, padding=0)
    if self.norm:
      x = BatchNorm(affine=True, name='bn1')(x, train=train)
    return _classify(self, 'classifier', nn.relu(x), self.num_classes)


def drop_path_factors(key: Array, rate: Array | float, shape: tuple[int, ...]) -> Array:
  """Factors of drop path: float32 of this shape, 0 with probability `rate`, otherwise 1/(1 − `rate`)."""
  kept = 1 - jnp.asarray(rate, jnp.float32)
  return jax.random.bernoulli(key, kept, shape) / kept


def mixed_drop_path(mixing: Mapping[str, Mixing | Array], plan: Plan, num_edges: int, keys: Array) -> Array | None:
  """What drop path multiplies the edges of a supernet with.

  Args:
    mixing: by kind of cell the mixing weights.
    plan: the layers.
    num_edges: `E`, as many as the largest cell has.
    keys: `[N]` typed random keys, one an image.

  Returns:
    `[L, E, N]` float32: for every layer, edge and image 0 with the probability that `Mixing.drop` says, otherwise the
    reciprocal of the probability that it is not; 1 where nothing is dropped. None if no mixing weights have rates.

  Raises:
    ValueError: a constant stands for operations, which cannot be dropped.
  """
  known = {kind: each for kind, each in mixing.items() if isinstance(each, Mixing) and each.drop is not None}
  if not known:
    return None
  if any(each.constant is not None for each in known.values()):
    raise ValueError('config.strategy: there is no drop path where a constant stands for operations')
  drops: dict[str, Any] = {kind: each.drop for kind, each in known.items()}
  rates = {kind: jnp.pad(each, (0, num_edges - len(each))) for kind, each in drops.items()}
  of_layers = jnp.stack([rates.get(layer.cell, jnp.zeros(num_edges)) for layer in plan.layers])
  # Drawn for all cells at once, as in `Network`.
  draw = functools.partial(drop_path_factors, rate=of_layers, shape=of_layers.shape)
  return jnp.moveaxis(jax.vmap(draw)(keys), 0, -1)


def draws(cells: Iterable[CellSpec]) -> bool:
  """Whether an edge of the cells may have noise."""
  return any(NOISE in edge.operations for spec in cells for _, edge in spec.edges)


def _noise_keys(cell: Cell, index: int, keys: Array | None) -> Array | None:
  """What a layer draws noise of, made of the keys of images, or of a fixed one; none for a cell without noise."""
  if not draws([cell.spec]):
    return None
  return folded(folded(jax.random.key(0)[None] if keys is None else keys, Stream.IMAGE_NOISE), index)


def _auxiliary_stride(stem: str) -> int:
  return 2 if stem == 'imagenet' else 3


def auxiliary_size(stride: int) -> int:
  """Side, in pixels, of the smallest image that an auxiliary head can read: 5×5 pooling, then a 2×2 convolution."""
  return 5 + stride


def check_image_size(height: int, width: int, plan: Plan, *, stem: str = 'cifar', auxiliary: bool = False) -> None:
  """Checks that images are large enough for the auxiliary head of a network.

  Args:
    height: height of the images.
    width: width of the images.
    plan: layers of the network.
    stem: stem of the network.
    auxiliary: whether the network has an auxiliary head.

  Raises:
    ValueError: images are too small; the message begins with `image_size`.
  """
  if not auxiliary or plan.auxiliary is None:
    return
  before = plan._replace(layers=plan.layers[: plan.auxiliary + 1])
  factor = 2 ** (before.halvings + (3 if stem == 'imagenet' else 0))
  needed = (auxiliary_size(_auxiliary_stride(stem)) - 1) * factor + 1
  if min(height, width) < needed:
    raise ValueError(
      f'image_size: {height}×{width} is too small for an auxiliary head; it needs sides of {needed} pixels'
    )


def check_statistics(
  field: str, examples: int, height: int, width: int, plan: Plan, *, stem: str = 'cifar', auxiliary: bool = False
) -> None:
  """Checks that BN in training has more than one value per channel; it would normalise a single value to zero.

  Args:
    field: name of the setting that says how many examples share statistics.
    examples: number of examples that share statistics.
    height: height of the images.
    width: width of the images.
    plan: layers of the network.
    stem: stem of the network.
    auxiliary: whether the network has an auxiliary head whose last convolution is followed by BN.

  Raises:
    ValueError: BN would have a single value per channel; the message begins with `field`.
  """
  halvings = plan.halvings + (3 if stem == 'imagenet' else 0)
  # Each halving rounds up.
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


def check_operations(
  cells: Cells,
  plan: Plan,
  channels: int,
  height: int,
  width: int,
  *,
  stem: str = 'cifar',
  channel_part: int = 1,
  precision: str = 'float32',
) -> None:
  """Checks the user's own operations with the channels, sizes and strides that they have in a network.

  Args:
    cells: see `Network`.
    plan: likewise.
    channels: likewise.
    height: of the network's images.
    width: likewise.
    stem: see `Network`.
    channel_part: see `Supernet`.
    precision: dtype of the images within the network.

  Raises:
    ValueError: one is unfit; one line that names it, see `darts_jax.nets.operations.check_own`.
  """
  specs = dict(cells)
  size = _halved((height, width), 3 if stem == 'imagenet' else 0)
  # Each once, in the order of layers.
  places: dict[tuple[str, int, int, int, int], None] = {}
  for layer in plan.layers:
    before, size = size, _halved(size, layer.stride - 1)
    spec = specs.get(layer.cell)
    for _, edge in () if spec is None else spec.edges:
      at_input = spec is not None and edge.source < spec.num_inputs
      read, stride = (before, layer.stride) if at_input else (size, 1)
      for name in filter(is_own, edge.operations):
        places[name, layer.channels * channels // channel_part, *read, stride] = None
  for place in places:
    check_own(*place, precision)


def _halved(size: tuple[int, int], times: int) -> tuple[int, int]:
  """Height and width after so many strides of 2; each rounds up."""
  height, width = size
  return -(-height // 2**times), -(-width // 2**times)


def _stem(
  net: Supernet | Network, images: Array, groups: NormGroups, *, train: bool, smooth: bool = False
) -> list[Array]:
  """The outputs of the stem of a network, with parameters of that module; the first layers read them."""
  channels = net.channels
  if net.stem == 'cifar':
    wide = conv(net, 'stem', images, net.stem_multiplier * channels, 3)
    return [BatchNorm(True, groups, name='stem_bn')(wide, train=train)]

  def strided(name: str, x: Array, features: int) -> Array:
    return BatchNorm(True, groups, name=f'{name}_bn')(conv(net, name, x, features, 3, stride=2), train=train)

  first = strided('stem0_first', images, channels // 2)
  before_last = strided('stem0_second', activate(first, smooth), channels)
  return [before_last, strided('stem1', activate(before_last, smooth), channels)]


def last_of(outputs: Sequence[T], count: int) -> tuple[T, ...]:
  """The last `count` outputs, which a layer reads; if there are fewer, the first one is repeated."""
  return (outputs[0],) * (count - len(outputs)) + tuple(outputs[-count:])


def larger_inputs(cells: Cells, plan: Plan, stem: str) -> list[tuple[bool, ...]]:
  """For every layer, flags for its inputs: whether each is twice as large as the layer's last input.

  Raises:
    ValueError: the plan names an unknown cell, or an input is more than twice as large as the last one.
  """
  specs = dict(cells)
  plan.check(specs)
  # Number of halvings before each output; the stem for ImageNet has two outputs, the second half as large.
  halvings = [0, 1] if stem == 'imagenet' else [0]
  found = []
  for index, layer in enumerate(plan.layers):
    count = specs[layer.cell].num_inputs if layer.cell in specs else 1
    read = [halvings[-1] - each for each in last_of(halvings, count)]
    if max(read) > 1:
      raise ValueError(f'plan: layer {index}: an input is {2 ** max(read)} times as large as the last one; at most 2')
    found.append(tuple(each == 1 for each in read))
    halvings.append(halvings[-1] + (layer.stride == 2))
  return found


def _layers(
  net: Supernet | Network,
  *,
  discrete: bool,
  smooth: bool = False,
  groups: NormGroups = WHOLE_BATCH,
  tracked: bool = True,
  channel_part: int = 1,
) -> Iterator[tuple[str, Cell | Residual, int]]:
  """Yields the layers of a network: name of the cell or block, module, number of outputs that it reads."""
  specs = dict(net.cells)
  for index, (layer, larger) in enumerate(
    zip(net.plan.layers, larger_inputs(net.cells, net.plan, net.stem), strict=True)
  ):
    channels = layer.channels * net.channels
    if layer.cell in specs:
      style: dict[str, Any] = {'discrete': discrete, 'smooth': smooth, 'groups': groups, 'tracked': tracked}
      style['channel_part'] = channel_part
      cell = Cell(specs[layer.cell], channels, layer.stride, larger, **style, name=f'cell{index}')
      yield layer.cell, cell, len(larger)
    else:
      yield layer.cell, Residual(channels, layer.stride, smooth, groups, name=f'{layer.cell}{index}'), 1


def _normalised(
  net: Supernet | Network, images: Array, groups: NormGroups, *, train: bool, smooth: bool = False
) -> Array:
  """The input of the global pooling: the last output, after BN and ReLU if the plan says so."""
  if not net.plan.last_norm:
    return images
  return activate(BatchNorm(True, groups, name='last_bn')(images, train=train), smooth)


def _classify(module: nn.Module, name: str, images: Array, num_classes: int) -> Array:
  """The logits, at least float32: global average pooling and a linear layer."""
  features = jnp.mean(images.astype(jnp.promote_types(images.dtype, jnp.float32)), axis=(1, 2))
  # Does nothing unless the collection `intermediates` is mutable.
  module.sow('intermediates', 'features', features)
  width = features.shape[-1]
  weights = module.param(name, uniform_fan_in(width), (width, num_classes))
  return features @ weights + module.param(f'{name}_bias', uniform_fan_in(width), (num_classes,))
