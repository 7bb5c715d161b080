"""α → genotype: which edges and operations a search keeps [DARTS §2.4, SGAS §3]."""

from collections.abc import Collection, Mapping

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
