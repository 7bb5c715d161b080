"""Depthwise convolutions.

They are bilinear in image and filters:

  y[m, n, i, j, c] = Σ over u, v of  x[n, s·i + d·u − p, s·j + d·v − q, c] · f[u, v, m, c],

where every filter `m` may also have an image of its own, x[m, n, …].

XLA's grouped convolutions on CPU are about fifty times slower than the same sum written as shifted slices. On GPUs the
slices become one kernel, and stacks need not be transposed; on TPUs grouped convolutions are fast. Hence there is one
implementation for each platform (see `darts_jax.nets.bilinear`).

Several *banks* of filters may read one image. They are computed together, since a program has hundreds of depthwise
convolutions and each takes time to compile.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.nets.bilinear import Bilinear, DirectSum
from darts_jax.nets.channels import channels_last, stack_rows, sum_rows, wide
from darts_jax.nets.padding import Margins, pad_images, window
from darts_jax.runtime.materialise import computed_once

Array = jax.Array

#: Numbers of taps and of columns that the filter gradient adds up in one reduction on CPU.
_TAPS, _COLUMNS = 9, 8


class Bank(NamedTuple):
  """A bank of filters `[M, K, L, C]` of one size and dilation: `M` filters for each channel of the image."""

  kernel: tuple[int, int]
  dilation: int
  multiplier: int
  channels: int

  @property
  def padding(self) -> tuple[int, int]:
    """Pixels added on every side, so that stride 1 keeps the size."""
    return self.dilation * (self.kernel[0] - 1) // 2, self.dilation * (self.kernel[1] - 1) // 2

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """Shape of the filters."""
    return (self.multiplier, *self.kernel, self.channels)

  def taps(self) -> list[tuple[int, int]]:
    """Offsets of the filters' taps in the padded image, row by row."""
    return [(self.dilation * u, self.dilation * v) for u in range(self.kernel[0]) for v in range(self.kernel[1])]


