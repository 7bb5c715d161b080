"""Which cells and blocks a network has."""

import pytest

from darts_jax.spaces import Darts, Layer, Plan
from darts_jax.spaces.nasbench201 import NasBench201


@pytest.mark.parametrize(
  ('num_layers', 'expected'),
  [(8, (2, 5)), (14, (4, 9)), (20, (6, 13)), (3, (1, 2)), (2, (0, 1)), (1, (0,))],
)
def test_reduction_cells_of_darts_lie_at_one_and_two_thirds(num_layers, expected):
  plan = Darts().plan(num_layers)
  found = [(layer.cell, layer.stride) for layer in plan.layers]
  assert found == [('reduce', 2) if index in expected else ('normal', 1) for index in range(num_layers)]
  # Channels double in each, and an auxiliary head reads the second.
  channels = [2 ** sum(index >= place for place in expected) for index in range(num_layers)]
  assert [layer.channels for layer in plan.layers] == channels
  assert (plan.auxiliary, plan.last_norm, plan.halvings) == (expected[-1], False, len(expected))
  assert plan.num_cells == num_layers


def test_stages_of_nasbench201():
  plan = NasBench201().plan(6)
  cells = [[Layer('cell', channels)] * 2 for channels in (1, 2, 4)]
  first, second = Layer('residual', 2, 2), Layer('residual', 4, 2)
  assert plan == Plan((*cells[0], first, *cells[1], second, *cells[2]), last_norm=True, auxiliary=None)
  assert (plan.num_cells, plan.halvings) == (6, 2)


@pytest.mark.parametrize(
  ('space', 'num_layers', 'message'),
  [
    (Darts(), 0, 'layers: 0 is not allowed; a network has at least one cell'),
    (NasBench201(), 0, 'layers: 0 is not allowed; it counts the cells of 3 stages and is a multiple of 3'),
    (NasBench201(), 5, 'layers: 5 is not allowed; it counts the cells of 3 stages and is a multiple of 3'),
  ],
)
def test_numbers_of_layers_that_a_space_has_not_are_refused(space, num_layers, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    space.plan(num_layers)


@pytest.mark.parametrize('auxiliary', [1, -1])
def test_an_auxiliary_head_reads_a_layer(auxiliary):
  with pytest.raises(
    ValueError, match=f'^plan: auxiliary: there is no layer {auxiliary}; allowed are 0 to 0, or None$'
  ):
    Plan((Layer('cell'),), auxiliary=auxiliary).check(['cell'])
  Plan((Layer('cell'),), auxiliary=0).check(['cell'])


def test_a_cell_has_another_name_than_a_block():
  with pytest.raises(ValueError, match='^plan: a cell is called as a block is; residual are not allowed for cells$'):
    Plan((Layer('cell'),)).check(['cell', 'residual'])
