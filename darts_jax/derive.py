"""α → genotype: which edges and operations a search keeps [DARTS §2.4, SGAS §3]."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from darts_jax.genotype import AnyGenotype, CellSpec, Genotype, Pairs, RecurrentGenotype


def derive_cell(mixing: ArrayLike, spec: CellSpec, num_kept: int = 2) -> Pairs:
  """The discrete cell that mixing weights stand for.

  The strength of an edge is the largest mixing weight among its candidates other than `none`. Every node
  keeps its `num_kept` strongest edges, strongest first, each with its best operation other than `none`.
  Ties go to the smaller index.

  Args:
    mixing: `[E, O]` mixing weights (not α), rows and columns as `spec` has edges and operations.
    spec: the searched cell.
    num_kept: edges kept a node: 2 in convolutional cells, 1 in recurrent ones.

  Returns:
    `(operation, source)` pairs, `num_kept` a node, node by node.

  Raises:
    ValueError: `mixing` has another shape, is not finite, or a node has too few edges to keep.
  """
  mixing = np.asarray(mixing)
  if mixing.shape != (spec.num_edges, len(spec.operations)):
    raise ValueError(
      f'mixing: shape {mixing.shape} does not fit a cell with {spec.num_edges} edges'
      f' and {len(spec.operations)} operations'
    )
  if not np.isfinite(mixing).all():
    raise ValueError('mixing: holds values that are not finite, so no architecture can be derived')
  pairs: list[tuple[str, int]] = []
  row = 0
  for i, edges in enumerate(spec.nodes):
    candidates = []
    for edge in edges:
      real = [operation for operation in edge.operations if operation != 'none']
      weights = [mixing[row, spec.operations.index(operation)] for operation in real]
      if real:
        best = int(np.argmax(weights))
        candidates.append((weights[best], real[best], edge.source))
      row += 1
    if len(candidates) < num_kept:
      raise ValueError(
        f'node {i + spec.num_inputs}: {len(candidates)} edges to choose from; {num_kept} have to be kept'
      )
    # sorted() is stable, so equally strong edges stay in the order of their index.
    strongest = sorted(candidates, key=lambda candidate: -candidate[0])[:num_kept]
    pairs.extend((operation, source) for _, operation, source in strongest)
  return tuple(pairs)


def derive_genotype(mixing: Mapping[str, ArrayLike], specs: Mapping[str, CellSpec]) -> AnyGenotype:
  """The genotype of a search: two edges a node of a convolutional cell are kept, and one of a recurrent cell.

  Args:
    mixing: `[E, O]` mixing weights of the cells `'normal'` and `'reduce'`, or of `'recurrent'`.
    specs: their cell specs.

  Raises:
    ValueError: as `derive_cell`.
  """
  return make_genotype({name: derive_cell(mixing[name], spec, spec.num_kept) for name, spec in specs.items()}, specs)


def make_genotype(pairs: Mapping[str, Pairs], specs: Mapping[str, CellSpec]) -> AnyGenotype:
  """The genotype of the pairs of its cells, `'normal'` and `'reduce'`, or `'recurrent'`, with the outputs of specs."""
  if 'recurrent' in specs:
    return RecurrentGenotype(pairs['recurrent'], specs['recurrent'].concat)
  return Genotype(pairs['normal'], specs['normal'].concat, pairs['reduce'], specs['reduce'].concat)


class Doubts(NamedTuple):
  """What of a genotype would be otherwise if mixing weights moved once more as far as they just did.

  Attributes:
    kept: edges of the genotype.
    edges: those of them that another edge into the same node could replace.
    operations: edges of the genotype whose operation another one could replace.
  """

  kept: int
  edges: int
  operations: int

  @property
  def message(self) -> str | None:
    """One line, if there are any."""
    if not self.edges and not self.operations:
      return None
    return (
      f'the genotype is not settled: {self.edges} of its {self.kept} edges and {self.operations} of their operations'
      ' would be others if α moved once more as far as in the last epoch; a longer search tells more'
    )


def doubts(before: Mapping[str, ArrayLike], after: Mapping[str, ArrayLike], specs: Mapping[str, CellSpec]) -> Doubts:
  """How firmly `derive_genotype` chooses, against what mixing weights moved in an epoch.

  An edge or operation is in doubt if another one has as large a weight once each weight has moved, in whatever
  direction, as far as in that epoch. Ties are in doubt.

  Args:
    before: `[E, O]` mixing weights of every kind of cell, before the epoch.
    after: likewise, after it; the genotype is derived from these.
    specs: the cells.

  Raises:
    ValueError: as `derive_genotype`.
  """
  kept = edges = operations = 0
  for name, spec in specs.items():
    pairs = derive_cell(after[name], spec, spec.num_kept)
    weights = np.asarray(after[name], np.float64)
    moved = np.abs(weights - np.asarray(before[name], np.float64))
    for node, rows in enumerate(spec.rows):
      sources = {spec.edges[row][1].source: row for row in rows}
      columns = {
        row: [spec.operations.index(each) for each in spec.edges[row][1].operations if each != 'none'] for row in rows
      }
      own = pairs[spec.num_kept * node : spec.num_kept * (node + 1)]
      chosen = {sources[source]: spec.operations.index(operation) for operation, source in own}
      highest = {row: max((weights + moved)[row, columns[row]], default=-np.inf) for row in rows}
      largest = max((highest[row] for row in rows if row not in chosen), default=-np.inf)
      for row, column in chosen.items():
        kept += 1
        edges += bool(max((weights - moved)[row, columns[row]]) <= largest)
        rivals = [(weights + moved)[row, other] for other in columns[row] if other != column]
        operations += bool((weights - moved)[row, column] <= max(rivals, default=-np.inf))
  return Doubts(kept, edges, operations)


def undecided_edges(spec: CellSpec, decided: Collection[int]) -> np.ndarray:
  """`[E]` bool: edges that are left to decide; a node with as many decided edges as it keeps has none.

  Args:
    spec: the searched cell.
    decided: rows of mixing weights that are decided edges.
  """
  undecided = np.zeros(spec.num_edges, bool)
  for rows in spec.rows:
    if sum(row in decided for row in rows) < spec.num_kept:
      undecided[[row for row in rows if row not in decided]] = True
  return undecided


def complete_cell(mixing: ArrayLike, spec: CellSpec, decided: Mapping[int, str]) -> Pairs:
  """The discrete cell that a sequence of decisions ends with if it has to end here [SGAS §3].

  Nodes that are short of decided edges take the most important undecided ones, each with its best operation other than
  `none`. The importance of an edge is the mixing weight of all its operations other than `none`. Ties go to the smaller
  index.

  Args:
    mixing: `[E, O]` mixing weights, rows and columns as `spec` has edges and operations.
    spec: the searched cell, before any decision.
    decided: by row, the operations of decided edges.

  Returns:
    `(operation, source)` pairs, node by node, in the order of edges.

  Raises:
    ValueError: `mixing` is not finite, or a node has too many decided edges, or too few edges at all.
  """
  mixing = np.asarray(mixing)
  if not np.isfinite(mixing).all():
    raise ValueError('mixing: holds values that are not finite, so no architecture can be derived')
  real = [column for column, operation in enumerate(spec.operations) if operation != 'none']
  importance = mixing[:, real].sum(axis=-1)
  undecided = undecided_edges(spec, decided)
  pairs: list[tuple[str, int]] = []
  for node, rows in enumerate(spec.rows, spec.num_inputs):
    kept = [row for row in rows if row in decided]
    # sorted() is stable, so equally important edges stay in the order of their index. One without any weight is gone.
    others = sorted((row for row in rows if undecided[row] and importance[row]), key=lambda row: -importance[row])
    chosen = sorted([*kept, *others[: max(spec.num_kept - len(kept), 0)]])
    if len(chosen) != spec.num_kept:
      raise ValueError(
        f'node {node}: {len(kept)} edges are decided and {len(others)} undecided; {spec.num_kept} have to be kept'
      )
    for row in chosen:
      best = spec.operations[real[int(np.argmax(mixing[row, real]))]]
      pairs.append((decided.get(row, best), spec.edges[row][1].source))
  return tuple(pairs)
