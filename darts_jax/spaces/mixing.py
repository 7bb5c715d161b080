"""The weights by which a supernet mixes candidate operations."""

from typing import Any, NamedTuple


class Mixing(NamedTuple):
  """Mixing weights of one kind of cell.

  Attributes:
    operations: `[E, O]`, of every operation on every edge; rows and columns as `CellSpec` has edges and operations.
    edges: `[E]`, of every edge in the sum of the node it arrives at [PC-DARTS §3.3]; None where all count as one.
  """

  operations: Any
  edges: Any | None = None
