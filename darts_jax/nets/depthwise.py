"""Depthwise convolution as three primitives that are each other's transposes.

A depthwise convolution is bilinear in image and filter, and so are the maps to its two gradients:

  forward   y[n,i,j,m,c] = Σ_uv x[n, s·i + d·u − p, s·j + d·v − p, c] · f[u,v,m,c]
  input     x̄[n,·,·,c]   = Σ_uvm of the same products with y̅ in the place of y, collected at the pixel of x
  filter    f̄[u,v,m,c]   = Σ_nij of the same products, collected at the filter tap

Each is the transpose of another in either argument, so the three close under differentiation to any
order in forward and reverse mode, which the exact hypergradient needs (`jax.custom_vjp` has no forward mode).
Being primitives, each can have its own lowering for a platform: XLA's CPU convolutions with groups are some
fifty times slower than the same sum written as shifted slices, while accelerators are served well by convolutions.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array


class Geometry(NamedTuple):
  """The static part of a depthwise convolution; `size` is the image side lengths `(H, W)`, `kernel` the filter's."""

  size: tuple[int, int]
  kernel: tuple[int, int]
  stride: int
  dilation: int

  @property
  def padding(self) -> tuple[int, int]:
    """Pixels added on every side, so that stride 1 keeps the size."""
    return self.dilation * (self.kernel[0] - 1) // 2, self.dilation * (self.kernel[1] - 1) // 2

  @property
  def output_size(self) -> tuple[int, int]:
    """Side lengths of the output."""
    return -(-self.size[0] // self.stride), -(-self.size[1] // self.stride)

  def taps(self) -> list[tuple[int, int]]:
    """Offsets of the filter's taps in the padded image, row by row."""
    return [(self.dilation * u, self.dilation * v) for u in range(self.kernel[0]) for v in range(self.kernel[1])]


def depthwise_conv(x: Array, kernel: Array, *, stride: int = 1, dilation: int = 1) -> Array:
  """Convolves every channel with its own `M` filters, zero padding, odd filter sides.

  Args:
    x: `[N, H, W, C]` images.
    kernel: `[K, L, M, C]` filters, `M` for each channel.
    stride: output pixel `i` is centred on input pixel `stride · i`.
    dilation: distance between the taps of a filter.

  Returns:
    `[N, ⌈H/stride⌉, ⌈W/stride⌉, M·C]`; channel `m·C + c` is input channel `c` under its filter `m`.
  """
  geometry = Geometry(x.shape[1:3], kernel.shape[:2], stride, dilation)
  return forward_p.bind(x, kernel, geometry=geometry)


def _shifted(padded: Array, offset: tuple[int, int], geometry: Geometry) -> Array:
  """The pixels of padded images `[..., H+2p, W+2p, C]` that a tap reads."""
  lead = padded.ndim - 3
  (top, left), (height, width), s = offset, geometry.output_size, geometry.stride
  start = (0,) * lead + (top, left, 0)
  stop = (*padded.shape[:lead], top + s * (height - 1) + 1, left + s * (width - 1) + 1, padded.shape[-1])
  return lax.slice(padded, start, stop, (1,) * lead + (s, s, 1))


def _pad(x: Array, geometry: Geometry) -> Array:
  p, q = geometry.padding
  return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(p, p), (q, q), (0, 0)])


# Stencils: sums of shifted slices. They take images with any leading axes.


def _forward_stencil(x: Array, kernel: Array, *, geometry: Geometry) -> Array:
  padded = _pad(x, geometry)
  filters = kernel.reshape(-1, *kernel.shape[2:])
  terms = [
    _shifted(padded, offset, geometry)[..., None, :] * filters[tap] for tap, offset in enumerate(geometry.taps())
  ]
  total = functools.reduce(jnp.add, terms)
  return total.reshape(*total.shape[:-2], -1)


