import json
import os
import pathlib
import re

import pytest

from darts_jax.spaces import (
  CellSpec,
  Darts,
  Edge,
  Recurrent,
  darts,
  from_json,
  load,
  published,
  recurrent,
  resolve,
  save,
  to_json,
  to_text,
)
from darts_jax.spaces.darts import CANDIDATES
from darts_jax.spaces.recurrent import ACTIVATIONS

SHORT = {
  'sep3': 'sep_conv_3x3',
  'sep5': 'sep_conv_5x5',
  'sep7': 'sep_conv_7x7',
  'dil3': 'dil_conv_3x3',
  'dil5': 'dil_conv_5x5',
  'skip': 'skip_connect',
  'max': 'max_pool_3x3',
  'avg': 'avg_pool_3x3',
}


def pairs(text):
  """`'sep3 0, skip 1 | …'`, node by node, as pairs."""
  parts = [part.split() for part in re.split('[,|]', text)]
  return tuple((SHORT.get(operation, operation), int(source)) for operation, source in parts)


# The cells as the papers draw them.
PAPERS = {
  'NASNet': darts.genotype(
    normal=pairs('sep5 1, sep3 0 | sep5 0, sep3 0 | avg 1, skip 0 | avg 0, avg 0 | sep3 1, skip 1'),
    normal_concat=(2, 3, 4, 5, 6),
    reduce=pairs('sep5 1, sep7 0 | max 1, sep7 0 | avg 1, sep5 0 | skip 3, avg 2 | sep3 2, max 1'),
    reduce_concat=(4, 5, 6),
  ),
  'AmoebaNet': darts.genotype(
    normal=pairs('avg 0, max 1 | sep3 0, sep5 2 | sep3 0, avg 3 | sep3 1, skip 1 | skip 0, avg 1'),
    normal_concat=(4, 5, 6),
    reduce=pairs('avg 0, sep3 1 | max 0, sep7 2 | sep7 0, avg 1 | max 0, max 1 | conv_7x1_1x7 0, sep3 5'),
    reduce_concat=(3, 4, 6),
  ),
  'DARTS_V1': darts.genotype(
    normal=pairs('sep3 1, sep3 0 | skip 0, sep3 1 | skip 0, sep3 1 | sep3 0, skip 2'),
    normal_concat=(2, 3, 4, 5),
    reduce=pairs('max 0, max 1 | skip 2, max 0 | max 0, skip 2 | skip 2, avg 0'),
    reduce_concat=(2, 3, 4, 5),
  ),
  'DARTS_V2': darts.genotype(
    normal=pairs('sep3 0, sep3 1 | sep3 0, sep3 1 | sep3 1, skip 0 | skip 0, dil3 2'),
    normal_concat=(2, 3, 4, 5),
    reduce=pairs('max 0, max 1 | skip 2, max 1 | max 0, skip 2 | skip 2, max 1'),
    reduce_concat=(2, 3, 4, 5),
  ),
  'RNN_ENAS': recurrent.genotype(
    pairs('tanh 0, tanh 1, relu 1, tanh 3, tanh 3, relu 3, relu 4, relu 7, relu 8, relu 8, relu 8'),
    (2, 5, 6, 9, 10, 11),
  ),
  'RNN_DARTS_V1': recurrent.genotype(
    pairs('relu 0, relu 1, tanh 2, relu 3, relu 4, identity 1, relu 5, relu 1'), tuple(range(1, 9))
  ),
  'RNN_DARTS_V2': recurrent.genotype(
    pairs('sigmoid 0, relu 1, relu 1, identity 1, tanh 2, sigmoid 5, tanh 3, relu 5'), tuple(range(1, 9))
  ),
}


@pytest.mark.parametrize('name', PAPERS)
def test_published_genotype_is_that_of_its_paper(name):
  assert published()[name] == PAPERS[name]


def test_every_published_genotype_survives_its_file(tmp_path):
  assert len(published()) == 40
  for name, genotype in published().items():
    path = tmp_path / f'{name}.json'
    save(genotype, path)
    assert load(path) == genotype
    assert resolve(str(path)) == genotype
    assert resolve(name) is genotype


