"""The convolutional cell: a directed acyclic graph whose edges mix candidate operations [DARTS §2.1–2.2]."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from darts_jax.nets.bilinear import as_channels, in_plain
from darts_jax.nets.channels import spread, weighted_sums
from darts_jax.nets.layers import WHOLE_BATCH, Affine, BatchNorm, NormGroups, evaluate
from darts_jax.nets.operations import FactorizedReduce, Operations, ReluConv, prune_operations
from darts_jax.runtime.materialise import materialise
from darts_jax.spaces import CellSpec

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


def prune_cell(variables: Mapping[str, Any], before: CellSpec, after: CellSpec, *, reduction: bool) -> dict[str, Any]:
  """Of the variables of a searched cell, those of a cell with fewer edges and operations.

  Args:
    variables: parameters or running statistics, NumPy arrays nested by module.
    before: of the cell.
    after: of the smaller cell; its edges are edges of `before`, with some of their operations.
    reduction: see `Cell`.

  Raises:
    ValueError: the smaller cell has something that the cell has not.
  """
  found = {name: values for name, values in variables.items() if not name.startswith('node')}
  for source in range(before.num_inputs + len(before.nodes)):
    groups, left = operation_groups(before, source), operation_groups(after, source)
    places = {operation: [target for _, target in members] for operation, members in groups.items()}
    kept: dict[str, list[int]] = {}
    for operation, members in left.items():
      for _, target in members:
        if target not in places.get(operation, ()):
          raise ValueError(f'edge {source} → {target}: {operation} is new; a cell can only lose operations')
        kept.setdefault(operation, []).append(places[operation].index(target))
    edges = tuple((operation, len(members)) for operation, members in groups.items())
    stride = 2 if reduction and source < before.num_inputs else 1
    values = prune_operations(variables.get(f'node{source}', {}), edges, kept, stride)
    if values:
      found[f'node{source}'] = values
  return found


class Cell(nn.Module):
  """A cell, searched or discrete, as its spec says.

  Attributes:
    spec: nodes, edges and candidate operations.
    channels: channels `C` of every node.
    reduction: whether the edges that leave the two inputs have stride 2.
    reduction_before: whether the cell before was a reduction cell, so that the first input is twice as large.
    discrete: whether operations are those of a discrete network (see `Operations`).
    smooth: whether the network is a smooth twin (see `Operations`).
    groups: the examples that share statistics of BN.
  """

  spec: CellSpec
  channels: int
  reduction: bool
  reduction_before: bool
  discrete: bool
  smooth: bool = False
  groups: NormGroups = WHOLE_BATCH

  @nn.compact
  def __call__(
    self, before_last: Array, last: Array, mixing: Array | None = None, drop_path: Array | None = None, *, train: bool
  ) -> Array:
    """Computes the cell.

    Args:
      before_last: `[N, H, W, ·]`, output of the cell before the last one; after a reduction, of an image that has
        become this size by it.
      last: `[N, H, W, ·]`, output of the last cell.
      mixing: `[E, O]` mixing weights, rows and columns as `spec` says; none for a discrete cell.
      drop_path: `[E, N]`, what the edges of a discrete cell are multiplied with for every image, but for identities;
        none for no drop path.
      train: whether BN uses the statistics of the batch.

    Returns:
      `[N, H', W', len(spec.outputs) · C]`, with H' = ⌈H/2⌉ in a reduction cell.
    """
    if self.reduction_before:
      first = FactorizedReduce(self.channels, 1, self.smooth, name='preprocess0')(before_last)[0]
    else:
      first = ReluConv(self.channels, self.smooth, name='preprocess0')(before_last)
    second = ReluConv(self.channels, self.smooth, name='preprocess1')(last)
    normalise = BatchNorm(self.discrete, self.groups, name='preprocess_bn')
    states = [materialise(x[0]) for x in evaluate(normalise.fold(first[None], second[None], train=train))]
    weights = None if mixing is None else _by_operation(mixing, self.spec)
    num_inputs = self.spec.num_inputs
    arriving: list[list[Array]] = [[] for _ in self.spec.nodes]
    for source in range(num_inputs + len(self.spec.nodes)):
      if source >= num_inputs:
        states.append(materialise(functools.reduce(jnp.add, arriving[source - num_inputs])))
      groups = operation_groups(self.spec, source)
      edges = tuple((operation, len(members)) for operation, members in groups.items())
      stride = 2 if self.reduction and source < num_inputs else 1
      operate = Operations(edges, stride, self.discrete, self.smooth, self.groups, name=f'node{source}')
      outputs = operate(states[source], train=train)
      by_members: dict[Members, list[str]] = {}
      for operation, members in groups.items():
        by_members.setdefault(members, []).append(operation)
      for members, operations in by_members.items():
        chosen = None if weights is None else [weights[source, operation] for operation in operations]
        images = [outputs[operation] for operation in operations]
        if as_channels():
          messages = _messages_of_channels(images, chosen, edges=len(members), channels=self.channels, plain=in_plain())
        else:
          messages = _messages(images, chosen, edges=len(members), plain=in_plain())
        for (edge, target), message in zip(members, messages, strict=True):
          if drop_path is not None and not (operations == ['skip_connect'] and stride == 1):
            message = message * drop_path[edge].astype(message.dtype)[:, None, None, None]
          arriving[target - num_inputs].append(message)
    return jnp.concatenate([states[node] for node in self.spec.outputs], axis=-1)


def _by_operation(mixing: Array, spec: CellSpec) -> dict[tuple[int, str], Array]:
  """Of mixing weights `[E, O]`, those of every operation that leaves a node, `[M]` for the edges that have it."""
  places = {
    (source, operation): [len(spec.operations) * edge + spec.operations.index(operation) for edge, _ in members]
    for source in range(spec.num_inputs + len(spec.nodes))
    for operation, members in operation_groups(spec, source).items()
  }
  # All at once, since the gradient of each indexing is a loop over what was taken.
  taken = mixing.reshape(-1)[np.concatenate([*places.values()])]
  return dict(zip(places, lax.split(taken, [len(each) for each in places.values()]), strict=True))


# A network has dozens of these, too, but few that differ (see `Operations`).
@functools.partial(jax.jit, static_argnames=('edges', 'plain'))
def _messages(images: Sequence[Affine], weights: Sequence[Array] | None, *, edges: int, plain: bool) -> list[Array]:
  """The weighted sums of operations on `M` edges that they all serve.

  Args:
    images: of every operation, `[M, N, H, W, C]`, or `[1, N, H, W, C]` if the edges share it.
    weights: of every operation, `[M]`; none for sums.
    edges: their number `M`.
    plain: see `in_plain_operations`, which holds or not.

  Returns:
    `[N, H, W, C]` for every edge.
  """
  del plain
  # Images that all edges share first, then those with one an edge.
  order = sorted(range(len(images)), key=lambda i: len(images[i].image))
  arrays = [images[i].image for i in order]
  shared = sum(len(x) == 1 for x in arrays)
  dtype, shape = arrays[0].dtype, (1, *arrays[0].shape[1:])
  lead = jnp.broadcast_shapes(*[(edges, *x.scale.shape[1:]) for x in images])

  def weighted(values: Sequence[Array]) -> Array:
    """`[O, M, 1, 1, 1, C]`, or for every image what there is 1 of, if they are normalised in groups."""
    stacked = jnp.stack([jnp.broadcast_to(value, lead) for value in values])
    if weights is None:
      return stacked
    return stacked * jnp.stack([weights[i] for i in order]).reshape(len(order), edges, *[1] * (len(lead) - 1))

  scale, offset = weighted([images[i].scale for i in order]), weighted([images[i].offset for i in order])
  messages = spread(jnp.sum(offset, axis=0).astype(dtype)[:, None], shape)
  if shared:
    factors = scale[:shared].astype(dtype).reshape(shared * edges, 1, *lead[1:])
    terms = tuple((i, j) for i in range(shared) for j in range(edges))
    messages = [x + y for x, y in zip(messages, weighted_sums(arrays[:shared], factors, terms), strict=True)]
  if shared < len(arrays):
    factors = scale[shared:].astype(dtype)
    [total] = weighted_sums(arrays[shared:], factors, tuple((i, 0) for i in range(len(factors))))
    messages = [x + y for x, y in zip(messages, lax.split(materialise(total), [1] * edges), strict=True)]
  return [message[0] for message in messages]


@functools.partial(jax.jit, static_argnames=('edges', 'channels', 'plain'))
def _messages_of_channels(
  images: Sequence[Affine], weights: Sequence[Array] | None, *, edges: int, channels: int, plain: bool
) -> list[Array]:
  """The same of edges as channels, images `[1, N, H, W, M·C]`, or `[1, N, H, W, C]` that the edges share."""
  del plain

  def repeated(x: Array) -> Array:
    return jnp.tile(x, edges * channels // x.shape[-1])

  def weighted(values: Sequence[Array]) -> Array:
    """`[O, 1, 1 or N, 1, 1, M·C]`."""
    stacked = jnp.stack([repeated(value) for value in values])
    if weights is None:
      return stacked
    shares = jnp.repeat(jnp.stack(weights), channels, axis=1)
    return stacked * shares.reshape(len(values), *[1] * (stacked.ndim - 2), -1)

  arrays = [repeated(each.image) for each in images]
  dtype, shape = arrays[0].dtype, arrays[0].shape
  scale, offset = weighted([each.scale for each in images]), weighted([each.offset for each in images])
  [total] = weighted_sums(arrays, scale.astype(dtype), tuple((i, 0) for i in range(len(arrays))))
  total = total + spread(jnp.sum(offset, axis=0).astype(dtype)[None], shape)[0]
  return list(lax.split(total[0], [channels] * edges, axis=-1))
