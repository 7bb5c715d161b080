"""What holds in every space of cells: drawing, neighbours, keys, files; and that nothing of it needs JAX."""

import collections
import dataclasses
import itertools
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from darts_jax import spaces
from darts_jax.selection import random_genotype
from darts_jax.spaces import CellSpace, Edge, Look, darts, full_cell
from darts_jax.spaces.nasbench201 import NasBench201

PUBLISHED = pathlib.Path(spaces.__file__).parent / 'published.json'


@dataclasses.dataclass(frozen=True)
class Every(CellSpace):
  """Two nodes that keep all of their edges, `none` being an operation like others: 2³ architectures."""

  name = 'every'
  look = Look(titles={'only': 'The cell'})

  @property
  def cells(self):
    return {'only': full_cell(('none', 'a'), 2, num_inputs=1, output='last', kept=None)}

  @property
  def keeps_none(self):
    return True


@dataclasses.dataclass(frozen=True)
class Two(CellSpace):
  """Nodes that keep two edges: one choice of sources for the first and three for the second, 2⁴ of operations."""

  name = 'two'

  @property
  def cells(self):
    return {'one': full_cell(('none', 'a', 'b'), 2, num_inputs=2, output='concat', kept=2)}


@dataclasses.dataclass(frozen=True)
class Unlike(CellSpace):
  """Edges with candidates of their own."""

  name = 'unlike'

  @property
  def cells(self):
    whole = full_cell(('a', 'b', 'c'), 1, num_inputs=3, output='concat', kept=1)
    edges = (Edge(0, ('a', 'b')), Edge(1, ('b', 'c')), Edge(2, ('c',)))
    return {'one': dataclasses.replace(whole, nodes=(edges,))}


#: With the number of architectures, and of the neighbours of each.
SMALL = {
  'recurrent': (spaces.Recurrent(2, ('none', 'tanh', 'relu')), 2 * 4, 1 + 2),
  'every': (Every(), 2**3, 3),
  'two': (Two(), 2**2 * 3 * 2**2, 2 + 4),
  'darts': (spaces.Darts(1, ('none', 'skip_connect', 'max_pool_3x3')), 2**4, 4),
}


@pytest.mark.parametrize(('space', 'number', 'around'), SMALL.values(), ids=list(SMALL))
def test_every_architecture_is_drawn_as_often(space, number, around):
  rng = np.random.default_rng(0)
  mean = 200
  counts = collections.Counter(space.key(space.sample(rng)) for _ in range(mean * number))
  assert len(counts) == number
  # A count has a standard deviation of √200 at most; one in 500 000 is further off than 5 of them.
  assert max(abs(count - mean) for count in counts.values()) < 5 * mean**0.5


@pytest.mark.parametrize(('space', 'number', 'around'), SMALL.values(), ids=list(SMALL))
def test_neighbours_are_mutual_each_once_and_lead_everywhere(space, number, around):
  first = space.sample(np.random.default_rng(0))
  seen, left = {first}, [first]
  while left:
    arch = left.pop()
    found = list(space.neighbours(arch))
    assert len({space.key(other) for other in found} - {space.key(arch)}) == len(found) == around
    assert all(arch in space.neighbours(other) for other in found)
    left += [other for other in found if other not in seen]
    seen.update(found)
  assert len({space.key(arch) for arch in seen}) == number


def test_architectures_of_other_spaces_have_no_neighbours_in_a_space():
  both = {'nasbench201': NasBench201(), 'darts': spaces.Darts()}
  archs = {name: space.sample(np.random.default_rng(0)) for name, space in both.items()}
  for name, other in (('nasbench201', 'darts'), ('darts', 'nasbench201')):
    message = f'^arch: a genotype of the space {other}; allowed are those of the space {name}$'
    # Whether or not anything is read from the iterator.
    with pytest.raises(ValueError, match=message):
      both[name].neighbours(archs[other])
    with pytest.raises(ValueError, match=message):
      both[name].mutate(archs[other], np.random.default_rng(0))
  for method in (NasBench201.index, NasBench201.to_json, NasBench201.key):
    with pytest.raises(ValueError, match='^arch: a genotype of the space darts; allowed are'):
      method(both['nasbench201'], archs['darts'])
  with pytest.raises(ValueError, match="^arch: 'text' is no genotype; allowed are those of the space darts$"):
    both['darts'].neighbours('text')
  small = spaces.Darts(nodes=2)
  with pytest.raises(ValueError, match='^arch: its cell normal has other nodes or edges than the cells of this space'):
    small.neighbours(archs['darts'])


