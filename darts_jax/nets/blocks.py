"""Fixed parts of convolutional networks: dense convolutions, and the block between the stages of NAS-Bench-201."""

import flax.linen as nn
import jax

from darts_jax.nets.dense import dense_conv
from darts_jax.nets.layers import WHOLE_BATCH, BatchNorm, NormGroups, activate, pointwise, uniform_fan_in
from darts_jax.nets.pooling import halve
from darts_jax.runtime.materialise import materialise

Array = jax.Array


def conv(
  module: nn.Module, name: str, images: Array, features: int, size: int, *, stride: int = 1, padding: int | None = None
) -> Array:
  """A dense convolution of a module, without bias; keeps the size unless told otherwise."""
  channels = images.shape[-1]
  kernel = module.param(name, uniform_fan_in(size * size * channels), (size, size, channels, features))
  return dense_conv(images, kernel, stride=stride, padding=size // 2 if padding is None else padding)


class Residual(nn.Module):
  """A residual block [NAS-Bench-201 §2.1]: twice ReLU, 3×3 convolution and BN, beside a shortcut.

  The shortcut is a 2×2 average pooling if the block has stride 2, and then, or if it changes the number of channels, a
  1×1 convolution. BN has a learned scale and bias and running statistics, in a search, too.

  Attributes:
    features: channels of the output.
    stride: 1 or 2.
    smooth: whether the network is a smooth twin (see `darts_jax.nets.conv.Supernet`).
    groups: the examples that share statistics of BN.
  """

  features: int
  stride: int
  smooth: bool = False
  groups: NormGroups = WHOLE_BATCH

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """`[N, ⌈H/stride⌉, ⌈W/stride⌉, features]` of `[N, H, W, C]`."""
    y = x
    for i, stride in enumerate((self.stride, 1)):
      y = conv(self, f'conv{i}', activate(y, self.smooth), self.features, 3, stride=stride)
      y = BatchNorm(True, self.groups, name=f'bn{i}')(y, train=train)
    shortcut = halve(x) if self.stride == 2 else x
    channels = x.shape[-1]
    if self.stride == 2 or channels != self.features:
      shortcut = pointwise(shortcut, self.param('shortcut', uniform_fan_in(channels), (channels, self.features)))
    return materialise(y + shortcut)
