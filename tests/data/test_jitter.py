import colorsys
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from darts_jax.data.jitter import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, color_jitter

OFF = {'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0}
STRENGTHS = {'brightness': 1.2, 'contrast': 0.8, 'saturation': 0.8, 'hue': 0.3}
ALL = {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.2}
LUMA = np.array([0.299, 0.587, 0.114])


def random_images(num_images=8, height=6, width=5, dtype=np.float32, low=0.0, high=1.0):
  return np.random.default_rng(0).uniform(low, high, (num_images, height, width, 3)).astype(dtype)


@functools.cache
def compiled(**strengths):
  return jax.jit(functools.partial(color_jitter, **{**OFF, **strengths}))


def run(images, seed=0, **strengths):
  return np.asarray(compiled(**strengths)(images, jax.random.key(seed)))


def brightened(image, factor):
  return np.clip(factor * image, 0, 1)


def contrasted(image, factor):
  mean = (image @ LUMA).mean()
  return np.clip(factor * image + (1 - factor) * mean, 0, 1)


def saturated(image, factor):
  grey = (image @ LUMA)[..., None]
  return np.clip(factor * image + (1 - factor) * grey, 0, 1)


def hue_of(pixel):
  return colorsys.rgb_to_hsv(*pixel)[0]


def turned(image, shift):
  def turn(pixel):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)

  return np.apply_along_axis(turn, -1, image)


FORMULAS = {
  'brightness': (adjust_brightness, brightened),
  'contrast': (adjust_contrast, contrasted),
  'saturation': (adjust_saturation, saturated),
  'hue': (adjust_hue, turned),
}


@pytest.mark.parametrize('name', FORMULAS)
def test_operations_are_their_formulas(name):
  operation, formula = FORMULAS[name]
  images = random_images().astype(np.float64)
  images[0, 0] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [0.2, 0.7, 0.7], [0.9, 0.9, 0.1]]  # Ties and greys.

  for image in images:
    for amount in (-0.5, -0.2, 0.3, 0.5) if name == 'hue' else (0.0, 0.6, 1.0, 1.7):
      result = operation(jnp.asarray(image, jnp.float32), amount)
      np.testing.assert_allclose(result, formula(image, amount), atol=2e-6)


@pytest.mark.parametrize('name', ['Brightness', 'Contrast', 'Color'])
def test_enhancements_of_pillow(name):
  Image = pytest.importorskip('PIL.Image')
  enhance = pytest.importorskip('PIL.ImageEnhance')
  operation = {'Brightness': adjust_brightness, 'Contrast': adjust_contrast, 'Color': adjust_saturation}[name]
  image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)

  for factor in (0.3, 1.0, 1.6):
    expected = np.asarray(getattr(enhance, name)(Image.fromarray(image)).enhance(factor)).astype(float)
    result = 255 * np.asarray(operation(jnp.asarray(image / 255, jnp.float32), factor))
    # Pillow rounds grey to a whole number, weighted by |1 - factor|, and then the result.
    assert np.abs(result - expected).max() < 1 + abs(1 - factor)


def test_hue_of_pillow():
  Image = pytest.importorskip('PIL.Image')
  image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  hsv = np.asarray(Image.fromarray(image).convert('HSV')).copy()
  hsv[..., 0] = (hsv[..., 0].astype(int) + 51) % 255  # Its circle has 255 steps, of which this is a fifth.
  expected = np.asarray(Image.fromarray(hsv, 'HSV').convert('RGB')).astype(float)

  result = 255 * np.asarray(adjust_hue(jnp.asarray(image / 255, jnp.float32), 0.2))

  # Rounding down to a step changes a channel by up to 6 levels, rounding the saturation down by 1, and the result by 1.
  assert np.abs(result - expected).max() < 8
  assert np.abs(result - expected).mean() < 1.5


def test_hue_goes_around_the_circle():
  primaries = np.eye(3, dtype=np.float32)[None]

  np.testing.assert_allclose(adjust_hue(primaries, 1 / 3), np.roll(primaries, 1, axis=-1), atol=1e-6)
  np.testing.assert_allclose(adjust_hue(random_images(), 1.0), random_images(), atol=2e-6)


@functools.cache
def alone(name):
  """Equal images of low contrast, jittered by one operation, and the amounts it drew."""
  image = random_images(1, 3, 3, low=0.2, high=0.45)[0].astype(np.float64)
  result = run(np.broadcast_to(image, (2000, *image.shape)).astype(np.float32), **{name: STRENGTHS[name]})
  _, formula = FORMULAS[name]
  if name == 'hue':
    hues = np.array([hue_of(pixel) for pixel in result[:, 0, 0]])
    return image, result, (hues - hue_of(image[0, 0]) + 0.5) % 1 - 0.5
  # Nothing is clipped, so results are affine in the factor.
  none, one = formula(image, 0.0), formula(image, 1.0)
  return image, result, np.sum((result - none) * (one - none), axis=(1, 2, 3)) / np.sum((one - none) ** 2)