def test_json_form():
  values = json.loads(json.dumps(to_json(PAPERS['DARTS_V2'])))
  assert list(values) == ['normal', 'normal_concat', 'reduce', 'reduce_concat']
  assert values['normal'][:3] == [['sep_conv_3x3', 0], ['sep_conv_3x3', 1], ['sep_conv_3x3', 0]]
  assert values['reduce_concat'] == [2, 3, 4, 5]
  assert from_json(values) == PAPERS['DARTS_V2']
  values = to_json(PAPERS['RNN_DARTS_V2'])
  assert values == {
    'recurrent': [list(pair) for pair in PAPERS['RNN_DARTS_V2'].cell('recurrent').pairs],
    'concat': [*range(1, 9)],
  }


def test_genotype_as_cells():
  spec = PAPERS['NASNet'].cell('normal')
  assert spec.is_discrete
  assert spec.num_edges == 10
  assert spec.operations == ('sep_conv_5x5', 'sep_conv_3x3', 'avg_pool_3x3', 'skip_connect')
  assert spec.outputs == (2, 3, 4, 5, 6)
  # The node that averages one input twice.
  assert spec.nodes[3] == (Edge(0, ('avg_pool_3x3',)),) * 2
  assert PAPERS['NASNet'].cell('reduce').edges[6:8] == (
    (5, Edge(3, ('skip_connect',))),
    (5, Edge(2, ('avg_pool_3x3',))),
  )


@pytest.mark.parametrize(('num_nodes', 'num_edges'), [(1, 2), (2, 2 + 3), (3, 2 + 3 + 4), (4, 14), (5, 20)])
def test_number_of_edges_of_the_search_space(num_nodes, num_edges):
  spec = Darts(num_nodes).cells['normal']
  assert spec.num_edges == len(spec.edges) == num_edges
  assert spec.outputs == tuple(range(2, 2 + num_nodes))


def test_edges_of_the_search_space_are_ordered_by_target_then_source():
  spec = Darts().cells['normal']
  assert [(target, edge.source) for target, edge in spec.edges] == [
    *((2, 0), (2, 1)),
    *((3, 0), (3, 1), (3, 2)),
    *((4, 0), (4, 1), (4, 2), (4, 3)),
    *((5, 0), (5, 1), (5, 2), (5, 3), (5, 4)),
  ]
  assert {edge.operations for _, edge in spec.edges} == {CANDIDATES}
  assert spec.operations == (
    *('none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect'),
    *('sep_conv_3x3', 'sep_conv_5x5', 'dil_conv_3x3', 'dil_conv_5x5'),
  )
  assert not spec.is_discrete


@pytest.mark.parametrize('name', ['RNN_ENAS', 'RNN_DARTS_V1', 'RNN_DARTS_V2'])
def test_recurrent_genotype_as_a_cell(name):
  genotype = PAPERS[name]
  [(kind, spec)] = genotype.cells
  assert (genotype.space, kind) == ('recurrent', 'recurrent')
  assert spec == genotype.cell('recurrent')
  assert (spec.output, spec.kept) == ('mean', 1)
  assert spec.is_discrete
  assert spec.num_inputs == 1
  assert spec.num_edges == len(spec.nodes) == len(spec.pairs)
  # Nodes are counted from 1, and each reads one state.
  assert [(node, edge.operations[0], edge.source) for node, edge in spec.edges] == [
    (node, *pair) for node, pair in enumerate(spec.pairs, start=1)
  ]
  assert list(spec.outputs) == to_json(genotype)['concat']
  assert set(spec.operations) == {activation for activation, _ in spec.pairs}
  assert len(set(spec.operations)) == len(spec.operations)


@pytest.mark.parametrize(('num_nodes', 'num_edges'), [(1, 1), (2, 1 + 2), (3, 1 + 2 + 3), (8, 36)])
def test_recurrent_search_space(num_nodes, num_edges):
  spec = Recurrent(num_nodes).cells['recurrent']
  assert spec.num_edges == len(spec.edges) == num_edges
  assert spec.outputs == tuple(range(1, 1 + num_nodes))
  # Ordered by target, then by source.
  assert [(node, edge.source) for node, edge in spec.edges] == [
    (node, source) for node in range(1, num_nodes + 1) for source in range(node)
  ]
  assert {edge.operations for _, edge in spec.edges} == {spec.operations}
  assert spec.operations == ACTIVATIONS == ('none', 'tanh', 'relu', 'sigmoid', 'identity')
  assert (spec.num_inputs, spec.output, spec.kept) == (1, 'mean', 1)
  assert not spec.is_discrete
  # The paper's: 36 edges of five activations.
  assert Recurrent().cells['recurrent'] == Recurrent(8, ACTIVATIONS).cells['recurrent']
  assert Recurrent(operations=('tanh', 'none')).cells['recurrent'].operations == ('tanh', 'none')


