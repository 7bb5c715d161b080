"""S1 to S4: subspaces of the space of DARTS in which searches by DARTS degenerate [RobustDARTS §3].

Cells have the nodes and edges of DARTS, but only two or three candidates per edge; in S1 each edge has its own.

Source: [RobustDARTS] arXiv 1909.09656.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import ClassVar

from darts_jax import limits
from darts_jax.settings import setting
from darts_jax.spaces.cells import CellSpace, CellSpec, full_cell
from darts_jax.spaces.darts import CANDIDATES, Darts
from darts_jax.spaces.look import Look
from darts_jax.spaces.operations import NOISE

#: The candidates of subspaces in which all edges have the same ones.
UNIFORM: Mapping[str, tuple[str, ...]] = {
  's2': ('skip_connect', 'sep_conv_3x3'),
  's3': ('none', 'skip_connect', 'sep_conv_3x3'),
  's4': (NOISE, 'sep_conv_3x3'),
}
#: The subspace whose edges have different candidates.
EDGEWISE = 's1'
#: All operations in the order of the columns of α; a kind of cell has the columns that its edges use.
ORDER = (NOISE, *CANDIDATES)

_NODES = 4


@dataclasses.dataclass(frozen=True)
class Robust(CellSpace):
  """One of the subspaces S1 to S4 of the space of DARTS.

  Attributes:
    subspace: name of the subspace. `s1`: two operations per edge, those left after the least important ones were
      dropped repeatedly from the space of DARTS. `s2`: skip connections and separable convolutions. `s3`: those of `s2`
      and `none`. `s4`: noise and separable convolutions.
    nodes: number of intermediate nodes of a cell; 4 in the paper, and always in `s1`.

  Raises:
    ValueError: `nodes` is not 4 in `s1`.
  """

  name: ClassVar[str] = 'robust'
  kind: ClassVar[str] = 'convolutional'
  look: ClassVar[Look] = Darts.look
  known_operations: ClassVar[tuple[str, ...] | None] = ORDER

  subspace: str = setting('s2', choices=(EDGEWISE, *UNIFORM))
  nodes: int = setting(_NODES, at_least=1, at_most=limits.NODES)

  def __post_init__(self) -> None:
    if self.subspace == EDGEWISE and self.nodes != _NODES:
      raise ValueError(f'config.nodes: {self.nodes} is not allowed; cells of {EDGEWISE} have {_NODES}')

  @functools.cached_property
  def cells(self) -> Mapping[str, CellSpec]:
    """The normal and the reduction cell."""
    if self.subspace == EDGEWISE:
      return {name: _cell(candidates) for name, candidates in _edgewise().items()}
    candidates = [[UNIFORM[self.subspace]] * (node + 2) for node in range(self.nodes)]
    return {name: _cell(candidates) for name in _edgewise()}


@functools.cache
def _edgewise() -> Mapping[str, Sequence[Sequence[Sequence[str]]]]:
  """The candidates of each edge of S1, by kind of cell and node."""
  values = json.loads(resources.files('darts_jax.spaces').joinpath('robust_s1.json').read_text())
  return {name: nodes for name, nodes in values.items() if name != 'source'}


def _cell(candidates: Sequence[Sequence[Sequence[str]]]) -> CellSpec:
  """The cell of DARTS with these candidates, which are listed by node and edge."""
  used = {operation for edges in candidates for operations in edges for operation in operations}
  columns = tuple(operation for operation in ORDER if operation in used)
  whole = full_cell(columns, len(candidates), num_inputs=2, output='concat', kept=2)
  nodes = tuple(
    tuple(dataclasses.replace(edge, operations=tuple(own)) for edge, own in zip(edges, operations, strict=True))
    for edges, operations in zip(whole.nodes, candidates, strict=True)
  )
  return dataclasses.replace(whole, nodes=nodes)
