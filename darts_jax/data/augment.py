"""Augmentation of batches on the device [DARTS §A.1]: crop, flip, colours, normalisation, cutout, in this order.

Floating point images are normalised first: 0 is a value like others to them, and what is black unknown.

Every image draws from a key of its own, made from the key of the batch and its place in it, so neither its
neighbours nor the number of devices that share the batch matter.
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
    dtype: of the result; the arithmetic is done in float32 or wider.

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
  """Augments raw images as the published protocol does, and normalises them.

  The padding of a crop is black, pixel value 0 before normalisation, if images are integers; it is 0 after
  normalisation, the mean of its channel, if they are floating point. The square of cutout [DeVries & Taylor,
  arXiv 1708.04552] is 0 after normalisation. The three draws of an image are independent of whether the others are
  made. With everything off this is `normalise`.

  Args:
    images: [B, H, W, C], raw pixel values of any dtype.
    key: a typed key; consumed.
    mean: [C], in raw pixel units.
    std: [C], in raw pixel units.
    crop_padding: pixels that are added on every side before an H×W window is drawn uniformly; 0 to not crop.
    flip: whether to mirror every image left to right with probability 1/2.
    cutout: side of the square in pixels. Its centre is a uniformly drawn pixel, what reaches over the border is cut
      off, and an even side extends further by one to the top and left; 0 for none.
    first: the place of the first of these images in the batch, if they are a part of one.
    recolour: `(raw images, key) → raw images`, carried out just before normalisation, such as colour jitter; None for
      none.
    dtype: of the result; the arithmetic is done in float32 or wider.

  Returns:
    [B, H, W, C] of `dtype`.

  Raises:
    ValueError: if `crop_padding` or `cutout` is negative.
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
      # No image has this number.
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
