"""Mixing weights, by which a supernet mixes candidate operations."""

from typing import Any, NamedTuple


class Mixing(NamedTuple):
  """Mixing weights of one kind of cell, and masks of operations that a strategy leaves out of a step.

  The output of an edge is Σ_o w_o · y_o over its operations o. If an operation is not computed, y_o is a constant image
  of the value `constant`, or of zeros if that is None. If also w_o = 0, the image does not change the output, but the
  gradient of w_o is computed with it [GDAS]. All fields are arrays or None, so that mixing weights are a pytree.

  Attributes:
    operations: `[E, O]`, weights w of the operations; rows are the edges of a `CellSpec`, columns its operations.
    edges: `[E]`, weights of the edges in the sum of their target node [PC-DARTS §3.3]; None for ones.
    active: `[E, O]` bool, operations whose network weights and momentum an update moves; None for all.
    computed: `[E, O]` bool, operations that are computed; the others keep their running statistics. None for all.
    constant: `[]`, the value in the images of operations that are not computed; None for zero.
    drop: `[E]`, probabilities that drop path leaves an edge out of the sum of its target node, drawn for every cell and
      image in training mode; an edge that stays is divided by the probability that it stays, which keeps the
      expectation [RobustDARTS §5.1]. None for no drop path.
  """

  operations: Any
  edges: Any | None = None
  active: Any | None = None
  computed: Any | None = None
  constant: Any | None = None
  drop: Any | None = None
