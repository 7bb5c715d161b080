import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.nets.channels import (
  scale_channels,
  shifted_sums,
  shuffle_channels,
  spread,
  sum_pixels,
  sum_products,
  typical_pixels,
  weighted_sums,
)
from darts_jax.runtime.compilation import compiler_options

SHAPE = (3, 4, 6, 5)
#: Factors of all examples, of each, and of each in every image of a stack.
FACTORS = {'for all': (5,), 'for each': (3, 1, 1, 5), 'of stacks': (3, 4, 1, 5)}
TERMS = ((0, 0), (1, 0), (1, 1), (0, 2))


def plain_sums(images, factors):
  return [images[0] * factors[0] + images[1] * factors[1], images[1] * factors[2], images[0] * factors[3]]


def plain_total(images, shape):
  axes = tuple(i for i, size in enumerate((1,) * (4 - len(shape)) + shape) if size == 1)
  return jnp.stack([jnp.sum(x, axes).reshape(shape) for x in images])


def plain_shifted_sums(images, factors):
  left = [x - jax.lax.stop_gradient(s) for x, s in zip(images, factors, strict=False)]
  shape = factors.shape[1:]
  return plain_total(left, shape) * factors[2:], plain_total([x * x for x in left], shape) * factors[2:]


MAPS = {
  'weighted sums': (
    lambda images, factors: weighted_sums(images, factors, TERMS),
    plain_sums,
  ),
  'scale and shift': (
    lambda images, factors: [
      x + y for x, y in zip(scale_channels(images, factors[:2]), spread(factors[2:], SHAPE), strict=True)
    ],
    lambda images, factors: [x * a + b for x, a, b in zip(images, factors[:2], factors[2:], strict=True)],
  ),
  'sums': (
    lambda images, factors: sum_pixels(images, factors.shape[1:]) * factors[:2],
    lambda images, factors: plain_total(images, factors.shape[1:]) * factors[:2],
  ),
  'sums of products': (
    lambda images, factors: sum_products(images, images[::-1], factors.shape[1:]) * factors[:2],
    lambda images, factors: plain_total([images[0] * images[1]] * 2, factors.shape[1:]) * factors[:2],
  ),
  'shifted sums': (
    lambda images, factors: [x * factors[2:] for x in shifted_sums(images, factors[:2])],
    plain_shifted_sums,
  ),
}


def draw(shape, seed=0):
  """Two images and four times factors, and a direction for each."""
  rng = np.random.default_rng(seed)
  return [(list(rng.normal(size=(2, *SHAPE))), rng.normal(size=(4, *shape))) for _ in range(2)]


