"""Depthwise convolutions as one primitive that is its own transpose.

A depthwise convolution is bilinear in image and filters, and so are the maps to its two gradients. All three are
faces of one trilinear form in image x, filters f and output y (or its cotangent),

  T(x, f, y) = Σ over n, i, j, m, c, u, v of  x[n, s·i + d·u − p, s·j + d·v − q, c] · f[u, v, m, c] · y[n, i, j, m, c]:

each is the gradient of T in one argument at the other two. The primitive computes any of them, so its derivatives are
itself with another target, to any order in forward and reverse mode, which the exact hypergradient needs
(`jax.custom_vjp` has no forward mode). Being a primitive, it can have a lowering for each platform: XLA's CPU
convolutions with groups are some fifty times slower than the same sum written as shifted slices, while
accelerators are served well by convolutions.

Several *banks* of filters may read one image; they are computed in one go, because programs are built
from hundreds of these and each costs time to compile.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from darts_jax.nets.materialise import computed_once

Array = jax.Array


class Bank(NamedTuple):
  """Filters `[K, L, M, C]` of one size and dilation, `M` for each channel of the image."""

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
    return (*self.kernel, self.multiplier, self.channels)

  def taps(self) -> list[tuple[int, int]]:
    """Offsets of the filters' taps in the padded image, row by row."""
    return [(self.dilation * u, self.dilation * v) for u in range(self.kernel[0]) for v in range(self.kernel[1])]