def test_cells_of_images_concatenate_and_keep_two_edges_a_node():
  for cell in (Darts().cells['normal'], Darts().cells['reduce'], PAPERS['NASNet'].cell('normal')):
    assert (cell.num_inputs, cell.output, cell.kept) == (2, 'concat', 2)
  assert list(Darts().cells) == [name for name, _ in PAPERS['NASNet'].cells] == ['normal', 'reduce']
  assert PAPERS['NASNet'].space == 'darts'


def test_spec_is_discrete_when_no_edge_has_a_choice():
  edges = (Edge(0, ('none', 'skip_connect')), Edge(1, ('skip_connect',)))
  assert not CellSpec((edges,), ('none', 'skip_connect'), 2, (2,), 'concat', 2).is_discrete
  assert CellSpec((edges[1:],), ('none', 'skip_connect'), 2, (2,), 'concat', 2).is_discrete
  assert Darts(operations=('skip_connect',)).cells['normal'].is_discrete


def test_equal_specs_and_genotypes_are_one_key():
  assert len({Darts().cells['normal'], Darts(4, CANDIDATES).cells['normal'], Darts(3).cells['normal']}) == 2
  specs = {from_json(to_json(PAPERS['DARTS_V2'])).cell('normal'), PAPERS['DARTS_V2'].cell('normal')}
  assert len(specs) == 1
  assert len({*PAPERS.values(), from_json(to_json(PAPERS['RNN_ENAS']))}) == len(PAPERS)


def change(field, value=None, base='DARTS_V2'):
  """A published genotype's JSON values with one field changed, or removed if there is no value."""
  values = to_json(PAPERS[base])
  del values[field]
  return values if value is None else values | {field: value}


def change_pair(field, index, pair, base='DARTS_V2'):
  values = to_json(PAPERS[base])
  values[field][index] = pair
  return values


ERRORS = {
  'cycle': (
    change_pair('normal', 2, ['skip_connect', 4]),
    'normal: node 3 reads node 4, which closes a cycle; allowed are 0 to 2',
  ),
  'self': (
    change_pair('reduce', 7, ['skip_connect', 5]),
    'reduce: node 5 reads node 5, which closes a cycle; allowed are 0 to 4',
  ),
  'source too large': (
    change_pair('normal', 0, ['skip_connect', 6]),
    'normal: node 2 reads node 6, which does not exist; allowed are 0 to 1',
  ),
  'source negative': (
    change_pair('normal', 0, ['skip_connect', -1]),
    'normal: node 2 reads node -1, which does not exist; allowed are 0 to 1',
  ),
  'operation': (
    change_pair('reduce', 3, ['sep_conv_3x4', 1]),
    "reduce: node 3: 'sep_conv_3x4' is not an operation; did you mean 'sep_conv_3x3'?",
  ),
  'pair without source': (
    change_pair('normal', 1, ['skip_connect']),
    "normal: ['skip_connect'] is not an [operation, source] pair",
  ),
  'pair with a fraction': (
    change_pair('normal', 1, ['skip_connect', 0.5]),
    "normal: ['skip_connect', 0.5] is not an [operation, source] pair",
  ),
  'pair with a truth value': (
    change_pair('normal', 1, ['skip_connect', True]),
    "normal: ['skip_connect', True] is not an [operation, source] pair",
  ),
  'pairs missing their list': (change('normal', 3), 'normal: 3 is not a list of [operation, source] pairs'),
  'odd number': (
    change('normal', [['skip_connect', 0]] * 3),
    'normal: 3 pairs; a cell lists two (operation, source) pairs a node',
  ),
  'no pair': (change('reduce', []), 'reduce: 0 pairs; a cell lists two (operation, source) pairs a node'),
  'missing field': (
    change('reduce_concat'),
    'reduce_concat: missing; a genotype has the fields normal, normal_concat, reduce, reduce_concat',
  ),
  'node of nothing': (
    change('reduce', [['none', 0], ['skip_connect', 1], ['none', 0], ['none', 1]]),
    "reduce: node 3: both operations are 'none'; one of them may be",
  ),
  'unknown field': (
    change('normal') | {'normal': [['skip_connect', 0]] * 2, 'norm': []},
    "'norm': unknown field; a genotype has the fields normal, normal_concat, reduce, reduce_concat",
  ),
  'concat of an input': (
    change('normal_concat', [1, 2]),
    'normal_concat: [1, 2] is not allowed; list each node once, from 2 to 5',
  ),
  'concat too large': (
    change('reduce_concat', [2, 6]),
    'reduce_concat: [2, 6] is not allowed; list each node once, from 2 to 5',
  ),
  'concat twice': (
    change('normal_concat', [2, 2]),
    'normal_concat: [2, 2] is not allowed; list each node once, from 2 to 5',
  ),
  'concat empty': (
    change('normal_concat', []),
    'normal_concat: [] is not allowed; list each node once, from 2 to 5',
  ),
  'concat of text': (change('normal_concat', ['2']), "normal_concat: ['2'] is not a list of node indices"),
  'recurrent cycle': (
    change_pair('recurrent', 2, ['tanh', 3], 'RNN_DARTS_V2'),
    'recurrent: node 3 reads node 3, which closes a cycle; allowed are 0 to 2',
  ),
  'recurrent activation': (
    change_pair('recurrent', 0, ['skip_connect', 0], 'RNN_DARTS_V2'),
    "recurrent: node 1: 'skip_connect' is not an operation; allowed are tanh, relu, sigmoid, identity",
  ),
  'recurrent without nodes': (
    change('recurrent', [], 'RNN_DARTS_V2'),
    'recurrent: 0 pairs; a cell lists one (activation, source) pair a node',
  ),
  'recurrent concat': (
    change('concat', [0, 1], 'RNN_DARTS_V2'),
    'concat: [0, 1] is not allowed; list each node once, from 1 to 8',
  ),
  'both kinds': (
    to_json(PAPERS['RNN_DARTS_V2']) | {'normal': []},
    "'normal': unknown field; a genotype has the fields recurrent, concat",
  ),
  'not an object': ([1, 2], 'a genotype is an object with fields, not list'),
}


