import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_jax.spaces import CellSpec, Darts, Doubts, Edge, Recurrent, doubts, from_json, recurrent, strongest

FOLDER = pathlib.Path(__file__).parents[1] / 'goldens'
GOLDENS = json.loads((FOLDER / 'cnn_genotype_parse.json').read_text())
RECURRENT_GOLDENS = json.loads((FOLDER / 'rnn_genotype_parse.json').read_text())
SMALL = Darts(2, ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3')).cells['normal']


def softmax(alphas):
  weights = np.exp(alphas - np.max(alphas, axis=-1, keepdims=True))
  return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize('index', range(20))
def test_genotypes_that_the_published_code_derives(index):
  golden = GOLDENS[index]
  mixing = {name: softmax(np.array(golden[f'alphas_{name}'])) for name in ('normal', 'reduce')}
  assert Darts().strongest(mixing) == from_json(golden['genotype'])


@pytest.mark.parametrize('index', range(20))
def test_recurrent_genotypes_that_the_published_code_derives(index):
  golden = RECURRENT_GOLDENS[index]
  mixing = {'recurrent': softmax(np.array(golden['alphas']))}
  assert Recurrent().strongest(mixing) == from_json(golden['genotype'])


def test_a_recurrent_node_keeps_its_strongest_edge():
  mixing = np.array(
    [
      # Columns: none, tanh, relu, sigmoid, identity.
      [0.80, 0.04, 0.06, 0.05, 0.05],
      [0.00, 0.10, 0.40, 0.10, 0.40],
      [0.30, 0.30, 0.10, 0.10, 0.20],
      # A tie between the edges from 0 and from 2, which `none` has no part in.
      [0.50, 0.10, 0.10, 0.25, 0.05],
      [0.90, 0.03, 0.03, 0.02, 0.02],
      [0.00, 0.25, 0.25, 0.25, 0.25],
    ]
  )
  found = Recurrent(3).strongest({'recurrent': mixing})
  assert found == recurrent.genotype((('relu', 0), ('relu', 0), ('sigmoid', 0)), (1, 2, 3))
  mixing[5, 4] = 0.26
  found = Recurrent(3).strongest({'recurrent': mixing})
  assert found.cell('recurrent').pairs[2] == ('identity', 2)


def test_pruned_recurrent_cell_keeps_what_is_left_and_its_output():
  nodes = ((Edge(0, ('tanh', 'relu')),), (Edge(0, ('none',)), Edge(1, ('none', 'relu'))))
  spec = CellSpec(nodes, ('none', 'tanh', 'relu'), 1, (2,), 'mean', 1)
  mixing = np.array([[0.9, 0.04, 0.06], [0.1, 0.8, 0.1], [0.8, 0.9, 0.1]])
  found = strongest(mixing, spec)
  assert (found.pairs, found.outputs) == ((('relu', 0), ('relu', 1)), (2,))


def test_strongest_edge_comes_first_whatever_none_weighs():
  mixing = np.array(
    [
      # Columns: none, max_pool_3x3, skip_connect, sep_conv_3x3.
      [0.10, 0.20, 0.30, 0.40],
      [0.05, 0.50, 0.25, 0.20],
      [0.94, 0.01, 0.02, 0.03],
      [0.85, 0.04, 0.06, 0.05],
      [0.90, 0.05, 0.03, 0.02],
    ]
  )
  assert strongest(mixing, SMALL).pairs == (
    *(('max_pool_3x3', 1), ('sep_conv_3x3', 0)),
    *(('skip_connect', 1), ('max_pool_3x3', 2)),
  )
  assert strongest(mixing, dataclasses.replace(SMALL, kept=1)).pairs == (('max_pool_3x3', 1), ('skip_connect', 1))


def test_ties_go_to_the_smaller_index():
  assert strongest(np.full((5, 4), 0.25), SMALL).pairs == (('max_pool_3x3', 0), ('max_pool_3x3', 1)) * 2
  mixing = np.full((5, 4), 0.25)
  mixing[4] = [0.1, 0.1, 0.4, 0.4]
  assert strongest(mixing, SMALL).pairs[2:] == (('skip_connect', 2), ('max_pool_3x3', 0))


def test_pruned_cell_keeps_what_is_left():
  """Weights of operations that an edge no longer has do not count, nor does an edge that has none but `none`."""
  operations = ('none', 'max_pool_3x3', 'skip_connect')
  edges = (
    Edge(0, ('none',)),
    Edge(1, ('none', 'max_pool_3x3')),
    Edge(0, ('skip_connect',)),
  )
  spec = CellSpec((edges,), operations, 2, (2,), 'concat', 2)
  assert strongest(np.array([[0.0, 1, 1], [0.5, 0.3, 0.9], [0, 1, 0.2]]), spec).pairs == (
    ('max_pool_3x3', 1),
    ('skip_connect', 0),
  )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(weights=st.permutations(range(SMALL.num_edges * 4)), columns=st.permutations(range(4)))
def test_order_of_operations_does_not_matter(weights, columns):
  mixing = np.array(weights).reshape(-1, 4) / len(weights)
  operations = tuple(SMALL.operations[column] for column in columns)
  permuted = Darts(2, operations).cells['normal']
  found = strongest(mixing, SMALL).pairs
  assert strongest(mixing[:, list(columns)], permuted).pairs == found
  assert 'none' not in {operation for operation, _ in found}


@pytest.mark.parametrize(
  ('mixing', 'spec', 'message'),
  [
    (np.ones((5, 8)), SMALL, 'mixing: shape (5, 8) does not fit a cell with 5 edges and 4 operations'),
    (np.ones((14, 4)), SMALL, 'mixing: shape (14, 4) does not fit a cell with 5 edges and 4 operations'),
    (np.full((5, 4), np.nan), SMALL, 'mixing: holds values that are not finite'),
    (np.full((5, 4), np.inf), SMALL, 'mixing: holds values that are not finite'),
    (
      np.ones((2, 2)),
      CellSpec(
        ((Edge(0, ('none', 'skip_connect')), Edge(1, ('none',))),), ('none', 'skip_connect'), 2, (2,), 'concat', 2
      ),
      'node 2: 1 edges to choose from; 2 have to be kept',
    ),
    (
      np.ones((3, 4)),
      Recurrent(2).cells['recurrent'],
      'mixing: shape (3, 4) does not fit a cell with 3 edges and 5',
    ),
    (
      np.ones((1, 2)),
      CellSpec(((Edge(0, ('none', 'tanh')),),), ('none', 'tanh'), 1, (1,), 'mean', 2),
      'node 1: 1 edges to choose from; 2 have to be kept',
    ),
  ],
)
def test_mixing_weights_that_stand_for_no_cell_are_refused(mixing, spec, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}') as error:
    strongest(mixing, spec)
  assert '\n' not in str(error.value)


# Of every edge none, max_pool_3x3, skip_connect and sep_conv_3x3; the edges into node 2, then those into node 3.
FIRM = np.array(
  [[0.1, 0.5, 0.2, 0.2], [0.5, 0.1, 0.3, 0.1], [0.1, 0.2, 0.1, 0.6], [0.1, 0.2, 0.3, 0.4], [0.2, 0.5, 0.2, 0.1]]
)


@pytest.mark.parametrize(
  ('moved', 'edges', 'operations'),
  [
    # The least leads: of operations 0.1, on the edge that is not kept, and 0.2; of edges 0.5 over 0.4.
    ({}, 0, 0),
    ({(0, 1): 0.29}, 0, 0),
    # A leader that came from as far behind as it is ahead.
    ({(0, 1): 0.31}, 0, 1),
    # The runner-up has moved as much as it is behind, in whatever direction.
    ({(1, 2): -0.09, (1, 1): 0.12}, 0, 1),
    # `none` counts for nothing, nor does an operation on an edge that is not kept.
    ({(1, 0): 0.9, (3, 2): 0.09}, 0, 0),
    # The edge that is not kept comes up to the weaker of the others, or to both.
    ({(3, 3): 0.11}, 1, 0),
    ({(3, 3): 0.21}, 2, 0),
    ({(4, 1): 0.11}, 1, 0),
  ],
)
def test_choices_are_in_doubt_within_what_weights_moved(moved, edges, operations):
  before = FIRM.copy()
  for place, change in moved.items():
    before[place] -= change
  assert doubts({'normal': before}, {'normal': FIRM}, {'normal': SMALL}) == Doubts(4, edges, operations)
  message = Doubts(4, edges, operations).message
  assert (message is None) == (not edges and not operations)


def test_an_edge_is_as_firm_as_the_firmest_of_its_operations():
  """Its best one came from 0.2 below, but another one stays at 0.45, ahead of the edge that is not kept, of 0.4."""
  after = FIRM.copy()
  after[4] = [0, 0.5, 0.45, 0.05]
  before = after.copy()
  before[4, 1] -= 0.2
  assert doubts({'normal': before}, {'normal': after}, {'normal': SMALL}) == Doubts(4, 0, 1)


def test_ties_and_recurrent_cells_are_in_doubt_too():
  """Nodes of a recurrent cell keep one edge; the first has no other."""
  spec = Recurrent(2, ('none', 'tanh', 'relu')).cells['recurrent']
  same = {'recurrent': np.full((3, 3), 1 / 3)}
  found = doubts(same, same, {'recurrent': spec})
  assert found == Doubts(2, 1, 2)
  assert found.message.startswith('the genotype is not settled: 1 of its 2 edges and 2 of their operations would be')
