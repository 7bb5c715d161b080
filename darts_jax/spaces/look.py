"""How pictures and texts show the cells of a space."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Look:
  """The names of cells and nodes, in plain text: an index stands behind `_` or behind a letter, `c_{k-1}` or `s0`.

  Attributes:
    titles: by kind of cell.
    inputs: names of the first nodes; the nodes after them have numbers from 0 on.
    output: name of a cell's output.
    inner: stands before the numbers.
    origins: what node 0 is made from, if that is drawn, too.
    legend: explains a drawing.
  """

  titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
  inputs: tuple[str, ...] = ()
  output: str = 'output'
  inner: str = ''
  origins: tuple[str, ...] = ()
  legend: str = 'Blue boxes are intermediate nodes, which add what arrives; grey lines lead to the cell’s output.'

  def title(self, cell: str) -> str:
    """What a kind of cell is called."""
    return self.titles.get(cell, cell)

  def node(self, index: int) -> str:
    """The name of a node."""
    return self.inputs[index] if index < len(self.inputs) else f'{self.inner}{index - len(self.inputs)}'
