"""Padding of images, as rows of pixels and channels end to end, and windows of what is padded.

LLVM unrolls the loop over the innermost axis of a padded array with a branch in it. Over some tens of channels that
takes eight times as long to compile as the loop over a whole row, which it leaves alone and which runs faster.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
#: Pixels before and after.
Margins = tuple[int, int]


def pad_images(x: Array, rows: Margins, columns: Margins, *, dilation: int = 1, fill: float = 0) -> Array:
  """`[…, H, W, C]` → `[…, H', W', C]`.

  Args:
    x: images.
    rows: pixels added above and below; negative ones are taken away.
    columns: pixels added left and right, likewise.
    dilation: distance between neighbouring pixels of `x` in the result.
    fill: the value of all other pixels.
  """
  *leading, height, width, channels = x.shape
  value = jnp.array(fill, x.dtype)
  before, after = columns
  if dilation > 1:
    # Each pixel with what is between it and the next; so there is something after the last, too.
    x = lax.pad(x, value, [(0, 0, 0)] * (x.ndim - 1) + [(0, (dilation - 1) * channels, 0)])
    after -= dilation - 1
  x = x.reshape(*leading, height, width * dilation * channels)
  padding = [(*rows, dilation - 1), (before * channels, after * channels, 0)]
  x = lax.pad(x, value, [(0, 0, 0)] * len(leading) + padding)
  return x.reshape(*x.shape[:-1], -1, channels)


def window(x: Array, corner: tuple[int, int], size: tuple[int, int], stride: int = 1) -> Array:
  """`[…, H, W, C]` → `[…, *size, C]`: every `stride`-th pixel from a corner on.

  By hand, since these are thousands, and indexing by JAX takes several operations and many times as long.
  """
  *leading, _, _, channels = x.shape
  origin, ones = [0] * len(leading), [1] * len(leading)
  last = [start + stride * (count - 1) + 1 for start, count in zip(corner, size, strict=True)]
  return lax.slice(x, (*origin, *corner, 0), (*leading, *last, channels), (*ones, stride, stride, 1))
