"""The parts of a search's architecture that are in doubt, judged by how far mixing weights moved in the last epoch."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from darts_jax.spaces.cells import CellSpec
from darts_jax.spaces.derivation import strongest


class Doubts(NamedTuple):
  """Numbers of edges of a genotype that could change if mixing weights moved once more as far as in the last epoch.

  Attributes:
    kept: number of edges of the genotype.
    edges: number of its edges that another edge into the same node could replace.
    operations: number of its edges whose operation another operation could replace.
  """

  kept: int
  edges: int
  operations: int

  @property
  def message(self) -> str | None:
    """A one-line warning; None if nothing is in doubt."""
    if not self.edges and not self.operations:
      return None
    return (
      f'the genotype is not settled: {self.edges} of its {self.kept} edges and {self.operations} of their operations'
      ' would be others if α moved once more as far as in the last epoch; a longer search tells more'
    )


def doubts(
  before: Mapping[str, ArrayLike],
  after: Mapping[str, ArrayLike],
  cells: Mapping[str, CellSpec],
  *,
  keeps_none: bool = False,
) -> Doubts:
  """Counts the choices of `strongest` that are in doubt, given how far mixing weights moved in an epoch.

  Let every weight move again by the same distance, up or down. An edge or operation is in doubt if a rival's weight can
  become at least as large as its own. Ties are in doubt.

  Args:
    before: `[E, O]` mixing weights of every kind of cell before the epoch.
    after: `[E, O]` mixing weights of every kind of cell after the epoch, from which the genotype is derived.
    cells: the searched cells.
    keeps_none: see `strongest`.

  Raises:
    ValueError: as `strongest`.
  """
  kept = edges = operations = 0
  for name, spec in cells.items():
    found = strongest(after[name], spec, keeps_none=keeps_none)
    weights = np.asarray(after[name], np.float64)
    moved = np.abs(weights - np.asarray(before[name], np.float64))
    for rows, own in zip(spec.rows, found.nodes, strict=True):
      sources = {spec.edges[row][1].source: row for row in rows}
      columns = {
        row: [spec.operations.index(each) for each in spec.edges[row][1].choices(keeps_none=keeps_none)] for row in rows
      }
      chosen = {sources[edge.source]: spec.operations.index(edge.operations[0]) for edge in own}
      highest = {row: max((weights + moved)[row, columns[row]], default=-np.inf) for row in rows}
      largest = max((highest[row] for row in rows if row not in chosen), default=-np.inf)
      for row, column in chosen.items():
        kept += 1
        edges += bool(max((weights - moved)[row, columns[row]]) <= largest)
        rivals = [(weights + moved)[row, other] for other in columns[row] if other != column]
        operations += bool((weights - moved)[row, column] <= max(rivals, default=-np.inf))
  return Doubts(kept, edges, operations)