@pytest.mark.parametrize('shape', FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize(('function', 'plain'), MAPS.values(), ids=MAPS)
@pytest.mark.usefixtures('x64')
def test_equal_the_definition_to_second_order(two_orders, assert_close, function, plain, shape):
  point, direction = draw(shape)
  found = jax.jit(functools.partial(two_orders, function))(point, direction)
  assert_close(found, two_orders(plain, point, direction))


@pytest.mark.parametrize(('function', 'plain'), MAPS.values(), ids=MAPS)
@pytest.mark.usefixtures('x64')
def test_vmapped_equal_one_after_the_other(assert_close, function, plain):
  points = [draw((5,), seed)[0] for seed in range(2)]
  images, factors = jax.tree.map(lambda *arrays: np.stack(arrays, 1), *points)

  def gradients(function, images, factors):
    value, transpose = jax.vjp(function, images, factors)
    return value, transpose(value)

  found = jax.vmap(functools.partial(gradients, function), 1)(images, factors)
  for i, point in enumerate(points):
    assert_close(jax.tree.map(lambda x, i=i: x[i], found), gradients(plain, *point))
  # With factors that are the same for all.
  shared = jax.vmap(function, (1, None))(images, points[0][1])
  assert_close(jax.tree.map(lambda x: x[1], shared), plain(points[1][0], points[0][1]))


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize(('function', 'plain'), MAPS.values(), ids=MAPS)
@pytest.mark.usefixtures('x64')
def test_accelerators_have_no_products_with_ones(program_for, two_orders, assert_close, function, plain, platform):
  point, _ = draw((5,))

  def gradient(images, factors):
    value, transpose = jax.vjp(function, images, factors)
    return transpose(value)

  program = program_for(platform, gradient, *point).mlir_module()
  assert 'stablehlo.dot' not in program
  assert 'inlineable' not in program
  for shape in FACTORS.values():
    values = draw(shape)
    found = program_for(platform, functools.partial(two_orders, function), *values)
    assert_close(found.call(*values), two_orders(plain, *values))


@pytest.mark.parametrize('shape', FACTORS.values(), ids=FACTORS)
def test_a_typical_pixel_of_every_sum_is_found_whatever_one_pixel_is(shape):
  rng = np.random.default_rng(0)
  expected = rng.normal(size=(2, *shape)).astype(np.float32)
  found = jax.jit(lambda images: typical_pixels(images, shape))
  for place in np.ndindex(*SHAPE[:3]):
    images = np.broadcast_to(expected.reshape(2, *[1] * (4 - len(shape)), *shape), (2, *SHAPE)).copy()
    images[:, *place] = 1e9
    np.testing.assert_array_equal(found(list(images)), expected)


def test_typical_pixels_are_constants_to_derivatives():
  image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
  gradient = jax.grad(lambda x: jnp.sum(typical_pixels([x], (5,)) * jnp.sum(x)))(image)
  np.testing.assert_allclose(gradient, np.full(SHAPE, typical_pixels([image], (5,)).sum()), rtol=1e-6)


def test_sums_of_bfloat16_are_those_of_float32():
  images = [jnp.full((8, 16, 16, 3), 1.0, jnp.bfloat16)]
  # Added up in bfloat16, ones come to 256.
  for found in (sum_pixels(images, (3,)), sum_products(images, images, (3,))):
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, np.full((1, 3), 2048))


def test_sums_round_as_little_as_sums_of_parts():
  """Of P numbers, added up one after the other, some √P roundings are left; of parts of √P only some ⁴√P."""
  x = np.random.default_rng(0).uniform(1, 2, (16, 32, 32, 8)).astype(np.float32)
  for function, expected in ((sum_pixels, x), (lambda x, shape: sum_products(x, x, shape), x.astype(np.float64) ** 2)):
    found = np.asarray(jax.jit(lambda x, function=function: function([x], (8,)))(x)[0], np.float64)
    exact = expected.astype(np.float64).sum((0, 1, 2))
    assert np.max(np.abs(found / exact - 1)) < 16384**0.25 * np.finfo(np.float32).eps


def test_what_is_summed_up_is_computed_once_and_by_no_library():
  def function(x, a):
    y = jnp.tanh(x)
    shifts = typical_pixels([y], (8,))
    return sum_pixels([y], (8,)), sum_products([y], [y], (8,)), shifted_sums([y], shifts), scale_channels([y], a)

  x, a = jnp.ones((2, 8, 8, 8)), jnp.ones((1, 8))
  text = jax.jit(function, compiler_options=compiler_options()).lower(x, a).compile().as_text()
  assert text.count(' tanh(') == 1
  assert 'ynn' not in text


@pytest.mark.parametrize('value', [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_as_it_is_and_where_it_is(value):
  image = np.ones((2, 4, 4, 3), np.float32)
  image[1, 2, 3, 1] = value
  images = [jnp.asarray(image), jnp.ones_like(image)]
  np.testing.assert_array_equal(jax.jit(lambda x: sum_pixels(x, (3,)))(images), [[32, value, 32], [32] * 3])
  found = jax.jit(lambda x: sum_products(x, [images[1]] * 2, (3,)))(images)
  np.testing.assert_array_equal(found, [[32, value, 32], [32] * 3])


def test_shuffled_channels_are_those_of_each_group_in_turn():
  order = shuffle_channels(jnp.arange(16), 4)
  assert order.tolist() == [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
  # The number of groups is not that of their channels.
  assert shuffle_channels(jnp.arange(12), 3).tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
  x = np.random.default_rng(0).normal(size=(2, 3, 24))
  np.testing.assert_array_equal(shuffle_channels(shuffle_channels(x, 4), 6), x)
