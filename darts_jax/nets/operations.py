"""The candidate operations of a convolutional cell [DARTS §3.1.1, NASNet].

All edges that leave one node through one operation are computed together, which gives the same numbers as one
after the other with a fraction of the kernels. An operation therefore takes the image of its source node,
`[N, H, W, C]`, and returns one image an edge side by side, `[N, H', W', M·C]`; or, when it has no parameters of its
own for an edge, a single `[N, H', W', C]` that all its edges share; with the scale and shift of a final BN yet to be
carried out, since the cell weights and sums them all. Convolutions come as ReLU, convolution, batch
normalisation and have no bias.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.nets.depthwise import depthwise_conv, depthwise_convs
from darts_jax.nets.layers import Affine, BatchNorm, avg_pool, max_pool, pointwise, uniform_fan_in

Array = jax.Array


class ReluConvBN(nn.Module):
  """ReLU, 1×1 convolution to `features` channels, BN: how a cell prepares its inputs."""

  features: int
  affine: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    channels = x.shape[-1]
    kernel = self.param('kernel', uniform_fan_in(channels), (1, channels, self.features))
    return BatchNorm(self.affine)(pointwise(jax.nn.relu(x), kernel), train=train)


class FactorizedReduce(nn.Module):
  """Halves the image: ReLU, two 1×1 stride-2 convolutions, the second one pixel further down and right, BN.

  Attributes:
    features: channels of an edge's output, half of them from each convolution.
    edges: number of edges `M`.
    affine: whether BN has scale and bias.
  """

  features: int
  edges: int
  affine: bool

  def __call__(self, x: Array, *, train: bool) -> Array:
    """The output, its BN carried out."""
    return self.fold(x, train=train).evaluate()

  @nn.compact
  def fold(self, x: Array, *, train: bool) -> Affine:
    """The output before its BN is carried out."""
    channels, half = x.shape[-1], self.features // 2
    if x.shape[1] % 2 or x.shape[2] % 2:
      raise ValueError(
        f'image size: {x.shape[1]}×{x.shape[2]} cannot be halved at a reduction cell; both have to be even'
      )
    kernel = self.param('kernel', uniform_fan_in(channels), (2, channels, self.edges, half)).astype(x.dtype)
    x = jax.nn.relu(x)
    rows = [x[:, i::2, i::2].reshape(-1, channels) @ kernel[i].reshape(channels, -1) for i in range(2)]
    halves = [y.reshape(x.shape[0], x.shape[1] // 2, x.shape[2] // 2, self.edges, half) for y in rows]
    y = jnp.concatenate(halves, axis=-1)
    return BatchNorm(self.affine).fold(y.reshape(*y.shape[:3], -1), train=train)[0]


class Filters(NamedTuple):
  """The depthwise filters of one operation: side and dilation, and the number of edges `M` that have it."""

  operation: str
  size: int
  dilation: int
  edges: int


class SeparableStage(nn.Module):
  """ReLU, depthwise convolution, pointwise convolution, BN, for several operations at once.

  Attributes:
    filters: what is convolved; every edge of an operation has its own depthwise filters and its own matrix.
    first: whether all operations read one image, that of a node, or each its own, with one image an edge side by side.
    stride: stride of the depthwise convolutions.
    affine: whether BN has scale and bias.
  """

  filters: tuple[Filters, ...]
  first: bool
  stride: int
  affine: bool

  @nn.compact
  def __call__(self, *images: Array, train: bool) -> list[Affine]:
    """Computes the stage.

    Args:
      images: `[N, H, W, C]`, the image of a node; or, if not `first`, `[N, H, W, M·C]` for each operation.
      train: whether BN uses the statistics of the batch.

    Returns:
      `[N, H', W', M·C]` for each operation.
    """
    dtype = images[0].dtype
    channels = images[0].shape[-1] // (1 if self.first else self.filters[0].edges)
    kernels, matrices = [], []
    for operation, size, _, edges in self.filters:
      kernel = self.param(f'{operation}_depthwise', uniform_fan_in(size * size), (size, size, edges, channels))
      kernels.append(kernel.astype(dtype))
      matrices.append(self.param(f'{operation}_pointwise', uniform_fan_in(channels), (edges, channels, channels)))
    active = [jax.nn.relu(x) for x in images]
    if self.first:
      dilations = [f.dilation for f in self.filters]
      convolved = depthwise_convs(active[0], kernels, dilations=dilations, stride=self.stride)
    else:
      convolved = [
        depthwise_conv(x, kernel.reshape(f.size, f.size, 1, -1), dilation=f.dilation, stride=self.stride)
        for x, kernel, f in zip(active, kernels, self.filters, strict=True)
      ]
    outputs = [pointwise(y, matrix) for y, matrix in zip(convolved, matrices, strict=True)]
    return BatchNorm(self.affine).fold(*outputs, train=train)


class SeparableConvs(nn.Module):
  """Depthwise-separable convolutions: `dil_conv` is one stage with dilation 2, `sep_conv` is two, the first strided.

  Attributes:
    edges: for every operation the number of edges `M` that have it, in the order of the outputs.
    stride: 1 or 2.
    affine: whether BN has scale and bias.
  """

  edges: tuple[tuple[str, int], ...]
  stride: int
  affine: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> dict[str, Affine]:
    filters = [Filters(name, int(name[-1]), 2 if name.startswith('dil') else 1, count) for name, count in self.edges]
    single = tuple(f for f in filters if f.dilation == 2)
    double = tuple(f for f in filters if f.dilation == 1)
    halfway = SeparableStage(double + single, True, self.stride, self.affine, name='stage0')(x, train=train)
    outputs = {f.operation: y for f, y in zip(double + single, halfway, strict=True)}
    if double:
      images = [outputs[f.operation].evaluate() for f in double]
      finished = SeparableStage(double, False, 1, self.affine, name='stage1')(*images, train=train)
      outputs |= {f.operation: y for f, y in zip(double, finished, strict=True)}
    return outputs


class Conv7x1Then1x7(nn.Module):
  """ReLU, dense 1×7 and dense 7×1 convolution, BN; NASNet's and AmoebaNet's, in no search space here."""

  edges: int
  stride: int
  affine: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Affine:
    channels, s = x.shape[-1], self.stride
    shape = (self.edges, 1, 7, channels, channels)
    across = self.param('across', uniform_fan_in(7 * channels), shape).astype(x.dtype)
    down = self.param('down', uniform_fan_in(7 * channels), shape).astype(x.dtype)
    layout = ('NHWC', 'HWIO', 'NHWC')
    outputs = []
    for m in range(self.edges):
      y = lax.conv_general_dilated(jax.nn.relu(x), across[m], (1, s), [(0, 0), (3, 3)], dimension_numbers=layout)
      column = down[m].swapaxes(0, 1)
      outputs.append(lax.conv_general_dilated(y, column, (s, 1), [(3, 3), (0, 0)], dimension_numbers=layout))
    return BatchNorm(self.affine).fold(jnp.concatenate(outputs, axis=-1), train=train)[0]


class Pool(nn.Module):
  """3×3 pooling, the same for all edges; during search BN follows, to put pools on one scale with convolutions."""

  pool: Callable[[Array, int], Array]
  stride: int
  normalise: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Affine:
    x = self.pool(x, self.stride)
    return BatchNorm(affine=False).fold(x, train=train)[0] if self.normalise else Affine.identity(x)


class SkipConnect(nn.Module):
  """The identity, the same for all edges; at stride 2 a factorized reduce for each."""

  edges: int
  stride: int
  affine: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Affine:
    if self.stride == 1:
      return Affine.identity(x)
    return FactorizedReduce(x.shape[-1], self.edges, self.affine).fold(x, train=train)


def apply_operations(
  edges: Mapping[str, int], x: Array, *, stride: int, discrete: bool, scope: str, train: bool
) -> dict[str, Affine]:
  """Computes all operations that leave a node; to be called in a compact module.

  Args:
    edges: for every operation other than `none` the number of edges `M` that have it.
    x: `[N, H, W, C]`, the image of the node.
    stride: 1 or 2.
    discrete: in a discrete network BN has scale and bias, and pools are not normalised; in a search the reverse.
    scope: what the names of the variables begin with.
    train: whether BN uses the statistics of the batch.

  Returns:
    For every operation `[N, H/stride, W/stride, M·C]`, or `[N, H/stride, W/stride, C]` if its edges share it.
  """
  affine = discrete
  separable = tuple((name, count) for name, count in edges.items() if name[:8] in ('sep_conv', 'dil_conv'))
  outputs = SeparableConvs(separable, stride, affine, name=f'{scope}_conv')(x, train=train) if separable else {}
  others: dict[str, Callable[[int, str], nn.Module]] = {
    'max_pool_3x3': lambda _, name: Pool(max_pool, stride, not discrete, name=name),
    'avg_pool_3x3': lambda _, name: Pool(avg_pool, stride, not discrete, name=name),
    'skip_connect': lambda count, name: SkipConnect(count, stride, affine, name=name),
    'conv_7x1_1x7': lambda count, name: Conv7x1Then1x7(count, stride, affine, name=name),
  }
  for name, count in edges.items():
    if name not in outputs:
      outputs[name] = others[name](count, f'{scope}_{name}')(x, train=train)
  return outputs