@pytest.mark.parametrize(
  ('name', 'low', 'high'),
  [('brightness', 0, 2.2), ('contrast', 0.2, 1.8), ('saturation', 0.2, 1.8), ('hue', -0.3, 0.3)],
)
def test_each_operation_alone_draws_its_amount_uniformly(name, low, high):
  image, result, amounts = alone(name)

  for single, amount in zip(result[:20], amounts, strict=False):
    np.testing.assert_allclose(single, FORMULAS[name][1](image, amount), atol=1e-5)
  # The largest distance from the uniform distribution exceeds 1.95/√n with probability 0.001 [Kolmogorov].
  uniform, number = (np.sort(amounts) - low) / (high - low), len(amounts)
  assert np.abs(uniform - (np.arange(number) + 0.5) / number).max() < 1.95 / number**0.5
  assert uniform[0] >= -1e-4
  assert uniform[-1] <= 1 + 1e-4


def test_amounts_of_an_image_are_uncorrelated():
  correlations = np.corrcoef([alone(name)[2] for name in FORMULAS])[np.triu_indices(4, 1)]

  assert np.abs(correlations).max() < 4 / 2000**0.5


def test_everything_off_is_the_identity():
  images = random_images()

  np.testing.assert_array_equal(run(images), images)


def test_every_image_is_adjusted_in_an_order_of_the_four():
  # An operation draws the same amount when it is alone.
  image, _, _ = alone('hue')
  amounts = {name: alone(name)[2] for name in FORMULAS}

  result = run(np.broadcast_to(image, (2000, *image.shape)).astype(np.float32), **STRENGTHS)

  orders = list(itertools.permutations(FORMULAS))
  chosen = []
  for number in range(100):
    distances = []
    for order in orders:
      expected = image
      for name in order:
        expected = FORMULAS[name][1](expected, amounts[name][number])
      distances.append(np.abs(result[number] - expected).max())
    assert min(distances) < 1e-5
    chosen.append(orders[np.argmin(distances)])
  # One hundred draws leave 6 of 24 orders out with a probability below 1e-5.
  assert len(set(chosen)) > 18
  for name in FORMULAS:
    places = [order.index(name) for order in chosen]
    assert all(abs(np.corrcoef(places, amounts[other][:100])[0, 1]) < 4 / 100**0.5 for other in FORMULAS)


def test_images_of_a_batch_do_not_influence_each_other():
  images = random_images()
  changed = images.copy()
  changed[5] = 1 - changed[5]

  result, other = run(images, **ALL), run(changed, **ALL)

  np.testing.assert_array_equal(np.flatnonzero(np.any(result != other, axis=(1, 2, 3))), [5])
  assert result.min() == 0
  assert result.max() == 1


def test_equal_images_are_jittered_differently():
  images = np.repeat(random_images(1), 8, axis=0)

  result, other = run(images, **ALL), run(images, seed=1, **ALL)

  assert len(np.unique(np.concatenate([result, other]), axis=0)) == 16


def test_under_vmap():
  images = random_images(16)
  keys = jax.random.split(jax.random.key(1), 2)

  mapped = jax.vmap(compiled(**ALL))(images.reshape(2, 8, *images.shape[1:]), keys)

  for half in range(2):
    expected = compiled(**ALL)(images[8 * half : 8 * half + 8], keys[half])
    np.testing.assert_allclose(mapped[half], expected, atol=1e-6)


def test_on_eight_devices_without_communication():
  images = random_images()
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec('data')))
  key = jax.device_put(jax.random.key(0), NamedSharding(mesh, PartitionSpec()))

  executable = compiled(**ALL).lower(sharded, key).compile()

  assert not re.search('all-|collective|reduce-scatter', executable.as_text())
  np.testing.assert_allclose(executable(sharded, key), run(images, **ALL), atol=1e-6)


def test_half_precision_is_the_rounded_result():
  images = jnp.asarray(random_images(), jnp.bfloat16)

  result = compiled(**ALL)(images, jax.random.key(0))

  assert result.dtype == jnp.bfloat16
  wide = run(np.asarray(images.astype(jnp.float32)), **ALL)
  np.testing.assert_allclose(result.astype(np.float32), wide, rtol=1.01 * 2**-8, atol=1e-6)


@pytest.mark.parametrize(
  ('strengths', 'message'),
  [
    ({'contrast': -0.1}, 'contrast is -0.1; it has to be 0 or more'),
    ({'hue': 0.6}, 'hue is 0.6; it has to be at most 0.5, half of the colour circle'),
  ],
)
def test_strengths_that_are_not_allowed(strengths, message):
  with pytest.raises(ValueError, match=message):
    run(random_images(), **strengths)


def test_raw_pixels():
  with pytest.raises(ValueError, match='the images have dtype uint8; they have to be floating point'):
    run(np.zeros((1, 2, 2, 3), np.uint8), hue=0.1)
