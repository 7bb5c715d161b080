"""Dense convolutions, as in stems and auxiliary heads.

On CPU, XLA computes the weight gradient as a convolution with filters as large as the image, which takes many times as
long as the product of the image's patches with the cotangent.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.nets.bilinear import Bilinear
from darts_jax.nets.padding import pad_images, window
from darts_jax.runtime.materialise import computed_once

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Dense(Bilinear):
  """A convolution of images `(N, H, W, C)` with filters `(K, L, C, D)`.

  Attributes:
    image: shape of the images.
    kernel: shape of the filters.
    stride: stride in both directions.
    padding: pixels added on every side.
    precision: precision of the products: JAX's default matmul precision at the call.
  """

  image: tuple[int, int, int, int]
  kernel: tuple[int, int, int, int]
  stride: int
  padding: int
  precision: Any = None

  @property
  def output_size(self) -> tuple[int, int]:
    """Side lengths of the outputs."""
    extents = zip(self.image[1:3], self.kernel[:2], strict=True)
    height, width = ((extent + 2 * self.padding - side) // self.stride + 1 for extent, side in extents)
    return height, width

  def shapes(self, group: str) -> list[tuple[int, ...]]:
    """See `Bilinear`."""
    if group == 'images':
      return [self.image]
    return [self.kernel if group == 'weights' else (self.image[0], *self.output_size, self.kernel[3])]

  def apply(self, images: list[Array], weights: list[Array]) -> list[Array]:
    """See `Bilinear`."""
    y = lax.conv_general_dilated(
      images[0],
      weights[0],
      (self.stride, self.stride),
      [(self.padding, self.padding)] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=self.precision,
    )
    return [y]

  def face_on_cpu(self, target: str, first: list[Array], second: list[Array]) -> list[Array]:
    """See `Bilinear`."""
    if target != 'weights':
      return self.face(target, first, second)
    margins = (self.padding, self.padding)
    padded = computed_once(pad_images, first[0], rows=margins, columns=margins)
    height, width, channels, features = self.kernel
    corners = [(i, j) for i in range(height) for j in range(width)]
    windows = [window(padded, corner, self.output_size, self.stride) for corner in corners]
    patches = lax.concatenate(windows, 3)
    rows = math.prod(patches.shape[:3])
    product = lax.dot_general(
      patches.reshape(rows, height * width * channels),
      second[0].reshape(rows, features),
      (((0,), (0,)), ((), ())),
      precision=self.precision,
    )
    return [product.reshape(self.kernel)]


def dense_conv(x: Array, kernel: Array, *, stride: int = 1, padding: int = 0) -> Array:
  """Convolves images `[N, H, W, C]` with filters `[K, L, C, D]`, to `[N, H', W', D]`."""
  num_images, height, width, channels = x.shape
  rows, columns, _, features = kernel.shape
  precision = jax.config.values['jax_default_matmul_precision']
  geometry = Dense(
    (num_images, height, width, channels), (rows, columns, channels, features), stride, padding, precision
  )
  return geometry([x], [jnp.asarray(kernel, x.dtype)])[0]