class Geometry(NamedTuple):
  """The static part of depthwise convolutions; `image` is its shape `(N, H, W, C)`."""

  image: tuple[int, int, int, int]
  stride: int
  banks: tuple[Bank, ...]

  @property
  def output_size(self) -> tuple[int, int]:
    """Side lengths of the outputs."""
    return -(-self.image[1] // self.stride), -(-self.image[2] // self.stride)

  def shapes(self, group: str) -> list[tuple[int, ...]]:
    """Shapes of the arrays of an argument of the trilinear form."""
    if group == 'image':
      return [self.image]
    if group == 'filters':
      return [bank.shape for bank in self.banks]
    return [(self.image[0], *self.output_size, bank.multiplier * bank.channels) for bank in self.banks]


#: The arguments of the trilinear form. The primitive takes the arrays of two, in this order, and gives the third's.
_GROUPS = ('image', 'filters', 'output')


def depthwise_convs(x: Array, kernels: Sequence[Array], *, dilations: Sequence[int], stride: int = 1) -> list[Array]:
  """Convolves every channel of an image with its own filters; zero padding, odd filter sides.

  Args:
    x: `[N, H, W, C]` images.
    kernels: banks of filters `[K, L, M, C]`, `M` for each channel.
    dilations: distance between the taps of the filters, for each bank.
    stride: output pixel `i` is centred on input pixel `stride · i`.

  Returns:
    For each bank `[N, ⌈H/stride⌉, ⌈W/stride⌉, M·C]`; channel `m·C + c` is channel `c` under its filter `m`.
  """
  banks = []
  for kernel, dilation in zip(kernels, dilations, strict=True):
    height, width, multiplier, channels = kernel.shape
    banks.append(Bank((height, width), dilation, multiplier, channels))
  num_images, height, width, channels = x.shape
  geometry = Geometry((num_images, height, width, channels), stride, tuple(banks))
  return list(_bind('output', [x], list(kernels), geometry))


def depthwise_conv(x: Array, kernel: Array, *, stride: int = 1, dilation: int = 1) -> Array:
  """`depthwise_convs` with a single bank."""
  return depthwise_convs(x, [kernel], dilations=[dilation], stride=stride)[0]


def _bind(target: str, first: Sequence[Array], second: Sequence[Array], geometry: Geometry) -> list[Array]:
  return depthwise_p.bind(*first, *second, target=target, geometry=geometry)


def _sources(target: str) -> tuple[str, str]:
  """The two arguments that the third is computed from."""
  first, second = (group for group in _GROUPS if group != target)
  return first, second


def _divide(args: Sequence[Any], target: str, geometry: Geometry) -> tuple[list[Any], list[Any]]:
  count = len(geometry.shapes(_sources(target)[0]))
  return list(args[:count]), list(args[count:])


# Lowering on CPU: stencils, that is sums of shifted slices. They read an image that is padded for the widest bank and
# tiled over the filters of a channel, computed once (see `darts_jax.nets.materialise`) and not once a tap.


def _margin(geometry: Geometry) -> tuple[int, int]:
  return tuple(max(bank.padding[axis] for bank in geometry.banks) for axis in (0, 1))  # type: ignore[return-value]


def _prepared(x: Array, geometry: Geometry) -> list[Array]:
  """For each bank, what its filters read, channel by channel, with the margin around it."""
  p, q = _margin(geometry)

  def tile(x: Array, multiplier: int) -> Array:
    return jnp.tile(jnp.pad(x, [(0, 0), (p, p), (q, q), (0, 0)]), (1, 1, 1, multiplier))

  multipliers = dict.fromkeys(bank.multiplier for bank in geometry.banks)
  tiled = {m: computed_once(functools.partial(tile, multiplier=m), x) for m in multipliers}
  return [tiled[bank.multiplier] for bank in geometry.banks]


def _shifted(prepared: Array, offset: tuple[int, int], bank: Bank, geometry: Geometry) -> Array:
  """The pixels that a tap reads."""
  (height, width), s = geometry.output_size, geometry.stride
  top, left = (o + m - p for o, m, p in zip(offset, _margin(geometry), bank.padding, strict=True))
  return prepared[:, top : top + s * (height - 1) + 1 : s, left : left + s * (width - 1) + 1 : s]


def _output_stencil(prepared: Array, kernel: Array, bank: Bank, geometry: Geometry) -> Array:
  filters = kernel.reshape(-1, bank.multiplier * bank.channels)
  taps = enumerate(bank.taps())
  return functools.reduce(jnp.add, [_shifted(prepared, offset, bank, geometry) * filters[i] for i, offset in taps])


def _filters_stencil(prepared: Array, dy: Array, bank: Bank, geometry: Geometry) -> Array:
  products = [_shifted(prepared, offset, bank, geometry) * dy for offset in bank.taps()]
  # One variadic reduction reads dy once for all taps; by image first, so that threads and devices share the images.
  sums = lax.reduce(
    products,
    [jnp.zeros((), dy.dtype)] * len(products),
    lambda totals, values: [a + b for a, b in zip(totals, values, strict=True)],
    (1, 2),
  )
  return jnp.sum(jnp.stack(sums), axis=1).reshape(bank.shape)


def _image_stencil(dy: Array, kernel: Array, bank: Bank, geometry: Geometry) -> Array:
  """The image's cotangent from each filter of a bank, `[N, H, W, M·C]`, to be summed over the filters."""
  (_, height, width, _), s = geometry.image, geometry.stride
  # Spread out to stride 1 and padded, so that correlation with the flipped filter is a 'valid' one.
  pads: list[tuple[int, int, int]] = [(0, 0, 0)]
  for extent, padding, out in zip((height, width), bank.padding, geometry.output_size, strict=True):
    pads.append((padding, extent + padding - (s * (out - 1) + 1), s - 1))
  padded = computed_once(lambda dy: lax.pad(dy, jnp.zeros((), dy.dtype), [*pads, (0, 0, 0)]), dy)
  filters = kernel.reshape(-1, bank.multiplier * bank.channels)
  taps = list(zip(reversed(range(len(filters))), bank.taps(), strict=True))

  def correlate(padded: Array) -> Array:
    return functools.reduce(
      jnp.add, [padded[:, top : top + height, left : left + width] * filters[i] for i, (top, left) in taps]
    )

  # The sum over filters would be merged with the taps of each, and leave their slices behind as arrays.
  return computed_once(correlate, padded) if bank.multiplier > 1 else correlate(padded)


def _summed(parts: Sequence[Array], geometry: Geometry) -> Array:
  """The image's cotangent: the sum over all filters of all banks."""
  filters = [
    one
    for part, bank in zip(parts, geometry.banks, strict=True)
    for one in lax.split(part, [bank.channels] * bank.multiplier, axis=3)
  ]
  return functools.reduce(jnp.add, filters)


def _stencils(*args: Array, target: str, geometry: Geometry) -> list[Array]:
  first, second = _divide(args, target, geometry)
  banks = geometry.banks
  if target == 'image':
    parts = [_image_stencil(dy, f, bank, geometry) for f, dy, bank in zip(first, second, banks, strict=True)]
    return [_summed(parts, geometry)]
  compute = _output_stencil if target == 'output' else _filters_stencil
  images = _prepared(first[0], geometry)
  return [compute(x, other, bank, geometry) for x, other, bank in zip(images, second, banks, strict=True)]


# Lowering elsewhere: convolutions with one group a channel.


def _convolution(x: Array, kernel: Array, bank: Bank, geometry: Geometry) -> Array:
  p, q = bank.padding
  groups = bank.multiplier * bank.channels
  return lax.conv_general_dilated(
    jnp.tile(x, (1, 1, 1, bank.multiplier)),
    kernel.reshape(*bank.kernel, 1, groups),
    (geometry.stride, geometry.stride),
    [(p, p), (q, q)],
    rhs_dilation=(bank.dilation, bank.dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


def _convolutions(*args: Array, target: str, geometry: Geometry) -> list[Array]:
  first, second = _divide(args, target, geometry)
  banks = geometry.banks
  if target == 'output':
    return [_convolution(first[0], f, bank, geometry) for f, bank in zip(second, banks, strict=True)]
  unknown = [jax.ShapeDtypeStruct(shape, args[0].dtype) for shape in geometry.shapes(target)]
  if target == 'filters':

    def of_filters(filters: list[Array]) -> list[Array]:
      return [_convolution(first[0], f, bank, geometry) for f, bank in zip(filters, banks, strict=True)]

    return jax.linear_transpose(of_filters, unknown)(second)[0]

  def of_image(x: Array) -> list[Array]:
    return [_convolution(x, f, bank, geometry) for f, bank in zip(first, banks, strict=True)]

  return [jax.linear_transpose(of_image, unknown[0])(second)[0]]


# The primitive.

depthwise_p = Primitive('depthwise')
depthwise_p.multiple_results = True
depthwise_p.def_impl(jax.jit(depthwise_p.bind, static_argnames=('target', 'geometry')))


@depthwise_p.def_abstract_eval
def _shapes(*args: Any, target: str, geometry: Geometry) -> list[jax.core.ShapedArray]:
  return [jax.core.ShapedArray(shape, args[0].dtype) for shape in geometry.shapes(target)]


mlir.register_lowering(depthwise_p, mlir.lower_fun(_stencils, multiple_results=True), platform='cpu')
mlir.register_lowering(depthwise_p, mlir.lower_fun(_convolutions, multiple_results=True))


def _jvp(
  primals: Sequence[Array], tangents: Sequence[Any], *, target: str, geometry: Geometry
) -> tuple[list[Array], list[Any]]:
  values, moving = _divide(primals, target, geometry), _divide(tangents, target, geometry)
  terms = []
  for i in range(2):
    if all(isinstance(t, ad.Zero) for t in moving[i]):
      continue
    arguments = [values[0], values[1]]
    arguments[i] = [ad.instantiate_zeros(t) for t in moving[i]]
    terms.append(_bind(target, arguments[0], arguments[1], geometry))
  out = _bind(target, values[0], values[1], geometry)
  return out, [functools.reduce(ad.add_jaxvals, parts) for parts in zip(*terms, strict=True)]


def _transpose(cotangents: Sequence[Any], *args: Any, target: str, geometry: Geometry) -> list[Any]:
  halves = _divide(args, target, geometry)
  names = _sources(target)
  unknown = 0 if any(map(ad.is_undefined_primal, halves[0])) else 1
  if all(isinstance(ct, ad.Zero) for ct in cotangents):
    results: list[Any] = [ad.Zero(x.aval.to_tangent_aval()) if ad.is_undefined_primal(x) else None for x in args]
    return results
  known = {target: [ad.instantiate_zeros(ct) for ct in cotangents], names[1 - unknown]: halves[1 - unknown]}
  first, second = _sources(names[unknown])
  found = _bind(names[unknown], known[first], known[second], geometry)
  wanted = [y if ad.is_undefined_primal(x) else None for x, y in zip(halves[unknown], found, strict=True)]
  nothing = [None] * len(halves[1 - unknown])
  return [*wanted, *nothing] if unknown == 0 else [*nothing, *wanted]


ad.primitive_jvps[depthwise_p] = _jvp
ad.primitive_transposes[depthwise_p] = _transpose


def _batch(args: Sequence[Any], axes: Sequence[Any], **params: Any) -> tuple[list[Array], list[int]]:
  # Rare (several seeds in one program), and then one after the other is faster than convolutions with batched filters.
  mapped = [jnp.moveaxis(arg, axis, 0) for arg, axis in zip(args, axes, strict=True) if axis is not None]

  def one(values: Sequence[Array]) -> list[Array]:
    rest = iter(values)
    return depthwise_p.bind(*(a if axis is None else next(rest) for a, axis in zip(args, axes, strict=True)), **params)

  results = lax.map(one, mapped)
  return results, [0] * len(results)


batching.primitive_batchers[depthwise_p] = _batch
