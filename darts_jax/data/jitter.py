"""Jitter of brightness, contrast, saturation and hue on the device [Howard, arXiv 1312.5402 §2].

Every image has its own key, made from the key of the batch and its index in the batch. Results therefore depend neither
on other images nor on the number of devices.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# Weights of red, green and blue in grey [ITU-R BT.601 §2.5.1].
_LUMA = (0.299, 0.587, 0.114)


def color_jitter(
  images: Array, key: Array, *, brightness: float, contrast: float, saturation: float, hue: float
) -> Array:
  """Applies the four operations to every image, in a random order for each image.

  The factors of brightness, contrast and saturation are uniform in [max(0, 1 - x), 1 + x], where x is the strength, and
  the shift of the hue is uniform in [-hue, hue]. The factor of an operation is the same whether or not the others are
  on.

  Args:
    images: [B, H, W, 3] floating point RGB in [0, 1].
    key: a typed key; it is consumed.
    brightness: largest difference of the factor from 1; 0 to leave the operation out.
    contrast: largest difference of the factor from 1; 0 to leave the operation out.
    saturation: largest difference of the factor from 1; 0 to leave the operation out.
    hue: largest shift as a fraction of the colour circle, at most 0.5; 0 to leave the operation out.

  Returns:
    [B, H, W, 3] in [0, 1], of the dtype of `images`; the arithmetic is done in float32 or wider.

  Raises:
    ValueError: a strength is negative, the hue is above 0.5, or the images are integers.
  """
  strengths = {'brightness': brightness, 'contrast': contrast, 'saturation': saturation, 'hue': hue}
  for name, strength in strengths.items():
    if strength < 0:
      raise ValueError(f'{name} is {strength}; it has to be 0 or more')
  if hue > 0.5:
    raise ValueError(f'hue is {hue}; it has to be at most 0.5, half of the colour circle')
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f'the images have dtype {images.dtype}; they have to be floating point, in [0, 1]')
  adjustments = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
  low = jnp.array([*(max(0.0, 1 - strength) for strength in (brightness, contrast, saturation)), -hue])
  high = jnp.array([*(1 + strength for strength in (brightness, contrast, saturation)), hue])
  on = [number for number, strength in enumerate(strengths.values()) if strength]
  if not on:
    return images

  def jitter(image: Array, index: Array) -> Array:
    order_key, amount_key = jax.random.split(jax.random.fold_in(key, index))
    wide = image.astype(jnp.promote_types(image.dtype, jnp.float32))
    amounts = jax.random.uniform(amount_key, low.shape, low.dtype, low, high)[jnp.array(on)].astype(wide.dtype)

    def adjust(image: Array, place: Array) -> tuple[Array, None]:
      return lax.switch(place, [adjustments[number] for number in on], image, amounts[place]), None

    return lax.scan(adjust, wide, jax.random.permutation(order_key, len(on)))[0].astype(image.dtype)

  return jax.vmap(jitter)(images, jnp.arange(len(images)))


def adjust_brightness(image: Array, factor: Array | float) -> Array:
  """Blends an image [..., H, W, 3] in [0, 1] with black: `factor * image`, clipped."""
  return _blend(image, 0, factor)


def adjust_contrast(image: Array, factor: Array | float) -> Array:
  """Blends an image [..., H, W, 3] in [0, 1] with the mean of its grey: `mean + factor * (image - mean)`, clipped."""
  return _blend(image, jnp.mean(_grey(image), axis=(-3, -2), keepdims=True), factor)


def adjust_saturation(image: Array, factor: Array | float) -> Array:
  """Blends an image [..., H, W, 3] in [0, 1] with its grey: `grey + factor * (image - grey)`, clipped."""
  return _blend(image, _grey(image), factor)


def adjust_hue(image: Array, shift: Array | float) -> Array:
  """Shifts the hue of an image, and keeps its value and saturation [Smith, Color gamut transform pairs, SIGGRAPH 1978].

  Args:
    image: [..., H, W, 3] floating point RGB in [0, 1].
    shift: fraction of the colour circle; 1/3 turns red into green.

  Returns:
    [..., H, W, 3] in [0, 1].
  """
  red, green, blue = (image[..., channel] for channel in range(3))
  value = jnp.max(image, axis=-1)
  chroma = value - jnp.min(image, axis=-1)
  divisor = jnp.where(chroma > 0, chroma, 1)  # A grey pixel has no hue, and chroma 0 keeps it grey.
  sixths = jnp.where(
    value == red,
    (green - blue) / divisor,
    jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
  )
  # Distance of the hue from that of each channel, in sixths of the circle. A channel has its full value up to a
  # distance of 1, and its minimum beyond 2.
  distances = [jnp.abs((sixths + 6 * shift - centre + 3) % 6 - 3) for centre in (0, 2, 4)]
  turned = [value - chroma * jnp.clip(distance - 1, 0, 1) for distance in distances]
  return jnp.clip(jnp.stack(turned, axis=-1), 0, 1)


def _grey(image: Array) -> Array:
  return jnp.sum(image * jnp.array(_LUMA, image.dtype), axis=-1, keepdims=True)


def _blend(image: Array, other: Array | float, factor: Array | float) -> Array:
  return jnp.clip(other + factor * (image - other), 0, 1)
