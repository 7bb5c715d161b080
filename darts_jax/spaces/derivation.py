"""The architecture that mixing weights stand for: the strongest edges of every node, each with its best operation.

Source: [DARTS] arXiv 1806.09055.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
  # Spaces of cells derive architectures themselves.
  from darts_jax.spaces.cells import CellSpec


def strongest(mixing: ArrayLike, spec: 'CellSpec', *, keeps_none: bool = False) -> 'CellSpec':
  """The discrete cell that mixing weights stand for [DARTS §2.4].

  The strength of an edge is the largest mixing weight among its candidates. Every node keeps its strongest edges,
  strongest first, each with its best operation; a node that keeps all of its edges leaves them in their order. Ties go
  to the smaller index.

  Args:
    mixing: `[E, O]` mixing weights (not α), rows and columns as `spec` has edges and operations.
    spec: the searched cell.
    keeps_none: whether `none` is a candidate, too.

  Raises:
    ValueError: `mixing` has another shape, is not finite, or a node has too few edges to keep.
  """
  mixing = checked_mixing(mixing, spec)
  nodes: list[list[tuple[str, int]]] = []
  for node, (rows, kept) in enumerate(zip(spec.rows, spec.num_kept, strict=True), spec.num_inputs):
    candidates = []
    for row in rows:
      edge = spec.edges[row][1]
      allowed = edge.choices(keeps_none=keeps_none)
      weights = [mixing[row, spec.operations.index(operation)] for operation in allowed]
      if allowed:
        best = int(np.argmax(weights))
        candidates.append((weights[best], allowed[best], edge.source))
    if len(candidates) < kept:
      raise ValueError(f'node {node}: {len(candidates)} edges to choose from; {kept} have to be kept')
    # sorted() is stable, so equally strong edges stay in the order of their index.
    ordered = candidates if spec.kept is None else sorted(candidates, key=lambda candidate: -candidate[0])
    nodes.append([(operation, source) for _, operation, source in ordered[:kept]])
  return spec.discrete(nodes)


def checked_mixing(mixing: ArrayLike, spec: 'CellSpec') -> np.ndarray:
  """Mixing weights of a cell as an array; raises a ValueError if their shape is another or one is not finite."""
  mixing = np.asarray(mixing)
  if mixing.shape != (spec.num_edges, len(spec.operations)):
    raise ValueError(
      f'mixing: shape {mixing.shape} does not fit a cell with {spec.num_edges} edges'
      f' and {len(spec.operations)} operations'
    )
  if not np.isfinite(mixing).all():
    raise ValueError('mixing: holds values that are not finite, so no architecture can be derived')
  return mixing
