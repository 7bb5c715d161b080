"""The layers that operations consist of: batch normalisation, pointwise convolution.

Images are `[N, H, W, C]`. `M` edges that share an input and an operation are computed together, as a *stack* of images,
`[M, N, H, W, C]`. Within `edges_as_channels` such a stack is one image with the channels of all edges, edge after edge,
`[1, N, H, W, M·C]`. TPUs convolve this layout directly, while stacks would have to be transposed. Pointwise
convolutions are then products with block-diagonal matrices. The zeros in these cost nothing on TPUs, whose smallest
matrix product has 128 channels, but a fifth of a search step on CPU.
"""

import contextvars
import dataclasses
import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from darts_jax.nets.bilinear import Bilinear, DirectSum
from darts_jax.nets.channels import scale_channels, shifted_sums, spread, stack_rows, typical_pixels
from darts_jax.runtime.mesh import UNSHARED, Shards

Array = jax.Array

#: Prefix of the names of modules that are a user's own operations.
OWN = 'own_'

BN_EPSILON = 1e-5
BN_DECAY = 0.9

_half_widths_only: contextvars.ContextVar[bool] = contextvars.ContextVar('half_widths_only', default=False)


def uniform_fan_in(fan_in: int) -> Any:
  """Initialiser of weights: uniform in ±1/√`fan_in`, as in the published experiments."""

  def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    bound = 1 / math.sqrt(fan_in)
    if _half_widths_only.get():
      return jnp.full(shape, bound, dtype)
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def init_variables(net: nn.Module, key: Array, *args: Any, **kwargs: Any) -> Any:
  """`net.init` with one draw for all weights: the same distribution, a hundredth of the compilation time.

  Every draw adds a copy of the random number generator to the program. Here the initialisers return the half-widths of
  their uniform distributions, which are multiplied by one long vector of draws. Scales and biases of BN keep their
  constants, and parameters of a user's own operations the values of their own initialisers.

  Args:
    net: the network.
    key: key of the draw; it is consumed.
    *args: arguments of the network.
    **kwargs: further arguments of the network.

  Returns:
    The variables of the network, as `net.init` returns them.
  """
  token = _half_widths_only.set(True)
  try:
    variables = net.init(key, *args, **kwargs)
  finally:
    _half_widths_only.reset(token)
  leaves, treedef = jax.tree_util.tree_flatten_with_path(variables['params'])
  drawn = [
    path[-1].key not in ('scale', 'bias') and not any(key.key.startswith(OWN) for key in path) for path, _ in leaves
  ]
  sizes = [leaf.size for (_, leaf), wanted in zip(leaves, drawn, strict=True) if wanted]
  draws = iter(jnp.split(jax.random.uniform(key, (sum(sizes),), jnp.float32, -1), np.cumsum(sizes)[:-1]))
  params = [
    leaf * next(draws).reshape(leaf.shape) if wanted else leaf for (_, leaf), wanted in zip(leaves, drawn, strict=True)
  ]
  return {**variables, 'params': jax.tree.unflatten(treedef, params)}


def activate(x: Array, smooth: bool) -> Array:
  """ReLU, or SiLU, which has no kink, if the network is a smooth twin."""
  return jax.nn.silu(x) if smooth else jax.nn.relu(x)


class Affine(NamedTuple):
  """A stack of images with a scale and an offset of their channels that are applied later.

  BN is such a map once the statistics are known. Deferred, it becomes part of the next pass over the image (a ReLU, a
  weighted sum), and a mixing weight is multiplied into the scale, a vector, instead of the image.

  Attributes:
    image: `[M, N, …, C]`.
    scale: `[M, 1, …, 1, C]`, or `[M, N, 1, …, 1, C]` if images are normalised in groups; at least float32.
    offset: shape and dtype as `scale`.
  """

  image: Array
  scale: Array
  offset: Array

  @classmethod
  def identity(cls, image: Array) -> 'Affine':
    """Images with scale 1 and offset 0."""
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    shape = (image.shape[0], *[1] * (image.ndim - 2), image.shape[-1])
    return cls(image, jnp.ones(shape, dtype), jnp.zeros(shape, dtype))

  def evaluate(self) -> Array:
    """`image · scale + offset`, in the image's dtype."""
    return evaluate([self])[0]


