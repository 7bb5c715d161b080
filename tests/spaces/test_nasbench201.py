"""The space of NAS-Bench-201 against what its authors' code says of 60 cells, and by counting."""

import itertools
import json
import pathlib

import numpy as np
import pytest
from scipy import stats

from darts_jax.spaces.nasbench201 import CELL, OPERATIONS, NasBench201

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
CASES = pathlib.Path(__file__).parents[1] / 'cases' / 'nasbench201'
SPACE = NasBench201()
CONVOLUTION, POOLING = 'nor_conv_3x3', 'avg_pool_3x3'


@pytest.fixture(scope='module')
def everything():
  return list(SPACE.all())


def text(*operations):
  return '|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|'.format(*operations)


def test_texts_are_read_and_written_in_the_form_of_the_benchmark():
  arch = SPACE.from_json(text('none', 'skip_connect', CONVOLUTION, POOLING, 'nor_conv_1x1', 'none'))
  nodes = arch.cell(CELL).nodes
  assert [[(edge.source, *edge.operations) for edge in edges] for edges in nodes] == [
    [(0, 'none')],
    [(0, 'skip_connect'), (1, CONVOLUTION)],
    [(0, POOLING), (1, 'nor_conv_1x1'), (2, 'none')],
  ]
  assert arch.space == 'nasbench201'
  assert arch.cell(CELL).outputs == (3,)
  # A line of the published table, in its quotes of JSON.
  published = '"|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"'
  assert json.dumps(SPACE.to_json(SPACE.from_json(json.loads(published)))) == published


def test_all_architectures_are_there_once_and_survive_json(everything):
  texts = [SPACE.to_json(arch) for arch in everything]
  assert texts == [text(*operations) for operations in itertools.product(OPERATIONS, repeat=6)]
  assert SPACE.size == len(set(everything)) == 15_625
  assert [SPACE.from_json(each) for each in texts] == everything
  assert [SPACE.index(arch) for arch in everything] == list(range(15_625))


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    (None, 'None is no architecture'),
    (3, '3 is no architecture'),
    ('', "'' is no architecture"),
    (text(*['none'] * 6)[:-1], r"none~2' is no architecture of NAS-Bench-201; the form is \|op~0\|\+\|op~0\|op~1\|\+"),
    (text(*['none'] * 6) + '\n', 'is no architecture'),
    (text(*['none'] * 6).replace('none~2', 'none~1'), 'is no architecture'),
    (text(*['none'] * 6).replace('~0|none~1|+', '~1|none~0|+'), 'is no architecture'),
    (text(*['none'] * 5, 'nor_conv_3'), "'nor_conv_3' is no operation of NAS-Bench-201; did you mean 'nor_conv_3x3'"),
    (text(*['none'] * 5, 'sep_conv_9x9_xyz'), 'is no operation of NAS-Bench-201; '),
    ('|none~0' * 10**6, 'is no architecture'),
  ],
)
def test_other_values_are_refused_in_one_line(value, message):
  with pytest.raises(ValueError, match=message) as caught:
    SPACE.from_json(value)
  assert '\n' not in str(caught.value)
  assert len(str(caught.value)) < 1000


def test_keys_and_paths_are_those_of_the_authors(everything):
  rows = json.loads((GOLDENS / 'nb201_params.json').read_text())['rows']
  archs = [SPACE.from_json(row['arch']) for row in rows]
  assert [SPACE.key(arch) for arch in archs] == [row['unique_zero'] for row in rows]
  assert [SPACE.is_connected(arch) for arch in archs] == [row['valid'] for row in rows]
  assert {row['valid'] for row in rows} == {True, False}
  # The number that is published.
  assert len({SPACE.key(arch) for arch in everything}) == 6466


def test_keys_are_the_column_of_the_published_table():
  lines = [line.split(',') for line in (CASES / 'nats_tss_200ep_test_acc.csv').read_text().splitlines()[1:]]
  assert [SPACE.key(SPACE.from_json(line[3])) for line in lines] == [line[4] for line in lines]


def test_all_neighbours_differ_on_one_edge():
  arch = SPACE.from_json(text('none', 'skip_connect', CONVOLUTION, POOLING, 'nor_conv_1x1', 'none'))
  expected = set()
  for edge, operation in itertools.product(range(6), OPERATIONS):
    operations = list(SPACE.operations(arch))
    operations[edge] = operation
    expected.add(text(*operations))
  expected.remove(SPACE.to_json(arch))
  found = [SPACE.to_json(each) for each in SPACE.neighbours(arch)]
  assert len(found) == 24
  assert set(found) == expected


def test_operations_of_other_spaces_are_refused():
  with pytest.raises(
    ValueError, match="^arch: its cell .* has the operation 'dil_conv_3x3' on an edge whose candidates"
  ):
    SPACE.index(SPACE.genotype({CELL: SPACE.cells[CELL].discrete([[('dil_conv_3x3', 0)], [], []])}))


def test_mutations_reach_all_neighbours_equally_often():
  arch = SPACE.from_json(text(*[CONVOLUTION] * 6))
  rng = np.random.default_rng(0)
  drawn = [SPACE.index(SPACE.mutate(arch, rng)) for _ in range(24 * 40)]
  counts = [drawn.count(SPACE.index(each)) for each in SPACE.neighbours(arch)]
  assert sum(counts) == 24 * 40
  assert stats.chisquare(counts).pvalue > 1e-3


def test_draws_are_uniform_on_every_pair_of_edges():
  rng = np.random.default_rng(0)
  drawn = np.array([[OPERATIONS.index(each) for each in SPACE.operations(SPACE.sample(rng))] for _ in range(5000)])
  for first, second in itertools.combinations(range(6), 2):
    counts = np.bincount(5 * drawn[:, first] + drawn[:, second], minlength=25)
    assert stats.chisquare(counts).pvalue > 1e-3 / 15, (first, second)
  # 15,625 equally likely ones: a draw repeats one of n earlier ones with probability 1 − (1 − 1/15625)ⁿ.
  distinct = 15_625 * (1 - (1 - 1 / 15_625) ** 5000)
  found = len({tuple(row) for row in drawn.tolist()})
  # The variance of the number of occupied boxes is below that of independent ones.
  assert abs(found - distinct) < 4 * np.sqrt(distinct * (1 - distinct / 15_625))
