"""Padding of images and windows of padded images.

Images are padded with pixels and channels merged into one axis. LLVM unrolls the loop over the innermost axis of a
padded array, with a branch in it; for some tens of channels that takes eight times as long to compile as the loop over
a whole row, which is not unrolled and runs faster.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
#: Pixels added before and after.
Margins = tuple[int, int]


def pad_images(x: Array, rows: Margins, columns: Margins, *, dilation: int = 1, fill: float = 0) -> Array:
  """Pads and dilates images: `[…, H, W, C]` → `[…, H', W', C]`.

  Args:
    x: images.
    rows: pixels added above and below; negative numbers remove pixels.
    columns: pixels added left and right; negative numbers remove pixels.
    dilation: distance between neighbouring pixels of `x` in the result.
    fill: value of the added pixels.
  """
  *leading, height, width, channels = x.shape
  value = jnp.array(fill, x.dtype)
  before, after = columns
  if dilation > 1:
    # Each pixel is followed by the pixels before the next one; the last pixel, too.
    x = lax.pad(x, value, [(0, 0, 0)] * (x.ndim - 1) + [(0, (dilation - 1) * channels, 0)])
    after -= dilation - 1
  x = x.reshape(*leading, height, width * dilation * channels)
  padding = [(*rows, dilation - 1), (before * channels, after * channels, 0)]
  x = lax.pad(x, value, [(0, 0, 0)] * len(leading) + padding)
  return x.reshape(*x.shape[:-1], -1, channels)


def window(x: Array, corner: tuple[int, int], size: tuple[int, int], stride: int = 1) -> Array:
  """Every `stride`-th pixel from a corner on: `[…, H, W, C]` → `[…, *size, C]`.

  Written with `lax.slice`, since a program has thousands of windows, and indexing takes several operations and many
  times as long to trace.

  Args:
    x: images.
    corner: row and column of the first pixel.
    size: height and width of the result.
    stride: distance between the pixels, in both directions.
  """
  *leading, _, _, channels = x.shape
  origin, ones = [0] * len(leading), [1] * len(leading)
  last = [start + stride * (count - 1) + 1 for start, count in zip(corner, size, strict=True)]
  return lax.slice(x, (*origin, *corner, 0), (*leading, *last, channels), (*ones, stride, stride, 1))