@pytest.mark.parametrize(('values', 'message'), ERRORS.values(), ids=list(ERRORS))
def test_file_that_holds_no_genotype_is_one_line_with_file_and_field(tmp_path, values, message):
  path = tmp_path / 'genotype.json'
  path.write_text(json.dumps(values))
  with pytest.raises(ValueError, match=f'^{re.escape(f"{path}: {message}")}$'):
    resolve(str(path))


@pytest.mark.parametrize('content', [b'', b'{"normal": [', b'Genotype(normal=[', b'\xff\xfe', b'a log without one\n'])
def test_file_that_is_not_json_is_named_in_one_line(tmp_path, content):
  path = tmp_path / 'genotype.json'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f'^{re.escape(str(path))}: not JSON .*$') as error:
    load(path)
  assert '\n' not in str(error.value)


def test_file_that_cannot_be_read_is_named_in_one_line(tmp_path):
  for path, reason in (
    (tmp_path / 'none.json', 'cannot be read (No such file or directory)'),
    (tmp_path, 'not a file, but a folder'),
  ):
    with pytest.raises(ValueError, match=f'^{re.escape(f"{path}: {reason}")}$'):
      load(path)


# What other programs print.

V2 = (pathlib.Path(__file__).parents[1] / 'cases' / 'genotype_printed.txt').read_text()
NESTED = (
  "[[('sep_conv_3x3', 0), ('sep_conv_3x3', 1)], [('sep_conv_3x3', 0), ('sep_conv_3x3', 1)],"
  " [('sep_conv_3x3', 1), ('skip_connect', 0)], [('skip_connect', 0), ('dil_conv_3x3', 2)]]"
)
PRINTED = {
  'pt.darts': V2.replace(V2[V2.index('[') : V2.index(']') + 1], NESTED),
  'mark': '\ufeff' + V2,
  'DARTS and PC-DARTS': f'03/01 10:11:12 PM epoch 49\n03/01 10:11:13 PM genotype = {V2}\n03/01 valid_acc 88.1\n',
  'P-DARTS': f'Restricting skipconnect...\nNumber of skip-connect: 3\n{V2.replace("skip", "avg")}\n{V2}\n',
  'SGAS': f'01-01 #### cri: 0.5 {{"a": [1]}}\nINFO genotype: {V2.replace("dil_conv_3x3", "none")}\nINFO {V2}\n',
  'NumPy 2': re.sub(r"('\w+'), (\d)", r'np.str_(\1), np.int64(\2)', V2),
  'Python 2': V2.replace("'sep", "u'sep").replace('range(2, 6)', '[2, 3, 4, 5]'),
  'source': f'from x import y\nDARTS = {V2.replace("=", " = ").replace("), ", "),  # node 2" + chr(10))[:-1]},\n)\n',
  'positional': re.sub(r'\w+=', '', V2).replace('range(2, 6)', 'list(xrange(2, 6))').replace("'", '"'),
  'dictionary': f'genotype: {to_json(PAPERS["DARTS_V2"])}\nvalidation accuracy in the supernet: 90 %\n',
  'described': json.dumps({'parameters': 3, 'genotype': to_json(PAPERS['DARTS_V2'])}),
}


