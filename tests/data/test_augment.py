import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.data.augment import augment, normalise

MEAN = (125.0, 100.0, 75.0)
STD = (60.0, 50.0, 40.0)
OFF = {'crop_padding': 0, 'flip': False, 'cutout': 0}
BLACK = -np.float32(MEAN) / np.float32(STD)


def random_images(num_images=64, height=8, width=7, dtype=np.uint8):
  # No pixel is black, so that padding can be told from the image.
  return np.random.default_rng(0).integers(1, 256, (num_images, height, width, 3)).astype(dtype)


@functools.cache
def compiled(**settings):
  return jax.jit(functools.partial(augment, mean=MEAN, std=STD, **{**OFF, **settings}))


def run(images, seed=0, **settings):
  return np.asarray(compiled(**settings)(images, jax.random.key(seed)))


def normalised(images):
  return (images.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)


def all_crops(image, padding):
  """[(2p + 1)², H, W, C]: every window of the image that is padded with zeros."""
  height, width, _ = image.shape
  padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  offsets = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
  return np.stack([padded[top : top + height, left : left + width] for top, left in offsets])


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_normalise(dtype):
  images = random_images(dtype=dtype)

  result = normalise(images, MEAN, STD)

  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result[3, 2, 1], (images[3, 2, 1].astype(float) - MEAN) / STD, rtol=1e-6, atol=1e-7)


def test_normalise_to_half_precision_rounds_once():
  images = random_images()
  mean = np.asarray(MEAN) + 0.307  # Not a number of half precision.

  result = normalise(images, mean, STD, jnp.bfloat16)

  assert result.dtype == jnp.bfloat16
  # A number has 8 significant bits, so rounding changes it by at most 2^-8 of its size.
  np.testing.assert_allclose(result.astype(float), (images - mean) / STD, rtol=1.01 * 2**-8)


def test_everything_off_is_normalise_and_compiles_to_nothing_else():
  images = random_images()

  def lowered(function):
    text = jax.jit(function).lower(images, jax.random.key(0)).compile().as_text()
    return sorted(re.findall(r'= \S+ (\w[\w-]*)\(', text))

  np.testing.assert_array_equal(run(images), normalise(images, MEAN, STD))
  assert lowered(functools.partial(augment, mean=MEAN, std=STD, **OFF)) == lowered(
    lambda images, _: normalise(images, MEAN, STD)
  )


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_crops_are_windows_of_the_image_padded_with_black_or_the_mean(dtype):
  padding, num_images = 2, 2000
  image = random_images(1, dtype=dtype)[0]
  crops = normalised(all_crops(image, padding)) if dtype == np.uint8 else all_crops(normalised(image), padding)

  result = run(np.broadcast_to(image, (num_images, *image.shape)), crop_padding=padding)

  matches = np.all(np.isclose(result[:, None], crops[None], rtol=1e-6, atol=1e-6), axis=(2, 3, 4))
  np.testing.assert_array_equal(matches.sum(axis=1), 1)
  counts = matches.sum(axis=0)
  # χ² with 24 degrees of freedom has mean 24 and standard deviation √48.
  assert np.sum((counts - num_images / 25) ** 2) / (num_images / 25) < 24 + 5 * 48**0.5
  # A window that is moved to the very corner has two rows and columns of padding.
  corner = result[matches[:, 0]][0]
  np.testing.assert_allclose(corner[:2].reshape(-1, 3), np.tile(BLACK * (dtype == np.uint8), (14, 1)), rtol=1e-6)


@pytest.mark.parametrize(('scale', 'offset'), [(1, 1000), (1, -1000), (2**-40, 0), (2**40, 2**50)])
def test_float_images_are_augmented_alike_whatever_their_scale_and_offset(scale, offset):
  # Whole numbers and powers of two, so that no image is rounded.
  images, mean, std = random_images(8).astype(np.float32), np.float32([128, 96, 64]), np.float32(STD)
  settings = {'crop_padding': 2, 'flip': True, 'cutout': 3}

  result, expected = (
    augment(x, jax.random.key(0), center, spread, **settings)
    for x, center, spread in ((scale * images + offset, scale * mean + offset, scale * std), (images, mean, std))
  )

  np.testing.assert_array_equal(result, expected)
  assert (expected[:, 0] == 0).all(axis=(1, 2)).any()


