"""The layers of a convolutional network: the sequence of cells and fixed blocks from the stem to the global pooling.

Sources: [DARTS] arXiv 1806.09055, [NB201] arXiv 2001.00326.
"""

from collections.abc import Iterable
from typing import NamedTuple

#: Name of the residual block: two 3×3 convolutions with a shortcut, which is average pooling and a 1×1 convolution if
#: the block has stride 2 [NB201 §2.1].
RESIDUAL = 'residual'
#: Names of the fixed blocks; kinds of cells have to have other names.
BLOCKS = (RESIDUAL,)


class Layer(NamedTuple):
  """A cell or a fixed block of a network.

  A cell with n inputs reads the outputs of the n layers before it; a block reads the output of the layer before it.

  Attributes:
    cell: name of the kind of cell, or one of `BLOCKS`.
    channels: number of channels of every node of the cell, or of the block's output, in multiples of the network's `C`.
    stride: 1, or 2 to halve height and width; in a cell the edges from its inputs have this stride.
  """

  cell: str
  channels: int = 1
  stride: int = 1


class Plan(NamedTuple):
  """The layers between the stem and the global pooling.

  Attributes:
    layers: the layers, in the order of computation.
    last_norm: whether BN and ReLU precede the global pooling.
    auxiliary: index of the layer whose output an auxiliary classifier reads in training; None if there is none.
  """

  layers: tuple[Layer, ...]
  last_norm: bool = False
  auxiliary: int | None = None

  @property
  def num_cells(self) -> int:
    """Number of cells."""
    return sum(layer.cell not in BLOCKS for layer in self.layers)

  @property
  def halvings(self) -> int:
    """Number of layers with stride 2."""
    return sum(layer.stride == 2 for layer in self.layers)

  def check(self, cells: Iterable[str]) -> None:
    """Checks the plan for a space.

    Args:
      cells: names of the kinds of cells of the space.

    Raises:
      ValueError: a layer is neither a cell nor a block, a cell has the name of a block, or a number is not allowed.
    """
    names = (*cells, *BLOCKS)
    if len(set(names)) < len(names):
      raise ValueError(f'plan: a cell is called as a block is; {", ".join(BLOCKS)} are not allowed for cells')
    if not self.layers:
      raise ValueError('plan: no layers; at least one is needed')
    for index, layer in enumerate(self.layers):
      if layer.cell not in names:
        raise ValueError(f'plan: layer {index}: {layer.cell!r} is not known; allowed are {", ".join(names)}')
      if layer.channels < 1 or layer.stride not in (1, 2):
        raise ValueError(
          f'plan: layer {index}: {layer.channels} times C channels and stride {layer.stride} are not allowed;'
          ' channels are at least C, and the stride is 1 or 2'
        )
    if self.auxiliary is not None and self.auxiliary not in range(len(self.layers)):
      raise ValueError(
        f'plan: auxiliary: there is no layer {self.auxiliary}; allowed are 0 to {len(self.layers) - 1}, or None'
      )


def thirds(num_layers: int, first: str, other: str) -> Plan:
  """The plan of DARTS: a stack of cells, two of which halve the image and double the channels [DARTS §3.1].

  Args:
    num_layers: number of cells `L`.
    first: kind of all cells but two.
    other: kind of the cells at ⌊L/3⌋ and ⌊2L/3⌋, which have stride 2; an auxiliary classifier reads the second.

  Raises:
    ValueError: `num_layers` is less than 1.
  """
  if num_layers < 1:
    raise ValueError(f'layers: {num_layers} is not allowed; a network has at least one cell')
  places = {num_layers // 3, 2 * num_layers // 3}
  layers, channels = [], 1
  for index in range(num_layers):
    channels *= 2 if index in places else 1
    layers.append(Layer(other, channels, 2) if index in places else Layer(first, channels))
  return Plan(tuple(layers), auxiliary=max(places))


def stages(num_layers: int, cell: str, count: int = 3) -> Plan:
  """The plan of NAS-Bench-201: stages of cells with residual blocks between them, which double the channels.

  Args:
    num_layers: number of cells, without the blocks, divided evenly over the stages.
    cell: kind of all cells.
    count: number of stages.

  Raises:
    ValueError: `num_layers` is not a positive multiple of `count`.
  """
  if num_layers < 1 or num_layers % count:
    raise ValueError(
      f'layers: {num_layers} is not allowed; it counts the cells of {count} stages and is a multiple of {count}'
    )
  layers: list[Layer] = []
  for stage in range(count):
    if stage:
      layers.append(Layer(RESIDUAL, 2**stage, 2))
    layers += [Layer(cell, 2**stage)] * (num_layers // count)
  return Plan(tuple(layers), last_norm=True)
