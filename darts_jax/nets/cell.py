"""The convolutional cell: a directed acyclic graph whose edges mix candidate operations [DARTS §2.1–2.2]."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from darts_jax.genotype import NUM_INPUTS, CellSpec
from darts_jax.nets.materialise import materialise
from darts_jax.nets.operations import FactorizedReduce, ReluConvBN, apply_operations

Array = jax.Array


Members = tuple[tuple[int, int], ...]


def operation_groups(spec: CellSpec, source: int) -> dict[str, Members]:
  """What leaves a node: for every operation the `(edge, target)` pairs it serves, in the order of edges.

  A group is computed together and its parameters are stacked in this order.
  """
  groups: dict[str, list[tuple[int, int]]] = {}
  for index, (target, edge) in enumerate(spec.edges):
    if edge.source == source:
      for operation in edge.operations:
        if operation != 'none':
          groups.setdefault(operation, []).append((index, target))
  return {operation: tuple(members) for operation, members in groups.items()}


class Cell(nn.Module):
  """A cell, searched or discrete, as its spec says.

  Attributes:
    spec: nodes, edges and candidate operations.
    channels: channels `C` of every node.
    reduction: whether the edges that leave the two inputs have stride 2.
    reduction_before: whether the cell before was a reduction cell, so that the first input is twice as large.
    discrete: whether operations are those of a discrete network (see `apply_operations`).
  """

  spec: CellSpec
  channels: int
  reduction: bool
  reduction_before: bool
  discrete: bool

  @nn.compact
  def __call__(self, before_last: Array, last: Array, mixing: Array | None = None, *, train: bool) -> Array:
    """Computes the cell.

    Args:
      before_last: `[N, H, W, ·]`, output of the cell before the last one (`[N, 2H, 2W, ·]` after a reduction).
      last: `[N, H, W, ·]`, output of the last cell.
      mixing: `[E, O]` mixing weights, rows and columns as `spec` says; none for a discrete cell.
      train: whether BN uses the statistics of the batch.

    Returns:
      `[N, H', W', len(spec.concat) · C]`, with H' = H/2 in a reduction cell.

    Raises:
      ValueError: the height or width is odd where it has to be halved.
    """
    affine = self.discrete
    if self.reduction_before:
      first = FactorizedReduce(self.channels, 1, affine, name='preprocess0')(before_last, train=train)
    else:
      first = ReluConvBN(self.channels, affine, name='preprocess0')(before_last, train=train)
    second = ReluConvBN(self.channels, affine, name='preprocess1')(last, train=train)
    states = [materialise(first), materialise(second)]
    arriving: list[list[Array]] = [[] for _ in self.spec.nodes]
    for source in range(NUM_INPUTS + len(self.spec.nodes)):
      if source >= NUM_INPUTS:
        states.append(materialise(functools.reduce(jnp.add, arriving[source - NUM_INPUTS])))
      groups = operation_groups(self.spec, source)
      outputs = apply_operations(
        {operation: len(members) for operation, members in groups.items()},
        states[source],
        stride=2 if self.reduction and source < NUM_INPUTS else 1,
        discrete=self.discrete,
        scope=f'node{source}',
        train=train,
      )
      messages: dict[Members, Array] = {}
      for operation, members in groups.items():
        output = outputs[operation]
        output = output.reshape(*output.shape[:3], -1, self.channels)
        if mixing is not None:
          rows = np.array([edge for edge, _ in members])
          weights = mixing[rows, self.spec.operations.index(operation)].astype(output.dtype)
          output = output * weights[:, None]
        messages[members] = messages[members] + output if members in messages else output
      for members, message in messages.items():
        message = jnp.broadcast_to(message, (*message.shape[:3], len(members), self.channels))
        message = materialise(message.reshape(*message.shape[:3], -1))
        # Not slices: the transpose of a split is one concatenation, that of slices a sum of padded images.
        parts = lax.split(message, [self.channels] * len(members), axis=3)
        for (_, target), part in zip(members, parts, strict=True):
          arriving[target - NUM_INPUTS].append(part)
    return jnp.concatenate([states[node] for node in self.spec.concat], axis=-1)
