"""The convolutional supernet [DARTS §3.1.1]."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.genotype import CellSpec
from darts_jax.nets.cell import Cell
from darts_jax.nets.layers import BatchNorm, uniform_fan_in

Array = jax.Array


def reduction_cells(num_layers: int) -> tuple[int, ...]:
  """Indices of the cells that halve the image: ⌊L/3⌋ and ⌊2L/3⌋."""
  return tuple(sorted({num_layers // 3, 2 * num_layers // 3}))


class Supernet(nn.Module):
  """A stack of cells whose edges mix candidate operations; normal cells share mixing weights, reduction cells too.

  Attributes:
    normal: spec of the normal cells.
    reduce: spec of the reduction cells.
    channels: channels `C` of the nodes of the first cell; they double in every reduction cell.
    num_layers: number of cells `L`.
    num_classes: number of logits.
    stem_multiplier: the stem has `stem_multiplier · C` channels.
    remat: whether a gradient may compute the inside of cells once more instead of keeping it; see `jax.checkpoint`.
    smooth: whether this is the smooth twin of a network, with SiLU for ReLU and average for maximum pooling and the
      same parameters: where kinks are suspected, what differs between the two is due to them.
  """

  normal: CellSpec
  reduce: CellSpec
  channels: int
  num_layers: int
  num_classes: int
  stem_multiplier: int = 3
  remat: bool = False
  smooth: bool = False

  @nn.compact
  def __call__(self, images: Array, mixing: Mapping[str, Array], *, train: bool) -> Array:
    """Classifies images.

    Args:
      images: `[N, H, W, ·]`, normalised; their dtype is the dtype of computation.
      mixing: `[E, O]` mixing weights of the cells `'normal'` and `'reduce'`.
      train: whether BN uses the statistics of the batch.

    Returns:
      `[N, num_classes]` logits, at least float32.
    """
    stem_channels = self.stem_multiplier * self.channels
    fan_in = 9 * images.shape[-1]
    kernel = self.param('stem', uniform_fan_in(fan_in), (3, 3, images.shape[-1], stem_channels))
    stem = lax.conv_general_dilated(
      images, kernel.astype(images.dtype), (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    before_last = last = BatchNorm(affine=True, name='stem_bn')(stem, train=train)

    def compute(cell: Cell, before_last: Array, last: Array, mixing: Array) -> Array:
      return cell(before_last, last, mixing, train=train)

    compute_cell = nn.remat(compute) if self.remat else compute
    channels, reduction_before = self.channels, False
    for layer in range(self.num_layers):
      reduction = layer in reduction_cells(self.num_layers)
      channels *= 2 if reduction else 1
      kind = 'reduce' if reduction else 'normal'
      spec = self.reduce if reduction else self.normal
      cell = Cell(spec, channels, reduction, reduction_before, discrete=False, smooth=self.smooth, name=f'cell{layer}')
      before_last, last = last, compute_cell(cell, before_last, last, mixing[kind])
      reduction_before = reduction
    features = jnp.mean(last.astype(jnp.promote_types(last.dtype, jnp.float32)), axis=(1, 2))
    width = features.shape[-1]
    weights = self.param('classifier', uniform_fan_in(width), (width, self.num_classes))
    return features @ weights + self.param('classifier_bias', uniform_fan_in(width), (self.num_classes,))
