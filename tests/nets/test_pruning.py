"""A pruned cell computes what the whole one does where the weights of what is gone are zero."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from darts_jax.nets.cell import Cell, prune_cell
from darts_jax.nets.conv import Supernet, prune_supernet
from darts_jax.spaces import CellSpec, Darts, Edge

SPACE = Darts(2).cells['normal']
CHANNELS = 2


def pruned(spec, left):
  """A cell with the operations `left[edge]` on its edges; none for an edge that is gone."""
  edges = iter(left)
  nodes = tuple(
    tuple(Edge(edge.source, tuple(kept)) for edge in node for kept in [next(edges)] if kept) for node in spec.nodes
  )
  return dataclasses.replace(spec, nodes=nodes)


def weigh(spec, mixing):
  """The rows of mixing weights that a smaller cell has, and those of the whole one with zeros for what is gone."""
  rows, zeroed = [], np.zeros_like(mixing)
  edges = {(edge.source, target): edge.operations for target, edge in spec.edges}
  for row, (target, edge) in enumerate(SPACE.edges):
    operations = edges.get((edge.source, target))
    if operations is not None:
      rows.append(row)
      for name in operations:
        column = SPACE.operations.index(name)
        zeroed[row, column] = mixing[row, column]
  return mixing[rows], zeroed


# A decided edge, a removed one, and those with every kind of operation, some of them on one edge alone.
SMALLER = pruned(
  SPACE,
  [
    ('sep_conv_3x3',),
    ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_5x5', 'dil_conv_5x5'),
    ('none', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'sep_conv_5x5', 'dil_conv_3x3'),
    (),
    ('sep_conv_5x5', 'skip_connect', 'dil_conv_5x5'),
  ],
)


@pytest.mark.parametrize(('reduction', 'train'), [(False, True), (True, False)])
@pytest.mark.usefixtures('x64')
def test_a_pruned_cell_is_the_whole_one_with_zeros(reduction, train):
  rng = np.random.default_rng(0)
  cells = [Cell(spec, CHANNELS, reduction, False, discrete=False) for spec in (SPACE, SMALLER)]
  images = [jnp.asarray(rng.normal(size=(3, 8, 8, 2 * CHANNELS))) for _ in range(2)]
  mixing = rng.uniform(0.1, 1, (SPACE.num_edges, len(SPACE.operations)))
  few, zeroed = weigh(SMALLER, mixing)
  shapes = jax.eval_shape(lambda: cells[0].init(jax.random.key(0), *images, mixing, train=train))
  # Running variances are among them.
  variables = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape), shapes)
  smaller = {name: prune_cell(tree, SPACE, SMALLER, reduction=reduction) for name, tree in variables.items()}

  def compute(cell, variables, mixing):
    return jax.jit(lambda v, m: cell.apply(v, *images, m, train=train))(variables, mixing)

  expected, found = compute(cells[0], variables, zeroed), compute(cells[1], smaller, few)
  np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12 * np.abs(expected).max())
  # What is gone would have mattered.
  assert np.abs(compute(cells[0], variables, mixing) - expected).max() > 1e-3


@st.composite
def smaller_cells(draw):
  """Each edge keeps some operations or is removed, but for one edge into every node."""
  left = []
  for node in SPACE.nodes:
    stays = draw(st.integers(0, len(node) - 1))
    for place, edge in enumerate(node):
      kept = draw(st.sets(st.sampled_from(edge.operations)))
      if place == stays:
        # A node adds up something.
        kept |= {draw(st.sampled_from(edge.operations[1:]))}
      left.append(tuple(name for name in edge.operations if name in kept))
  return pruned(SPACE, left)


def variables_of(normal, reduce):
  net = Supernet(normal, reduce, CHANNELS, 3, 5)
  mixing = {
    name: jnp.ones((spec.num_edges, len(spec.operations))) for name, spec in (('normal', normal), ('reduce', reduce))
  }
  return net, jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), mixing, train=True))


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(smaller_cells(), smaller_cells())
def test_a_pruned_supernet_has_the_variables_of_one_that_is_made_so(normal, reduce):
  before, variables = variables_of(SPACE, SPACE)
  after, expected = variables_of(normal, reduce)
  for collection, tree in variables.items():
    # Every number is its own, and none is there twice.
    leaves, treedef = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])
    numbers = [np.arange(end - leaf.size, end).reshape(leaf.shape) for leaf, end in zip(leaves, ends, strict=True)]
    found = prune_supernet(jax.tree.unflatten(treedef, numbers), before, after)
    assert jax.tree.structure(found) == jax.tree.structure(expected[collection])
    assert [x.shape for x in jax.tree.leaves(found)] == [x.shape for x in jax.tree.leaves(expected[collection])]
    kept = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)])
    assert len(np.unique(kept)) == len(kept)


def test_what_is_not_there_cannot_be_kept():
  _, variables = variables_of(SMALLER, SPACE)
  cell: CellSpec = pruned(SPACE, [('max_pool_3x3',), (), ('none',), (), ('none',)])
  with pytest.raises(ValueError, match='edge 0 → 2: max_pool_3x3 is new; a cell can only lose operations'):
    prune_cell(variables['params']['cell0'], SMALLER, cell, reduction=False)
