"""The candidate operations of a convolutional cell [DARTS §3.1.1, NASNet].

All edges that leave one node through one operation are computed together, which gives the same numbers as one
after the other with a fraction of the kernels. An operation therefore takes the image of its source node,
`[N, H, W, C]`, and returns one image an edge side by side, `[N, H', W', M·C]`; or, when it has no parameters of its
own for an edge, a single `[N, H', W', C]` that all its edges share. Convolutions come as ReLU, convolution, batch
normalisation and have no bias.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.nets.depthwise import depthwise_conv
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
    kernel = self.param('kernel', uniform_fan_in(channels), (2, channels, self.edges, half)).astype(x.dtype)
    x = jax.nn.relu(x)
    rows = [x[:, i::2, i::2].reshape(-1, channels) @ kernel[i].reshape(channels, -1) for i in range(2)]
    halves = [y.reshape(x.shape[0], x.shape[1] // 2, x.shape[2] // 2, self.edges, half) for y in rows]
    y = jnp.concatenate(halves, axis=-1)
    return BatchNorm(self.affine)(y.reshape(*y.shape[:3], -1), train=train)


class DepthwiseStage(nn.Module):
  """ReLU, depthwise convolution, pointwise convolution, BN: `dil_conv` is one such stage, `sep_conv` two.

  Attributes:
    kernel: side of the depthwise filters.
    edges: number of edges `M`.
    spread: whether the input is the image `[N, H, W, C]` of a node, to be spread over the edges, or already `M`
      images side by side.
    stride: stride of the depthwise convolution.
    dilation: dilation of the depthwise convolution.
    affine: whether BN has scale and bias.
  """

  kernel: int
  edges: int
  spread: bool
  stride: int
  dilation: int
  affine: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    channels = x.shape[-1] if self.spread else x.shape[-1] // self.edges
    size, edges = self.kernel, self.edges
    depthwise = self.param('depthwise', uniform_fan_in(size * size), (size, size, edges, channels)).astype(x.dtype)
    matrices = self.param('pointwise', uniform_fan_in(channels), (edges, channels, channels))
    filters = depthwise if self.spread else depthwise.reshape(size, size, 1, -1)
    x = depthwise_conv(jax.nn.relu(x), filters, stride=self.stride, dilation=self.dilation)
    return BatchNorm(self.affine)(pointwise(x, matrices), train=train)


class SepConv(nn.Module):
  """Depthwise-separable convolution, applied twice; the stride is in the first."""

  kernel: int
  edges: int
  stride: int
  affine: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    x = DepthwiseStage(self.kernel, self.edges, True, self.stride, 1, self.affine)(x, train=train)
    return DepthwiseStage(self.kernel, self.edges, False, 1, 1, self.affine)(x, train=train)


class DilConv(nn.Module):
  """Depthwise-separable convolution with dilation 2."""

  kernel: int
  edges: int
  stride: int
  affine: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    return DepthwiseStage(self.kernel, self.edges, True, self.stride, 2, self.affine)(x, train=train)


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


def make_operation(name: str, edges: int, stride: int, *, discrete: bool, scope: str) -> nn.Module:
  """The module that computes operation `name` for `edges` edges out of one node.

  Args:
    name: one of `darts_jax.genotype.OPERATIONS` other than `none`, which a cell leaves out.
    edges: number of edges `M`.
    stride: 1 or 2.
    discrete: in a discrete network BN has scale and bias, and pools are not normalised; in a search the reverse.
    scope: name of the module's variables in its cell.
  """
  affine = discrete
  match name:
    case 'max_pool_3x3':
      return Pool(max_pool, stride, not discrete, name=scope)
    case 'avg_pool_3x3':
      return Pool(avg_pool, stride, not discrete, name=scope)
    case 'skip_connect':
      return SkipConnect(edges, stride, affine, name=scope)
    case 'sep_conv_3x3' | 'sep_conv_5x5' | 'sep_conv_7x7':
      return SepConv(int(name[-1]), edges, stride, affine, name=scope)
    case 'dil_conv_3x3' | 'dil_conv_5x5':
      return DilConv(int(name[-1]), edges, stride, affine, name=scope)
    case 'conv_7x1_1x7':
      return Conv7x1Then1x7(edges, stride, affine, name=scope)
  raise ValueError(f'operation: {name!r} cannot be computed')
