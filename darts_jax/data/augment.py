"""Augmentation of batches on the device [DARTS §A.1]: crop, flip, colours, normalisation, cutout, in this order.

Floating-point images are normalised first, since their value of black is not known.

Every image has its own key, made from the key of the batch and its index in the batch. Results therefore depend neither
on other images nor on the number of devices.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Statistics = Sequence[float] | np.ndarray | Array


def normalise(images: Array, mean: Statistics, std: Statistics, dtype: jax.typing.DTypeLike = jnp.float32) -> Array:
  """Returns `(images - mean) / std` per channel.

  Args:
    images: [B, H, W, C], raw pixel values of any dtype.
    mean: [C], in raw pixel units.
    std: [C], in raw pixel units.
    dtype: dtype of the result; the arithmetic is done in float32 or wider.

  Returns:
    [B, H, W, C] of `dtype`.
  """
  wide = jnp.promote_types(dtype, jnp.float32)
  return ((images.astype(wide) - jnp.asarray(mean, wide)) / jnp.asarray(std, wide)).astype(dtype)


def augment(
  images: Array,
  key: Array,
  mean: Statistics,
  std: Statistics,
  *,
  crop_padding: int,
  flip: bool,
  cutout: int,
  first: Array | int = 0,
  recolour: Callable[[Array, Array], Array] | None = None,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> Array:
  """Augments raw images as in the published protocol, and normalises them.

  The padding of a crop is black, pixel value 0 before normalisation, if images are integers; if they are floating
  point, it is the mean of the channel, 0 after normalisation. The square of cutout [DeVries & Taylor, arXiv 1708.04552]
  is 0 after normalisation. Crop, flip and cutout have separate keys, so that each draw is the same whether or not the
  others are on. With everything off, this is `normalise`.

  Args:
    images: [B, H, W, C], raw pixel values of any dtype.
    key: a typed key; it is consumed.
    mean: [C], in raw pixel units.
    std: [C], in raw pixel units.
    crop_padding: pixels that are added on every side before an H×W window is drawn uniformly; 0 for no crop.
    flip: whether to mirror every image left to right with probability 1/2.
    cutout: side of the square in pixels. Its centre is a uniformly drawn pixel, it is cut off at the border, and with
      an even side it extends one pixel further to the top and left. 0 for no cutout.
    first: index in the batch of the first of these images, if they are a part of a batch.
    recolour: function `(raw images, key) → raw images`, applied just before normalisation, such as colour jitter; None
      for no change.
    dtype: dtype of the result; the arithmetic is done in float32 or wider.

  Returns:
    [B, H, W, C] of `dtype`.

  Raises:
    ValueError: `crop_padding` or `cutout` is negative.
  """
  for name, value in (('crop_padding', crop_padding), ('cutout', cutout)):
    if value < 0:
      raise ValueError(f'{name} is {value}; it has to be 0 or more pixels')
  keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index), 3))(first + jnp.arange(len(images)))

  def move(images: Array) -> Array:
    if crop_padding:
      images = jax.vmap(functools.partial(_crop, padding=crop_padding))(images, keys[:, 0])
    return jax.vmap(_flip)(images, keys[:, 1]) if flip else images

  def colour(images: Array) -> Array:
    if recolour is not None:
      assert isinstance(first, int), 'colours are drawn for whole batches'
      # No image has this index, so that no other draw uses this key.
      images = recolour(images, jax.random.fold_in(key, len(images)))
    return normalise(images, mean, std, dtype)

  images = move(colour(images)) if jnp.issubdtype(images.dtype, jnp.floating) else colour(move(images))
  if cutout:
    images = jax.vmap(functools.partial(_cutout, side=cutout))(images, keys[:, 2])
  return images


def _crop(image: Array, key: Array, padding: int) -> Array:
  top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
  padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def _flip(image: Array, key: Array) -> Array:
  return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def _cutout(image: Array, key: Array, side: int) -> Array:
  height, width, _ = image.shape
  first_row, first_column = jax.random.randint(key, (2,), 0, jnp.array((height, width))) - side // 2
  rows, columns = jnp.arange(height) - first_row, jnp.arange(width) - first_column
  inside = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))
  return jnp.where(inside[..., None], 0, image)