def test_neighbours_have_candidates_of_their_edges_alone():
  space = Unlike()
  drawn = [space.sample(np.random.default_rng(seed)) for seed in range(100)]
  pairs = {arch.cell('one').pairs[0] for arch in drawn}
  assert pairs == {('a', 0), ('b', 0), ('b', 1), ('c', 1), ('c', 2)}
  around = {
    arch.cell('one').pairs[0]: {other.cell('one').pairs[0] for other in space.neighbours(arch)} for arch in drawn
  }
  assert around == {
    ('a', 0): {('b', 0)},
    ('b', 0): {('a', 0), ('b', 1)},
    ('b', 1): {('c', 1), ('b', 0)},
    ('c', 1): {('b', 1), ('c', 2)},
    ('c', 2): {('c', 1)},
  }


def test_every_neighbour_is_as_likely_a_mutation():
  space, rng = Two(), np.random.default_rng(0)
  arch = space.sample(rng)
  counts = collections.Counter(space.mutate(arch, rng) for _ in range(6 * 200))
  assert set(counts) == set(space.neighbours(arch))
  assert max(abs(count - 200) for count in counts.values()) < 5 * 200**0.5


def test_an_architecture_without_neighbours_has_no_mutation():
  space = spaces.Recurrent(1, ('tanh',))
  arch = space.sample(np.random.default_rng(0))
  with pytest.raises(ValueError, match='^recurrent: an architecture of this space has no neighbours; [^\n]*$'):
    space.mutate(arch, np.random.default_rng(0))


def test_a_key_knows_no_order_of_the_edges_of_a_node():
  first, second = (('skip_connect', 0), ('max_pool_3x3', 1)), (('sep_conv_3x3', 1), ('sep_conv_5x5', 0))
  key = spaces.Darts().key

  def arch(*nodes, outputs=(2, 3)):
    pairs = tuple(pair for node in nodes for pair in node)
    return darts.genotype(pairs, outputs, (*first, *second), (2, 3))

  orders = [arch(*nodes) for nodes in itertools.product(itertools.permutations(first), itertools.permutations(second))]
  assert len(set(orders)) == 4
  assert len(set(map(key, orders))) == 1
  sources = ('skip_connect', 1), ('max_pool_3x3', 0)
  others = [arch(first, second, outputs=(3,)), arch(second, first), arch(sources, second), arch(first, first)]
  assert len({key(orders[0]), *map(key, others)}) == 5


def test_published_genotypes_are_written_as_they_are_published(tmp_path):
  values = json.loads(PUBLISHED.read_text())
  assert list(values) == list(spaces.published())
  for name, genotype in spaces.published().items():
    spaces.save(genotype, tmp_path / 'found.json')
    assert (tmp_path / 'found.json').read_text() == json.dumps(values[name]) + '\n'


