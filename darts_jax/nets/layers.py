"""The layers operations are made of: batch normalisation, pointwise convolution.

Images are `[N, H, W, C]`. `M` edges that share an input and an operation are computed together, as a *stack* of images,
`[M, N, H, W, C]`. Within `edges_as_channels` such a stack is one image of all their channels, `[1, N, H, W, M·C]`, edge
after edge: what convolutions of a TPU read, for which stacks had to be laid out anew. Its smallest product of matrices
is one of 128 channels, so that zeros between the edges cost nothing. On CPU such products took a fifth of a step.
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

#: What the names of modules begin with that are a user's own operations.
OWN = 'own_'

BN_EPSILON = 1e-5
BN_DECAY = 0.9

_half_widths_only: contextvars.ContextVar[bool] = contextvars.ContextVar('half_widths_only', default=False)


def uniform_fan_in(fan_in: int) -> Any:
  """Initialiser of weights: uniform in ±1/√fan_in, as in the published experiments."""

  def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    bound = 1 / math.sqrt(fan_in)
    if _half_widths_only.get():
      return jnp.full(shape, bound, dtype)
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def init_variables(net: nn.Module, key: Array, *args: Any, **kwargs: Any) -> Any:
  """`net.init` with all weights drawn in one go: the same distribution, a hundredth of the time to compile.

  Every draw of its own costs a copy of the random generator in the program. Here the initialisers give the half-widths
  of their distributions, which multiply one long vector of draws; scales and biases of BN keep their constants, and a
  user's own operations what their initialisers give.
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
  """ReLU; or SiLU, which has no kink, in a smooth twin of a network."""
  return jax.nn.silu(x) if smooth else jax.nn.relu(x)


class Affine(NamedTuple):
  """A stack of images and a scale and shift of their channels that are yet to be carried out.

  What BN does to an image is such a map once the statistics are known. Left to its reader, it is part of whatever pass
  over the image comes next (a ReLU, a weighted sum), and weighting the image is a product of two vectors.

  Attributes:
    image: `[M, N, …, C]`.
    scale: `[M, 1, …, 1, C]`, or `[M, N, 1, …, 1, C]` where images are normalised in groups; at least float32.
    offset: likewise.
  """

  image: Array
  scale: Array
  offset: Array

  @classmethod
  def identity(cls, image: Array) -> 'Affine':
    """The images as they are."""
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    shape = (image.shape[0], *[1] * (image.ndim - 2), image.shape[-1])
    return cls(image, jnp.ones(shape, dtype), jnp.zeros(shape, dtype))

  def evaluate(self) -> Array:
    """`image · scale + offset`, in the image's dtype."""
    return evaluate([self])[0]


def evaluate(parts: Sequence[Affine]) -> list[Array]:
  """`image · scale + offset` of each, in the image's dtype; of those that follow each other in one shape together."""
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
  """The examples that BN takes statistics over in training: consecutive ones of a batch [Hoffer et al. 2017, §4].

  Attributes:
    size: examples a group; 0 for the whole batch.
    shards: how the batch is shared out among devices.
  """

  size: int = 0
  shards: Shards = UNSHARED

  def divide(self, num_examples: int) -> tuple[int, int]:
    """How many groups a device has, and how many devices a group, for so many examples a device; one of both is 1.

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
    """Means and variances over all but the first and last axes of stacks `[Mₖ, N, …, Cₖ]`, side by side.

    In one pass, of the difference to a number that is about as large as the mean: E[x²] − E[x]² would be nothing but
    rounding where the mean is a thousand standard deviations from zero.

    Returns:
      `[ΣMC]` each, of the group that these examples belong to; or `[G, ΣMC]`, if they are several groups.
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
      # From `[K, M, G, 1, C]` to `[G, K·M·C]`; of one group, whose numbers are in this order, to `[K·M·C]`.
      ordered = [x.reshape(-1) if local == 1 else jnp.moveaxis(x[:, :, :, 0], 2, 0).reshape(local, -1) for x in values]
      return jnp.concatenate(ordered, axis=-1)

    shift, first, second = (in_order(values) for values in zip(*found, strict=True))
    first, second = first / pixels, second / pixels
    if devices > 1:
      shift, first, second = self._of_all(shift, first, second, devices)
    return shift + first, jnp.maximum(second - first * first, 0)

  def _of_all(self, shift: Array, first: Array, second: Array, devices: int) -> tuple[Array, Array, Array]:
    """Means of `x − s` and `(x − s)²` over devices, for one `s`, from those for a shift of each; in one all-reduce.

    A device has the shift sᵢ, the mean fᵢ of x − sᵢ and the mean qᵢ of (x − sᵢ)². With c for the common shift and
    aᵢ = sᵢ − c, its means for that shift are fᵢ + aᵢ and qᵢ + 2 aᵢ fᵢ + aᵢ², of which this is the mean over devices.
    Nothing but sums over devices can be had, and c follows from one, so that the products are written out:
    Σ aᵢ² = Σ sᵢ² − 2 c Σ sᵢ + D c² (`between`), and, with fᵢ = lᵢ + rᵢ, Σ aᵢ fᵢ = Σ sᵢ lᵢ − c Σ lᵢ + Σ sᵢ rᵢ − c Σ rᵢ.
    These differences are of numbers as large as the squared mean. They are exact, since s, c and l are rounded to a
    third of a number's digits, products of two and sums of these to none at all; r, the rest, is small.
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
  """`x` to a third of its binary digits."""
  kinds = jnp.finfo(x.dtype)
  return lax.reduce_precision(x, kinds.nexp, kinds.nmant // 3)


#: Statistics of the whole batch.
WHOLE_BATCH = NormGroups()


class BatchNorm(nn.Module):
  """Batch normalisation over all but the last axis [DARTS §A]: ε = 1e-5, running statistics with decay 0.9.

  In training the statistics of the batch are used (see `NormGroups.moments`). Running statistics are updated when the
  collection `batch_stats` is mutable, the variance with the unbiased estimate. A caller who makes `moments` mutable
  instead gets what they are updated with, at the same places, and can apply `running_average` to all layers at once. Of
  several groups of examples these are means over those on this device.

  Attributes:
    affine: whether a learned scale and bias follow.
    groups: the examples that share statistics.
    tracked: whether there are running statistics; if not, those of the batch are used in evaluation, too.
  """

  affine: bool
  groups: NormGroups = WHOLE_BATCH
  tracked: bool = True

  def __call__(self, x: Array, *, train: bool) -> Array:
    """Normalises one array `[N, …, C]`."""
    return self.fold(x[None], train=train)[0].evaluate()[0]

  @nn.compact
  def fold(self, *images: Array, train: bool) -> list[Affine]:
    """Normalises stacks `[Mₖ, N, …, C]` of one dtype, whose variables lie side by side; what is left is an `Affine`."""
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
    # Written as one multiplication and one addition, so that the gradient needs two vectors and not a chain of passes.
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
          # From groups to examples.
          grouped = jnp.repeat(grouped, x.shape[1] // grouped.shape[1], axis=1)
        parts.append(grouped.reshape(*grouped.shape[:2], *[1] * (x.ndim - 3), x.shape[-1]))
      return parts

    return [Affine(*part) for part in zip(images, of_images(scale), of_images(offset), strict=True)]


def running_average(old: Array, new: Array) -> Array:
  """A running statistic of BN after one more batch."""
  return BN_DECAY * old + (1 - BN_DECAY) * new


class _Products(Bilinear):
  """Products of matrices, any face of which is one."""

  @property
  def kept(self) -> bool:
    """By BN."""
    return True

  def apply(self, images: list[Array], weights: list[Array]) -> list[Array]:
    """See `Bilinear`."""
    return self.face('outputs', images, weights)


@dataclasses.dataclass(frozen=True)
class Pointwise(_Products):
  """1×1 convolutions of a stack of rows of pixels.

  Attributes:
    pixels: rows.
    kernel: `(M, C, D)`.
    precision: of the products, JAX's default where the map was called.
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
    """See `Bilinear`; one product."""
    # XLA would make what it reads a part of the product and, for strided slices, stop with an error of its own.
    x, y = lax.optimization_barrier([lax.concatenate([arrays[0] for arrays in each], 0) for each in (first, second)])
    [found] = maps[0].face(target, [x], [y])
    return [[part] for part in lax.split(found, [each.kernel[0] for each in maps])]