@pytest.mark.parametrize('text', PRINTED.values(), ids=list(PRINTED))
def test_a_genotype_that_other_programs_print_is_read(tmp_path, text):
  path = tmp_path / 'log.txt'
  for encoding in ('utf-8', 'utf-16'):
    path.write_text(text.lstrip('\ufeff') if encoding == 'utf-16' else text, encoding=encoding)
    assert load(path) == PAPERS['DARTS_V2']
  if not text.startswith('{'):
    assert resolve(text) == PAPERS['DARTS_V2']


def test_nested_lists_in_json_are_read():
  path = pathlib.Path(__file__).parents[1] / 'cases' / 'genotype_pt_darts.json'
  assert resolve(str(path)) == PAPERS['DARTS_V2']


def test_a_printed_genotype_is_what_the_field_prints():
  assert to_text(PAPERS['DARTS_V2']) == V2
  assert to_text(PAPERS['RNN_DARTS_V1']).endswith("('relu', 1)], concat=range(1, 9))")
  assert to_text(PAPERS['AmoebaNet']).endswith('reduce_concat=[3, 4, 6])')
  for genotype in published().values():
    assert resolve(to_text(genotype)) == genotype


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (V2[:100], 'the genotype in line 1: it is cut off'),
    (f'a\nb\n{V2[:-3]}', 'the genotype in line 3: it is cut off'),
    (V2.replace('range(2, 6)', '__import__("os").getcwd()'), 'the genotype in line 1: __import__(…) is not understood'),
    (V2.replace('range(2, 6)', 'range(10**9)'), 'the genotype in line 1: unexpected "**9)'),
    (V2.replace('range(2, 6)', 'range(999999999)'), 'the genotype in line 1: range(…) is not understood'),
    (V2.replace('range(2, 6)', '[' * 5000), 'the genotype in line 1: nested more than 10 levels deep'),
    (V2.replace('range(2, 6)', 'list(' * 3000), 'the genotype in line 1: nested more than 10 levels deep'),
    # There are exponentially many ways to divide a comment into comments.
    (f'{V2[:60]}\n{"#" * 40}', 'the genotype in line 1: it is cut off'),
    ("Genotype(normal=[  # sep ('a', 0)", 'the genotype in line 1: it is cut off'),
    (V2.replace('range', 'q' * 10_000), 'the genotype in line 1: qqq'),
    (V2.replace('normal_concat', 'normal'), 'the genotype in line 1: normal: given twice'),
    (V2.replace('sep_conv_3x3', 'sep_conv_4x4'), "normal: node 2: 'sep_conv_4x4' is not an operation"),
    (V2.replace(', normal_concat=range(2, 6)', ''), 'normal_concat: missing'),
    (
      "Genotype(normal=[[('skip_connect', 0)], [('skip_connect', 0), ('skip_connect', 1), ('skip_connect', 2)]],"
      ' normal_concat=[2, 3], reduce=[], reduce_concat=[])',
      'normal: node 2 has 1 pairs; 2 are needed',
    ),
  ],
)
def test_what_is_no_printed_genotype_is_one_line(tmp_path, text, message):
  path = tmp_path / 'log.txt'
  path.write_text(text)
  for call in (lambda: load(path), lambda: resolve(text)):
    with pytest.raises(ValueError, match=f'^{re.escape(str(path))}: .*|^genotype: .*') as error:
      call()
    assert message in str(error.value)
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 1000


def test_what_is_no_file_is_not_read():
  with pytest.raises(ValueError, match=f'^{os.devnull}: not a file, but a device$'):
    load(os.devnull)


def test_neither_file_nor_published_suggests_a_name():
  with pytest.raises(ValueError, match="^genotype: 'DARTS_V' is neither a .*; did you mean 'DARTS_V[12]'[?]$"):
    resolve('DARTS_V')
  with pytest.raises(ValueError, match='; allowed are NASNet, AmoebaNet, DARTS_V1, .*, PDARTS$'):
    resolve('qqq')


