"""The weights by which a supernet mixes candidate operations."""

from typing import Any, NamedTuple


class Mixing(NamedTuple):
  """Mixing weights of one kind of cell, and what becomes of operations that a strategy leaves out of a step.

  The image of an edge is Σ_o w_o · y_o over its operations. For an operation that is not computed, y_o is the constant
  image of the number `constant`, of zeros if that is None; with a weight of 0 it changes no value, but the gradient of
  its weight is that of this image [GDAS]. All fields are arrays, so that mixing weights are a pytree of these.

  Attributes:
    operations: `[E, O]`, of every operation on every edge; rows and columns as `CellSpec` has edges and operations.
    edges: `[E]`, of every edge in the sum of the node it arrives at [PC-DARTS §3.3]; None where all count as one.
    active: `[E, O]` bool: the operations whose weights, and the momentum of these, an update moves; None for all.
    computed: `[E, O]` bool: the operations that are computed; the others leave their running statistics as they are,
      too. None for all.
    constant: `[]`: every pixel of what stands for an operation that is not computed; None for zeros.
    drop: `[E]`: the probability that drop path leaves an edge out of the sum of its node, drawn for every cell and
      image by itself in training mode; an edge that stays is divided by the probability that it does, so that
      expectations are as without [RobustDARTS §5.1]. None for no drop path.
  """

  operations: Any
  edges: Any | None = None
  active: Any | None = None
  computed: Any | None = None
  constant: Any | None = None
  drop: Any | None = None
