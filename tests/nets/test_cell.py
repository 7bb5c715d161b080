import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.nets.array_cell import ArrayCell
from darts_jax.nets.bilinear import edges_as_channels
from darts_jax.nets.cell import Cell
from darts_jax.nets.mixed import weights_of
from darts_jax.spaces import CellSpec, Darts, Edge, Mixing, darts, published
from darts_jax.spaces.darts import CANDIDATES
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.spaces.robust import Robust
from darts_jax.tasks.text import cell_weights

CHANNELS = 4
SMALL = Darts(2).cells['normal']


@pytest.fixture(params=[False, True], ids=['stacks', 'channels'], autouse=True)
def edges(request):
  with edges_as_channels(request.param):
    yield


def draw_inputs(cell, size, dtype=np.float64):
  """The outputs of the two cells before, at the sizes and numbers of channels of a network."""
  rng = np.random.default_rng(1)
  height, width = size
  larger = (2 * height - 1, 2 * width) if cell.larger[0] else size
  return rng.normal(size=(2, *larger, 6)).astype(dtype), rng.normal(size=(2, *size, 5)).astype(dtype)


@pytest.mark.parametrize(
  ('name', 'kind', 'larger', 'size', 'train'),
  [
    # Has one pair of operation and source twice at one node, and a node that no other reads.
    ('NASNet', 'normal', True, (5, 4), True),
    # Has the dense convolutions, and concatenates some of its nodes.
    ('AmoebaNet', 'reduce', False, (5, 4), False),
  ],
)
@pytest.mark.usefixtures('x64')
def test_published_cell_equals_one_edge_after_the_other(plain, name, kind, larger, size, train):
  spec = published()[name].cell(kind)
  cell = Cell(spec, CHANNELS, 2 if kind == 'reduce' else 1, (larger, False), discrete=True)
  inputs = draw_inputs(cell, size)
  variables = plain.draw(lambda: cell.init(jax.random.key(0), inputs, train=False))
  found = jax.jit(lambda variables, inputs: cell.apply(variables, inputs, train=train))(variables, inputs)
  expected = plain.cell(cell, variables, inputs, train=train)
  height, width = size
  factor = cell.stride
  assert found.shape == (2, -(-height // factor), width // factor, len(spec.outputs) * CHANNELS)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.usefixtures('x64')
def test_dense_convolutions_that_leave_one_node_are_edges_of_their_own(plain):
  twice = (('conv_7x1_1x7', 0), ('conv_7x1_1x7', 0))
  spec = darts.genotype(twice, (2,), twice, (2,)).cell('normal')
  cell = Cell(spec, CHANNELS, 1, (False, False), discrete=True)
  inputs = draw_inputs(cell, (3, 2))
  variables = plain.draw(lambda: cell.init(jax.random.key(0), inputs, train=False))
  found = jax.jit(lambda variables: cell.apply(variables, inputs, train=False))(variables)
  expected = plain.cell(cell, variables, inputs, train=False)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize(('reduction', 'size'), [(False, (5, 3)), (True, (3, 6))])
@pytest.mark.usefixtures('x64')
def test_searched_cell_mixes_operations_and_one_hot_weights_choose_one(plain, reduction, size):
  cell = Cell(SMALL, CHANNELS, 2 if reduction else 1, (False, False), discrete=False)
  inputs = draw_inputs(cell, size)
  mixing = np.random.default_rng(2).uniform(size=(SMALL.num_edges, 8))
  variables = plain.draw(lambda: cell.init(jax.random.key(0), inputs, mixing, train=False))

  @jax.jit
  def compute(mixing):
    return cell.apply(variables, inputs, mixing, train=True)

  expected = plain.cell(cell, variables, inputs, mixing, train=True)
  np.testing.assert_allclose(compute(mixing), expected, rtol=0, atol=1e-12 * np.abs(expected).max())

  chosen = ('sep_conv_5x5', 'max_pool_3x3', 'none', 'skip_connect', 'dil_conv_3x3')
  own = plain.Variables(variables['params'], variables['batch_stats'], True)

  def edge(node, name, member, num_edges):
    counts = dict.fromkeys(CANDIDATES, num_edges)
    stride = 2 if reduction and node < 2 else 1
    settings = {'edges': counts, 'stride': stride, 'discrete': False}
    return own.inside(f'node{node}').operation(states[node], name, member, **settings)

  convolved = [own.inside(f'preprocess{i}').relu_conv(x) for i, x in enumerate(inputs)]
  states = [own.batch_norm(x, 'preprocess_bn', i * CHANNELS) for i, x in enumerate(convolved)]
  # Both inputs have an edge to both nodes: their first is that to node 2, their second that to node 3.
  states.append(edge(0, 'sep_conv_5x5', 0, 2) + edge(1, 'max_pool_3x3', 0, 2))
  states.append(edge(1, 'skip_connect', 1, 2) + edge(2, 'dil_conv_3x3', 0, 1))
  expected = np.concatenate(states[2:], axis=-1)
  one_hot = np.array([[float(name == operation) for operation in CANDIDATES] for name in chosen])
  np.testing.assert_allclose(compute(one_hot), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.usefixtures('x64')
def test_gradient_of_a_searched_cell_is_its_slope(plain):
  """In weights, inputs and mixing weights together, against a difference of what the definition computes."""
  operations = ('none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'dil_conv_3x3')
  spec = Darts(2, operations).cells['normal']
  cell = Cell(spec, CHANNELS, 2, (False, False), discrete=False)
  inputs = draw_inputs(cell, (4, 6))
  rng = np.random.default_rng(2)
  mixing = rng.uniform(size=(spec.num_edges, 6))
  variables = plain.draw(lambda: cell.init(jax.random.key(0), inputs, mixing, train=False))
  statistics = {'batch_stats': variables['batch_stats']}
  point = (variables['params'], inputs, mixing)
  direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), point)
  cotangent = rng.normal(size=(2, 2, 3, 2 * CHANNELS))

  def loss(params, inputs, mixing):
    return jnp.vdot(cell.apply({'params': params} | statistics, inputs, mixing, train=True), cotangent)

  def shifted(step):
    params, inputs, mixing = jax.tree.map(lambda a, b: a + step * b, point, direction)
    return np.vdot(plain.cell(cell, {'params': params} | statistics, inputs, mixing, train=True), cotangent)

  gradient = jax.jit(jax.grad(loss, (0, 1, 2)))(*point)
  slope = sum(np.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
  np.testing.assert_allclose(slope, (shifted(1e-6) - shifted(-1e-6)) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize('merge', ['sum', 'mean'])
def test_edges_of_a_pruned_cell_may_differ(plain, merge):
  """Edges with different candidates, and one that the search has removed, which still counts in a mean."""
  nodes = (
    (Edge(0, ('none', 'sep_conv_3x3')), Edge(1, ('skip_connect',))),
    (Edge(1, ('sep_conv_3x3', 'max_pool_3x3')), Edge(0, ('sep_conv_3x3',)), Edge(2, ('none',))),
  )
  spec = CellSpec(nodes, ('max_pool_3x3', 'none', 'skip_connect', 'sep_conv_3x3'), 2, (3, 2), 'concat', 2, merge)
  cell = Cell(spec, CHANNELS, 1, (True, False), discrete=False)
  inputs = draw_inputs(cell, (4, 4), np.float32)
  mixing = np.random.default_rng(2).uniform(size=(5, 4)).astype(np.float32)
  variables = plain.draw(lambda: cell.init(jax.random.key(0), inputs, mixing, train=False))
  found = jax.jit(lambda variables, *args: cell.apply(variables, *args, train=False))(variables, inputs, mixing)
  assert found.dtype == jnp.float32
  expected = plain.cell(cell, variables, inputs, mixing, train=False)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def apply(cell, inputs, mixing, variables, **options):
  return jax.jit(lambda v, m: cell.apply(v, inputs, m, **options))(variables, mixing)


@pytest.mark.parametrize(('output', 'outputs', 'merge'), [('mean', (2, 1), 'sum'), ('last', (3,), 'mean')])
@pytest.mark.usefixtures('x64')
def test_a_cell_of_nasbench201(plain, output, outputs, merge):
  """Its input is a node as it is, and its output has the channels of a node."""
  cell_of_space = NasBench201().cells['cell']
  spec = dataclasses.replace(cell_of_space, output=output, outputs=outputs, merge=merge)
  cell = Cell(spec, CHANNELS, 1, (False,), discrete=False, tracked=False)
  inputs = [np.random.default_rng(1).normal(size=(2, 4, 3, CHANNELS))]
  mixing = np.random.default_rng(2).uniform(size=(6, 5))
  variables = plain.draw(lambda: cell.init(jax.random.key(0), inputs, mixing, train=False))
  expected = plain.cell(cell, variables, inputs, mixing, train=True)
  assert expected.shape == inputs[0].shape
  found = apply(cell, inputs, mixing, variables, train=False)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.usefixtures('x64')
def test_weights_of_edges_multiply_the_sums_of_their_operations(plain):
  cell = Cell(SMALL, CHANNELS, 1, (False, False), discrete=False)
  inputs = draw_inputs(cell, (3, 4))
  rng = np.random.default_rng(2)
  operations, edges = rng.uniform(size=(SMALL.num_edges, 8)), rng.uniform(size=SMALL.num_edges)
  variables = plain.draw(lambda: cell.init(jax.random.key(0), inputs, operations, train=False))

  @jax.jit
  def compute(mixing):
    return cell.apply(variables, inputs, mixing, train=True)

  expected = plain.cell(cell, variables, inputs, operations * edges[:, None], train=True)
  found = compute(Mixing(operations, edges))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
  # Without them the program is the one that takes weights of operations alone.
  alone, array = (compute.lower(each).as_text() for each in (Mixing(operations), operations))
  assert alone == array


@pytest.mark.usefixtures('x64')
def test_drop_path_scales_the_sum_of_an_edge_for_every_image_also_identities(plain):
  """In S1 of RobustDARTS, where an edge mixes operations that it shares with others, and some it alone has."""
  spec = Robust('s1').cells['normal']
  cell = Cell(spec, CHANNELS, 1, (False, False), discrete=False)
  inputs = draw_inputs(cell, (3, 4))
  rng = np.random.default_rng(2)
  operations = rng.uniform(size=(spec.num_edges, len(spec.operations)))
  variables = plain.draw(lambda: cell.init(jax.random.key(0), inputs, operations, train=False))
  factors = rng.choice([0, 1 / (1 - 0.4)], size=(spec.num_edges, 2), p=[0.4, 0.6])
  found = jax.jit(lambda factors: cell.apply(variables, inputs, operations, factors, train=True))(factors)
  scale = factors[:, :, None, None, None]
  expected = plain.cell(cell, variables, inputs, operations, train=True, edges_mixing=scale)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_cells_without_drop_path_are_one_line():
  mixing = Mixing(np.ones((SMALL.num_edges, 8)), drop=np.zeros(SMALL.num_edges))
  with pytest.raises(ValueError, match='^config.strategy: recurrent cells have no drop path$'):
    cell_weights({'cell': mixing})
  with pytest.raises(ValueError, match='^config.strategy: array cells have no drop path'):
    ArrayCell('cell', SMALL, 3).apply({}, [np.zeros((2, 3))] * 2, mixing, train=True)


def test_a_node_that_nothing_reaches_is_zero():
  space = NasBench201()
  [(_, spec)] = space.from_json('|none~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|skip_connect~2|').cells
  cell = Cell(spec, CHANNELS, 1, (False,), discrete=True)
  x = np.random.default_rng(1).normal(size=(2, 4, 3, CHANNELS)).astype(np.float32)
  # Node 2 is made of node 1, which is zero; what is left is the edge from the input.
  np.testing.assert_array_equal(cell.apply({}, [x], train=True), x)


@pytest.mark.parametrize(('channels', 'larger'), [(CHANNELS + 1, False), (CHANNELS, True)])
def test_inputs_that_a_cell_cannot_read_are_refused(channels, larger):
  cell = Cell(NasBench201().cells['cell'], CHANNELS, 1, (larger,), discrete=False, name='cell0')
  with pytest.raises(ValueError, match=rf'^plan: cell0: an input has {channels} channels, or is larger .* reads 4'):
    cell.init(jax.random.key(0), [np.zeros((1, 4, 4, channels))], np.zeros((6, 5)), train=False)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.usefixtures('x64')
def test_a_constant_stands_for_operations_that_are_not_computed(plain, weighted):
  """Their weights are not zero here, so that it can be seen."""
  cell = Cell(SMALL, CHANNELS, 2, (False, False), discrete=False)
  inputs = draw_inputs(cell, (3, 4))
  rng = np.random.default_rng(2)
  operations = rng.uniform(size=(SMALL.num_edges, 8))
  factors = rng.uniform(size=SMALL.num_edges) if weighted else None
  # The last node has nothing else.
  computed = rng.uniform(size=operations.shape) < 0.5
  computed[list(SMALL.rows[-1])] = False
  variables = plain.draw(lambda: cell.init(jax.random.key(0), inputs, operations, train=False))
  whole = operations if factors is None else operations * factors[:, None]
  for constant in (None, 0.25):
    constants = (constant or 0) * (whole * ~computed).sum(axis=1)
    expected = plain.cell(cell, variables, inputs, whole * computed, train=True, constants=constants)
    mixing = Mixing(operations, factors, computed=computed, constant=None if constant is None else jnp.array(constant))
    found = apply(cell, inputs, mixing, variables, train=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize(
  'wrong',
  [
    np.ones((SMALL.num_edges, 7)),
    Mixing(np.ones((SMALL.num_edges + 1, 8))),
    Mixing(np.ones((SMALL.num_edges, 8)), np.ones((SMALL.num_edges, 1))),
    Mixing(np.ones((SMALL.num_edges, 8)), active=np.ones(8, bool)),
    Mixing(np.ones((SMALL.num_edges, 8)), computed=np.ones((SMALL.num_edges, 8))),
    Mixing(np.ones((SMALL.num_edges, 8)), computed=np.ones((SMALL.num_edges, 8), bool), constant=np.ones(3)),
    Mixing(np.ones((SMALL.num_edges, 8)), drop=np.ones((SMALL.num_edges, 8))),
  ],
)
def test_mixing_weights_that_do_not_fit_a_cell_are_named(wrong):
  with pytest.raises(AssertionError, match=f'mixing weights of a cell with {SMALL.num_edges} edges and 8 operations'):
    weights_of(wrong, SMALL)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize(
  ('kind', 'stride', 'train'), [('darts', 2, True), ('darts', 1, False), ('nasbench201', 1, True)]
)
@pytest.mark.usefixtures('x64')
def test_a_part_of_the_channels_is_computed_and_the_others_pass(plain, kind, stride, train, weighted):
  """They are shuffled afterwards, and have the weight of their edge."""
  spec = SMALL if kind == 'darts' else NasBench201().cells['cell']
  larger = (True, False) if kind == 'darts' else (False,)
  cell = Cell(spec, 8, stride, larger, discrete=False, channel_part=4)
  rng = np.random.default_rng(2)
  inputs = draw_inputs(cell, (3, 4)) if kind == 'darts' else [rng.normal(size=(2, 3, 4, 8))]
  operations = rng.uniform(size=(spec.num_edges, len(spec.operations)))
  edges = rng.uniform(size=spec.num_edges) if weighted else None
  variables = plain.draw(lambda: cell.init(jax.random.key(0), inputs, operations, train=False))
  expected = plain.cell(cell, variables, inputs, operations, train=train, edges_mixing=edges)
  found = apply(cell, inputs, Mixing(operations, edges), variables, train=train)
  assert found.shape == expected.shape
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_the_channels_that_pass_have_no_kinks_in_the_smooth_twin(plain):
  """Where a cell has stride 2, it takes their means in place of their maxima."""
  spec = dataclasses.replace(NasBench201().cells['cell'], outputs=(1,))
  cell = Cell(spec, CHANNELS, 2, (False,), discrete=False, smooth=True, channel_part=2)
  x, mixing = np.random.default_rng(1).normal(size=(2, 3, 4, CHANNELS)).astype(np.float32), np.zeros((6, 5), np.float32)
  variables = cell.init(jax.random.key(0), [x], mixing, train=False)
  found = apply(cell, [x], mixing, variables, train=False)
  np.testing.assert_array_equal(found[..., ::2], 0)
  np.testing.assert_allclose(found[..., 1::2], plain.halve(x[..., 2:]), rtol=1e-6)
