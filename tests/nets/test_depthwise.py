import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from darts_jax.nets.depthwise import depthwise_conv, depthwise_convs
from darts_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from darts_jax.runtime.precision import precisely

CHANNELS = 3


class Banks(NamedTuple):
  """Filters as (sides, dilation, filters a channel)."""

  filters: tuple[tuple[tuple[int, int], int, int], ...]

  @property
  def dilations(self):
    return [dilation for _, dilation, _ in self.filters]

  def convolve(self, x, kernels, stride):
    return [side_by_side(y) for y in depthwise_convs(x, kernels, dilations=self.dilations, stride=stride)]

  def draw(self, batch, size, stride):
    """Images, filters and cotangents of the outputs, and for each of the three a direction to differentiate in."""
    rng = np.random.default_rng(0)
    images = (batch, *size, CHANNELS)
    shapes = [(count, CHANNELS) for *_, count in self.filters]
    output = (batch, -(-size[0] // stride), -(-size[1] // stride))

    def point():
      return (
        rng.normal(size=images),
        [rng.normal(size=(*sides, *shape)) for (sides, *_), shape in zip(self.filters, shapes, strict=True)],
        [rng.normal(size=(*output, math.prod(shape))) for shape in shapes],
      )

    return point(), point()

  def two_orders(self, point, direction, stride):
    """Convolutions and their gradients, and the derivatives of these in forward and in reverse mode."""

    def gradient(x, kernels, dys):
      return jax.vjp(lambda x, kernels: self.convolve(x, kernels, stride), x, kernels)[1](dys)

    first, forward = jax.jvp(gradient, point, direction)
    reverse = jax.vjp(gradient, *point)[1](direction[:2])
    return {
      'value': self.convolve(*point[:2], stride),
      'gradient': first,
      'forward': forward,
      'reverse': reverse,
    }

  def expected_orders(self, plain, point, direction, stride):
    """The same by the definition and the product rule: the values and both gradients are bilinear."""
    (x, fs, dys), (tx, tfs, tdys) = point, direction
    geometries = [{'stride': stride, 'dilation': dilation} for dilation in self.dilations]

    def value(x, fs):
      return [plain.depthwise(x, f, **g) for f, g in zip(fs, geometries, strict=True)]

    def to_image(fs, dys):
      return sum(
        plain.depthwise_input_gradient(dy, f, x.shape[1:3], **g) for f, dy, g in zip(fs, dys, geometries, strict=True)
      )

    def to_filters(x, dys):
      return [
        plain.depthwise_filter_gradient(x, dy, f.shape[:2], **g) for dy, f, g in zip(dys, fs, geometries, strict=True)
      ]

    def add(first, second):
      return [a + b for a, b in zip(first, second, strict=True)]

    return {
      'value': value(x, fs),
      'gradient': (to_image(fs, dys), to_filters(x, dys)),
      'forward': (to_image(fs, tdys) + to_image(tfs, dys), add(to_filters(tx, dys), to_filters(x, tdys))),
      'reverse': (to_image(tfs, dys), to_filters(tx, dys), add(value(tx, fs), value(x, tfs))),
    }


def side_by_side(y):
  """`[M, N, H, W, C]` → `[N, H, W, M·C]`, as the definition has it."""
  return jnp.moveaxis(y, 0, 3).reshape(*y.shape[1:4], -1)


#: The sizes and dilations of a search space, and as many edges as differ.
SEARCH = Banks((((3, 3), 1, 2), ((5, 5), 1, 1), ((3, 3), 2, 1), ((5, 5), 2, 3)))
SMALL = Banks((((3, 3), 1, 2), ((3, 3), 2, 1)))


def assert_close(found, expected, tolerance=1e-13):
  assert found.keys() == expected.keys()
  for name in expected:
    for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected[name]), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize(
  ('batch', 'size', 'stride', 'banks'),
  [
    (1, (5, 6), 1, Banks((((3, 3), 1, 1),))),
    (2, (6, 9), 2, SEARCH),
    (6, (4, 7), 1, SEARCH),
    # Images that the filters reach beyond on all sides.
    (3, (2, 3), 2, Banks((((7, 7), 1, 1), ((5, 5), 2, 2)))),
    (3, (7, 4), 1, Banks((((3, 3), 1, 2), ((5, 5), 1, 3), ((1, 7), 1, 1)))),
  ],
)
@pytest.mark.usefixtures('x64')
def test_equals_the_definition_to_second_order(plain, batch, size, stride, banks):
  values = banks.draw(batch, size, stride)
  assert_close(banks.two_orders(*values, stride), banks.expected_orders(plain, *values, stride))


@pytest.mark.usefixtures('x64')
def test_equals_a_grouped_convolution_of_xla():
  (x, (kernel,), _), _ = Banks((((3, 3), 2, 2),)).draw(4, (5, 6), 1)
  expected = lax.conv_general_dilated(
    np.tile(x, (1, 1, 1, 2)),
    kernel.reshape(3, 3, 1, -1),
    (1, 1),
    [(2, 2), (2, 2)],
    rhs_dilation=(2, 2),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=2 * CHANNELS,
  )
  np.testing.assert_allclose(side_by_side(depthwise_conv(x, kernel, dilation=2)), expected, rtol=1e-12)


@pytest.mark.parametrize(('stride', 'count'), [(1, 3), (2, 2), (2, 1)])
@pytest.mark.usefixtures('x64')
def test_filters_with_images_of_their_own_equal_one_after_the_other(two_orders, stride, count):
  rng = np.random.default_rng(0)
  shapes = [(count, 2, 4, 6, CHANNELS), (3, 3, count, CHANNELS), (5, 5, count, CHANNELS)]
  point, direction = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))

  def together(x, *kernels):
    return depthwise_convs(x, kernels, dilations=[2, 1], stride=stride)

  def apart(x, *kernels):
    return [
      jnp.concatenate([depthwise_conv(x[m], f[:, :, m : m + 1], dilation=d, stride=stride) for m in range(count)])
      for f, d in zip(kernels, (2, 1), strict=True)
    ]

  @jax.jit
  def compute(point, direction):
    return [two_orders(function, point, direction) for function in (together, apart)]

  found, expected = compute(tuple(point), tuple(direction))
  assert_close({'all': found}, {'all': expected})


