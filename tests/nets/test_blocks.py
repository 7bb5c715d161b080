"""Residual blocks, and plans of layers that networks are built by."""

import jax
import numpy as np
import pytest

from darts_jax.nets.blocks import Residual
from darts_jax.nets.conv import Network, Supernet
from darts_jax.nets.pooling import halve
from darts_jax.spaces import Darts, Layer, Plan, full_cell
from darts_jax.spaces.nasbench201 import NasBench201


@pytest.mark.parametrize(
  ('stride', 'channels', 'size', 'train'),
  [(2, 6, (4, 6), True), (2, 4, (5, 4), False), (1, 4, (3, 3), True), (1, 6, (2, 3), False)],
)
@pytest.mark.usefixtures('x64')
def test_a_residual_block_by_its_definition(plain, stride, channels, size, train):
  x = np.random.default_rng(1).normal(size=(3, *size, 4))
  block = Residual(channels, stride)
  variables = plain.draw(lambda: block.init(jax.random.key(0), x, train=False))
  # The shortcut of a block that changes nothing is the identity.
  assert ('shortcut' in variables['params']) == ((stride, channels) != (1, 4))
  found = jax.jit(lambda: block.apply(variables, x, train=train))()
  expected = plain.Variables(variables['params'], variables['batch_stats'], train).residual(x, stride)
  assert found.shape == (3, *[-(-side // stride) for side in size], channels)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_pooling_to_half_the_size_counts_the_pixels_that_there_are(plain):
  x = np.arange(15, dtype=np.float32).reshape(1, 3, 5, 1)
  np.testing.assert_allclose(halve(x)[0, ..., 0], [[3, 5, 6.5], [10.5, 12.5, 14]])
  np.testing.assert_allclose(halve(x), plain.halve(x))


def net(layers, cells=None, **attributes):
  cells = tuple((cells or {'cell': Darts(1).cells['normal']}).items())
  return Supernet(cells, Plan(tuple(layers)), 4, 5, **attributes)


def shapes(module, size=(8, 8)):
  mixing = {name: np.ones((spec.num_edges, len(spec.operations))) for name, spec in module.cells}
  images = np.zeros((2, *size, 3), np.float32)
  return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), images, mixing, train=True))


@pytest.mark.parametrize(
  ('layers', 'attributes', 'message'),
  [
    ([Layer('other')], {}, "plan: layer 0: 'other' is not known; allowed are cell, residual"),
    ([], {}, 'plan: no layers; at least one is needed'),
    ([Layer('cell'), Layer('cell', 1, 4)], {}, 'plan: layer 1: 1 times C channels and stride 4 are not allowed'),
    ([Layer('cell', 0)], {}, 'plan: layer 0: 0 times C channels and stride 1 are not allowed'),
    (
      [Layer('cell', 1, 2), Layer('residual', 1, 2), Layer('triple')],
      {},
      'plan: layer 2: an input is 4 times as large as the last one; at most 2',
    ),
  ],
)
def test_plans_that_cannot_be_built_are_refused(layers, attributes, message):
  cells = {'cell': Darts(1).cells['normal']}
  if layers and layers[-1].cell == 'triple':
    cells['triple'] = full_cell(('skip_connect',), 1, num_inputs=3, output='concat', kept=None)
  with pytest.raises(ValueError, match=message):
    shapes(net(layers, cells, **attributes))


def test_a_plan_may_mix_cells_of_any_number_of_inputs_and_blocks():
  """Cells read as many layers before them as they have inputs, the stem as often as there are too few."""
  cells = {
    'single': full_cell(('skip_connect', 'nor_conv_1x1'), 1, num_inputs=1, output='concat', kept=None),
    'triple': full_cell(('skip_connect', 'max_pool_3x3'), 2, num_inputs=3, output='concat', kept=None),
  }
  layers = [Layer('triple'), Layer('residual', 3), Layer('single', 1, 2), Layer('triple', 2)]
  logits, variables = shapes(net(layers, cells, stem_multiplier=2))
  params = variables['params']
  assert logits.shape == (2, 5)
  # Channels that are read: the stem's 8 thrice; two nodes of 4; three times 4; stem is out of sight of the last cell.
  read = {
    name: [params[name][f'preprocess{i}']['kernel'].shape[1] for i in range(3) if f'preprocess{i}' in params[name]]
    for name in ('cell0', 'cell2', 'cell3')
  }
  assert read == {'cell0': [8, 8, 8], 'cell2': [12], 'cell3': [8, 12, 4]}
  assert params['residual1']['conv0'].shape == (3, 3, 8, 12)
  assert params['classifier'].shape == (2 * 8, 5)
  # Those that are larger than the last one are halved, by two convolutions.
  assert [params['cell3'][f'preprocess{i}']['kernel'].shape[0] for i in range(3)] == [2, 2, 1]


def test_the_last_norm_is_part_of_the_plan():
  space = NasBench201()
  arch = space.from_json('|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|')
  for plan in (space.plan(3), space.plan(3)._replace(last_norm=False)):
    module = Network(arch.cells, plan, 4, 5, stem_multiplier=1)
    variables = jax.eval_shape(
      lambda m=module: m.init(jax.random.key(0), np.zeros((1, 4, 4, 3), np.float32), train=True)
    )
    assert ('last_bn' in variables['params']) == plan.last_norm