def test_recoloured_float_images_are_padded_with_the_mean():
  images = random_images(8).astype(np.float32)

  result = augment(
    images,
    jax.random.key(0),
    MEAN,
    STD,
    crop_padding=8,
    flip=False,
    cutout=0,
    recolour=lambda images, key: 255 - images,
  )

  plain = augment(255 - images, jax.random.key(0), MEAN, STD, crop_padding=8, flip=False, cutout=0)
  np.testing.assert_array_equal(result, plain)
  assert (plain == 0).mean() > 0.3


def test_flip_mirrors_every_second_image():
  num_images = 10000
  image = random_images(1)[0]

  result = run(np.broadcast_to(image, (num_images, *image.shape)), flip=True)

  plain = np.all(np.isclose(result, normalised(image), rtol=1e-6, atol=1e-6), axis=(1, 2, 3))
  mirrored = np.all(np.isclose(result, normalised(image)[:, ::-1], rtol=1e-6, atol=1e-6), axis=(1, 2, 3))
  np.testing.assert_array_equal(plain ^ mirrored, True)
  assert abs(mirrored.sum() - num_images / 2) < 4 * num_images**0.5 / 2


@pytest.mark.parametrize('side', [1, 3, 4, 20])
def test_cutout_zeroes_a_square_around_a_pixel(side):
  height, width, num_images = 8, 7, 3000
  image = random_images(1)[0] // 2 * 2 + 1  # Odd values: none normalises to zero.
  mean = np.asarray(MEAN) + 0.5
  squares = []
  for row in range(height):
    for column in range(width):
      square = np.zeros((height, width), bool)
      top, left = row - side // 2, column - side // 2
      square[max(top, 0) : top + side, max(left, 0) : left + side] = True
      squares.append(square)

  images = np.broadcast_to(image, (num_images, *image.shape))
  transform = jax.jit(functools.partial(augment, mean=mean, std=STD, **{**OFF, 'cutout': side}))
  result = np.asarray(transform(images, jax.random.key(0)))

  plain = np.asarray(normalise(images, mean, STD))
  zeroed = np.all(result == 0, axis=3)
  np.testing.assert_array_equal(result, np.where(zeroed[..., None], 0, plain))
  # Squares that reach over the border may coincide; those that are possible occur as often as centres lead to them.
  possible, centres = np.unique(np.stack(squares), axis=0, return_counts=True)
  found, counts = np.unique(zeroed, axis=0, return_counts=True)
  np.testing.assert_array_equal(found, possible)
  expected = num_images * centres / (height * width)
  freedom = len(possible) - 1
  assert np.sum((counts - expected) ** 2 / expected) <= freedom + 5 * (2 * freedom) ** 0.5


def test_draws_do_not_depend_on_each_other():
  images = random_images()
  plain = run(images, crop_padding=2)
  flipped = run(images, crop_padding=2, flip=True)
  cut = run(images, crop_padding=2, flip=True, cutout=3)

  mirrored = np.any(flipped != plain, axis=(1, 2, 3))
  assert mirrored.any()
  np.testing.assert_array_equal(flipped, np.where(mirrored[:, None, None, None], plain[:, :, ::-1], plain))
  np.testing.assert_array_equal(cut, np.where(np.all(cut == 0, axis=3, keepdims=True), 0, flipped))


