"""3×3 pooling with padding 1, and 2×2 pooling, of images `[N, H, W, C]`.

The gradients of XLA's own window reductions are ten times slower on CPU. Here windows are shifted images. The gradient
of maximum pooling is a sum of shifted images, too, namely of padded cotangents; the transposes of the nine shifts would
instead test for every pixel of nine images whether it is in the margin.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from darts_jax.nets.depthwise import depthwise_conv
from darts_jax.nets.padding import pad_images, window
from darts_jax.runtime.materialise import computed_once, materialise
from darts_jax.runtime.platforms import lower_as

Array = jax.Array

#: Offsets of the pixels of a window, row by row.
_CORNERS = [(i, j) for i in range(3) for j in range(3)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_pool(x: Array, stride: int) -> Array:
  """Maximum pooling, `[N, H, W, C]` → `[N, ⌈H/stride⌉, ⌈W/stride⌉, C]`; gradients go to the first of equal pixels."""
  return functools.reduce(jnp.maximum, _windows(x, stride, -jnp.inf))


@max_pool.defjvp
def _max_pool_jvp(stride: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  windows = _windows(lax.stop_gradient(primals[0]), stride, -jnp.inf)
  largest, first = windows[0], jnp.zeros(windows[0].shape, jnp.int8)
  for i, other in enumerate(windows[1:], 1):
    first = jnp.where(other > largest, jnp.int8(i), first)
    largest = jnp.maximum(largest, other)
  tangent = chosen_p.bind(tangents[0], materialise(first), size=tangents[0].shape[1:3], stride=stride, back=False)
  # The value is a call of `max_pool` itself, so that second derivatives follow this rule, too.
  return max_pool(primals[0], stride), materialise(tangent)


def avg_pool(x: Array, stride: int) -> Array:
  """Average pooling that does not count padding, `[N, H, W, C]` → `[N, ⌈H/stride⌉, ⌈W/stride⌉, C]`."""
  rows, columns = (_counted(extent, stride) for extent in x.shape[1:3])
  shares = 1 / (rows[:, None, None] * columns[:, None])
  # The sum is a depthwise convolution with ones, which has fast gradients.
  total = depthwise_conv(x, jnp.ones((3, 3, 1, x.shape[-1]), x.dtype), stride=stride)[0]
  return materialise(total) * jnp.asarray(shares, x.dtype)


def halve(x: Array) -> Array:
  """2×2 average pooling, `[N, H, W, C]` → `[N, ⌈H/2⌉, ⌈W/2⌉, C]`; padding at odd sides is not counted."""
  size = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
  padded = pad_images(x, (0, x.shape[1] % 2), (0, x.shape[2] % 2))
  total = functools.reduce(jnp.add, [window(padded, (i, j), size, 2) for i in range(2) for j in range(2)])
  rows, columns = (np.minimum(2, extent - 2 * np.arange(out)) for extent, out in zip(x.shape[1:3], size, strict=True))
  return total * jnp.asarray(1 / (rows[:, None, None] * columns[:, None]), x.dtype)


def max_halve(x: Array) -> Array:
  """2×2 maximum pooling, `[N, H, W, C]` → `[N, ⌈H/2⌉, ⌈W/2⌉, C]`; gradients go to the first of equal pixels."""
  size = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
  padded = pad_images(x, (0, x.shape[1] % 2), (0, x.shape[2] % 2), fill=-jnp.inf)
  pixels = [window(padded, (i, j), size, 2) for i in range(2) for j in range(2)]
  # Not `jnp.maximum`, which gives half of the gradient to each of two equal numbers.
  return materialise(functools.reduce(lambda a, b: jnp.where(b > a, b, a), pixels))


def _counted(extent: int, stride: int) -> np.ndarray:
  """The numbers of pixels, without padding, that the windows have along an axis."""
  return np.array([min(i + 2, extent) - max(i - 1, 0) for i in range(0, extent, stride)])


def _windows(x: Array, stride: int, fill: float) -> list[Array]:
  """The nine shifted images whose pixels are the windows."""
  size = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
  padded = pad_images(x, (1, 1), (1, 1), fill=fill)
  return [window(padded, corner, size, stride) for corner in _CORNERS]


def _chosen(
  pad: Callable[..., Array], x: Array, first: Array, *, size: tuple[int, int], stride: int, back: bool
) -> Array:
  """For every window the pixel that it chooses; or the transpose: for every pixel the sum over windows that choose it.

  Args:
    pad: `pad_images`, possibly within `computed_once`.
    x: `[N, H, W, C]`; if `back`, `[N, H', W', C]`.
    first: `[N, H', W', C]` int8: which of its nine pixels a window chooses.
    size: `(H, W)`.
    stride: stride of the windows.
    back: whether to compute the transpose.
  """
  zero = jnp.zeros((), x.dtype)
  if not back:
    padded = pad(x, rows=(1, 1), columns=(1, 1))
    pixels = [window(padded, corner, (first.shape[1], first.shape[2]), stride) for corner in _CORNERS]
    return functools.reduce(jnp.add, [jnp.where(first == i, pixel, zero) for i, pixel in enumerate(pixels)])
  # Windows are dilated by the stride; the windows between them choose no pixel.
  rows, columns = (
    (1, extent + 1 - (stride * (out - 1) + 1)) for extent, out in zip(size, first.shape[1:3], strict=True)
  )
  moved = pad(x, rows=rows, columns=columns, dilation=stride)
  choice = pad(first, rows=rows, columns=columns, dilation=stride, fill=-1)
  terms = []
  for i, (top, left) in enumerate(_CORNERS):
    corner = 2 - top, 2 - left
    terms.append(jnp.where(window(choice, corner, size) == i, window(moved, corner, size), zero))
  return functools.reduce(jnp.add, terms)


chosen_p = Primitive('chosen')
chosen_p.def_impl(jax.jit(chosen_p.bind, static_argnames=('size', 'stride', 'back')))


@chosen_p.def_abstract_eval
def _aval(x: Any, first: Any, *, size: tuple[int, int], stride: int, back: bool) -> jax.core.ShapedArray:
  del stride
  return jax.core.ShapedArray((*x.shape[:1], *size, *x.shape[3:]) if back else first.shape, x.dtype)


lower_as(
  chosen_p,
  functools.partial(_chosen, pad_images),
  cpu=functools.partial(_chosen, functools.partial(computed_once, pad_images)),
)


def _jvp(primals: Sequence[Array], tangents: Sequence[Any], **params: Any) -> tuple[Array, Array]:
  x, first = primals
  return chosen_p.bind(x, first, **params), chosen_p.bind(ad.instantiate_zeros(tangents[0]), first, **params)


def _transpose(cotangent: Any, x: Any, first: Array, *, back: bool, **params: Any) -> list[Any]:
  if isinstance(cotangent, ad.Zero):
    return [ad.Zero(x.aval), None]
  return [chosen_p.bind(cotangent, first, back=not back, **params), None]


def _batch(args: Sequence[Array], axes: Sequence[Any], **params: Any) -> tuple[Array, int]:
  count = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
  # The mapped axis is merged with the axis of images.
  stacked = [
    jnp.broadcast_to(x, (count, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
    for x, axis in zip(args, axes, strict=True)
  ]
  found = chosen_p.bind(*[x.reshape(-1, *x.shape[2:]) for x in stacked], **params)
  return found.reshape(count, -1, *found.shape[1:]), 0


ad.primitive_jvps[chosen_p] = _jvp
ad.primitive_transposes[chosen_p] = _transpose
batching.primitive_batchers[chosen_p] = _batch
