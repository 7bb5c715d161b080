"""Weighted sums of images channel by channel, and the sums over pixels that appear in their gradients.

A cell scales and shifts the channels of dozens of images, for BN and for mixing weights, and each gradient has two sums
over all pixels: of a cotangent, and of the product of a cotangent and an image. XLA's CPU compiler makes slow kernels
of these sums, or calls a library, for which its loader searches a whole cached program. Here a kernel adds up a few
pixels at a time, and matrix products with vectors of ones, which need no compilation, add up the partial sums. They
read images that are materialised (see `darts_jax.runtime.materialise`).

Factors and offsets have the shape `[C]`, or as many axes as an image; in the latter case, axes of size 1 are those
whose pixels share a factor, and they come after the other leading axes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from darts_jax.nets.bilinear import Bilinear, in_plain
from darts_jax.runtime.materialise import computed_once
from darts_jax.runtime.platforms import GPUS, lower_as

Array = jax.Array
Shape = tuple[int, ...]
#: Pairs of indices: an image, and the sum that it is part of.
Terms = tuple[tuple[int, int], ...]

#: Pixels that a kernel adds up on CPU: few enough for LLVM to unroll that loop and to vectorise over channels.
_PIXELS = 16


def weighted_sums(images: Sequence[Array], factors: Array, terms: Terms) -> list[Array]:
  """Sums of images, each times its factors.

  Args:
    images: images of one shape `[N, …, C]` and dtype.
    factors: factors of the same dtype, stacked along the first axis, one entry per term.
    terms: for each term, the index of its image and of the sum it goes into; every image and every sum is in some term.

  Returns:
    The sums, in the shape of the images.
  """
  return _WeightedSums(images[0].shape, factors.shape[1:], terms)(images, [factors])


def scale_channels(images: Sequence[Array], factors: Array) -> list[Array]:
  """Images of one shape, each times its own entry of `factors`."""
  return weighted_sums(images, factors, _one_to_one(images))


def sum_products(images: Sequence[Array], others: Sequence[Array], shape: Shape) -> Array:
  """Sums over pixels of products of two images.

  Args:
    images: images of one shape and dtype.
    others: for each image, the other factor, of the same shape and dtype.
    shape: shape of each sum, one that factors can have.

  Returns:
    `[K, *shape]` for `K` pairs of images.
  """
  return _WeightedSums(images[0].shape, shape, _one_to_one(images)).gradient('weights', images, others)[0]


def sum_pixels(images: Sequence[Array], shape: Shape) -> Array:
  """Sums over pixels of `K` images of one shape and dtype: `[K, *shape]`; see `sum_products` for `shape`."""
  return sum_pixels_p.bind(*images, shape=shape)[0]


def shuffle_channels(x: Array, groups: int) -> Array:
  """Shuffles channels [ShuffleNet §3.1]: `[…, C]` in the order 0, C/groups, 2·C/groups, …, 1, C/groups + 1, ….

  Args:
    x: `[…, C]`.
    groups: number of groups of channels, a divisor of `C`.
  """
  return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


def typical_pixels(images: Sequence[Array], shape: Shape) -> Array:
  """For every sum over pixels, the median of three of its pixels: `[K, *shape]`; without derivatives.

  A single pixel could be an outlier, such as a dead pixel.
  """
  [found] = typical_pixels_p.bind(*map(lax.stop_gradient, images), shape=shape)
  return found


def shifted_sums(images: Sequence[Array], shifts: Array) -> tuple[Array, Array]:
  """Sums over pixels of `x − s` and of `(x − s)²`, in one pass over the images.

  Args:
    images: images of one shape and dtype.
    shifts: shifts `s` of the same dtype, stacked like factors, one entry per image; without derivatives.

  Returns:
    Both sums, in the shape of the shifts.
  """
  sums, squares = shifted_sums_p.bind(*images, lax.stop_gradient(shifts))
  return sums, squares


def sum_rows(stacks: Sequence[Array]) -> Array:
  """Sums over `P` of `K` stacks `[L, P, C]`, for lowerings on CPU.

  Returns:
    `K·L·C` numbers in this order, of at least float32; the shape is not specified.
  """
  rows = [wide(x) for x in stacks]
  # Two products, since the rounding error of one product, which adds up its terms one by one, grows with their number.
  # The first one adds up 4 √P instead of √P terms: a product has several partial sums, so that the rounding error is no
  # larger, and fewer rows have to be written.
  pixels = rows[0].shape[1]
  first = max(n for n in range(1, min(4 * math.isqrt(pixels), pixels) + 1) if pixels % n == 0)
  # Each product has two rows, since XLA would compile a kernel of its own for a single row. The rows differ, since an
  # array of equal numbers would not be a constant but be filled at every call. Powers of two are exact.
  dtype = rows[0].dtype
  once_and_twice = np.array([[1], [2]], dtype).repeat(first, axis=1)
  parts = [_left_product(once_and_twice, x.reshape(len(x), first, -1)).reshape(len(x), -1, x.shape[2]) for x in rows]
  halves = np.array([[1 / 2, 1 / 4]] * 2, dtype).repeat(pixels // first, axis=1)
  return _left_product(halves, _joined(parts))[:, 0]


def spread(offsets: Array, shape: Shape) -> list[Array]:
  """Broadcasts each of several stacked offsets to an image of this shape."""
  if in_plain():
    return _spread(offsets, shape=shape)
  return spread_p.bind(offsets, shape=shape)


def _one_to_one(images: Sequence[Array]) -> Terms:
  return tuple((i, i) for i in range(len(images)))


@dataclasses.dataclass(frozen=True)
class _WeightedSums(Bilinear):
  """See `weighted_sums`.

  Attributes:
    image: shape of each image and each sum.
    factors: shape of the factors of a term.
    terms: see `weighted_sums`.
  """

  image: Shape
  factors: Shape
  terms: Terms

  @property
  def optional(self) -> bool:
    """False: batch statistics depend on all earlier layers, whose gradients need the gradients of BN's scales."""
    return False

  def shapes(self, group: str) -> list[Shape]:
    """See `Bilinear`."""
    if group == 'weights':
      return [(len(self.terms), *self.factors)]
    position = 0 if group == 'images' else 1
    return [self.image] * (1 + max(term[position] for term in self.terms))

  def apply(self, images: list[Array], weights: list[Array]) -> list[Array]:
    """See `Bilinear`."""
    sums: dict[int, list[Array]] = {}
    for (i, j), factor in zip(self.terms, weights[0], strict=True):
      sums.setdefault(j, []).append(images[i] * factor)
    return [functools.reduce(jnp.add, sums[j]) for j in range(len(sums))]

  def face(self, target: str, first: list[Array], second: list[Array]) -> list[Array]:
    """See `Bilinear`."""
    if target != 'weights':
      return super().face(target, first, second)
    products = [wide(first[i]) * wide(second[j]) for i, j in self.terms]
    return [_summed(products, self.factors).astype(first[0].dtype)]

  def face_on_cpu(self, target: str, first: list[Array], second: list[Array]) -> list[Array]:
    """See `Bilinear`."""
    if target != 'weights':
      return self.face(target, first, second)
    sums = computed_once(_product_sums, *first, *second, form=self)
    return [sums.astype(first[0].dtype).reshape(-1, *self.factors)]

  @classmethod
  def faces_on_gpu(
    cls, maps: Sequence['_WeightedSums'], target: str, first: Sequence[list[Array]], second: Sequence[list[Array]]
  ) -> list[list[Array]]:
    """See `Bilinear`."""
    if target != 'weights':
      return super().faces_on_gpu(maps, target, first, second)
    return [[each._sums_on_gpu(x, y)] for each, x, y in zip(maps, first, second, strict=True)]

  def _sums_on_gpu(self, images: list[Array], others: list[Array]) -> Array:
    products = [wide(images[i]) * wide(others[j]) for i, j in self.terms]
    return _sums_of_stack(products, self.factors).astype(images[0].dtype)


