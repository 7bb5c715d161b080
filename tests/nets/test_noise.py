"""The operation `noise`: whose numbers are independent, and what they depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.nets.bilinear import edges_as_channels
from darts_jax.nets.cell import Cell
from darts_jax.nets.conv import Network, Supernet, draws
from darts_jax.spaces import CellSpec, Edge, darts
from darts_jax.spaces.robust import Robust

S4 = Robust('s4', nodes=2)
SPEC = S4.cells['normal']


@pytest.fixture(params=[False, True], ids=['stacks', 'channels'], autouse=True)
def edges(request):
  with edges_as_channels(request.param):
    yield


def keys(number):
  return jax.random.split(jax.random.key(1), number)


def noise_of(edge, spec=SPEC, stride=1, number=300, scale=1.0, given=True, channels=4):
  """The noise of one edge for every image, from the state of the node that it arrives at."""
  spec = dataclasses.replace(spec, outputs=(spec.num_inputs + [edge in rows for rows in spec.rows].index(True),))
  cell = Cell(spec, channels, stride, (False, False), discrete=False)
  inputs = [scale * np.random.default_rng(i).normal(size=(number, 6, 6, channels)).astype(np.float32) for i in (0, 1)]
  mixing = np.zeros((spec.num_edges, len(spec.operations)), np.float32)
  mixing[edge, spec.operations.index('noise')] = 0.5
  variables = jax.jit(lambda: cell.init(jax.random.key(0), inputs, mixing, train=True))()
  apply = jax.jit(
    lambda keys: cell.apply(variables, inputs, mixing, None, keys, train=True, mutable=['batch_stats'])[0]
  )
  return 2 * np.asarray(apply(keys(number) if given else None), np.float64)


def check_normal(values):
  """Moments of a standard normal distribution, each within five of its standard deviations."""
  for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
    assert abs(np.mean(values**power) - moment) < 5 * np.sqrt(variance / values.size), power


@pytest.mark.parametrize('stride', [1, 2])
def test_noise_is_standard_normal_and_has_the_size_of_the_output(stride):
  # Two edges of one source, and one that leaves an inner node.
  assert [(target, edge.source) for target, edge in SPEC.edges] == [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
  found = [noise_of(edge, stride=stride) for edge in (0, 2, 4)]
  for each in found:
    assert each.shape == (300, 6 // stride, 6 // stride, 4)
    check_normal(each)
    # Neighbours know nothing of each other, be they images, pixels or channels.
    for a, b in ((each[1:], each[:-1]), (each[:, 1:], each[:, :-1]), (each[..., 1:], each[..., :-1])):
      assert abs(np.mean(a * b)) < 5 / np.sqrt(a.size)
  for a, b in ((0, 1), (0, 2), (1, 2)):
    assert abs(np.mean(found[a] * found[b])) < 5 / np.sqrt(found[a].size)


def test_noise_takes_the_place_of_the_image_and_is_drawn_from_its_key_alone():
  found = noise_of(2)
  np.testing.assert_array_equal(noise_of(2, scale=3.0), found)
  np.testing.assert_array_equal(noise_of(2, number=300)[:7], found[:7])
  # Without keys it is always the same, and the same for all images.
  fixed = noise_of(2, number=5, given=False)
  np.testing.assert_array_equal(fixed, np.repeat(fixed[:1], 5, axis=0))
  np.testing.assert_array_equal(noise_of(2, number=5, given=False, scale=2.0), fixed)
  assert 0.5 < fixed[0].std() < 1.5


def test_noise_has_no_weights_statistics_or_gradient():
  """Every edge has the weights of a separable convolution alone."""
  plan = S4.plan(3)
  net = Supernet(tuple(S4.cells.items()), plan, 2, 3, stem_multiplier=1)
  images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
  data = jax.random.key_data(keys(3))

  def mixing(noise):
    return {name: jnp.full((5, 2), 1 - noise).at[:, 0].set(noise) for name in S4.cells}

  variables = jax.jit(lambda: net.init(jax.random.key(0), images, mixing(0.5), train=True))()
  nodes = [value for name, value in variables['params']['cell0'].items() if name.startswith('node')]
  # Per edge twice a filter and a matrix.
  assert sum(leaf.size for leaf in jax.tree.leaves(nodes)) == 5 * 2 * (9 * 2 + 4)

  @jax.jit
  def of_images(noise):
    def logit(images):
      logits, _ = net.apply(variables, images, mixing(noise), train=True, keys=data, mutable=['batch_stats'])
      return logits[0, 0]

    return jax.value_and_grad(logit)(images)

  value, gradient = of_images(1.0)
  assert np.isfinite(value)
  assert not np.asarray(gradient).any()
  assert np.asarray(of_images(0.5)[1]).any()


def discrete(normal, channels=2):
  genotype = darts.genotype(normal, (2,), (('sep_conv_3x3', 0), ('skip_connect', 1)), (2,))
  return Network(genotype.cells, S4.plan(3), channels, 3, stem_multiplier=1)


def test_a_found_network_draws_in_training_and_has_fixed_noise_in_evaluation():
  net = discrete((('noise', 0), ('sep_conv_3x3', 1)))
  assert draws(spec for _, spec in net.cells)
  assert not draws(spec for _, spec in discrete((('skip_connect', 0), ('sep_conv_3x3', 1))).cells)
  images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
  variables = jax.jit(lambda: net.init(jax.random.key(0), images, train=True))()

  @jax.jit
  def logits(images, keys=None):
    return net.apply(variables, images, train=False, keys=keys).main

  found = np.asarray(logits(images))
  # An image is classified in the same way whatever stands beside it.
  np.testing.assert_allclose(np.asarray(logits(images[1:2])), found[1:2], rtol=1e-5)
  one, other = (np.asarray(logits(images, jax.random.split(jax.random.key(i), 3))) for i in range(2))
  assert np.abs(one - other).max() > 1e-3


def test_layers_draw_by_themselves():
  edges = (Edge(0, ('noise',)), Edge(1, ('noise',)))
  spec = CellSpec((edges,), ('noise',), 2, (2,), 'concat', 2)
  net = Network((('normal', spec), ('reduce', spec)), darts.Darts(1).plan(3), 2, 3, stem_multiplier=1)
  images = np.zeros((400, 8, 8, 3), np.float32)
  variables = net.init(jax.random.key(0), images[:1], train=False)
  _, state = net.apply(variables, images, train=False, keys=keys(400), capture_intermediates=True, mutable=True)
  # Of 8×8, 4×4 and 2×2 pixels; the sum of two edges.
  first, second, third = (np.asarray(state['intermediates'][f'cell{i}']['__call__'][0], np.float64) for i in range(3))
  for each in (first, second, third):
    check_normal(each / np.sqrt(2))
  assert abs(np.mean(first[:, :4, :4, :2] * second[..., :2])) < 5 * 2 / np.sqrt(second[..., :2].size)
  assert abs(np.mean(second[:, :2, :2, :2] * third[..., :2])) < 5 * 2 / np.sqrt(third[..., :2].size)
