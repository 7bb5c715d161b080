"""The layers of a convolutional network: which cells and fixed blocks follow each other, from the stem to the pooling.

Sources: [DARTS] arXiv 1806.09055, [NB201] arXiv 2001.00326.
"""

from collections.abc import Iterable
from typing import NamedTuple

#: The residual block: two 3×3 convolutions beside a shortcut, which is average pooling and a 1×1 convolution if the
#: block has stride 2 [NB201 §2.1].
RESIDUAL = 'residual'
#: The names of fixed blocks, which no cell may have.
BLOCKS = (RESIDUAL,)


class Layer(NamedTuple):
  """A cell or a fixed block of a network.

  A cell reads the outputs of as many layers before it as it has inputs; a block reads one.

  Attributes:
    cell: the name of the kind of cell, or one of `BLOCKS`.
    channels: of every node of the cell, or of the block's output, as a multiple of the network's `C`.
    stride: 1, or 2 for an output of half the height and width; in a cell the edges that leave its inputs have it.
  """

  cell: str
  channels: int = 1
  stride: int = 1


class Plan(NamedTuple):
  """The layers between the stem and the global pooling.

  Attributes:
    layers: in the order of computation.
    last_norm: whether BN and ReLU stand before the global pooling.
    auxiliary: the index of the layer that an auxiliary classifier reads in training; None if there is no place for one.
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
    """How often the layers halve an image."""
    return sum(layer.stride == 2 for layer in self.layers)

  def check(self, cells: Iterable[str]) -> None:
    """Raises a ValueError unless every layer is one of these cells or a block, with channels and stride 1 or 2."""
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
    first: the kind of all other cells.
    other: the kind of the cells at ⌊L/3⌋ and ⌊2L/3⌋, which have stride 2; an auxiliary classifier reads the second.

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
  """The plan of NAS-Bench-201: stages of cells, between them residual blocks of stride 2 that double the channels.

  Args:
    num_layers: number of cells, without the blocks; every stage has as many.
    cell: the kind of all cells.
    count: number of stages.

  Raises:
    ValueError: `num_layers` is no multiple of `count`.
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