def _input_stencil(dy: Array, kernel: Array, *, geometry: Geometry) -> Array:
  multiplier, channels = kernel.shape[2:]
  (height, width), s = geometry.size, geometry.stride
  lead = dy.ndim - 3
  dy = dy.reshape(*dy.shape[:-1], multiplier, channels)
  # dy is spread out to stride 1 and padded so that a full correlation with the flipped filter is a 'valid' one.
  pads: list[tuple[int, int, int]] = [(0, 0, 0)] * lead
  for extent, padding, out in zip(geometry.size, geometry.padding, geometry.output_size, strict=True):
    pads.append((padding, extent + padding - (s * (out - 1) + 1), s - 1))
  padded = lax.pad(dy, jnp.zeros((), dy.dtype), [*pads, (0, 0, 0), (0, 0, 0)])
  filters = kernel[::-1, ::-1].reshape(-1, multiplier, channels)
  terms = [
    padded[..., top : top + height, left : left + width, :, :] * filters[tap]
    for tap, (top, left) in enumerate(geometry.taps())
  ]
  return jnp.sum(functools.reduce(jnp.add, terms), axis=-2)


def _filter_stencil(x: Array, dy: Array, *, geometry: Geometry) -> Array:
  padded = _pad(x, geometry)
  channels = x.shape[-1]
  dy = dy.reshape(*dy.shape[:-1], -1, channels)
  products = [_shifted(padded, offset, geometry)[..., None, :] * dy for offset in geometry.taps()]
  # One variadic reduction reads dy once for all taps.
  sums = lax.reduce(
    products,
    [jnp.zeros((), dy.dtype)] * len(products),
    lambda totals, values: [a + b for a, b in zip(totals, values, strict=True)],
    tuple(range(dy.ndim - 2)),
  )
  return jnp.stack(sums).reshape(*geometry.kernel, -1, channels)


# Lowering on CPU: the stencil over a few images at a time, which fit into the cache. A loop also keeps XLA from
# fusing the producer of x into every tap, which would compute it once a tap.

_BYTES_A_BLOCK = 1 << 18