def wide(x: Array) -> Array:
  """Converts to at least float32, for sums."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _summed(images: Sequence[Array], shape: Shape) -> Array:
  """Sums `[K, *shape]` of `K` images over the pixels that share a factor."""
  kept = (1,) * (images[0].ndim - len(shape)) + shape
  axes = tuple(i for i, (size, left) in enumerate(zip(images[0].shape, kept, strict=True)) if left == 1 != size)
  return jnp.stack([jnp.sum(x, axes, keepdims=True).reshape(shape) for x in images])


def _sums_of_stack(images: Sequence[Array], shape: Shape) -> Array:
  """`_summed` in two kernels for all images: one for partial sums, one that adds them up."""
  kept = (1,) * (images[0].ndim - len(shape)) + shape
  # Images that are stacks already are joined to a longer stack.
  rows = [stack_rows(x if kept[0] == len(x) else x[None]) for x in images]
  stack = channels_last(lax.concatenate(rows, 0))
  sums = len(images) * math.prod(shape[:-1])
  return jnp.sum(stack.reshape(sums, stack.size // (sums * shape[-1]), shape[-1]), 1).reshape(-1, *shape)


def stack_rows(stack: Array) -> Array:
  """`[M, …, C]` → `[M, P, C]`, the shape in which stacks are concatenated and split on GPUs.

  If shapes do not change in between, XLA recognises that the concatenated arrays were parts of one array before, and
  copies nothing. This shape is also that of the rows of a matrix product.
  """
  return stack.reshape(stack.shape[0], math.prod(stack.shape[1:-1]), stack.shape[-1])


def channels_last(x: Array) -> Array:
  """Returns `x` and keeps XLA's compiler for GPUs from permuting its axes in memory.

  Otherwise the compiler may choose a layout in which the terms of a sum are contiguous; a kernel then reads single
  numbers from all over an image, or the image is transposed first. Only for use in lowerings.
  """
  return channels_last_p.bind(x)


def _rows(x: Array, shape: Shape) -> Array:
  """Reshapes an image to `[L, P, C]`: the `P` pixels of each of `L` sums."""
  sums = math.prod(shape[:-1])
  return wide(x).reshape(sums, x.size // (sums * shape[-1]), shape[-1])


def _product_sums(*arrays: Array, form: _WeightedSums) -> Array:
  rows = [_rows(x, form.factors) for x in arrays]
  count = len(form.shapes('images'))
  images, others = rows[:count], rows[count:]
  # Each is materialised, or XLA would fuse the sums with the concatenation that follows.
  parts = [computed_once(_some_products, images[i], others[j]) for i, j in form.terms]
  # Few pixels are left, so that copying them costs less than one product per image.
  return sum_rows([_joined(parts)])


def _some_products(x: Array, y: Array) -> Array:
  """Partial sums of products: `[L, P, C]` → `[L, P / some, C]`, `some` pixels a time."""
  sums, pixels, channels = x.shape
  some = max(n for n in range(1, _PIXELS + 1) if pixels % n == 0)
  return lax.reduce((x * y).reshape(sums, -1, some, channels), jnp.zeros((), x.dtype), lax.add, (2,))


def _pixel_sums(*images: Array, shape: Shape) -> Array:
  return sum_rows([_rows(x, shape) for x in images])


def _typical_pixels(*images: Array, shape: Shape) -> list[Array]:
  kept = (1,) * (images[0].ndim - len(shape)) + shape

  def pixels(quarters: int) -> Array:
    starts = [(size - left) * quarters // 4 for size, left in zip(images[0].shape, kept, strict=True)]
    ends = [start + left for start, left in zip(starts, kept, strict=True)]
    return jnp.stack([lax.slice(x, starts, ends).reshape(shape) for x in images])

  first, middle, last = map(pixels, (1, 2, 3))
  median = jnp.maximum(jnp.minimum(first, middle), jnp.minimum(jnp.maximum(first, middle), last))
  # The barrier materialises the medians: XLA would slice the images again in each kernel that reads these.
  return [lax.optimization_barrier(median)]


def _typical_pixels_on_cpu(*images: Array, shape: Shape) -> list[Array]:
  found: list[Array] = computed_once(_typical_pixels, *images, shape=shape)
  return found


def _shifted(*args: Array) -> list[Array]:
  *images, shifts = args
  return [wide(x) - wide(s) for x, s in zip(images, shifts, strict=True)]


def _shifted_sums(*args: Array, add: Callable[[Sequence[Array], Shape], Array] = _summed) -> list[Array]:
  shape, left = args[-1].shape[1:], _shifted(*args)
  return [add(parts, shape).astype(args[-1].dtype) for parts in (left, [x * x for x in left])]


def _shifted_sums_on_cpu(*args: Array) -> list[Array]:
  sums = computed_once(_shifted_rows, *args).astype(args[-1].dtype)
  return list(sums.reshape(2, *args[-1].shape))


def _shifted_rows(*args: Array) -> Array:
  *images, shifts = args
  shape = shifts.shape[1:]
  rows = [(_rows(x, shape), _rows(s, shape)) for x, s in zip(images, shifts, strict=True)]
  parts = [computed_once(_some_shifted, *pair) for pair in rows]
  return sum_rows([_joined(each) for each in zip(*parts, strict=True)])


def _some_shifted(x: Array, s: Array) -> tuple[Array, Array]:
  """Partial sums of `x − s` and of its square: `[L, P, C]` and `[L, 1, C]` → `[L, P / some, C]` each."""
  sums, pixels, channels = x.shape
  some = max(n for n in range(1, _PIXELS + 1) if pixels % n == 0)
  left, zero = (x - s).reshape(sums, -1, some, channels), jnp.zeros((), x.dtype)
  # Both in one kernel, which is twice as fast as one for each.
  first, second = lax.reduce((left, left * left), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (2,))
  return first, second


def _joined(parts: Sequence[Array]) -> Array:
  """Concatenates stacks so that the sums keep their order: columns if each is one matrix, otherwise a longer stack."""
  return lax.concatenate(parts, 2 if len(parts[0]) == 1 else 0)


def _left_product(matrix: np.ndarray, stack: Array) -> Array:
  """The product of a matrix with each matrix of a stack."""
  # Copied by `np.tile`, since a broadcast array would not be a constant but be filled at every call.
  repeated = np.tile(matrix, (len(stack), 1, 1))
  return lax.dot_general(repeated, stack, (((2,), (1,)), ((0,), (0,))), precision='highest')


def _spread(offsets: Array, *, shape: Shape) -> list[Array]:
  return [jnp.broadcast_to(x, shape) for x in offsets]


def _sum_pixels(*images: Array, shape: Shape) -> list[Array]:
  return [_summed([wide(x) for x in images], shape).astype(images[0].dtype)]


def _sum_pixels_on_gpu(*images: Array, shape: Shape) -> list[Array]:
  return [_sums_of_stack([wide(x) for x in images], shape).astype(images[0].dtype)]


def _sum_pixels_on_cpu(*images: Array, shape: Shape) -> list[Array]:
  return [computed_once(_pixel_sums, *images, shape=shape).astype(images[0].dtype).reshape(-1, *shape)]


def _spread_aval(offsets: Any, *, shape: Shape) -> list[jax.core.ShapedArray]:
  return [jax.core.ShapedArray(shape, offsets.dtype)] * offsets.shape[0]


def _of_each_sum_aval(*images: Any, shape: Shape) -> list[jax.core.ShapedArray]:
  return [jax.core.ShapedArray((len(images), *shape), images[0].dtype)]


def _linear(
  name: str,
  aval: Callable[..., Any],
  transpose: Callable[..., Any],
  function: Callable[..., Any],
  *,
  on_cpu: Callable[..., Any] | None = None,
  on_gpu: Callable[..., Any] | None = None,
) -> Primitive:
  """A primitive for a linear map of arrays with the parameter `shape`.

  Args:
    name: name of the primitive.
    aval: its abstract evaluation.
    transpose: gives the cotangents of the arguments from those of the results, and the arguments.
    function: the map in JAX's operations.
    on_cpu: another implementation for CPU.
    on_gpu: another implementation for GPUs.
  """
  primitive = Primitive(name)
  primitive.multiple_results = True
  primitive.def_impl(jax.jit(primitive.bind, static_argnames='shape'))
  primitive.def_abstract_eval(aval)
  lower_as(primitive, function, cpu=on_cpu, gpu=on_gpu)

  def jvp(primals: Sequence[Array], tangents: Sequence[Any], *, shape: Shape) -> tuple[list[Array], list[Array]]:
    moving = [ad.instantiate_zeros(t) for t in tangents]
    return primitive.bind(*primals, shape=shape), primitive.bind(*moving, shape=shape)

  def transposed(cotangents: Sequence[Any], *args: Any, shape: Shape) -> list[Any]:
    del shape
    if all(isinstance(ct, ad.Zero) for ct in cotangents):
      return [ad.Zero(x.aval) for x in args]
    return transpose([ad.instantiate_zeros(ct) for ct in cotangents], args)

  ad.primitive_jvps[primitive] = jvp
  ad.primitive_transposes[primitive] = transposed
  batching.primitive_batchers[primitive] = functools.partial(_batch, primitive)
  return primitive


def _batch(
  primitive: Primitive, args: Sequence[Array], axes: Sequence[Any], **params: Any
) -> tuple[list[Array], list[int]]:
  # A loop, as in `darts_jax.nets.bilinear`.
  stacked = [
    jnp.moveaxis(x, axis, 0)
    if axis is not None
    else jnp.broadcast_to(x, (next(a.shape[i] for a, i in zip(args, axes, strict=True) if i is not None), *x.shape))
    for x, axis in zip(args, axes, strict=True)
  ]
  results = lax.map(lambda each: primitive.bind(*each, **params), stacked)
  return results, [0] * len(results)


def _laid_out(context: Any, x: Any) -> Any:
  module = context.module_context
  # In a program for several devices XLA would gather a constrained array; and constraints cannot be exported.
  if getattr(module.axis_context, 'num_devices', 1) != 1 or module.lowering_parameters.for_export:
    return [x]

  def constrained(x: Array) -> Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

  return mlir.lower_fun(constrained, multiple_results=False)(context, x)


channels_last_p = Primitive('channels_last')
channels_last_p.def_abstract_eval(lambda x: x)
lower_as(channels_last_p, lambda x: x)
for platform in GPUS:
  mlir.register_lowering(channels_last_p, _laid_out, platform=platform)


# `spread` and `sum_pixels` are each other's transposes.
sum_pixels_p: Primitive
spread_p = _linear(
  'spread', _spread_aval, lambda cts, args: sum_pixels_p.bind(*cts, shape=args[0].aval.shape[1:]), _spread
)
sum_pixels_p = _linear(
  'sum_pixels',
  _of_each_sum_aval,
  lambda cts, args: spread_p.bind(cts[0], shape=args[0].aval.shape),
  _sum_pixels,
  on_cpu=_sum_pixels_on_cpu,
  on_gpu=_sum_pixels_on_gpu,
)


typical_pixels_p = Primitive('typical_pixels')
typical_pixels_p.multiple_results = True
typical_pixels_p.def_impl(jax.jit(typical_pixels_p.bind, static_argnames='shape'))
typical_pixels_p.def_abstract_eval(_of_each_sum_aval)
lower_as(typical_pixels_p, _typical_pixels, cpu=_typical_pixels_on_cpu)
batching.primitive_batchers[typical_pixels_p] = functools.partial(_batch, typical_pixels_p)

shifted_sums_p = Primitive('shifted_sums')
shifted_sums_p.multiple_results = True
shifted_sums_p.def_impl(jax.jit(shifted_sums_p.bind))


@shifted_sums_p.def_abstract_eval
def _shifted_sums_aval(*args: Any) -> list[jax.core.ShapedArray]:
  return [jax.core.ShapedArray(args[-1].shape, args[-1].dtype)] * 2


def _shifted_sums_jvp(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[list[Array], list[Array]]:
  *images, shifts = primals
  shape = shifts.shape[1:]
  moving = [ad.instantiate_zeros(t) for t in tangents[:-1]]
  sums = sum_pixels(moving, shape)
  # The sum of 2 (x − s) ẋ, written with maps that have transposes and CPU kernels of their own.
  squares = 2 * (sum_products(images, moving, shape) - shifts * sums)
  return shifted_sums_p.bind(*primals), [sums, squares]


lower_as(
  shifted_sums_p, _shifted_sums, cpu=_shifted_sums_on_cpu, gpu=functools.partial(_shifted_sums, add=_sums_of_stack)
)
ad.primitive_jvps[shifted_sums_p] = _shifted_sums_jvp
batching.primitive_batchers[shifted_sums_p] = functools.partial(_batch, shifted_sums_p)