def evaluate(parts: Sequence[Affine]) -> list[Array]:
  """`image · scale + offset` of each part, in the image's dtype; adjacent parts of one shape are computed together."""
  results: list[Array] = []
  for shape, group in itertools.groupby(parts, lambda part: part.image.shape):
    some = list(group)
    dtype = some[0].image.dtype
    scales, offsets = (jnp.stack(values).astype(dtype) for values in zip(*[part[1:] for part in some], strict=True))
    scaled = scale_channels([part.image for part in some], scales)
    results += [x + offset for x, offset in zip(scaled, spread(offsets, shape), strict=True)]
  return results


@dataclasses.dataclass(frozen=True)
class NormGroups:
  """Groups of consecutive examples of a batch that share BN statistics in training [Hoffer et al. 2017, §4].

  Attributes:
    size: examples per group; 0 for the whole batch.
    shards: how the batch is sharded over devices.
  """

  size: int = 0
  shards: Shards = UNSHARED

  def divide(self, num_examples: int) -> tuple[int, int]:
    """Number of groups per device, and number of devices per group; one of both is 1.

    Args:
      num_examples: examples per device.

    Raises:
      ValueError: groups and devices do not fit into each other.
    """
    batch = num_examples * self.shards.size
    size = self.size or batch
    local, devices = max(1, num_examples // size), max(1, size // num_examples)
    if local * size != devices * num_examples or batch % size:
      raise ValueError(
        f'config.batch_norm.group_size: {self.size} is not allowed; it has to divide the batch, {batch} examples, and'
        f' to be a divisor or a multiple of the {num_examples} examples that each of {self.shards.size} devices has'
      )
    return local, devices

  def moments(self, *images: Array) -> tuple[Array, Array]:
    """Means and variances over all but the first and last axes of stacks `[Mₖ, N, …, Cₖ]`, concatenated.

    Computed in one pass from differences to a number close to the mean: E[x²] − E[x]² would consist of rounding errors
    where the mean is a thousand standard deviations from zero.

    Args:
      *images: the stacks, of one dtype.

    Returns:
      Means and variances, `[ΣMC]` each, of the group that the examples of this device belong to; or `[G, ΣMC]`, if they
      are several groups.
    """
    local, devices = self.divide(images[0].shape[1])
    parts = [x if local == 1 else x.reshape(x.shape[0], local, -1, x.shape[-1]) for x in images]
    pixels = parts[0].size // (parts[0].shape[0] * local * parts[0].shape[-1])
    found: list[tuple[Array, Array, Array]] = []
    for shape, group in itertools.groupby(parts, lambda x: x.shape):
      some = list(group)
      each = (shape[0], local, *[1] * (len(shape) - 3), shape[-1])
      shifts = _rounded(typical_pixels(some, each))
      found.append((shifts, *shifted_sums(some, shifts)))

    def in_order(values: Sequence[Array]) -> Array:
      # From `[K, M, G, 1, C]` to `[G, K·M·C]`; for one group, whose numbers are in this order already, to `[K·M·C]`.
      ordered = [x.reshape(-1) if local == 1 else jnp.moveaxis(x[:, :, :, 0], 2, 0).reshape(local, -1) for x in values]
      return jnp.concatenate(ordered, axis=-1)

    shift, first, second = (in_order(values) for values in zip(*found, strict=True))
    first, second = first / pixels, second / pixels
    if devices > 1:
      shift, first, second = self._of_all(shift, first, second, devices)
    return shift + first, jnp.maximum(second - first * first, 0)

  def _of_all(self, shift: Array, first: Array, second: Array, devices: int) -> tuple[Array, Array, Array]:
    """Combines the moments of all devices, each relative to its own shift, in one all-reduce.

    Device i has the shift sᵢ, the mean fᵢ of x − sᵢ and the mean qᵢ of (x − sᵢ)². Relative to a common shift c, with
    aᵢ = sᵢ − c, its means are fᵢ + aᵢ and qᵢ + 2 aᵢ fᵢ + aᵢ²; the results are the means of these over the D devices.
    Only sums over devices are available, and c follows from one of the same sums, so that the products are expanded:
    Σ aᵢ² = Σ sᵢ² − 2 c Σ sᵢ + D c² (`between`), and, with fᵢ = lᵢ + rᵢ, Σ aᵢ fᵢ = Σ sᵢ lᵢ − c Σ lᵢ + Σ sᵢ rᵢ − c Σ rᵢ.
    These are differences of numbers as large as the squared mean. They are exact nevertheless: s, c and l are rounded
    to a third of the binary digits, so that products of two of them, and sums of these, are not rounded; the rest r is
    small.

    Args:
      shift: shift of this device.
      first: mean of x − shift on this device.
      second: mean of (x − shift)² on this device.
      devices: number of devices D.

    Returns:
      The common shift c, and the means of x − c and (x − c)² over all devices.
    """
    large = lax.stop_gradient(_rounded(first))
    small = first - large
    whole = (shift, shift * shift, large, shift * large, small, second + 2 * shift * small)
    shifts, squares, larges, products, smalls, seconds = self.shards.total(whole, devices)
    common = _rounded(shifts / devices)
    apart = shifts - devices * common
    between = (squares - common * shifts) - common * apart
    across = 2 * (products - common * larges) - 2 * common * smalls
    return common, (apart + larges + smalls) / devices, (seconds + across + between) / devices


def _rounded(x: Array) -> Array:
  """`x` rounded to a third of its binary digits."""
  kinds = jnp.finfo(x.dtype)
  return lax.reduce_precision(x, kinds.nexp, kinds.nmant // 3)


#: One group: the statistics of the whole batch.
WHOLE_BATCH = NormGroups()


class BatchNorm(nn.Module):
  """Batch normalisation over all but the last axis [DARTS §A]: ε = 1e-5, running statistics with decay 0.9.

  In training the statistics of the batch are used (see `NormGroups.moments`). If the collection `batch_stats` is
  mutable, running statistics are updated, the variance with the unbiased estimate. If the collection `moments` is
  mutable instead, it gets the new values that enter the running averages, under the same names, so that the caller can
  apply `running_average` to all layers at once. With several groups of examples on a device, these are means over the
  groups.

  Attributes:
    affine: whether there are a learned scale and bias.
    groups: groups of examples that share statistics.
    tracked: whether there are running statistics; if not, evaluation uses the statistics of the batch, too.
  """

  affine: bool
  groups: NormGroups = WHOLE_BATCH
  tracked: bool = True

  def __call__(self, x: Array, *, train: bool) -> Array:
    """Normalises one array `[N, …, C]`."""
    return self.fold(x[None], train=train)[0].evaluate()[0]

  @nn.compact
  def fold(self, *images: Array, train: bool) -> list[Affine]:
    """Normalises stacks `[Mₖ, N, …, Cₖ]` of one dtype, without applying scale and offset yet.

    Args:
      *images: the stacks; their entries of each variable are concatenated in this order.
      train: whether the statistics of the batch are used.

    Returns:
      For each stack, the stack with the scale and offset that normalise it.
    """
    sizes = [x.shape[0] * x.shape[-1] for x in images]
    running = {}
    if self.tracked and (not train or self.is_initializing() or self.is_mutable_collection('batch_stats')):
      for name, initial in (('mean', jnp.zeros), ('var', jnp.ones)):
        running[name] = self.variable('batch_stats', name, initial, (sum(sizes),))
    if train or not self.tracked:
      mean, var = self.groups.moments(*[x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in images])
      local, devices = self.groups.divide(images[0].shape[1])
      count = images[0].size * devices // (sizes[0] * local)
      for name, value in (('mean', mean), ('var', var * (count / max(count - 1, 1)))):
        moment = value if local == 1 else jnp.mean(value, axis=0)
        if self.tracked and self.is_mutable_collection('moments') and not self.is_initializing():
          self.put_variable('moments', name, moment)
        if running and not self.is_initializing():
          running[name].value = running_average(running[name].value, moment)
    else:
      mean, var = running['mean'].value, running['var'].value
    # One multiplication and one addition, so that the gradient needs only two sums over pixels.
    scale = lax.rsqrt(var + BN_EPSILON)
    offset = -mean * scale
    if self.affine:
      learned = self.param('scale', nn.initializers.ones, (sum(sizes),))
      scale, offset = scale * learned, offset * learned + self.param('bias', nn.initializers.zeros, (sum(sizes),))

    def of_images(values: Array) -> list[Array]:
      parts = []
      for x, part in zip(images, lax.split(values, sizes, values.ndim - 1), strict=True):
        grouped = jnp.moveaxis(part.reshape(-1, x.shape[0], x.shape[-1]), 0, 1)
        if grouped.shape[1] > 1:
          # From one entry per group to one per example.
          grouped = jnp.repeat(grouped, x.shape[1] // grouped.shape[1], axis=1)
        parts.append(grouped.reshape(*grouped.shape[:2], *[1] * (x.ndim - 3), x.shape[-1]))
      return parts

    return [Affine(*part) for part in zip(images, of_images(scale), of_images(offset), strict=True)]


def running_average(old: Array, new: Array) -> Array:
  """A running statistic of BN after one more batch: `BN_DECAY · old + (1 − BN_DECAY) · new`."""
  return BN_DECAY * old + (1 - BN_DECAY) * new


class _Products(Bilinear):
  """Matrix products, each face of which is a matrix product, too."""

  @property
  def kept(self) -> bool:
    """True: BN follows, whose backward pass needs the outputs."""
    return True

  def apply(self, images: list[Array], weights: list[Array]) -> list[Array]:
    """See `Bilinear`."""
    return self.face('outputs', images, weights)


@dataclasses.dataclass(frozen=True)
class Pointwise(_Products):
  """1×1 convolutions of a stack of rows `(M, P, C)`, one row per pixel.

  Attributes:
    pixels: number of rows `P`.
    kernel: shape of the matrices, `(M, C, D)`.
    precision: precision of the products: JAX's default matmul precision at the call.
  """

  pixels: int
  kernel: tuple[int, int, int]
  precision: Any

  def shapes(self, group: str) -> list[tuple[int, ...]]:
    """See `Bilinear`."""
    multiplier, channels, features = self.kernel
    if group == 'weights':
      return [self.kernel]
    return [(multiplier, self.pixels, channels if group == 'images' else features)]

  def face(self, target: str, first: list[Array], second: list[Array]) -> list[Array]:
    """See `Bilinear`."""
    contracted = {'outputs': (2, 1), 'images': (2, 2), 'weights': (1, 1)}[target]
    x, y = (second[0], first[0]) if target == 'images' else (first[0], second[0])
    numbers = (((contracted[0],), (contracted[1],)), ((0,), (0,)))
    return [lax.dot_general(x, y, numbers, precision=self.precision)]

  @property
  def likeness(self) -> Hashable:
    """See `Bilinear`."""
    return self.pixels, self.kernel[1:]

  @classmethod
  def faces_on_gpu(
    cls, maps: Sequence['Pointwise'], target: str, first: Sequence[list[Array]], second: Sequence[list[Array]]
  ) -> list[list[Array]]:
    """See `Bilinear`; all maps are one product."""
    # Without the barrier XLA would fuse strided slices into the product and fail with an internal error.
    x, y = lax.optimization_barrier([lax.concatenate([arrays[0] for arrays in each], 0) for each in (first, second)])
    [found] = maps[0].face(target, [x], [y])
    return [[part] for part in lax.split(found, [each.kernel[0] for each in maps])]


def pointwise_convs(images: Sequence[Array], kernels: Sequence[Array]) -> list[Array]:
  """1×1 convolutions of several stacks of images; every image of a stack has its own matrix.

  Args:
    images: `[M, N, H, W, C]` each.
    kernels: `[M, C, D]` for each stack.

  Returns:
    `[M, N, H, W, D]` for each.
  """
  # On rows of pixels: with more axes, XLA would transpose the activations for the weight gradient.
  rows = [stack_rows(x) for x in images]
  precision = jax.config.values['jax_default_matmul_precision']
  maps = []
  for x, kernel in zip(rows, kernels, strict=True):
    multiplier, channels, features = kernel.shape
    maps.append(Pointwise(x.shape[1], (multiplier, channels, features), precision))
  found = DirectSum(tuple(maps))(rows, [kernel.astype(x.dtype) for x, kernel in zip(images, kernels, strict=True)])
  return [y.reshape(*x.shape[:-1], y.shape[-1]) for x, y in zip(images, found, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Blocks(_Products):
  """1×1 convolutions for edges as channels: the product with a block-diagonal matrix.

  Attributes:
    image: `(N, H, W)` of the images.
    kernel: shape of the matrices, `(M, C, D)`.
    precision: precision of the products: JAX's default matmul precision at the call.
  """

  image: tuple[int, int, int]
  kernel: tuple[int, int, int]
  precision: Any

  def shapes(self, group: str) -> list[tuple[int, ...]]:
    """See `Bilinear`."""
    edges, channels, features = self.kernel
    if group == 'weights':
      return [self.kernel]
    return [(1, *self.image, edges * (channels if group == 'images' else features))]

  def face(self, target: str, first: list[Array], second: list[Array]) -> list[Array]:
    """See `Bilinear`; images keep their shape, since TPUs would copy them to reshape them to rows of pixels."""
    edges, channels, features = self.kernel
    ones = np.eye(edges, dtype=first[0].dtype)[:, None, :, None]
    if target == 'weights':
      pixels = (0, 1, 2, 3)
      full = lax.dot_general(first[0], second[0], ((pixels, pixels), ((), ())), precision=self.precision)
      # Without the barrier XLA would split this product into one per edge, and transpose the images for these.
      full = lax.optimization_barrier(full)
      return [jnp.sum(full.reshape(edges, channels, edges, features) * ones, 2)]
    kernel, x = (second[0], first[0]) if target == 'outputs' else (first[0], second[0])
    matrix = (kernel[:, :, None] * ones).reshape(edges * channels, edges * features)
    numbers = (((4,), (0 if target == 'outputs' else 1,)), ((), ()))
    return [lax.dot_general(x, matrix, numbers, precision=self.precision)]


def pointwise_convs_of_channels(images: Sequence[Array], kernels: Sequence[Array]) -> list[Array]:
  """`pointwise_convs` for edges as channels.

  Args:
    images: `[1, N, H, W, M·C]` each.
    kernels: `[M, C, D]` for each image.

  Returns:
    `[1, N, H, W, M·D]` for each image.
  """
  precision = jax.config.values['jax_default_matmul_precision']
  maps = []
  for x, kernel in zip(images, kernels, strict=True):
    (_, number, height, width, _), (edges, channels, features) = x.shape, kernel.shape
    maps.append(_Blocks((number, height, width), (edges, channels, features), precision))
  return DirectSum(tuple(maps))(images, [kernel.astype(x.dtype) for x, kernel in zip(images, kernels, strict=True)])


def pointwise(x: Array, kernel: Array) -> Array:
  """The 1×1 convolution of images `[…, C]` with a matrix `[C, D]`: `[…, D]`."""
  found = pointwise_convs([x.reshape(1, *x.shape)], [kernel.reshape(1, *kernel.shape)])[0]
  return found.reshape(found.shape[1:])
