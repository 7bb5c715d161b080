"""What a network costs, against counts by hand."""

import pytest

from darts_jax import spaces
from darts_jax.nets import cost
from darts_jax.nets.conv import Network
from darts_jax.spaces import darts, published, recurrent

RECURRENT = [name for name, found in published().items() if found.space == 'recurrent']


def parts(genotype, *sizes, image=(32, 32, 3), **attributes):
  channels, num_layers, num_classes = sizes
  net = Network(genotype.cells, spaces.space_of(genotype).plan(num_layers), channels, num_classes, **attributes)
  return {part.name: part for part in cost.parts_of(net, *image)}


def test_every_operation_by_hand():
  """Three cells of 2, 4 and 8 channels on 8×12 pixels; cells 1 and 2 are reduction cells."""
  normal = darts.genotype(
    (('sep_conv_5x5', 0), ('skip_connect', 1), ('dil_conv_3x3', 2), ('avg_pool_3x3', 0)),
    (2, 3),
    (('conv_7x1_1x7', 0), ('skip_connect', 1), ('sep_conv_3x3', 2), ('max_pool_3x3', 1)),
    (2, 3),
  )
  found = parts(normal, 2, 3, 5, image=(8, 12, 3))
  stem = 9 * 3 * 6 * 96
  first = 2 * (6 * 2) * 96  # Both inputs have the 6 channels of the stem.
  first += 2 * (25 * 2 + 2 * 2) * 96  # Twice a depthwise and a pointwise convolution.
  first += (9 * 2 + 2 * 2) * 96
  second = (6 * 4 + 4 * 4) * 96  # From the stem, and from 2 nodes of 2 channels.
  second += 7 * 4 * 4 * (8 * 6) + 7 * 4 * 4 * 24  # 1×7 halves the width, 7×1 the height.
  second += 4 * 4 * 24  # The two halves of a factorized reduce have half the channels each.
  second += 2 * (9 * 4 + 4 * 4) * 24
  third = (4 * 8 + 8 * 8) * 24  # The first input is halved on the way.
  third += 7 * 8 * 8 * (4 * 3) + 7 * 8 * 8 * 6 + 8 * 8 * 6 + 2 * (9 * 8 + 8 * 8) * 6
  counts = {name: part.multiply_adds for name, part in found.items()}
  assert counts == {'stem': stem, 'cell0': first, 'cell1': second, 'cell2': third, 'classifier': 16 * 5}
  assert [part.size for part in found.values()] == [(8, 12), (8, 12), (4, 6), (2, 3), (1, 1)]
  assert [part.channels for part in found.values()] == [6, 4, 8, 16, 5]
  assert [part.kind for part in found.values()] == ['', 'normal', 'reduce', 'reduce', '']
  assert found['classifier'].weights == 16 * 5 + 5
  assert found['stem'].weights == 9 * 3 * 6 + 12


def test_noise_costs_nothing():
  reduce = (('skip_connect', 0), ('sep_conv_3x3', 1)), (2,)
  noisy, empty = (
    parts(darts.genotype(((name, 0), ('sep_conv_3x3', 1)), (2,), *reduce), 2, 3, 5) for name in ('noise', 'none')
  )
  assert noisy == empty


def test_stem_for_imagenet_by_hand():
  found = parts(published()['DARTS_V2'], 48, 14, 1000, image=(224, 224, 3), stem='imagenet', auxiliary=True)
  assert found['stem'].multiply_adds == 9 * (3 * 24 * 112**2 + 24 * 48 * 56**2 + 48 * 48 * 28**2)
  assert found['stem'].size == (28, 28)
  # 28² and 14² pixels: half of 4·48 channels each come from images twice as large.
  assert found['cell0'].size == (28, 28)
  assert found['cell13'].size == (7, 7)
  assert found['auxiliary'].multiply_adds == 0


@pytest.mark.parametrize(('name', 'weights'), [('DARTS_V2', 3_349_342), ('PDARTS', 3_433_798)])
def test_weights_of_the_parts_add_up_to_the_published_number(name, weights):
  found = parts(published()[name], 36, 20, 10)
  assert sum(part.weights for part in found.values()) == weights


@pytest.mark.parametrize(
  ('name', 'width', 'vocabulary', 'weights'),
  [
    ('RNN_DARTS_V2', 850, 10_000, 22_960_000),
    ('RNN_DARTS_V1', 700, 33_278, 33_127_878),
    ('RNN_DARTS_V2', 300, 10_000, 4_810_000),
  ],
)
def test_weights_of_language_models_are_those_published(name, width, vocabulary, weights):
  found = cost.language_parts_of(published()[name].cell('recurrent'), width, vocabulary)
  assert sum(part.weights for part in found) == weights


def test_a_language_model_by_hand():
  """Two nodes of 3 numbers each, 5 words: products of [6] with [6, 6], of [3] with [3, 6] and of [3] with [3, 5]."""
  cell = recurrent.genotype((('tanh', 0), ('relu', 0)), (2,)).cell('recurrent')
  assert [tuple(part) for part in cost.language_parts_of(cell, 3, 5)] == [
    ('embedding', '', 'word', 15, 0),
    ('s0', '', 'input and previous state', 36, 36),
    ('s1', 'tanh', 's0', 18, 18),
    ('s2', 'relu', 's0', 18, 18),
    ('decoder', '', 'mean of s2', 5, 15),
  ]


def test_what_a_decoder_reads_is_listed_unless_it_is_everything():
  reads = {name: cost.language_parts_of(published()[name].cell('recurrent'), 2, 3)[-1].reads for name in RECURRENT}
  assert reads == {
    'RNN_DARTS_V1': 'mean of s1–s8',
    'RNN_DARTS_V2': 'mean of s1–s8',
    'RNN_ENAS': 'mean of s2, s5, s6, s9, s10, s11',
  }