@pytest.mark.usefixtures('x64')
def test_jitted_equals_the_definition_to_second_order(plain):
  values = SMALL.draw(4, (4, 6), 2)
  found = jax.jit(lambda *values: SMALL.two_orders(*values, 2))(*values)
  assert_close(found, SMALL.expected_orders(plain, *values, 2))


@pytest.mark.usefixtures('x64')
def test_derivatives_of_one_bank_among_several(plain):
  (x, kernels, dys), (tx, tkernels, _) = SMALL.draw(2, (4, 6), 1)

  def moving(x, kernel):
    return SMALL.convolve(x, [kernels[0], kernel], 1)

  @jax.jit
  def compute():
    _, transpose = jax.vjp(lambda kernel: moving(x, kernel)[1], kernels[1])
    return {'reverse': transpose(dys[1]), 'forward': jax.jvp(moving, (x, kernels[1]), (tx, tkernels[1]))[1]}

  expected = {
    'reverse': plain.depthwise_filter_gradient(x, dys[1], (3, 3), dilation=2),
    'forward': [
      plain.depthwise(tx, kernels[0]),
      plain.depthwise(tx, kernels[1], dilation=2) + plain.depthwise(x, tkernels[1], dilation=2),
    ],
  }
  assert_close(compute(), expected)


def test_channel_order_and_centre_of_the_window():
  x = np.zeros((1, 5, 5, 2), np.float32)
  x[0, 2, 2] = [1, 10]
  kernel = np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1, 1) * np.array([[1, 2], [3, 4]], np.float32)
  y = depthwise_conv(x, kernel, dilation=2)
  # At distance d from the only pixel the output is the tap at distance −d.
  np.testing.assert_array_equal(y[0, 0, ::2, ::2, 0], [[9, 8, 7], [6, 5, 4], [3, 2, 1]])
  np.testing.assert_array_equal(y[:, 0, 2, 2], [[5, 5 * 20], [5 * 3, 5 * 40]])
  np.testing.assert_array_equal(y[:, 0, 1::2], 0)


@pytest.mark.usefixtures('x64')
def test_vmapped_equals_one_after_the_other(plain):
  one, two = SMALL.draw(3, (4, 5), 2)

  def compute(x, kernels, dys):
    y, transpose = jax.vjp(lambda x, kernels: SMALL.convolve(x, kernels, 2), x, kernels)
    return y, *transpose(dys)

  def expected(x, kernels, dys):
    orders = SMALL.expected_orders(plain, (x, kernels, dys), two, 2)
    return orders['value'], *orders['gradient']

  x, kernels, dys = jax.tree.map(lambda a, b: np.stack([a, b], axis=1), one, two)
  found = jax.jit(
    lambda x, kernels, dys: {
      'x': jax.vmap(lambda x: compute(x, *one[1:]), 1)(x),
      'kernels': jax.vmap(lambda kernels: compute(one[0], kernels, one[2]), 1)(kernels),
      'both': jax.vmap(compute, 1)(x, kernels, dys),
    }
  )(x, kernels, dys)
  for i, point in enumerate((one, two)):
    assert_close(
      jax.tree.map(lambda a, i=i: a[i], found),
      {'x': expected(point[0], *one[1:]), 'kernels': expected(one[0], point[1], one[2]), 'both': expected(*point)},
    )


