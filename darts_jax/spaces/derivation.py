"""Derivation of a discrete cell from mixing weights: the strongest edges of every node, each with its best operation.

Source: [DARTS] arXiv 1806.09055.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
  # `cells` imports this module.
  from darts_jax.spaces.cells import CellSpec


def strongest(mixing: ArrayLike, spec: 'CellSpec', *, keeps_none: bool = False) -> 'CellSpec':
  """Derives a discrete cell from mixing weights [DARTS §2.4].

  The strength of an edge is the largest mixing weight of its candidates. Every node keeps its `spec.kept` strongest
  edges, strongest first, each with its best operation; if it keeps all, they stay in the order of `spec`. Ties go to
  the smaller index.

  Args:
    mixing: `[E, O]` mixing weights (not α); rows are the edges of `spec`, columns its operations.
    spec: the searched cell.
    keeps_none: whether `none` counts as a candidate.

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
    # `sorted` is stable, so equally strong edges stay in order.
    ordered = candidates if spec.kept is None else sorted(candidates, key=lambda candidate: -candidate[0])
    nodes.append([(operation, source) for _, operation, source in ordered[:kept]])
  return spec.discrete(nodes)


def checked_mixing(mixing: ArrayLike, spec: 'CellSpec') -> np.ndarray:
  """Mixing weights of a cell as a NumPy array; raises a ValueError if they have another shape or are not finite."""
  mixing = np.asarray(mixing)
  if mixing.shape != (spec.num_edges, len(spec.operations)):
    raise ValueError(
      f'mixing: shape {mixing.shape} does not fit a cell with {spec.num_edges} edges'
      f' and {len(spec.operations)} operations'
    )
  if not np.isfinite(mixing).all():
    raise ValueError('mixing: holds values that are not finite, so no architecture can be derived')
  return mixing
