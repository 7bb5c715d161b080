"""The convolutional cell: a directed acyclic graph whose edges mix candidate operations [DARTS §2.1–2.2]."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from darts_jax.nets.bilinear import as_channels, in_plain
from darts_jax.nets.channels import shuffle_channels, spread, weighted_sums
from darts_jax.nets.layers import WHOLE_BATCH, Affine, BatchNorm, NormGroups, evaluate
from darts_jax.nets.mixed import Weights, weights_of
from darts_jax.nets.operations import FactorizedReduce, Operations, ReluConv
from darts_jax.nets.pooling import halve, max_halve
from darts_jax.runtime.materialise import materialise
from darts_jax.spaces import CellSpec, Mixing
from darts_jax.spaces.operations import NOISE

Array = jax.Array


Members = tuple[tuple[int, int], ...]


def operation_groups(spec: CellSpec, source: int) -> dict[str, Members]:
  """The edges that leave a node, grouped by operation: `(edge, target)` pairs in the order of edges.

  The edges of a group are computed together, and their parameters are stacked in this order. `none` has no group.
  """
  groups: dict[str, list[tuple[int, int]]] = {}
  for index, (target, edge) in enumerate(spec.edges):
    if edge.source == source:
      for operation in edge.operations:
        if operation != 'none':
          groups.setdefault(operation, []).append((index, target))
  return {operation: tuple(members) for operation, members in groups.items()}


def node_operations(spec: CellSpec, source: int, *, stride: int, discrete: bool, **settings: Any) -> Operations:
  """The module of all operations that leave a node.

  Args:
    spec: spec of the cell.
    source: number of the node.
    stride: stride of the cell; edges that leave an intermediate node have stride 1.
    discrete: whether the network is discrete.
    **settings: further fields of `Operations`.
  """
  groups = operation_groups(spec, source)
  # Noise is not computed of a node.
  edges = [(operation, len(members)) for operation, members in groups.items() if operation != NOISE]
  if not discrete:
    # Sorted, so that the variables of a pruned supernet keep the order that they have in this one.
    edges.sort(key=lambda each: spec.operations.index(each[0]))
  stride = stride if source < spec.num_inputs else 1
  return Operations(tuple(edges), stride, discrete, pools_normalised=spec.pools_normalised, **settings)


class Cell(nn.Module):
  """A cell, searched or discrete, as its spec says.

  Attributes:
    spec: nodes, edges and candidate operations, how inputs are prepared and how nodes become the output.
    channels: channels `C` of every node.
    stride: stride of the edges that leave the inputs, 1 or 2.
    larger: for each input, whether it is twice as large as the last one, since a layer after it had stride 2.
    discrete: whether the network is discrete (see `Operations`).
    smooth: whether the network is a smooth twin (see `Operations`).
    groups: groups of examples that share BN statistics.
    tracked: whether BN has running statistics.
    channel_part: K for partial channels [PC-DARTS §3.2]: operations compute the first C/K channels of a node; the other
      channels bypass them (through 2×2 maximum pooling where the stride is 2), and the channels of every node are
      shuffled. 1 if operations compute all channels.
  """

  spec: CellSpec
  channels: int
  stride: int
  larger: tuple[bool, ...]
  discrete: bool
  smooth: bool = False
  groups: NormGroups = WHOLE_BATCH
  tracked: bool = True
  channel_part: int = 1

  @nn.compact
  def __call__(
    self,
    inputs: Sequence[Array],
    mixing: Mixing | Array | None = None,
    drop_path: Array | None = None,
    keys: Array | None = None,
    *,
    train: bool,
  ) -> Array:
    """Computes the cell.

    Args:
      inputs: `[N, H, W, ·]` for each input, the output of the last layer last; `[N, 2H, 2W, ·]`, or one pixel less,
        for inputs that are larger.
      mixing: mixing weights, with rows and columns as in `spec`, or the weights of operations alone, `[E, O]`; None for
        a discrete cell.
      drop_path: `[E, N]` factors for each edge and each image; identities of a discrete cell are not multiplied. None
        for no drop path.
      keys: `[N]` typed random keys for the noise of each image; `[1]`, or None, for the same noise for all images.
      train: whether BN uses the statistics of the batch.

    Returns:
      `[N, ⌈H/stride⌉, ⌈W/stride⌉, D]`; `D` is `C` times the number of output nodes if they are concatenated, otherwise
      `C`.

    Raises:
      ValueError: inputs have a size or number of channels that the cell cannot read.
    """
    spec, num_inputs = self.spec, self.spec.num_inputs
    states = self._prepare(inputs, train)
    mixed = None if mixing is None else weights_of(mixing, spec)
    weights = None if mixed is None else _by_operation(mixed, spec)
    arriving: list[list[Array]] = [[] for _ in spec.nodes]
    part, passed = self.channels // self.channel_part, list[Array]()
    noise = self._noise(states[0], part, keys)
    for source in range(num_inputs + len(spec.nodes)):
      if source >= num_inputs:
        node = source - num_inputs
        states.append(self._merged(arriving[node], node, states[0], mixed, passed))
      image = states[source]
      if self.channel_part > 1:
        image, rest = image[..., :part], image[..., part:]
        halving = halve if self.smooth else max_halve
        passed.append(halving(rest) if self.stride == 2 and source < num_inputs else materialise(rest))
      groups = operation_groups(spec, source)
      stride = self.stride if source < num_inputs else 1
      settings: dict[str, Any] = {'smooth': self.smooth, 'groups': self.groups, 'tracked': self.tracked}
      operate = node_operations(
        spec, source, stride=self.stride, discrete=self.discrete, **settings, name=f'node{source}'
      )
      outputs = operate(image, train=train)
      if source in noise:
        outputs[NOISE] = Affine.identity(noise[source])
      by_members: dict[Members, list[str]] = {}
      for operation, members in groups.items():
        by_members.setdefault(members, []).append(operation)
      for members, operations in by_members.items():
        chosen = None if weights is None else [weights[source, operation] for operation in operations]
        images = [outputs[operation] for operation in operations]
        if as_channels():
          messages = _messages_of_channels(images, chosen, edges=len(members), channels=part, plain=in_plain())
        else:
          messages = _messages(images, chosen, edges=len(members), plain=in_plain())
        for (edge, target), message in zip(members, messages, strict=True):
          is_identity = self.discrete and operations == ['skip_connect'] and stride == 1
          if drop_path is not None and not is_identity:
            message = message * drop_path[edge].astype(message.dtype)[:, None, None, None]
          arriving[target - num_inputs].append(message)
    found = [states[node] for node in spec.outputs]
    if spec.output == 'concat':
      return jnp.concatenate(found, axis=-1)
    return found[0] if len(found) == 1 else functools.reduce(jnp.add, found) / len(found)

  def _noise(self, first: Array, channels: int, keys: Array | None) -> dict[int, Array]:
    """Numbers of a standard normal distribution for the edges with noise that leave a node, as stacks.

    Args:
      first: the first input.
      channels: that operations compute.
      keys: see `__call__`.
    """
    sources = range(self.spec.num_inputs + len(self.spec.nodes))
    counts = {source: len(operation_groups(self.spec, source).get(NOISE, ())) for source in sources}
    counts = {source: count for source, count in counts.items() if count}
    if not counts:
      return {}
    keys = jax.random.key(0)[None] if keys is None else keys
    # Of all edges at once, since each draw of its own would add a copy of the random generator to the program.
    shape = (sum(counts.values()), *(-(-side // self.stride) for side in first.shape[1:3]), channels)
    drawn = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32), out_axes=1)(keys).astype(first.dtype)
    whole = jnp.broadcast_to(materialise(drawn), (shape[0], len(first), *shape[1:]))
    stacks = lax.split(whole, [*counts.values()])
    if as_channels():
      stacks = [jnp.concatenate([*stack], axis=-1)[None] for stack in stacks]
    return dict(zip(counts, stacks, strict=True))

  def _prepare(self, inputs: Sequence[Array], train: bool) -> list[Array]:
    """Prepares the inputs: the images of the input nodes, `[N, H, W, C]` each."""
    if self.spec.preparation == 'none':
      for x in inputs:
        if any(self.larger) or x.shape[-1] != self.channels:
          raise ValueError(
            f'plan: {self.name}: an input has {x.shape[-1]} channels, or is larger than another one; a cell that does'
            f' not prepare its inputs reads {self.channels} channels of one size (the stem has C if stem_multiplier=1)'
          )
      return [materialise(x) for x in inputs]
    projected = []
    for i, (x, larger) in enumerate(zip(inputs, self.larger, strict=True)):
      if larger:
        projected.append(FactorizedReduce(self.channels, 1, self.smooth, name=f'preprocess{i}')(x)[0])
      else:
        projected.append(ReluConv(self.channels, self.smooth, name=f'preprocess{i}')(x))
    normalise = BatchNorm(self.discrete, self.groups, self.tracked, name='preprocess_bn')
    return [materialise(x[0]) for x in evaluate(normalise.fold(*[x[None] for x in projected], train=train))]

  def _merged(
    self, messages: Sequence[Array], node: int, first: Array, mixed: Weights | None, passed: Sequence[Array]
  ) -> Array:
    """The state of an intermediate node; zeros if only `none` arrives.

    Args:
      messages: images that arrive along edges.
      node: number of the node, counted from the first intermediate node.
      first: image of the first input.
      mixed: weights of the cell; None if it is discrete.
      passed: for every earlier node, the channels that bypass the operations; empty without partial channels.
    """
    rows = self.spec.rows[node]
    constant = None if mixed is None else mixed.constant_of(rows)
    if messages:
      total = functools.reduce(jnp.add, messages)
    else:
      number, height, width, _ = first.shape
      channels = self.channels // self.channel_part
      total = jnp.zeros((number, -(-height // self.stride), -(-width // self.stride), channels), first.dtype)
    if constant is not None:
      total = total + constant.astype(total.dtype)
    if passed:
      images = [passed[edge.source] for edge in self.spec.nodes[node]]
      edges = None if mixed is None or mixed.edges is None else mixed.edges[np.array(rows, int)]
      total = shuffle_channels(jnp.concatenate([total, _passed_on(images, edges)], axis=-1), self.channel_part)
    elif constant is None and not messages:
      return total
    return materialise(total / len(self.spec.nodes[node]) if self.spec.merge == 'mean' else total)


def folded(keys: Array, number: int) -> Array:
  """`[N]` typed random keys, each folded with a number."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _passed_on(images: Sequence[Array], edges: Array | None) -> Array:
  """The sum of images `[N, H, W, C]`, each times the weight of its edge, `[E]`; with None, the plain sum."""
  if edges is None:
    return functools.reduce(jnp.add, images)
  factors = jnp.broadcast_to(edges.astype(images[0].dtype)[:, None], (len(images), images[0].shape[-1]))
  return weighted_sums(images, factors, tuple((i, 0) for i in range(len(images))))[0]


def _by_operation(weights: Weights, spec: CellSpec) -> dict[tuple[int, str], Array]:
  """The weights by source node and operation: `[M]` for the `M` edges that leave the node with this operation."""
  operations = weights.operations
  if weights.edges is not None:
    # The edge weight scales the sum of the edge; multiplied into the operation weights it costs vectors, not images.
    operations = operations * weights.edges[:, None]
  places = {
    (source, operation): [len(spec.operations) * edge + spec.operations.index(operation) for edge, _ in members]
    for source in range(spec.num_inputs + len(spec.nodes))
    for operation, members in operation_groups(spec, source).items()
  }
  if not places:
    return {}
  # One gather for all, since the gradient of each gather is a loop over its elements.
  taken = operations.reshape(-1)[np.concatenate([*places.values()])]
  return dict(zip(places, lax.split(taken, [len(each) for each in places.values()]), strict=True))


# A network calls this dozens of times with few different shapes; jit traces each of them once.
@functools.partial(jax.jit, static_argnames=('edges', 'plain'))
def _messages(images: Sequence[Affine], weights: Sequence[Array] | None, *, edges: int, plain: bool) -> list[Array]:
  """The weighted sums over operations on `M` edges that have the same operations.

  Args:
    images: for every operation, `[M, N, H, W, C]`, or `[1, N, H, W, C]` if the edges share one image.
    weights: for every operation, `[M]`; None for unweighted sums.
    edges: number of edges `M`.
    plain: whether this is traced within `in_plain_operations`; only part of the key of jit's cache.

  Returns:
    `[N, H, W, C]` for every edge.
  """
  del plain
  # Images that all edges share come first, then the stacks with one image per edge.
  order = sorted(range(len(images)), key=lambda i: len(images[i].image))
  arrays = [images[i].image for i in order]
  shared = sum(len(x) == 1 for x in arrays)
  dtype, shape = arrays[0].dtype, (1, *arrays[0].shape[1:])
  lead = jnp.broadcast_shapes(*[(edges, *x.scale.shape[1:]) for x in images])

  def weighted(values: Sequence[Array]) -> Array:
    """`[O, M, 1, 1, 1, C]`, or `[O, M, N, 1, 1, C]` if images are normalised in groups."""
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
  """`_messages` for edges as channels: images are `[1, N, H, W, M·C]`, or `[1, N, H, W, C]` if the edges share one."""
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