def test_a_random_search_that_was_begun_earlier_goes_on():
  """The draw of seed 5 and number 3, as it was before there were spaces."""
  normal = ('dil_conv_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 0), ('avg_pool_3x3', 1)
  reduce = ('dil_conv_3x3', 0), ('dil_conv_5x5', 1), ('skip_connect', 1), ('dil_conv_3x3', 2)
  assert random_genotype(spaces.Darts(2), 5, 3) == darts.genotype(normal, (2, 3), reduce, (2, 3))


def test_an_architecture_of_any_space_has_a_file(tmp_path, monkeypatch):
  monkeypatch.setitem(spaces.SPACES, 'every', Every)
  found = Every().sample(np.random.default_rng(1))
  spaces.save(found, tmp_path / 'found.json')
  content = (tmp_path / 'found.json').read_text()
  [[first]], [[second], [third]] = ([edge.operations for edge in node] for node in found.cell('only').nodes)
  nodes = [[[first, 0]], [[second, 0], [third, 1]]]
  assert json.loads(content) == {'space': 'every', 'cells': {'only': {'nodes': nodes, 'outputs': [2]}}}
  assert spaces.load(tmp_path / 'found.json') == found
  assert spaces.to_text(found) == content.strip()
  assert spaces.space_of(found) == Every()
  assert (spaces.kind_of(found), spaces.look_of('every').title('only')) == ('every', 'The cell')


def cell_of(**changes):
  return {'space': 'every', 'cells': {'only': {'nodes': [[['a', 0]]], 'outputs': [1], **changes}}}


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'space': 'evry'}, "space: 'evry' is not known; did you mean 'every'?"),
    ({'space': [7]}, 'space: [7] is not known; allowed are darts, recurrent, nasbench201, robust, every, two'),
    ({'space': 'every'}, 'cells: missing; a genotype has the fields space, cells'),
    ({'space': 'every', 'cells': 1}, 'the field cells is an object with fields, not int'),
    ({'space': 'every', 'cells': {}}, 'only: missing; the field cells has the fields only'),
    (cell_of(nodes=1), 'only: 1 is not a list of nodes'),
    (cell_of(nodes=[]), 'only: [] is not a list of nodes'),
    (cell_of(nodes=[['a', 0]]), "only: node 1: 'a' is not an [operation, source] pair"),
    (cell_of(nodes=[[['a', 1]]]), 'only: node 1 reads node 1, which closes a cycle; allowed are 0 to 0'),
    (cell_of(outputs=[0]), 'only: outputs: [0] is not allowed; list each node once, from 1 to 1'),
    (cell_of(outputs='1'), "only: outputs: '1' is not a list of node indices"),
    (cell_of(output=[1]), "'output': unknown field; the cell only has the fields nodes, outputs"),
    (
      {'space': 'two', 'cells': {'one': {'nodes': [[['a', 0]]], 'outputs': [2]}}},
      'one: node 2 has 1 pairs; 2 are needed',
    ),
  ],
)
def test_a_file_of_any_space_is_read_or_refused_in_one_line(values, message, monkeypatch):
  monkeypatch.setitem(spaces.SPACES, 'every', Every)
  monkeypatch.setitem(spaces.SPACES, 'two', Two)
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    spaces.from_json(values)


def test_an_architecture_of_a_space_that_is_not_listed_has_no_file():
  message = "^space: 'every' is not known; allowed are darts, recurrent, nasbench201, robust$"
  with pytest.raises(ValueError, match=message):
    spaces.to_json(Every().sample(np.random.default_rng(0)))


def test_operations_that_a_space_does_not_know_are_refused_in_its_files(monkeypatch):
  monkeypatch.setitem(spaces.SPACES, 'every', type('Known', (Every,), {'known_operations': ('none', 'a')}))
  assert spaces.from_json(cell_of()).cell('only').pairs == (('a', 0),)
  with pytest.raises(ValueError, match="^only: node 1: 'b' is not an operation; allowed are none, a$"):
    spaces.from_json(cell_of(nodes=[[['b', 0]]]))


def test_a_node_that_keeps_all_edges_leaves_them_in_their_order_and_may_keep_none():
  mixing = {'only': np.array([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2]])}
  [(name, cell)] = Every().strongest(mixing).cells
  assert (name, cell.pairs) == ('only', (('none', 0), ('a', 0), ('none', 1)))
  same = spaces.doubts(mixing, mixing, Every().cells, keeps_none=True)
  assert same == spaces.Doubts(3, 0, 0)
  before = {'only': mixing['only'] + [[0, 0], [0, 0], [0.3, -0.31]]}
  assert spaces.doubts(before, mixing, Every().cells, keeps_none=True) == spaces.Doubts(3, 0, 1)


def test_nodes_have_the_names_of_their_space():
  look = spaces.Darts.look
  assert [look.node(index) for index in range(4)] == ['c_{k-2}', 'c_{k-1}', '0', '1']
  assert [spaces.Recurrent.look.node(index) for index in range(3)] == ['s0', 's1', 's2']
  assert [Look().node(index) for index in range(2)] == ['0', '1']
  named = ('darts', 'normal'), ('darts', 'reduce'), ('recurrent', 'recurrent'), ('darts', 'mine'), ('mine', 'normal')
  titles = [spaces.look_of(space).title(cell) for space, cell in named]
  assert titles == ['Normal cell', 'Reduction cell', 'Recurrent cell', 'mine', 'normal']


def test_spaces_need_no_jax():
  code = """
import sys
from darts_jax import spaces
assert len(spaces.published()) == 40
print(sorted({name.partition('.')[0] for name in sys.modules} & {'jax', 'jaxlib', 'flax', 'optax', 'matplotlib'}))
"""
  process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert process.stdout == '[]\n'
