"""Cells whose edges are decided one after the other [SGAS §3].

Source: [SGAS] arXiv 1912.00195.
"""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import ArrayLike

from darts_jax.spaces.cells import CellSpec
from darts_jax.spaces.derivation import checked_mixing


def undecided_edges(spec: CellSpec, decided: Collection[int]) -> np.ndarray:
  """The edges that are still to be decided; a node with as many decided edges as it keeps has none.

  Args:
    spec: the searched cell.
    decided: rows of the decided edges.

  Returns:
    `[E]` bool.
  """
  undecided = np.zeros(spec.num_edges, bool)
  for rows, kept in zip(spec.rows, spec.num_kept, strict=True):
    if sum(row in decided for row in rows) < kept:
      undecided[[row for row in rows if row not in decided]] = True
  return undecided


def complete(mixing: ArrayLike, spec: CellSpec, decided: Mapping[int, str]) -> CellSpec:
  """Derives a discrete cell from the decisions so far and, for the rest, from mixing weights [SGAS §3].

  A node with too few decided edges takes its most important undecided edges, each with its best operation other than
  `none`. The importance of an edge is the sum of its mixing weights other than `none`. Ties go to the smaller index.
  The edges of a node are in the order of `spec`.

  Args:
    mixing: `[E, O]` mixing weights; rows are the edges of `spec`, columns its operations.
    spec: the searched cell, before any decision.
    decided: the operations of decided edges, by row.

  Raises:
    ValueError: `mixing` has another shape or is not finite, a node has too many decided edges, or too few edges in all.
  """
  mixing = checked_mixing(mixing, spec)
  real = [column for column, operation in enumerate(spec.operations) if operation != 'none']
  importance = mixing[:, real].sum(axis=-1)
  undecided = undecided_edges(spec, decided)
  nodes: list[list[tuple[str, int]]] = []
  for node, (rows, kept) in enumerate(zip(spec.rows, spec.num_kept, strict=True), spec.num_inputs):
    fixed = [row for row in rows if row in decided]
    # `sorted` is stable, so equally important edges stay in order. Edges that were removed have no weight.
    others = sorted((row for row in rows if undecided[row] and importance[row]), key=lambda row: -importance[row])
    chosen = sorted([*fixed, *others[: max(kept - len(fixed), 0)]])
    if len(chosen) != kept:
      raise ValueError(
        f'node {node}: {len(fixed)} edges are decided and {len(others)} undecided; {kept} have to be kept'
      )
    best = {row: spec.operations[real[int(np.argmax(mixing[row, real]))]] for row in chosen}
    nodes.append([(decided.get(row, best[row]), spec.edges[row][1].source) for row in chosen])
  return spec.discrete(nodes)
