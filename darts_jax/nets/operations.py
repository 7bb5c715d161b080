"""The candidate operations of a convolutional cell [DARTS §3.1.1, NASNet].

All edges that leave one node through one operation are computed together, which gives the same numbers as one
after the other with a fraction of the kernels. An operation therefore takes the image of its source node,
`[N, H, W, C]`, and returns one image an edge side by side, `[N, H', W', M·C]`; or, when it has no parameters of its
own for an edge, a single `[N, H', W', C]` that all its edges share. Convolutions come as ReLU, convolution, batch
normalisation and have no bias.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.nets.depthwise import depthwise_convs
from darts_jax.nets.layers import BatchNorm, avg_pool, max_pool, pointwise, uniform_fan_in

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

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
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
    return BatchNorm(self.affine)(y.reshape(*y.shape[:3], -1), train=train)


class Filters(NamedTuple):
  """The depthwise filters of one operation: side and dilation, and the number of edges `M` that have it."""

  operation: str
  size: int
  dilation: int
  edges: int


class SeparableStage(nn.Module):
  """ReLU, depthwise convolution, pointwise convolution, BN, for several operations on one image at once.

  Attributes:
    filters: what is convolved; every edge of an operation has its own depthwise filters and its own matrix.
    first: whether the input is the image `[N, H, W, C]` of a node, to be convolved for all edges, or already holds one
      image an edge, side by side in the order of `filters`.
    stride: stride of the depthwise convolutions.
    affine: whether BN has scale and bias.
  """

  filters: tuple[Filters, ...]
  first: bool
  stride: int
  affine: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    channels = x.shape[-1] if self.first else x.shape[-1] // sum(f.edges for f in self.filters)
    depthwise, matrices = [], []
    for operation, size, _, edges in self.filters:
      kernel = self.param(f'{operation}_depthwise', uniform_fan_in(size * size), (size, size, edges, channels))
      depthwise.append(kernel.astype(x.dtype).reshape(size, size, *((edges, channels) if self.first else (1, -1))))
      matrices.append(self.param(f'{operation}_pointwise', uniform_fan_in(channels), (edges, channels, channels)))
    dilations = [f.dilation for f in self.filters]
    images = depthwise_convs(jax.nn.relu(x), depthwise, dilations=dilations, stride=self.stride, shared=self.first)
    x = jnp.concatenate([pointwise(y, matrix) for y, matrix in zip(images, matrices, strict=True)], axis=-1)
    return BatchNorm(self.affine)(x, train=train)


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
  def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
    channels = x.shape[-1]
    filters = [Filters(name, int(name[-1]), 2 if name.startswith('dil') else 1, count) for name, count in self.edges]
    single = tuple(f for f in filters if f.dilation == 2)
    double = tuple(f for f in filters if f.dilation == 1)
    x = SeparableStage(double + single, True, self.stride, self.affine, name='stage0')(x, train=train)
    parts = lax.split(x, [f.edges * channels for f in double + single], axis=3)
    outputs = {f.operation: part for f, part in zip(double + single, parts, strict=True)}
    if double:
      x = x[..., : channels * sum(f.edges for f in double)]
      x = SeparableStage(double, False, 1, self.affine, name='stage1')(x, train=train)
      parts = lax.split(x, [f.edges * channels for f in double], axis=3)
      outputs |= {f.operation: part for f, part in zip(double, parts, strict=True)}
    return outputs


class Conv7x1Then1x7(nn.Module):
  """ReLU, dense 1×7 and dense 7×1 convolution, BN; NASNet's and AmoebaNet's, in no search space here."""

  edges: int
  stride: int
  affine: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
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
    return BatchNorm(self.affine)(jnp.concatenate(outputs, axis=-1), train=train)


class Pool(nn.Module):
  """3×3 pooling, the same for all edges; during search BN follows, to put pools on one scale with convolutions."""

  pool: Callable[[Array, int], Array]
  stride: int
  normalise: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    x = self.pool(x, self.stride)
    return BatchNorm(affine=False)(x, train=train) if self.normalise else x


class SkipConnect(nn.Module):
  """The identity, the same for all edges; at stride 2 a factorized reduce for each."""

  edges: int
  stride: int
  affine: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    if self.stride == 1:
      return x
    return FactorizedReduce(x.shape[-1], self.edges, self.affine)(x, train=train)


def apply_operations(
  edges: Mapping[str, int], x: Array, *, stride: int, discrete: bool, scope: str, train: bool
) -> dict[str, Array]:
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
