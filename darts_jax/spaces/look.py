"""Names and legend with which drawings and texts show the cells of a space."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Look:
  """Names of cells and nodes in plain text, where an index follows `_` or a letter: `c_{k-1}`, `s0`.

  Attributes:
    titles: titles of the kinds of cells.
    inputs: names of the first nodes; the following nodes are numbered from 0 on.
    output: name of a cell's output.
    inner: prefix of the numbers.
    origins: names of the values from which node 0 is computed, if these are drawn, too.
    legend: explanation of a drawing.
  """

  titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
  inputs: tuple[str, ...] = ()
  output: str = 'output'
  inner: str = ''
  origins: tuple[str, ...] = ()
  legend: str = 'Blue boxes are intermediate nodes, which add what arrives; grey lines lead to the cell’s output.'

  def title(self, cell: str) -> str:
    """The title of a kind of cell; by default its name."""
    return self.titles.get(cell, cell)

  def node(self, index: int) -> str:
    """The name of a node."""
    return self.inputs[index] if index < len(self.inputs) else f'{self.inner}{index - len(self.inputs)}'