def pointwise_convs(images: Sequence[Array], kernels: Sequence[Array]) -> list[Array]:
  """1×1 convolutions of several stacks of images, of each with its own matrix.

  Args:
    images: `[M, N, H, W, C]` each.
    kernels: `[M, C, D]` for each stack.

  Returns:
    `[M, N, H, W, D]` for each.
  """
  # Products of matrices: from a four-dimensional dot XLA would transpose the activations for the weight gradient.
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
  """1×1 convolutions of edges as channels: the product with a block-diagonal matrix.

  Attributes:
    image: `(N, H, W)`.
    kernel: `(M, C, D)`.
    precision: of the products, JAX's default where the map was called.
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
    """See `Bilinear`; images stay as they are, since TPUs would lay out rows of pixels anew."""
    edges, channels, features = self.kernel
    ones = np.eye(edges, dtype=first[0].dtype)[:, None, :, None]
    if target == 'weights':
      pixels = (0, 1, 2, 3)
      full = lax.dot_general(first[0], second[0], ((pixels, pixels), ((), ())), precision=self.precision)
      # Without it, XLA makes products of edges with edges of this one, and transposes the images for them.
      full = lax.optimization_barrier(full)
      return [jnp.sum(full.reshape(edges, channels, edges, features) * ones, 2)]
    kernel, x = (second[0], first[0]) if target == 'outputs' else (first[0], second[0])
    matrix = (kernel[:, :, None] * ones).reshape(edges * channels, edges * features)
    numbers = (((4,), (0 if target == 'outputs' else 1,)), ((), ()))
    return [lax.dot_general(x, matrix, numbers, precision=self.precision)]


def pointwise_convs_of_channels(images: Sequence[Array], kernels: Sequence[Array]) -> list[Array]:
  """`pointwise_convs` of edges as channels.

  Args:
    images: `[1, N, H, W, M·C]` each.
    kernels: `[M, C, D]` for each.

  Returns:
    `[1, N, H, W, M·D]` for each.
  """
  precision = jax.config.values['jax_default_matmul_precision']
  maps = []
  for x, kernel in zip(images, kernels, strict=True):
    (_, number, height, width, _), (edges, channels, features) = x.shape, kernel.shape
    maps.append(_Blocks((number, height, width), (edges, channels, features), precision))
  return DirectSum(tuple(maps))(images, [kernel.astype(x.dtype) for x, kernel in zip(images, kernels, strict=True)])


def pointwise(x: Array, kernel: Array) -> Array:
  """The 1×1 convolution of images `[…, C]` with a matrix `[C, D]`."""
  found = pointwise_convs([x.reshape(1, *x.shape)], [kernel.reshape(1, *kernel.shape)])[0]
  return found.reshape(found.shape[1:])