def test_bfloat16_is_kept_by_the_convolution_and_its_transposes(plain):
  values = jax.tree.map(lambda a: a.astype(jnp.bfloat16), SMALL.draw(2, (4, 4), 1))
  found = SMALL.two_orders(*values, 1)
  assert {a.dtype for a in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
  exact = jax.tree.map(lambda a: a.astype(np.float64), values)
  found = jax.tree.map(lambda a: np.asarray(a, np.float64), found)
  assert_close(found, SMALL.expected_orders(plain, *exact, 1), 0.02)


@pytest.mark.usefixtures('x64')
def test_over_two_devices_it_equals_the_definition_and_no_images_are_exchanged(plain):
  mesh = make_mesh(2)
  point, direction = SMALL.draw(4, (6, 8), 2)
  shardings = (batch_sharding(mesh), replicated(mesh), batch_sharding(mesh))
  values = [jax.device_put(arrays, shardings) for arrays in (point, direction)]
  compiled = jax.jit(lambda *values: SMALL.two_orders(*values, 2)).lower(*values).compile()
  found = compiled(*values)
  assert_close(found, SMALL.expected_orders(plain, point, direction, 2))
  assert found['gradient'][0].sharding.is_equivalent_to(batch_sharding(mesh), 4)
  collective = re.compile(r'= (.*?) (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(')
  exchanges = [match.groups() for match in map(collective.search, compiled.as_text().splitlines()) if match]
  # Only gradients of filters, added up, in the two rows of a product with ones.
  assert {kind for _, kind in exchanges} == {'all-reduce'}
  shapes = [shape for result, _ in exchanges for shape in re.findall(r'f64\[([\d,]*)\]', result)]
  assert max(math.prod(map(int, shape.split(','))) for shape in shapes) <= 2 * max(kernel.size for kernel in point[1])


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.usefixtures('x64')
def test_program_for_accelerators_computes_the_same(plain, program_for, platform):
  values = SMALL.draw(3, (5, 4), 2)
  program = program_for(platform, lambda *values: SMALL.two_orders(*values, 2), *values)
  assert 'stablehlo.while' not in program.mlir_module()
  assert ('stablehlo.convolution' in program.mlir_module()) == (platform == 'tpu')
  assert_close(program.call(*values), SMALL.expected_orders(plain, *values, 2))


def test_stencils_of_bfloat16_add_up_in_float32(plain, program_for):
  """Then each result is rounded once, by 2⁻⁹ of itself at most, and not each of 25 terms."""
  rng = np.random.default_rng(0)
  x, kernel, dy = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((2, 6, 6, 3), (5, 5, 2, 3), (2, 2, 6, 6, 3)))

  def map_and_gradients(x, kernel, dy):
    y, transpose = jax.vjp(depthwise_conv, x, kernel)
    return y, *transpose(dy)

  exact = [np.asarray(a, np.float64) for a in (x, kernel, dy)]
  beside = np.moveaxis(exact[2], 0, 3).reshape(2, 6, 6, -1)
  expected = (
    np.moveaxis(plain.depthwise(*exact[:2]).reshape(2, 6, 6, 2, 3), 3, 0),
    plain.depthwise_input_gradient(beside, exact[1], (6, 6)),
    plain.depthwise_filter_gradient(exact[0], beside, (5, 5)),
  )
  found = program_for('cuda', map_and_gradients, x, kernel, dy).call(x, kernel, dy)
  for a, b in zip(found, expected, strict=True):
    assert a.dtype == jnp.bfloat16
    # Where terms cancel, the rounding of float32 is that of the terms.
    np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=2**-8, atol=1e-5 * np.abs(b).max())


def test_gradients_of_filters_round_as_little_as_sums_of_parts():
  """Of 16384 products they are sums of 16 sums of 128 sums of 8.

  Of numbers of one sign, every addition rounds by up to ε/2 of what is added up so far, so that of a sum of P the
  standard deviation is ε √P / 6. One after the other, 2048 of the sums of 8 would be more than three of those of parts.
  """
  rng = np.random.default_rng(0)
  x, dy = (rng.uniform(1, 2, (16, 32, 32, 16)).astype(np.float32) for _ in range(2))

  @jax.jit
  def gradient(x, dy):
    kernel = jnp.zeros((3, 3, 1, 16), x.dtype)
    return jax.vjp(lambda kernel: depthwise_conv(x, kernel), kernel)[1](dy[None])[0]

  found = gradient(x, dy)
  with jax.enable_x64(True):
    exact = gradient(x.astype(np.float64), dy.astype(np.float64))
  assert exact.dtype == np.float64
  deviation = np.finfo(np.float32).eps * math.sqrt(16 + 128 + 8) / 6
  assert np.max(np.abs(found / np.asarray(exact) - 1)) < 3 * deviation


@pytest.mark.parametrize(('precision', 'marked'), [('float32', True), ('bfloat16', False)])
def test_accelerators_are_told_the_precision_of_all_products(precision, marked):
  """Of convolutions and their gradients alike: the primitive becomes a program long after it was called."""
  x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))

  def gradients(x, kernel):
    def loss(x, kernel):
      return jnp.sum(depthwise_convs(x, [kernel], dilations=[1])[0] ** 2)

    with precisely(precision):
      return jax.grad(loss, (0, 1))(x, kernel)

  text = jax.jit(gradients).trace(x, kernel).lower(lowering_platforms=('tpu',)).as_text()
  convolutions = [line for line in text.splitlines() if 'stablehlo.convolution' in line]
  # The map and its two gradients.
  assert len(convolutions) == 3
  assert all(('HIGHEST' in line) == marked for line in convolutions)
