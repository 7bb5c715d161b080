"""α → genotype: which edges and operations a search keeps [DARTS §2.4]."""

from collections.abc import Mapping

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
  if 'recurrent' in specs:
    cell = specs['recurrent']
    return RecurrentGenotype(derive_cell(mixing['recurrent'], cell, num_kept=1), cell.concat)
  normal, reduce = (derive_cell(mixing[name], specs[name]) for name in ('normal', 'reduce'))
  return Genotype(normal, specs['normal'].concat, reduce, specs['reduce'].concat)