def _block(num_images: int, floats_an_image: int) -> int:
  """How many images to take at a time: a divisor of their number, and not all of them, or there is no loop."""
  wanted = max(1, min(num_images // 2, _BYTES_A_BLOCK // (4 * floats_an_image)))
  return max(size for size in range(1, num_images + 1) if num_images % size == 0 and size <= wanted)


def _floats(geometry: Geometry, channels: int) -> int:
  return math.prod(geometry.size) * channels


def _blocked(x: Array, size: int) -> Array:
  return x.reshape(-1, size, *x.shape[1:])


def _forward_cpu(x: Array, kernel: Array, *, geometry: Geometry) -> Array:
  size = _block(x.shape[0], _floats(geometry, math.prod(kernel.shape[2:])))
  y = lax.map(lambda block: _forward_stencil(block, kernel, geometry=geometry), _blocked(x, size))
  return y.reshape(-1, *y.shape[2:])


def _input_cpu(dy: Array, kernel: Array, *, geometry: Geometry) -> Array:
  size = _block(dy.shape[0], _floats(geometry, math.prod(kernel.shape[2:])))
  dx = lax.map(lambda block: _input_stencil(block, kernel, geometry=geometry), _blocked(dy, size))
  return dx.reshape(-1, *dx.shape[2:])


def _filter_cpu(x: Array, dy: Array, *, geometry: Geometry) -> Array:
  size = _block(x.shape[0], _floats(geometry, dy.shape[-1]))

  def add(total: Array, blocks: tuple[Array, Array]) -> tuple[Array, None]:
    return total + _filter_stencil(*blocks, geometry=geometry), None

  channels = x.shape[-1]
  zeros = jnp.zeros((*geometry.kernel, dy.shape[-1] // channels, channels), dy.dtype)
  return lax.scan(add, zeros, (_blocked(x, size), _blocked(dy, size)))[0]


# Lowering elsewhere: convolutions with one group a channel.


def _forward_conv(x: Array, kernel: Array, *, geometry: Geometry) -> Array:
  multiplier, channels = kernel.shape[2:]
  p, q = geometry.padding
  return lax.conv_general_dilated(
    jnp.tile(x, (1, 1, 1, multiplier)),
    kernel.reshape(*geometry.kernel, 1, multiplier * channels),
    (geometry.stride, geometry.stride),
    [(p, p), (q, q)],
    rhs_dilation=(geometry.dilation, geometry.dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=multiplier * channels,
  )


def _input_conv(dy: Array, kernel: Array, *, geometry: Geometry) -> Array:
  channels = kernel.shape[-1]
  x = jax.ShapeDtypeStruct((dy.shape[0], *geometry.size, channels), dy.dtype)
  return jax.linear_transpose(lambda x: _forward_conv(x, kernel, geometry=geometry), x)(dy)[0]


def _filter_conv(x: Array, dy: Array, *, geometry: Geometry) -> Array:
  channels = x.shape[-1]
  kernel = jax.ShapeDtypeStruct((*geometry.kernel, dy.shape[-1] // channels, channels), x.dtype)
  return jax.linear_transpose(lambda kernel: _forward_conv(x, kernel, geometry=geometry), kernel)(dy)[0]


# The primitives.


def _forward_shape(x: Any, kernel: Any, *, geometry: Geometry) -> jax.core.ShapedArray:
  return jax.core.ShapedArray((x.shape[0], *geometry.output_size, math.prod(kernel.shape[2:])), x.dtype)


def _input_shape(dy: Any, kernel: Any, *, geometry: Geometry) -> jax.core.ShapedArray:
  return jax.core.ShapedArray((dy.shape[0], *geometry.size, kernel.shape[3]), dy.dtype)


def _filter_shape(x: Any, dy: Any, *, geometry: Geometry) -> jax.core.ShapedArray:
  channels = x.shape[3]
  return jax.core.ShapedArray((*geometry.kernel, dy.shape[3] // channels, channels), x.dtype)


def _primitive(
  name: str,
  shape: Callable[..., Any],
  on_cpu: Callable[..., Array],
  sharded: Callable[..., Array],
  elsewhere: Callable[..., Array],
) -> Primitive:
  primitive = Primitive(name)
  primitive.def_abstract_eval(shape)
  primitive.def_impl(jax.jit(primitive.bind, static_argnames='geometry'))

  def lower_on_cpu(context: mlir.LoweringRuleContext, *args: Any, **params: Any) -> Sequence[Any]:
    # A loop over images cannot be partitioned by image, so several devices get the stencil without the loop.
    devices = getattr(context.module_context.axis_context, 'num_devices', None)
    lower = on_cpu if devices in (None, 1) else sharded
    return mlir.lower_fun(lower, multiple_results=False)(context, *args, **params)

  mlir.register_lowering(primitive, lower_on_cpu, platform='cpu')
  mlir.register_lowering(primitive, mlir.lower_fun(elsewhere, multiple_results=False))
  # A vmapped convolution is rare (several seeds in one program): one after the other is faster than XLA's
  # convolutions with batched filters.
  batching.primitive_batchers[primitive] = functools.partial(_batch, primitive)
  return primitive


def _batch(primitive: Primitive, args: Sequence[Any], axes: Sequence[int | None], *, geometry: Geometry) -> Any:
  def one(mapped: Sequence[Array]) -> Array:
    rest = iter(mapped)
    return primitive.bind(*(arg if axis is None else next(rest) for arg, axis in zip(args, axes)), geometry=geometry)

  mapped = [jnp.moveaxis(arg, axis, 0) for arg, axis in zip(args, axes) if axis is not None]
  return lax.map(one, mapped), 0


forward_p = _primitive('depthwise', _forward_shape, _forward_cpu, _forward_stencil, _forward_conv)
input_p = _primitive('depthwise_input_gradient', _input_shape, _input_cpu, _input_stencil, _input_conv)
filter_p = _primitive('depthwise_filter_gradient', _filter_shape, _filter_cpu, _filter_stencil, _filter_conv)

# For each argument of a bilinear map, its transpose: given the cotangent and the other argument.
ad.defbilinear(
  forward_p,
  lambda ct, x, kernel, *, geometry: input_p.bind(ct, kernel, geometry=geometry),
  lambda ct, x, kernel, *, geometry: filter_p.bind(x, ct, geometry=geometry),
)
ad.defbilinear(
  input_p,
  lambda ct, dy, kernel, *, geometry: forward_p.bind(ct, kernel, geometry=geometry),
  lambda ct, dy, kernel, *, geometry: filter_p.bind(ct, dy, geometry=geometry),
)
ad.defbilinear(
  filter_p,
  lambda ct, x, dy, *, geometry: input_p.bind(dy, ct, geometry=geometry),
  lambda ct, x, dy, *, geometry: forward_p.bind(x, ct, geometry=geometry),
)