@dataclasses.dataclass(frozen=True)
class Depthwise(Bilinear):
  """Depthwise convolutions with several banks of filters.

  Attributes:
    image: shape of the input: `(1, N, H, W, C)`, images that all filters read, or `(M, N, H, W, C)`, images for each
      filter of a channel.
    stride: stride of all banks.
    banks: the banks of filters.
    precision: precision of the products: JAX's default matmul precision at the call.
  """

  image: tuple[int, int, int, int, int]
  stride: int
  banks: tuple[Bank, ...]
  precision: Any = None

  @property
  def output_size(self) -> tuple[int, int]:
    """Side lengths of the outputs."""
    return -(-self.image[2] // self.stride), -(-self.image[3] // self.stride)

  def shapes(self, group: str) -> list[tuple[int, ...]]:
    """See `Bilinear`."""
    if group == 'images':
      return [self.image]
    if group == 'weights':
      return [bank.shape for bank in self.banks]
    return [(bank.multiplier, self.image[1], *self.output_size, bank.channels) for bank in self.banks]

  def apply(self, images: list[Array], weights: list[Array]) -> list[Array]:
    """Computes grouped convolutions with one group per channel and filter."""
    return [self._convolution(images[0], f, bank) for f, bank in zip(weights, self.banks, strict=True)]

  def _convolution(self, x: Array, kernel: Array, bank: Bank) -> Array:
    p, q = bank.padding
    groups = bank.multiplier * bank.channels
    side_by_side = jnp.moveaxis(jnp.broadcast_to(x, (bank.multiplier, *x.shape[1:])), 0, 3)
    y = lax.conv_general_dilated(
      side_by_side.reshape(*side_by_side.shape[:3], groups),
      jnp.moveaxis(kernel, 0, 2).reshape(*bank.kernel, 1, groups),
      (self.stride, self.stride),
      [(p, p), (q, q)],
      rhs_dilation=(bank.dilation, bank.dilation),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=groups,
      precision=self.precision,
    )
    return jnp.moveaxis(y.reshape(*y.shape[:3], bank.multiplier, bank.channels), 3, 0)

  def face_on_cpu(self, target: str, first: list[Array], second: list[Array]) -> list[Array]:
    """Computes stencils, that is, sums of shifted slices.

    They read an image that is padded for the widest bank and materialised (see `darts_jax.runtime.materialise`), since
    XLA would otherwise pad it again for every tap.
    """
    if target == 'images':
      parts = [
        computed_once(_image_stencil, dy, kernel, bank=bank, geometry=self)
        for kernel, dy, bank in zip(first, second, self.banks, strict=True)
      ]
      return [functools.reduce(jnp.add, parts)]
    stencils = _output_stencils if target == 'outputs' else _filters_stencils
    return computed_once(stencils, *first, *second, geometry=self)

  @property
  def likeness(self) -> Hashable:
    """See `Bilinear`."""
    return self.image[1:], self.stride

  @classmethod
  def faces_on_gpu(
    cls, maps: Sequence['Depthwise'], target: str, first: Sequence[list[Array]], second: Sequence[list[Array]]
  ) -> list[list[Array]]:
    """Computes stencils on the stacks of all images and all outputs, which XLA compiles to few kernels.

    Grouped convolutions with one channel per group are slow on GPUs. They also need the channels of all filters in one
    axis, for which stacks would have to be transposed.
    """
    x, y = ([array for arrays in each for array in arrays] for each in (first, second))
    face = {'images': _gpu_images, 'weights': _gpu_weights, 'outputs': _gpu_outputs}[target]
    found = iter(face(_members(maps), x, y))
    return [[next(found) for _ in each.shapes(target)] for each in maps]


def depthwise_convs(x: Array, kernels: Sequence[Array], *, dilations: Sequence[int], stride: int = 1) -> list[Array]:
  """Convolves every channel of an image with its own filters; zero padding, odd filter sides.

  Args:
    x: `[N, H, W, C]` images; or `[M, N, H, W, C]`, with images for each filter of a channel.
    kernels: banks of filters `[K, L, M, C]`: `M` filters for each channel.
    dilations: distance between the taps of the filters, for each bank.
    stride: output pixel `i` is centred on input pixel `stride · i`.

  Returns:
    For each bank `[M, N, ⌈H/stride⌉, ⌈W/stride⌉, C]`, the results of its `M` filters.
  """
  return _convolve([x], [kernels], [dilations], stride)


def depthwise_convs_apart(
  images: Sequence[Array], kernels: Sequence[Array], *, dilations: Sequence[int], stride: int = 1
) -> list[Array]:
  """`depthwise_convs` of several images, each with one bank of its own.

  Args:
    images: `[N, H, W, C]`, or `[M, N, H, W, C]`, for each image.
    kernels: `[K, L, M, C]`, the bank of filters of each image.
    dilations: distance between the taps of the filters, for each image.
    stride: stride of all banks.

  Returns:
    `[M, N, ⌈H/stride⌉, ⌈W/stride⌉, C]` for each image.
  """
  return _convolve(images, [[kernel] for kernel in kernels], [[dilation] for dilation in dilations], stride)


def depthwise_conv(x: Array, kernel: Array, *, stride: int = 1, dilation: int = 1) -> Array:
  """`depthwise_convs` with a single bank: `[M, N, ⌈H/stride⌉, ⌈W/stride⌉, C]`."""
  return depthwise_convs(x, [kernel], dilations=[dilation], stride=stride)[0]


def _convolve(
  images: Sequence[Array], kernels: Sequence[Sequence[Array]], dilations: Sequence[Sequence[int]], stride: int
) -> list[Array]:
  """Convolves every image with its own banks of filters; the results of all banks follow each other."""
  precision = jax.config.values['jax_default_matmul_precision']
  maps = []
  for x, filters, distances in zip(images, kernels, dilations, strict=True):
    banks = tuple(
      Bank((f.shape[0], f.shape[1]), distance, f.shape[2], f.shape[3])
      for f, distance in zip(filters, distances, strict=True)
    )
    size = x.shape[-4:]
    stack = (math.prod(x.shape[:-4]), size[0], size[1], size[2], size[3])
    maps.append(Depthwise(stack, stride, banks, precision))
  stacks = [x.reshape(each.image) for x, each in zip(images, maps, strict=True)]
  return DirectSum(tuple(maps))(stacks, [jnp.moveaxis(kernel, 2, 0) for filters in kernels for kernel in filters])


def _margin(geometry: Depthwise) -> tuple[int, int]:
  return tuple(max(bank.padding[axis] for bank in geometry.banks) for axis in (0, 1))  # type: ignore[return-value]


def _prepared(x: Array, geometry: Depthwise) -> list[Array]:
  """For each bank, the padded images `[M, N, ·, ·, C]` that its filters read."""
  p, q = _margin(geometry)
  padded = computed_once(pad_images, x, rows=(p, p), columns=(q, q))
  return [jnp.broadcast_to(padded, (bank.multiplier, *padded.shape[1:])) for bank in geometry.banks]


def _shifted(prepared: Array, offset: tuple[int, int], bank: Bank, geometry: Depthwise) -> Array:
  """The pixels that a tap reads."""
  (height, width), s = geometry.output_size, geometry.stride
  top, left = (o + m - p for o, m, p in zip(offset, _margin(geometry), bank.padding, strict=True))
  return window(prepared, (top, left), (height, width), s)


def _output_stencils(x: Array, *kernels: Array, geometry: Depthwise) -> list[Array]:
  images = _prepared(x, geometry)
  return [_output_stencil(*each, geometry) for each in zip(images, kernels, geometry.banks, strict=True)]


def _filters_stencils(x: Array, *outputs: Array, geometry: Depthwise) -> list[Array]:
  images = _prepared(x, geometry)
  return [_filters_stencil(*each, geometry) for each in zip(images, outputs, geometry.banks, strict=True)]


def _output_stencil(prepared: Array, kernel: Array, bank: Bank, geometry: Depthwise) -> Array:
  windows = [_shifted(prepared, offset, bank, geometry) for offset in bank.taps()]
  return _weighted(windows, kernel)


def _filters_stencil(prepared: Array, dy: Array, bank: Bank, geometry: Depthwise) -> Array:
  multiplier, num_images, height, width, channels = dy.shape
  # First, a few taps are added up over a few pixels of a row: few enough for LLVM to unroll that loop, so that the loop
  # over channels is innermost and becomes vector instructions.
  block = max(size for size in range(1, _COLUMNS + 1) if width % size == 0)
  products = [lax.mul(_shifted(prepared, offset, bank, geometry), dy) for offset in bank.taps()]
  products = [x.reshape(multiplier, num_images, height, width // block, block, channels) for x in products]
  sums: list[Array] = []
  for i in range(0, len(products), _TAPS):
    some = products[i : i + _TAPS]
    # One variadic reduction reads `dy` once for all its taps.
    sums += lax.reduce(
      some,
      [jnp.zeros((), dy.dtype)] * len(some),
      lambda totals, values: [a + b for a, b in zip(totals, values, strict=True)],
      (4,),
    )
  columns = lax.concatenate([x.reshape(multiplier, -1, channels) for x in sums], 2)
  return sum_rows([columns]).astype(dy.dtype).reshape(bank.shape)


def _image_stencil(dy: Array, kernel: Array, *, bank: Bank, geometry: Depthwise) -> Array:
  """The contribution of one bank to the image's cotangent."""
  rows, columns = _spread_margins(bank.padding, geometry)
  padded = computed_once(pad_images, dy, rows=rows, columns=columns, dilation=geometry.stride)
  if geometry.image[0] == bank.multiplier:
    return _correlate(padded, kernel, bank=bank, geometry=geometry)
  # Materialised, since XLA would fuse the sum over filters with the sums over taps, and materialise their slices.
  found = computed_once(_correlate, padded, kernel, bank=bank, geometry=geometry)
  return functools.reduce(jnp.add, lax.split(found, [1] * bank.multiplier))


def _spread_margins(padding: tuple[int, int], geometry: Depthwise) -> tuple[Margins, Margins]:
  """The margins of dilated outputs with which a correlation with the flipped filter needs no further padding."""
  rows, columns = (
    (margin, extent + margin - (geometry.stride * (out - 1) + 1))
    for margin, extent, out in zip(padding, geometry.image[2:4], geometry.output_size, strict=True)
  )
  return rows, columns


def _correlate(padded: Array, kernel: Array, *, bank: Bank, geometry: Depthwise) -> Array:
  """The contributions of each filter of a bank to the image's cotangent, `[M, N, H, W, C]`."""
  windows = [window(padded, offset, geometry.image[2:4]) for offset in bank.taps()]
  return _weighted(windows[::-1], kernel)


def _weighted(windows: list[Array], kernel: Array) -> Array:
  """The sum over the taps of filters `[M, K, L, C]` of a tap times the window that it reads, `[M, N, H, W, C]`."""
  # As few operations per tap as possible: they are a third of a search step's program.
  taps = kernel.reshape(len(kernel), len(windows), -1)
  factors = [
    lax.broadcast_in_dim(lax.slice_in_dim(taps, i, i + 1, axis=1), x.shape, (0, 1, 4)) for i, x in enumerate(windows)
  ]
  return functools.reduce(lax.add, map(lax.mul, windows, factors))


class _Member(NamedTuple):
  """One of several banks, and the slices of its images and outputs in the stacks of all images and outputs."""

  bank: Bank
  geometry: Depthwise
  images: slice
  outputs: slice


def _members(maps: Sequence[Depthwise]) -> list[_Member]:
  """The banks of several convolutions."""
  members = []
  image = output = 0
  for each in maps:
    for bank in each.banks:
      images, outputs = slice(image, image + each.image[0]), slice(output, output + bank.multiplier)
      members.append(_Member(bank, each, images, outputs))
      output = outputs.stop
    image += each.image[0]
  return members


def _gpu_outputs(members: Sequence[_Member], images: Sequence[Array], kernels: Sequence[Array]) -> list[Array]:
  """The outputs of all banks."""
  windows = _gpu_windows(members, images)
  dtype = images[0].dtype
  return _joined([_weighted(x, k).astype(dtype) for x, k in zip(windows, _gpu_kernels(kernels), strict=True)])


def _gpu_weights(members: Sequence[_Member], images: Sequence[Array], outputs: Sequence[Array]) -> list[Array]:
  """The gradients of all filters."""
  sums = []
  for windows, dy in zip(_gpu_windows(members, images), outputs, strict=True):
    # The first axis is taps times filters; each block of threads adds up one of its entries.
    products = channels_last(lax.concatenate([x * wide(dy) for x in windows], 0))
    sums.append(jnp.sum(products, (2, 3)))
  # The sums over the examples are one kernel for all banks.
  totals = lax.split(jnp.sum(lax.concatenate(sums, 0), 1), [len(part) for part in sums])
  return [
    jnp.moveaxis(total.reshape(*bank.kernel, bank.multiplier, bank.channels), 2, 0).astype(dy.dtype)
    for total, (bank, *_), dy in zip(totals, members, outputs, strict=True)
  ]


def _gpu_images(members: Sequence[_Member], kernels: Sequence[Array], outputs: Sequence[Array]) -> list[Array]:
  """The gradients of all images."""
  geometry = members[0].geometry
  size, (p, q) = geometry.image[2:4], _widest(members)
  rows, columns = _spread_margins((p, q), geometry)
  padded = _padded_stack(outputs, rows, columns, geometry.stride)
  parts: dict[int, list[Array]] = {}
  for each, kernel in zip(members, _gpu_kernels(kernels), strict=True):
    windows = _taps(padded, each.bank, each.outputs, (p, q), size)
    found = _weighted(windows[::-1], kernel)
    shared = each.images.stop - each.images.start < len(found)
    parts.setdefault(each.images.start, []).append(jnp.sum(found, 0, keepdims=True) if shared else found)
  return _joined([functools.reduce(jnp.add, each).astype(outputs[0].dtype) for each in parts.values()])


def _gpu_windows(members: Sequence[_Member], images: Sequence[Array]) -> list[list[Array]]:
  """For every bank, the windows that its taps read, `[M, N, H', W', C]` each, at least float32."""
  geometry, (p, q) = members[0].geometry, _widest(members)
  padded = _padded_stack(images, (p, p), (q, q))
  found = [_taps(padded, m.bank, m.images, (p, q), geometry.output_size, geometry.stride) for m in members]
  return [
    [jnp.broadcast_to(x, (m.bank.multiplier, *x.shape[1:])) for x in windows]
    for windows, m in zip(found, members, strict=True)
  ]


def _gpu_kernels(kernels: Sequence[Array]) -> list[Array]:
  """The filters as parts of one materialised array, of at least float32.

  Otherwise every tap would be an argument of a kernel, and the number of these is limited. Without the conversion, the
  newest GPUs would add up in bfloat16.
  """
  rows = wide(lax.optimization_barrier(lax.concatenate([k.reshape(-1, k.shape[-1]) for k in kernels], 0)))
  parts = lax.split(rows, [math.prod(k.shape[:-1]) for k in kernels])
  return [part.reshape(k.shape) for part, k in zip(parts, kernels, strict=True)]


def _widest(members: Sequence[_Member]) -> tuple[int, int]:
  """The padding of the widest bank, which is enough for all banks."""
  p, q = (max(paddings) for paddings in zip(*[m.bank.padding for m in members], strict=True))
  return p, q


def _joined(stacks: Sequence[Array]) -> list[Array]:
  """Concatenates stacks and splits the result again, so that XLA computes them as one array."""
  rows = lax.concatenate([stack_rows(x) for x in stacks], 0)
  parts = lax.split(rows, [len(x) for x in stacks])
  return [part.reshape(x.shape) for part, x in zip(parts, stacks, strict=True)]


def _padded_stack(images: Sequence[Array], rows: Margins, columns: Margins, dilation: int = 1) -> Array:
  """All images in one padded stack, at least float32."""
  number = sum(len(x) for x in images)
  stack = wide(lax.concatenate([stack_rows(x) for x in images], 0).reshape(number, *images[0].shape[1:]))
  within = [(0, 0, 0), (0, 0, 0), (*rows, dilation - 1), (*columns, dilation - 1), (0, 0, 0)]
  return lax.pad(stack, jnp.zeros((), stack.dtype), within)


def _taps(
  padded: Array, bank: Bank, places: slice, margins: tuple[int, int], size: tuple[int, int], stride: int = 1
) -> list[Array]:
  """The windows that the taps of a bank read in its part of a padded stack.

  Args:
    padded: the stack.
    bank: the bank.
    places: slice of the stack that belongs to the bank.
    margins: padding of the stack.
    size: height and width of a window.
    stride: stride of the windows.
  """
  part = lax.slice_in_dim(padded, places.start, places.stop)
  top, left = (margin - padding for margin, padding in zip(margins, bank.padding, strict=True))
  return [window(part, (top + u, left + v), size, stride) for u, v in bank.taps()]
