"""PC-DARTS: weights of operations and of edges, and what is read off both."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.search import Search
from darts_jax.search.searched import Searched
from darts_jax.settings import build
from darts_jax.spaces.darts import Darts as DartsSpace
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.strategies.pc_darts import PcDarts, edge_weights
from darts_jax.strategies.relaxed import ALPHAS

SPACE = DartsSpace(2, ('none', 'skip_connect', 'sep_conv_3x3'))
SPEC = SPACE.cells['normal']


def shares(values):
  exact = np.exp(values)
  return exact / exact.sum(axis=-1, keepdims=True)


@pytest.mark.usefixtures('x64')
def test_edges_into_a_node_share_its_weight():
  searched = Searched.start(PcDarts(init_scale=2.0), SPACE)
  arch = {name: np.asarray(value) for name, value in searched.init(jax.random.key(0)).items()}
  assert {name: value.shape for name, value in arch.items()} == {
    'normal': (5, 3), 'reduce': (5, 3), 'betas_normal': (5,), 'betas_reduce': (5,)
  }  # fmt: skip
  for name, each in searched.mix(arch, 0, jax.random.key(1), ALPHAS).items():
    betas = arch[f'betas_{name}']
    np.testing.assert_allclose(each.operations, shares(arch[name]), rtol=1e-6)
    np.testing.assert_allclose(each.edges, [*shares(betas[:2]), *shares(betas[2:])], rtol=1e-6)


@pytest.mark.usefixtures('x64')
def test_edges_of_a_part_of_a_cell_share_the_weight_of_those_that_are_left():
  part = SPEC.__class__((SPEC.nodes[0], SPEC.nodes[1][::2]), SPEC.operations, 2, SPEC.outputs, SPEC.output, SPEC.kept)
  betas = np.random.default_rng(0).normal(size=5)
  found = edge_weights(jnp.asarray(betas), part, SPEC)
  np.testing.assert_allclose(found, [*shares(betas[:2]), *shares(betas[[2, 4]])], rtol=1e-12)


def test_parameters_are_normal_small_and_independent():
  found = PcDarts(init_scale=1e-3).init(DartsSpace(), jax.random.key(0))
  drawn = np.concatenate([np.ravel(value) for value in found.values()])
  assert drawn.shape == (252,)
  # Four standard errors of a standard deviation.
  assert abs(drawn.std() / 1e-3 - 1) < 4 / np.sqrt(2 * 252)
  assert len(np.unique(drawn)) == 252


def test_the_architecture_is_that_of_the_largest_products():
  arch = {name: np.zeros((5, 3), np.float32) for name in SPACE.cells}
  arch |= {f'betas_{name}': np.zeros(5, np.float32) for name in SPACE.cells}
  # The last edge has the strongest operation, and the weakest edge; `none` is never read.
  arch['normal'][4, 1], arch['normal'][3, 2], arch['normal'][0, 0] = 2, 1, 9
  arch['betas_normal'][4], arch['betas_normal'][2] = -3, 1
  genotype = PcDarts().read(arch, SPACE, None)
  assert genotype.cell('normal').pairs[2:] == (('skip_connect', 0), ('sep_conv_3x3', 1))
  # In the other cell everything is the same, so that all of it is in doubt.
  doubts = PcDarts().doubts(arch, arch, SPACE)
  assert (doubts.kept, doubts.edges) == (8, 2)
  further = {**arch, 'betas_normal': arch['betas_normal'] + np.array([0, 0, 0, 0, 9], np.float32)}
  assert PcDarts().doubts(further, arch, SPACE).edges > doubts.edges


def test_every_edge_of_nasbench201_keeps_its_best_operation():
  space = NasBench201()
  arch = {name: np.asarray(value) for name, value in PcDarts(init_scale=1.0).init(space, jax.random.key(2)).items()}
  found = space.operations(PcDarts().read(arch, space, None))
  assert [space.cells['cell'].operations.index(each) for each in found] == arch['cell'].argmax(axis=1).tolist()


@pytest.mark.parametrize(
  ('kind', 'config', 'message'),
  [
    (
      Search,
      {'network': {'channels': 12}},
      'config.network.channels: 12 is not allowed; it has to be a multiple of 8, since edges compute one in 4 channels'
      ' (config.strategy.channel_part)',
    ),
    (
      Search,
      {'space': 'recurrent'},
      'config.strategy.channel_part: 4 is not allowed; it has to be 1 on text, where states have no channels that could'
      ' be shuffled',
    ),
    (Search, {'strategy': {'name': 'pc_darts', 'channel_part': 0}}, 'config.strategy.channel_part: 0 is not allowed; '),
  ],
)
def test_networks_without_such_parts_are_refused(kind, config, message):
  with pytest.raises(ValueError, match=rf'^{re.escape(message)}[^\n]*$'):
    build(kind, {'strategy': 'pc_darts', **config})


def test_numbers_of_channels_that_can_be_divided():
  assert build(Search, {'strategy': {'name': 'pc_darts', 'channel_part': 2}, 'network': {'channels': 12}})
  assert build(Search, {'space': 'recurrent', 'strategy': {'name': 'pc_darts', 'channel_part': 1}})