def test_draws_of_an_image_are_uncorrelated():
  size, padding, num_images = 15, 2, 4000
  codes = np.stack(np.meshgrid(np.arange(1, size + 1), np.arange(1, size + 1), indexing='ij'), axis=2).astype(np.uint8)
  images = np.broadcast_to(codes, (num_images, size, size, 2))

  transform = functools.partial(augment, mean=(-1, -1), std=(1, 1), crop_padding=padding, flip=True, cutout=1)
  result = np.asarray(jax.jit(transform)(images, jax.random.key(0))) - 1

  cut_rows, cut_columns = np.nonzero(np.all(result == -1, axis=3))[1:]
  seen = (cut_rows != 7) | (abs(cut_columns - 7) > 1)  # The pixels that tell where the window lies were not cut.
  middle, right = result[:, 7, 7], result[:, 7, 8]
  flips = right[:, 1] < middle[:, 1]
  draws = np.stack([middle[:, 0], middle[:, 1], flips, cut_rows, cut_columns])[:, seen]
  correlations = np.corrcoef(draws)[np.triu_indices(5, 1)]
  assert np.abs(correlations).max() < 4 / num_images**0.5


def test_cutout_comes_after_crop_and_normalisation():
  # On black images, what crop and padding leave is black, and what cutout leaves is zero.
  result = run(np.zeros((200, 8, 7, 3), np.uint8), crop_padding=4, flip=True, cutout=4)

  zeros = np.all(result == 0, axis=3)
  np.testing.assert_allclose(result[~zeros], np.tile(BLACK, (np.sum(~zeros), 1)), rtol=1e-6)
  assert zeros.sum(axis=(1, 2)).max() == 16
  assert zeros.sum(axis=(1, 2)).min() >= 4


def test_images_of_a_batch_do_not_influence_each_other():
  settings = {'crop_padding': 2, 'flip': True, 'cutout': 3}
  images = random_images()
  changed = images.copy()
  changed[5] = 255 - changed[5] // 2

  result, other = run(images, **settings), run(changed, **settings)

  np.testing.assert_array_equal(np.flatnonzero(np.any(result != other, axis=(1, 2, 3))), [5])
  np.testing.assert_array_equal(run(images[:10], **settings), result[:10])


def test_equal_images_are_augmented_differently():
  image = random_images(1)
  settings = {'crop_padding': 2, 'flip': True, 'cutout': 3}

  result = run(np.repeat(image, 64, axis=0), **settings)

  # Among 64 draws of 2800 combinations, 0.7 pairs are expected to coincide.
  assert len(np.unique(result, axis=0)) > 60
  assert not np.array_equal(result, run(np.repeat(image, 64, axis=0), seed=1, **settings))


def test_half_precision_is_the_rounded_result():
  settings = {'crop_padding': 2, 'flip': True, 'cutout': 3}
  images = random_images()

  result = run(images, dtype=jnp.bfloat16, **settings)

  assert result.dtype == jnp.bfloat16
  np.testing.assert_allclose(result.astype(float), run(images, **settings), rtol=1.01 * 2**-8)


@pytest.mark.parametrize('name', ['crop_padding', 'cutout'])
def test_negative_settings(name):
  with pytest.raises(ValueError, match=f'{name} is -1; it has to be 0 or more pixels'):
    run(random_images(), **{name: -1})


_ON_EIGHT_DEVICES = """
import functools, re
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from darts_jax.data.augment import augment

images = np.random.default_rng(0).integers(0, 256, (32, 8, 7, 3), np.uint8)
transform = jax.jit(functools.partial(augment, mean=(9, 8, 7), std=(3, 4, 5), crop_padding=2, flip=True, cutout=3))
mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
key = jax.random.key(0)
sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec('data')))
result = transform(sharded, jax.device_put(key, NamedSharding(mesh, PartitionSpec())))
assert result.sharding.is_equivalent_to(sharded.sharding, 4), result.sharding
np.testing.assert_array_equal(result, transform(images, key))
text = transform.lower(sharded, key).compile().as_text()
assert not re.search('all-|collective|reduce-scatter', text), text
"""


def test_a_batch_on_eight_devices_gives_the_same_images_without_communication():
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
  command = [sys.executable, '-c', _ON_EIGHT_DEVICES]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr
