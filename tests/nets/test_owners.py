"""Owners of packed variables, by hand and by what a smaller supernet computes with what is left."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from darts_jax.nets.conv import Supernet
from darts_jax.nets.owners import Owner, left, owners
from darts_jax.runtime.packed import Packed
from darts_jax.spaces import CellSpec, Darts, Edge, Layer, Plan
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.spaces.operations import OPERATIONS

SPACE = Darts(2).cells['normal']
CHANNELS = 2
TWO_LAYERS = Plan((Layer('cell'), Layer('cell', 2, 2)))


def supernet(spec, plan=TWO_LAYERS, **attributes):
  return Supernet((('cell', spec),), plan, CHANNELS, 5, **attributes)


def shapes(net):
  mixing = {name: jnp.ones((spec.num_edges, len(spec.operations))) for name, spec in net.cells}
  return jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), mixing, train=True))


def pruned(spec, kept):
  """A cell with the operations `kept[edge]` on its edges; none for an edge that is gone."""
  edges = iter(kept)
  nodes = tuple(
    tuple(Edge(edge.source, tuple(some)) for edge in node for some in [next(edges)] if some) for node in spec.nodes
  )
  return dataclasses.replace(spec, nodes=nodes)


def test_places_of_a_small_supernet_by_hand():
  """Edges 0 and 2 leave node 0, edges 1 and 3 node 1 and edge 4 node 2; BN has separable convolutions before pools."""
  spec = Darts(2, ('max_pool_3x3', 'sep_conv_3x3')).cells['normal']
  net = supernet(spec, Plan((Layer('cell'),)))
  variables = shapes(net)
  statistics = owners(net, variables['batch_stats'])
  convs = {edge: Owner('cell', (edge,), 1) for edge in range(5)}
  pools = [Owner('cell', (0, 2), 0), Owner('cell', (1, 3), 0), Owner('cell', (4,), 0)]
  expected = []
  for edges, pool in zip(((0, 2), (1, 3), (4,)), pools, strict=True):
    stage = [convs[edge] for edge in edges for _ in range(CHANNELS)]
    # Means and variances of the first BN, which pools have, too, and of the second.
    expected += 2 * (stage + CHANNELS * [pool]) + 2 * stage
  # The inputs' and the stem's.
  expected += [None] * (2 * 2 * CHANNELS + 2 * 3 * CHANNELS)
  named = [None if place < 0 else statistics.owners[place] for place in statistics.entries]
  assert named == expected

  weights = owners(net, variables['params'])
  expected = []
  for edges in ((0, 2), (1, 3), (4,)):
    depthwise = 9 * [edge for edge in edges for _ in range(CHANNELS)]
    pointwise = [edge for edge in edges for _ in range(CHANNELS**2)]
    expected += 2 * (depthwise + pointwise)
  # Two projections of the stem's channels; the classifier of two nodes; the stem with its BN.
  expected += [None] * (2 * 6 * CHANNELS + 2 * CHANNELS * 5 + 5 + 27 * 6 + 2 * 6)
  assert {owner.operation for owner in weights.owners} == {1}
  assert [None if place < 0 else weights.owners[place].edges[0] for place in weights.entries] == expected

  # What two edges share is left as long as one of them has it.
  after = pruned(spec, [('sep_conv_3x3',), ('sep_conv_3x3',), ('max_pool_3x3',), (), ('max_pool_3x3',)])
  kept = statistics.flagged({'cell': left(spec, after)})
  # Node 0 loses the convolution of edge 2, node 1 that of edge 3 and its pool, node 2 its convolution.
  node0 = [0, 1, 4, 5, 6, 7, 10, 11, 12, 13, 16, 17]
  node1 = [20, 21, 26, 27, 32, 33, 36, 37]
  node2 = [42, 43, 46, 47]
  assert np.flatnonzero(kept).tolist() == [*node0, *node1, *node2, *range(52, 72)]


def test_number_of_weights_of_every_operation():
  """Of all operations of DARTS and NASNet on the strided edges of one cell."""
  operations = [name for name in OPERATIONS if not name.startswith('nor_conv')]
  spec = Darts(1, tuple(operations)).cells['normal']
  net = supernet(spec, Plan((Layer('cell', 2, 2),)))
  found = owners(net, shapes(net)['params'])
  counts = dict(zip(found.owners, np.bincount(found.entries[found.entries >= 0]), strict=True))
  channels = 2 * CHANNELS
  pointwise = channels**2
  expected = {'skip_connect': pointwise, 'conv_7x1_1x7': 14 * pointwise}
  expected |= {f'sep_conv_{k}x{k}': 2 * (k * k * channels + pointwise) for k in (3, 5, 7)}
  expected |= {f'dil_conv_{k}x{k}': k * k * channels + pointwise for k in (3, 5)}
  columns = {operations.index(name): count for name, count in expected.items()}
  assert counts == {Owner('cell', (edge,), column): count for column, count in columns.items() for edge in (0, 1)}


def test_cells_of_one_kind_share_owners_and_blocks_have_none():
  space = NasBench201()
  [(name, spec)] = space.cells.items()
  net = Supernet(((name, spec),), space.plan(3), CHANNELS, 5, stem_multiplier=1, tracked=False)
  variables = shapes(net)
  found = owners(net, variables['params'])
  counts = dict(zip(found.owners, np.bincount(found.entries[found.entries >= 0]), strict=True))
  # Filters and a bias, in the three stages.
  sizes = {k: sum(k * k * (s * CHANNELS) ** 2 + s * CHANNELS for s in (1, 2, 4)) for k in (1, 3)}
  columns = {spec.operations.index(f'nor_conv_{k}x{k}'): size for k, size in sizes.items()}
  assert counts == {Owner(name, (edge,), column): size for column, size in columns.items() for edge in range(6)}
  statistics = owners(net, variables['batch_stats'])
  assert not statistics.owners
  # A search updates all of these from what a pass leaves in the same places.
  mixing = {name: jnp.ones((6, 5))}
  images = jnp.zeros((2, 4, 4, 3))
  _, passed = jax.eval_shape(lambda v: net.apply(v, images, mixing, train=True, mutable=['moments']), variables)
  assert jax.tree.structure(passed['moments']) == jax.tree.structure(variables['batch_stats'])
  # Of the stem, of both blocks and before the pooling; the same whatever is flagged.
  assert len(statistics.entries) == 2 * CHANNELS * (1 + 2 * 2 + 2 * 4 + 4)
  assert statistics.flagged({name: np.zeros((6, 5), bool)}).all()


# A decided edge, a removed one, and edges with every kind of operation, some of them on one edge alone. The first edge
# has an operation that comes after others of the edges that leave the same node.
SMALLER = pruned(
  SPACE,
  [
    ('sep_conv_5x5',),
    ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_5x5', 'dil_conv_5x5'),
    ('none', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'sep_conv_5x5', 'dil_conv_3x3'),
    (),
    ('sep_conv_5x5', 'skip_connect', 'dil_conv_5x5'),
  ],
)


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.usefixtures('x64')
def test_a_smaller_supernet_with_what_is_left_is_the_whole_one_with_zeros(train):
  rng = np.random.default_rng(0)
  nets = supernet(SPACE), supernet(SMALLER)
  images = rng.normal(size=(3, 8, 8, 3))
  mixing = rng.uniform(0.1, 1, (SPACE.num_edges, len(SPACE.operations)))
  kept = left(SPACE, SMALLER)
  # Running variances are among them.
  variables = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape), shapes(nets[0]))
  smaller = {}
  for collection, structure in shapes(nets[1]).items():
    packed = Packed.pack(variables[collection])
    places = np.flatnonzero(owners(nets[0], variables[collection]).flagged({'cell': kept}))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), structure)
    smaller[collection] = Packed.pack(zeros).replace(packed.vector[places]).tree

  def compute(net, variables, mixing):
    return jax.jit(lambda v, m: net.apply(v, images, {'cell': m}, train=train))(variables, mixing)

  expected = compute(nets[0], variables, mixing * kept)
  found = compute(nets[1], smaller, mixing[kept.any(axis=1)])
  np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12 * np.abs(expected).max())
  # What is gone would have mattered.
  assert np.abs(compute(nets[0], variables, mixing) - expected).max() > 1e-3


@st.composite
def smaller_cells(draw, spec=SPACE):
  """Each edge keeps some operations or is removed, but for one edge into every node."""
  kept = []
  for node in spec.nodes:
    stays = draw(st.integers(0, len(node) - 1))
    for place, edge in enumerate(node):
      some = draw(st.sets(st.sampled_from(edge.operations)))
      if place == stays:
        # A node adds up something.
        some |= {draw(st.sampled_from(edge.operations))}
      kept.append(tuple(name for name in edge.operations if name in some))
  return pruned(spec, kept)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(st.data())
def test_what_is_left_lies_in_the_order_of_the_smaller_supernet(data):
  """Also if the larger one has lost something before."""
  before = data.draw(smaller_cells())
  after = data.draw(smaller_cells(before))

  def said(spec, owner):
    """An owner by nodes and names, as far as it is left."""
    ends = [(spec.edges[edge][1].source, spec.edges[edge][0]) for edge in owner.edges]
    name = spec.operations[owner.operation]
    there = {(edge.source, target) for target, edge in after.edges if name in edge.operations}
    return name, tuple(end for end in ends if end in there)

  both = []
  for spec in (before, after):
    net = supernet(spec)
    for variables in shapes(net).values():
      found = owners(net, variables)
      entries = found.entries[found.flagged({'cell': left(spec, after)})]
      both.append([None if place < 0 else said(spec, found.owners[place]) for place in entries])
  assert both[:2] == both[2:]


def test_flags_may_be_traced():
  net = supernet(SMALLER)
  found = owners(net, shapes(net)['batch_stats'])
  rng = np.random.default_rng(1)
  flags = rng.uniform(size=(SMALLER.num_edges, len(SMALLER.operations))) < 0.3
  expected = [
    place < 0 or any(flags[edge, found.owners[place][2]] for edge in found.owners[place][1]) for place in found.entries
  ]
  assert found.flagged({'cell': flags}).tolist() == expected
  assert jax.jit(found.flagged)({'cell': flags}).tolist() == expected
  assert {True, False} == set(expected)


def test_what_is_not_there_cannot_be_kept():
  cell: CellSpec = pruned(SPACE, [('max_pool_3x3',), (), ('none',), (), ('none',)])
  with pytest.raises(ValueError, match='edge 0 → 2: max_pool_3x3 is new; a cell can only lose operations'):
    left(SMALLER, cell)