def test_saving_replaces_the_file_as_a_whole(tmp_path):
  path = tmp_path / 'genotype.json'
  save(PAPERS['DARTS_V1'], path)
  # A second name of the old file: were the file written to in place, its content would change under that name, too.
  os.link(path, tmp_path / 'before.json')
  save(PAPERS['RNN_DARTS_V1'], path)
  assert load(tmp_path / 'before.json') == PAPERS['DARTS_V1']
  assert load(path) == PAPERS['RNN_DARTS_V1']
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ['before.json', 'genotype.json']


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Darts(0), 'nodes: 0 is not allowed; a cell has 1 to 20 intermediate nodes'),
    (lambda: Darts(operations=('none',)), "operations: ('none',) has nothing to choose; "),
    (lambda: Darts(operations=()), 'operations: no operation is listed; '),
    (lambda: Darts(operations=('skip',)), "operations: 'skip' is not an operation; "),
    (
      lambda: Darts(operations=('none', 'none')),
      "operations: an operation is listed twice in ('none', 'none')",
    ),
    (
      lambda: CellSpec(((Edge(0, ('none',)), Edge(2, ('none',))),), ('none',), 2, (2,), 'concat', 2),
      'cell: node 2 reads node 2, which closes a cycle; allowed are 0 to 1',
    ),
    (
      lambda: CellSpec(((Edge(0, ('skip_connect',)),),), ('none',), 2, (2,), 'concat', 2),
      "node 2: 'skip_connect' is not an operation; allowed are none",
    ),
    (
      lambda: CellSpec(((Edge(0, ('none',)),),), ('none',), 2, (3,), 'concat', 2),
      'outputs: [3] is not allowed; list each node once, from 2 to 2',
    ),
    (
      lambda: darts.genotype(pairs('skip 0, skip 2'), (2,), pairs('skip 0, skip 1'), (2,)),
      'normal: node 2 reads node 2, which closes a cycle; allowed are 0 to 1',
    ),
  ],
)
def test_invalid_cells_are_refused(make, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}') as error:
    make()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: Recurrent(0),
      'nodes: 0 is not allowed; a cell has 1 to 20 intermediate nodes',
    ),
    (lambda: Recurrent(operations=('none',)), "operations: ('none',) has nothing to choose; "),
    (
      lambda: Recurrent(operations=('none', 'skip_connect')),
      "operations: 'skip_connect' is not an operation; allowed are none, tanh, relu, sigmoid, identity",
    ),
    (lambda: Darts(operations=('none', 'tanh')), "operations: 'tanh' is not an operation; "),
    (
      lambda: CellSpec(((Edge(1, ('tanh',)),),), ('tanh',), 1, (1,), 'mean', 1),
      'cell: node 1 reads node 1, which closes a cycle; allowed are 0 to 0',
    ),
    (
      lambda: CellSpec(((Edge(0, ('tanh',)),),), ('tanh',), 1, (0,), 'mean', 1),
      'outputs: [0] is not allowed; list each node once, from 1 to 1',
    ),
    (
      lambda: CellSpec(((Edge(0, ('relu',)),),), ('tanh',), 1, (1,), 'mean', 1),
      "node 1: 'relu' is not an operation; allowed are tanh",
    ),
  ],
)
def test_invalid_recurrent_cells_are_refused(make, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}') as error:
    make()
  assert '\n' not in str(error.value)


def test_recurrent_node_without_an_activation_is_refused():
  with pytest.raises(ValueError, match="^recurrent: node 1: 'none' is not an operation; "):
    recurrent.genotype((('none', 0), ('tanh', 0)), (1, 2))


def test_genotype_file_is_read_or_refused(tmp_path, complaints):
  path = tmp_path / 'genotype.json'
  save(published()['DARTS_V2'], path)
  assert 200 < len(complaints(load, path)) < 400


def test_device_is_no_genotype():
  with pytest.raises(ValueError, match='^/dev/zero: not a file, but a device$'):
    resolve('/dev/zero')


def test_cell_of_too_many_nodes():
  pairs = (('none', 0),) * 42
  with pytest.raises(ValueError, match='^normal: 21 nodes; allowed are up to 20$'):
    darts.genotype(pairs, (2,), pairs, (2,))
  with pytest.raises(ValueError, match='^nodes: 1000 is not allowed; a cell has 1 to 20 intermediate nodes$'):
    Darts(1000)
