"""Fixed parts of convolutional networks: dense convolutions, and the residual block of NAS-Bench-201."""

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
  """A dense convolution without bias, with a parameter of `module`.

  Args:
    module: the module that is being built; gets the filters as a parameter.
    name: name of the parameter.
    images: `[N, H, W, C]`.
    features: channels of the output.
    size: side of the filters.
    stride: stride in both directions.
    padding: pixels added on every side; None for `size // 2`, which keeps the size at stride 1.

  Returns:
    `[N, H', W', features]`.
  """
  channels = images.shape[-1]
  kernel = module.param(name, uniform_fan_in(size * size * channels), (size, size, channels, features))
  return dense_conv(images, kernel, stride=stride, padding=size // 2 if padding is None else padding)


class Residual(nn.Module):
  """A residual block [NAS-Bench-201 §2.1]: ReLU, 3×3 convolution and BN, twice, plus a shortcut.

  With stride 2 the shortcut is a 2×2 average pooling and a 1×1 convolution; with stride 1 it is a 1×1 convolution if
  the number of channels changes, and the identity otherwise. BN has a learned scale and bias and running statistics,
  also in a search.

  Attributes:
    features: channels of the output.
    stride: 1 or 2.
    smooth: whether the network is a smooth twin (see `darts_jax.nets.conv.Supernet`).
    groups: groups of examples that share BN statistics.
  """

  features: int
  stride: int
  smooth: bool = False
  groups: NormGroups = WHOLE_BATCH

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Maps `[N, H, W, C]` to `[N, ⌈H/stride⌉, ⌈W/stride⌉, features]`."""
    y = x
    for i, stride in enumerate((self.stride, 1)):
      y = conv(self, f'conv{i}', activate(y, self.smooth), self.features, 3, stride=stride)
      y = BatchNorm(True, self.groups, name=f'bn{i}')(y, train=train)
    shortcut = halve(x) if self.stride == 2 else x
    channels = x.shape[-1]
    if self.stride == 2 or channels != self.features:
      shortcut = pointwise(shortcut, self.param('shortcut', uniform_fan_in(channels), (channels, self.features)))
    return materialise(y + shortcut)
