"""The candidate operations of a convolutional cell [DARTS §3.1.1, NASNet, NAS-Bench-201 §2.1].

All edges that leave one node with one operation are computed together, which gives the same numbers as a loop over
edges with a fraction of the kernels. An operation therefore takes the image of its source node, `[N, H, W, C]`, and
returns a stack with one image per edge, `[M, N, H', W', C]`; pools and identities return a stack of the single image
that all their edges share. Convolutional operations are ReLU, convolution and batch normalisation. The convolutions
have no bias, except for the dense ones of NAS-Bench-201 in a search. One BN serves all operations of a node that are at
the same stage (see `Operations`). The cell applies the last scale and offset, together with the mixing weights. The
modules note which part of a variable belongs to which edge (`darts_jax.nets.parts`).
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.nets.bilinear import as_channels, in_plain, weights_gradient_if, weights_gradient_wanted
from darts_jax.nets.dense import dense_conv
from darts_jax.nets.depthwise import depthwise_convs, depthwise_convs_apart
from darts_jax.nets.layers import (
  OWN,
  WHOLE_BATCH,
  Affine,
  BatchNorm,
  NormGroups,
  activate,
  evaluate,
  pointwise,
  pointwise_convs,
  pointwise_convs_of_channels,
  uniform_fan_in,
)
from darts_jax.nets.padding import pad_images
from darts_jax.nets.parts import note, note_member
from darts_jax.nets.pooling import avg_pool, max_pool
from darts_jax.runtime.files import one_line
from darts_jax.spaces.operations import OPERATIONS, is_own

Array = jax.Array

#: The dense convolutions of NAS-Bench-201, with the side of their filters.
_DENSE: Mapping[str, int] = {'nor_conv_1x1': 1, 'nor_conv_3x3': 3}
_POOLS: Mapping[str, Callable[[Array, int], Array]] = {'max_pool_3x3': max_pool, 'avg_pool_3x3': avg_pool}


class ReluConv(nn.Module):
  """ReLU and a 1×1 convolution to `features` channels; followed by BN, it prepares an input of a cell."""

  features: int
  smooth: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    kernel = self.param('kernel', uniform_fan_in(channels), (1, channels, self.features))
    return pointwise(activate(x, self.smooth), kernel[0])


class FactorizedReduce(nn.Module):
  """Halves the image: ReLU and two 1×1 stride-2 convolutions, the second shifted by one pixel down and right.

  An image with an odd side is padded with zeros at the bottom or right, so that both results have ⌈H/2⌉ × ⌈W/2⌉ pixels.

  Attributes:
    features: channels of an edge's output, half of them from each convolution.
    edges: number of edges `M`.
    smooth: whether the network is a smooth twin.
  """

  features: int
  edges: int
  smooth: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels, half = x.shape[-1], self.features // 2
    note((*self.path, 'kernel'), 2, [('skip_connect', self.edges)])
    kernel = self.param('kernel', uniform_fan_in(channels), (2, channels, self.edges, half))
    x = activate(x, self.smooth)
    if x.shape[1] % 2 or x.shape[2] % 2:
      x = pad_images(x, (0, x.shape[1] % 2), (0, x.shape[2] % 2))
    # One product for all edges, whose columns are the channels of all edges.
    pixels = [x[None, :, i::2, i::2] for i in range(2)]
    # Not optional: for these gradients a conditional costs more than it saves.
    with weights_gradient_if(None):
      products = pointwise_convs(pixels, [kernel[i].reshape(1, channels, -1) for i in range(2)])
    halves = [y.reshape(*y.shape[1:4], self.edges, half) for y in products]
    joined = jnp.concatenate(halves, axis=-1)
    return joined.reshape(1, *joined.shape[:3], -1) if as_channels() else jnp.moveaxis(joined, 3, 0)


class Filters(NamedTuple):
  """The depthwise filters of one operation: side, dilation, and the number of edges `M` that have the operation."""

  operation: str
  size: int
  dilation: int
  edges: int


class SeparableStage(nn.Module):
  """ReLU, depthwise convolution, pointwise convolution, for several operations at once.

  Attributes:
    filters: depthwise filters of the operations; every edge has its own filters and its own pointwise matrix.
    first: True if all operations read the image of a node; False if each reads its own stack with one image per edge.
    stride: stride of the depthwise convolutions.
    smooth: whether the network is a smooth twin.
  """

  filters: tuple[Filters, ...]
  first: bool
  stride: int
  smooth: bool = False

  @nn.compact
  def __call__(self, *images: Array) -> dict[str, Array]:
    """Computes the stage.

    Args:
      *images: `[N, H, W, C]`, the image of a node; or, if not `first`, `[M, N, H, W, C]` for each operation
        (`[1, N, H, W, M·C]` for edges as channels).

    Returns:
      `[M, N, H', W', C]` for each operation (`[1, N, H', W', M·C]` for edges as channels).
    """
    dtype = images[0].dtype
    channels = images[0].shape[-1]
    if as_channels() and not self.first:
      channels //= self.filters[0].edges
    kernels, matrices = [], []
    for operation, size, _, edges in self.filters:
      kernel = self.param(f'{operation}_depthwise', uniform_fan_in(size * size), (size, size, edges, channels))
      kernels.append(kernel.astype(dtype))
      note((*self.path, f'{operation}_depthwise'), 2, [(operation, edges)])
      note((*self.path, f'{operation}_pointwise'), 0, [(operation, edges)])
      matrices.append(self.param(f'{operation}_pointwise', uniform_fan_in(channels), (edges, channels, channels)))
    active = [activate(x, self.smooth) for x in images]
    names = [f.operation for f in self.filters]
    if as_channels():
      if self.first:
        active = [jnp.tile(active[0][None], f.edges) for f in self.filters]
      rows = [kernel.reshape(*kernel.shape[:2], 1, -1) for kernel in kernels]
      dilations = [f.dilation for f in self.filters]
      convolved = depthwise_convs_apart(active, rows, dilations=dilations, stride=self.stride)
      return dict(zip(names, pointwise_convs_of_channels(convolved, matrices), strict=True))
    dilations = [f.dilation for f in self.filters]
    if self.first:
      convolved = depthwise_convs(active[0], kernels, dilations=dilations, stride=self.stride)
    else:
      convolved = depthwise_convs_apart(active, kernels, dilations=dilations, stride=self.stride)
    return dict(zip(names, pointwise_convs(convolved, matrices), strict=True))


class Conv7x1Then1x7(nn.Module):
  """ReLU, dense 1×7 and dense 7×1 convolution: an operation of NASNet and AmoebaNet, in no search space here."""

  edges: int
  stride: int
  smooth: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels, s = x.shape[-1], self.stride
    shape = (self.edges, 1, 7, channels, channels)
    note(self.path, 0, [('conv_7x1_1x7', self.edges)])
    across = self.param('across', uniform_fan_in(7 * channels), shape).astype(x.dtype)
    down = self.param('down', uniform_fan_in(7 * channels), shape).astype(x.dtype)
    layout = ('NHWC', 'HWIO', 'NHWC')
    outputs = []
    for m in range(self.edges):
      y = lax.conv_general_dilated(
        activate(x, self.smooth), across[m], (1, s), [(0, 0), (3, 3)], dimension_numbers=layout
      )
      column = down[m].swapaxes(0, 1)
      outputs.append(lax.conv_general_dilated(y, column, (s, 1), [(3, 3), (0, 0)], dimension_numbers=layout))
    return jnp.concatenate(outputs, axis=-1)[None] if as_channels() else jnp.stack(outputs)


class ReluConvs(nn.Module):
  """ReLU and a dense convolution, with filters for every edge; followed by BN, an operation of NAS-Bench-201.

  Attributes:
    operation: name of the operation.
    size: side of the filters, odd.
    edges: number of edges `M`.
    stride: 1 or 2.
    bias: whether a learned bias is added; the BN that follows subtracts it again.
    smooth: whether the network is a smooth twin.
  """

  operation: str
  size: int
  edges: int
  stride: int
  bias: bool
  smooth: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels, size, stride = x.shape[-1], self.size, self.stride
    fan_in = size * size * channels
    note((*self.path, 'kernel'), 3, [(self.operation, self.edges)])
    kernel = self.param('kernel', uniform_fan_in(fan_in), (size, size, channels, self.edges, channels))
    # One convolution, with the channels of all edges.
    kernel = kernel.reshape(size, size, channels, -1)
    x = activate(x, self.smooth)
    if size == 1:
      y = pointwise(x[:, ::stride, ::stride], kernel[0, 0])
    else:
      y = dense_conv(x, kernel, stride=stride, padding=size // 2)
    if self.bias:
      note((*self.path, 'kernel_bias'), 0, [(self.operation, self.edges)])
      bias = self.param('kernel_bias', uniform_fan_in(fan_in), (self.edges, channels))
      y = y + bias.reshape(-1).astype(y.dtype)
    return y[None] if as_channels() else jnp.moveaxis(y.reshape(*y.shape[:3], self.edges, channels), 3, 0)


class Operations(nn.Module):
  """All operations that leave a node.

  BN follows all operations except identities and a user's own. It follows pools only in a search, unless
  `pools_normalised` is False, where it puts them on one scale with convolutions. BN statistics are per channel, so that
  one BN for the images of all operations, and a second one for operations with two stages, give the same numbers as one
  per operation, in far fewer kernels.

  Attributes:
    edges: for every operation other than `none`, the number of edges `M` that have it.
    stride: 1 or 2.
    discrete: whether the network is discrete: BN has scale and bias, and pools have no BN. In a search, BN has neither.
    smooth: whether the network is a smooth twin, with SiLU instead of ReLU and average instead of maximum pooling.
    groups: groups of examples that share BN statistics.
    pools_normalised: whether BN follows pools in a search.
    tracked: whether BN has running statistics.
  """

  edges: tuple[tuple[str, int], ...]
  stride: int
  discrete: bool
  smooth: bool = False
  groups: NormGroups = WHOLE_BATCH
  pools_normalised: bool = True
  tracked: bool = True

  def __call__(self, x: Array, *, train: bool) -> dict[str, Affine]:
    """Computes the operations.

    Args:
      x: `[N, H, W, C]`, the image of the node.
      train: whether BN uses the statistics of the batch.

    Returns:
      For every operation `[M, N, ⌈H/stride⌉, ⌈W/stride⌉, C]`, or `[1, …, C]` if its edges share one image;
      `[1, …, M·C]` for edges as channels.

    Raises:
      ValueError: see `_computed_apart`.
    """
    own = tuple(OPERATIONS[name] for name, _ in self.edges if is_own(name))
    return self._traced_once(x, weights_gradient_wanted(), train=train, traced=(in_plain(), as_channels(), own))

  # A network has dozens of nodes but few different ones; the others reuse a cached trace and its derivatives. All that
  # the trace depends on is therefore an argument: `wanted`, which contexts hold, and a user's own modules.
  @functools.partial(nn.jit, static_argnames=('train', 'traced'))
  @nn.compact
  def _traced_once(
    self, x: Array, wanted: Array | None, *, train: bool, traced: tuple[bool, bool, tuple[Any, ...]]
  ) -> dict[str, Affine]:
    del traced
    with weights_gradient_if(wanted):
      return self._compute(x, train)

  def _compute(self, x: Array, train: bool) -> dict[str, Affine]:
    twice, once = separable_filters(self.edges)
    outputs: dict[str, Affine] = {}
    images: dict[str, Array] = {}
    if twice or once:
      images |= SeparableStage(twice + once, True, self.stride, self.smooth, name='stage0')(x)
    for name, count in self.edges:
      if is_own(name):
        outputs[name] = Affine.identity(self._computed_apart(name, count, x, train))
      elif name in _POOLS:
        pool = avg_pool if self.smooth else _POOLS[name]
        images[name] = pool(x, self.stride)[None]
        if self.discrete or not self.pools_normalised:
          outputs[name] = Affine.identity(images.pop(name))
      elif name == 'skip_connect' and self.stride == 1:
        outputs[name] = Affine.identity(x[None])
      elif name == 'skip_connect':
        images[name] = FactorizedReduce(x.shape[-1], count, self.smooth, name=name)(x)
      elif name == 'conv_7x1_1x7':
        images[name] = Conv7x1Then1x7(count, self.stride, self.smooth, name=name)(x)
      elif name in _DENSE:
        # In a search the convolution has a bias and BN has none, as in the published code.
        convs = ReluConvs(name, _DENSE[name], count, self.stride, not self.discrete, self.smooth, name=name)
        images[name] = convs(x)
    outputs |= self._normalised('bn0', images, train)
    if twice:
      halfway = evaluate([outputs[f.operation] for f in twice])
      outputs |= self._normalised('bn1', SeparableStage(twice, False, 1, self.smooth, name='stage1')(*halfway), train)
    return outputs

  def _computed_apart(self, name: str, count: int, x: Array, train: bool) -> Array:
    """The stack of images of a user's own operation, which has one module per edge.

    Raises:
      ValueError: the operation cannot be created or called as docs/operations.md says, or its image has a wrong shape.
    """
    images = []
    shape = (x.shape[0], *(-(-side // self.stride) for side in x.shape[1:3]), x.shape[-1])
    for member in range(count):
      # Two digits, so that modules, sorted by name, are in the order of edges.
      label = f'{OWN}{name}_{member:02d}'
      if note_member((*self.path, label), name, member):
        # Whose its variables are does not depend on what it does, and it may not do it with images of any size.
        images.append(jnp.zeros(shape, x.dtype))
        continue
      module = make_own(name, x.shape[-1], self.stride, label)
      image = module(x, **train_of(module, train))
      if getattr(image, 'shape', None) != shape:
        found = getattr(image, 'shape', type(image).__name__)
        raise ValueError(f'operation {name}: gives {found} of {x.shape} at stride {self.stride}; it has to be {shape}')
      images.append(image.astype(x.dtype))
    return jnp.concatenate(images, axis=-1)[None] if as_channels() else jnp.stack(images)

  def _normalised(self, name: str, images: Mapping[str, Array], train: bool) -> dict[str, Affine]:
    """BN of all images; their entries of its variables are concatenated in this order."""
    if not images:
      return {}
    counts = dict(self.edges)
    note((*self.path, name), 0, [(each, 1 if each in _POOLS else counts[each]) for each in images])
    folded = BatchNorm(self.discrete, self.groups, self.tracked, name=name).fold(*images.values(), train=train)
    return dict(zip(images, folded, strict=True))


def separable_filters(edges: tuple[tuple[str, int], ...]) -> tuple[tuple[Filters, ...], tuple[Filters, ...]]:
  """The filters of separable convolutions: of `sep_conv`, which has two stages, and of `dil_conv`, which has one.

  Args:
    edges: operations and the number of edges that have each.
  """
  known = [(name, count) for name, count in edges if not is_own(name)]
  twice = tuple(Filters(name, int(name[-1]), 1, count) for name, count in known if name.startswith('sep_conv'))
  once = tuple(Filters(name, int(name[-1]), 2, count) for name, count in known if name.startswith('dil_conv'))
  return twice, once


def make_own(name: str, features: int, stride: int, label: str | None = None) -> nn.Module:
  """Creates the module of a user's own operation.

  Args:
    name: name of the operation.
    features: number of channels.
    stride: 1 or 2.
    label: name of the module; None for Flax's default.

  Raises:
    ValueError: the operation is not a Flax module, or lacks the attributes `features` and `stride`.
  """
  kind = OPERATIONS[name]
  if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
    raise ValueError(f'operation {name}: OPERATIONS has {kind!r}; it has to be a Flax module, a class')
  try:
    made: nn.Module = kind(features=features, stride=stride, name=label)
  except Exception as error:  # A user's own code may raise anything.
    raise ValueError(
      f'operation {name}: {kind.__name__}(features={features}, stride={stride}) cannot be made ({one_line(error)});'
      ' it has to have the attributes features and stride, and defaults for all others'
    ) from error
  return made


def check_own(name: str, channels: int, height: int, width: int, stride: int, precision: str = 'float32') -> None:
  """Checks a user's own operation by abstract evaluation: its initialisation, its training step and its evaluation.

  Args:
    name: name of the operation.
    channels: channels of the images.
    height: height of the images.
    width: width of the images.
    stride: stride of the operation, 1 or 2.
    precision: dtype of the images; variables are initialised with float32 images.

  Raises:
    ValueError: the operation cannot be created, called or differentiated, gives a wrong shape, or has variables
      other than parameters and statistics; one line that names it.
  """
  # Says what is no module, which may be no key either.
  make_own(name, channels, stride)
  _check_once(name, OPERATIONS[name], channels, height, width, stride, precision)


@functools.cache
def _check_once(name: str, kind: Any, channels: int, height: int, width: int, stride: int, precision: str) -> None:
  """See `check_own`; `kind` is the module. A search that prunes builds its networks again and again."""
  del kind
  operate = Operations(((name, 1),), stride, discrete=False)
  module = make_own(name, channels, stride)

  def begun(key: Array, x: Array) -> Any:
    return operate.init(key, x, train=True)

  def used(variables: Mapping[str, Any], x: Array) -> None:
    others = {group: values for group, values in variables.items() if group != 'params'}

    def image_of(params: Any, x: Array) -> Array:
      found, _ = operate.apply({'params': params, **others}, x, train=True, mutable=['moments', 'batch_stats'])
      image: Array = found[name].image
      return image

    image, pull_back = jax.vjp(image_of, variables.get('params', {}), x)
    pull_back(image)
    operate.apply(variables, x, train=False)

  # Networks are initialised with one image and used with batches.
  x = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
  batch = jax.ShapeDtypeStruct((2, height, width, channels), precision)
  try:
    _check_dtype(name, module, batch)
    variables = jax.eval_shape(begun, jax.random.key(0), x)
    more = sorted(variables.keys() - {'params', 'batch_stats'})
    if more:
      raise ValueError(f'operation {name}: has variables {more[0]!r}; it may have params and batch_stats alone')
    for path, leaf in jax.tree.leaves_with_path(variables):
      if leaf.dtype != jnp.float32:
        own = jax.tree_util.keystr(path[-1:], simple=True)
        raise ValueError(f'operation {name}: its variable {own} has dtype {leaf.dtype}; it has to be float32')
    jax.eval_shape(used, variables, batch)
  except Exception as error:  # A user's own code may raise anything.
    if isinstance(error, ValueError) and str(error).startswith(f'operation {name}: '):
      raise ValueError(one_line(error)) from error
    raise ValueError(
      f'operation {name}: fails on {precision} images of {height}×{width} pixels and {channels} channels at stride'
      f' {stride} ({type(error).__name__}: {one_line(error)})'
    ) from error


def _check_dtype(name: str, module: nn.Module, batch: jax.ShapeDtypeStruct) -> None:
  """Raises a ValueError, one line, unless the module gives floating-point images."""
  train: Any = train_of(module, True)
  found = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, **train)[0], batch)
  dtype = getattr(found, 'dtype', None)
  if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f'operation {name}: gives images of dtype {dtype}; it has to give floating-point images')


def train_of(module: nn.Module, train: bool) -> dict[str, bool]:
  """Keyword arguments for the call of a module: `train`, if the module takes it."""
  return {'train': train} if 'train' in inspect.signature(type(module).__call__).parameters else {}
