"""Mixing weights: what a strategy gives a supernet, and what the cells of the supernet read."""

from typing import Any, NamedTuple

Array = Any


class Mixing(NamedTuple):
  """The weights of one kind of cell; rows and columns are the edges and operations of its `CellSpec`.

  Attributes:
    operations: `[E, O]`, what the outputs of the operations of an edge are multiplied with.
    edges: `[E]`, what the sum of an edge is multiplied with when it arrives at its node; None for 1.
  """

  operations: Array
  edges: Array | None = None
