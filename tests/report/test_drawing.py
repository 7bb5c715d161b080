"""Drawings and DOT source hold exactly the edges of the cells they are of."""

import collections
import dataclasses
import functools
import itertools
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from darts_jax import spaces
from darts_jax.report import drawing
from darts_jax.spaces import CellSpec, Edge

_CELLS = {
  f'{name}-{cell}': spec for name, architecture in spaces.published().items() for cell, spec in architecture.cells
}
_DARTS, _RECURRENT = spaces.Darts.look, spaces.Recurrent.look


def _space(name: str) -> str:
  return 'recurrent' if name.endswith('recurrent') else 'darts'


@functools.cache
def _draw(cell: CellSpec, space: str = 'darts') -> Figure:
  return drawing.draw_cell(cell, spaces.SPACES[space].look)


def _texts(figure: Figure, kind: str) -> list[Text]:
  return [text for text in figure.axes[0].texts if text.get_gid() == kind]


def _box(text: Text, figure: Figure) -> Bbox:
  return text.get_window_extent(FigureCanvasAgg(figure).get_renderer())


def _crossings(figure: Figure) -> list[int]:
  """How many edges run through each label."""
  axes = figure.axes[0]
  boxes = [_box(text, figure) for text in _texts(figure, drawing.LABEL)]
  counts = [0] * len(boxes)
  for artist in axes.get_children():
    if isinstance(artist, FancyArrowPatch):
      path = axes.transData.transform_path(artist._path_original)
      points = path.interpolated(1).to_polygons(closed_only=False)[0]
      dense = np.concatenate([np.linspace(a, b, 40) for a, b in itertools.pairwise(points)])
      for i, box in enumerate(boxes):
        inside = (dense > box.min).all(axis=1) & (dense < box.max).all(axis=1)
        counts[i] += bool(inside.any())
  return counts


# Some published architectures share cells.
@pytest.mark.parametrize('name', {cell: name for name, cell in _CELLS.items()}.values())
def test_every_edge_of_a_published_cell_has_one_label(name):
  cell = _CELLS[name]
  figure = _draw(cell, _space(name))
  drawn = collections.Counter(text.get_text() for text in _texts(figure, drawing.LABEL))
  assert drawn == collections.Counter(edge.operations[0] for _, edge in cell.edges)
  lines = [artist for artist in figure.axes[0].get_children() if isinstance(artist, FancyArrowPatch)]
  # Input and last output lead to the first state of a recurrent cell.
  assert len(lines) == cell.num_edges + len(cell.outputs) + len(spaces.SPACES[_space(name)].look.origins)


@pytest.mark.parametrize(
  'name',
  [
    'DARTS_V2-normal',
    'DARTS_V2-reduce',
    'NASNet-normal',
    'AmoebaNet-reduce',
    'RNN_DARTS_V1-recurrent',
    'RNN_DARTS_V2-recurrent',
    'RNN_ENAS-recurrent',
  ],
)
def test_labels_and_nodes_do_not_overlap(name):
  figure = _draw(_CELLS[name], _space(name))
  boxes = [_box(text, figure) for kind in (drawing.LABEL, 'node') for text in _texts(figure, kind)]
  # Two inputs and the output, and the first state of a recurrent cell.
  assert len(boxes) == _CELLS[name].num_edges + len(_CELLS[name].nodes) + 3 + name.endswith('recurrent')
  assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
  whole = Bbox([[0, 0], figure.get_size_inches() * figure.dpi])
  assert all(whole.containsx(box.x0) and whole.containsx(box.x1) for box in boxes)
  assert all(whole.containsy(box.y0) and whole.containsy(box.y1) for box in boxes)


@pytest.mark.parametrize(
  'name',
  [
    'DARTS_V2-normal',
    'PDARTS-normal',
    'NASNet-reduce',
    'AmoebaNet-normal',
    'RNN_DARTS_V2-recurrent',
    'RNN_ENAS-recurrent',
  ],
)
def test_every_label_is_crossed_by_its_own_edge_alone(name):
  figure = _draw(_CELLS[name], _space(name))
  assert _crossings(figure) == [1] * _CELLS[name].num_edges


def test_parallel_edges_keep_a_label_each():
  # Node 5 of NASNet-A's normal cell reads the same node through the same operation twice [NASNet fig. 4].
  cell = _CELLS['NASNet-normal']
  assert cell.nodes[3][0] == cell.nodes[3][1] == Edge(0, ('avg_pool_3x3',))
  figure = _draw(cell)
  centres = [tuple(text.get_position()) for text in _texts(figure, drawing.LABEL)]
  assert len(set(centres)) == cell.num_edges == 10


def test_edges_of_a_search_space_say_how_many_candidates_they_have():
  cell = spaces.Darts().cells['normal']
  assert [text.get_text() for text in _texts(_draw(cell), drawing.LABEL)] == ['8 candidates'] * 14


def _partly_decided() -> CellSpec:
  """A search space after two decisions for node 5 and one for node 3; node 5 has lost its other edges."""
  space = spaces.Darts().cells['normal']
  nodes = list(space.nodes)
  nodes[1] = (nodes[1][0], Edge(1, ('skip_connect',)), nodes[1][2])
  nodes[3] = (Edge(0, ('sep_conv_3x3',)), Edge(4, ('max_pool_3x3',)))
  return dataclasses.replace(space, nodes=tuple(nodes))


def test_pale_edges_are_thin_and_say_nothing():
  figure = drawing.draw_cell(_partly_decided(), _DARTS, pale=True)
  assert sorted(text.get_text() for text in _texts(figure, drawing.LABEL)) == [
    'max_pool_3x3',
    'sep_conv_3x3',
    'skip_connect',
  ]
  lines = [artist for artist in figure.axes[0].get_children() if isinstance(artist, FancyArrowPatch)]
  widths = collections.Counter(line.get_linewidth() for line in lines)
  # Of 2 + 3 + 4 + 2 edges three are decided; four lead to the output.
  assert [count for _, count in sorted(widths.items())] == [8, 4, 3]


def test_labels_of_decided_edges_are_clear_of_pale_ones():
  figure = drawing.draw_cell(_partly_decided(), _DARTS, pale=True)
  boxes = [_box(text, figure) for kind in (drawing.LABEL, 'node') for text in _texts(figure, kind)]
  assert len(boxes) == 3 + 7
  assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
  assert _crossings(figure) == [1] * 3


def test_an_unread_node_has_a_dashed_outline():
  edges = (Edge(0, ('skip_connect',)), Edge(0, ('max_pool_3x3',)))
  cell = CellSpec((edges, edges), ('skip_connect', 'max_pool_3x3'), 2, (3,), 'concat', 2)
  artists = [a for a in _draw(cell).axes[0].get_children() if getattr(a, 'get_linestyle', str)() == '--']
  # Node 2 (0 in the picture) is read by nothing, and neither is the second input.
  assert len(artists) == 2


def test_recurrent_cells_are_drawn_with_their_activations():
  architecture = spaces.published()['RNN_DARTS_V2']
  figure = drawing.draw_genotype(architecture)
  drawn = collections.Counter(text.get_text() for text in _texts(figure, drawing.LABEL))
  assert drawn == collections.Counter(activation for activation, _ in architecture.cell('recurrent').pairs)
  names = [text.get_text() for text in _texts(figure, 'node')]
  assert names == ['xₜ', 'hₜ₋₁', 's₀', 's₁', 's₂', 's₃', 's₄', 's₅', 's₆', 's₇', 's₈', 'hₜ']


# The lexical rules of the DOT language: strings in double quotes, in which \" is a quote; names; and punctuation.
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|([A-Za-z0-9_.#]+)|(->|[{}\[\];=,])|\s+', re.DOTALL)


def _tokens(source: str) -> list[str]:
  tokens, position = [], 0
  while position < len(source):
    match = _TOKEN.match(source, position)
    assert match, source[position : position + 40]
    position = match.end()
    if match.group(1) is not None:
      tokens.append('"' + match.group(1))
    elif not match.group(0).isspace():
      tokens.append(match.group(0))
  return tokens


def _edges(source: str) -> collections.Counter:
  tokens = _tokens(source)
  edges = []
  for i, token in enumerate(tokens):
    if token == '->':
      end = tokens.index(';', i)
      label = tokens[i + 2 : end][3][1:] if tokens[i + 2] == '[' else None
      edges.append((tokens[i - 1][1:], tokens[i + 1][1:], label))
  return collections.Counter(edges)


def test_dot_of_darts_v2_has_the_published_edges():
  # [DARTS, the reference implementation's DARTS_V2]
  first, second, output = 'c_{k-2}', 'c_{k-1}', 'c_{k}'
  assert _edges(drawing.to_graphviz(_CELLS['DARTS_V2-normal'], 'DARTS_V2', _DARTS)) == collections.Counter(
    [
      (first, '0', 'sep_conv_3x3'),
      (second, '0', 'sep_conv_3x3'),
      (first, '1', 'sep_conv_3x3'),
      (second, '1', 'sep_conv_3x3'),
      (second, '2', 'sep_conv_3x3'),
      (first, '2', 'skip_connect'),
      (first, '3', 'skip_connect'),
      ('0', '3', 'dil_conv_3x3'),
      ('0', output, None),
      ('1', output, None),
      ('2', output, None),
      ('3', output, None),
    ]
  )


def test_dot_of_the_recurrent_darts_v2_has_the_published_edges():
  # [DARTS, the reference implementation's DARTS_V2 of recurrent cells]
  source = drawing.to_graphviz(_CELLS['RNN_DARTS_V2-recurrent'], 'DARTS_V2', _RECURRENT)
  assert _edges(source) == collections.Counter(
    [
      ('x_t', 's0', None),
      ('h_{t-1}', 's0', None),
      ('s0', 's1', 'sigmoid'),
      ('s1', 's2', 'relu'),
      ('s1', 's3', 'relu'),
      ('s1', 's4', 'identity'),
      ('s2', 's5', 'tanh'),
      ('s5', 's6', 'sigmoid'),
      ('s3', 's7', 'tanh'),
      ('s5', 's8', 'relu'),
      *((f's{node}', 'h_t', None) for node in range(1, 9)),
    ]
  )


def test_dot_of_amoebanet_leaves_nodes_that_are_not_concatenated_out_of_the_output():
  edges = _edges(drawing.to_graphviz(_CELLS['AmoebaNet-normal'], 'AmoebaNet', _DARTS))
  assert {source for source, target, _ in edges if target == 'c_{k}'} == {'2', '3', '4'}
  assert edges.total() == 10 + 3


def test_dot_names_every_candidate_of_a_search_space():
  edges = _edges(drawing.to_graphviz(spaces.Darts().cells['normal'], 'search space', _DARTS))
  assert edges.total() == 14 * 8 + 4
  edges = _edges(drawing.to_graphviz(spaces.Recurrent().cells['recurrent'], 'search space', _RECURRENT))
  assert edges.total() == 2 + 36 * 5 + 8
  assert edges['s3', 's7', 'none'] == 1


def test_cells_of_any_space_are_drawn():
  cell = spaces.full_cell(('a', 'b'), 2, num_inputs=1, output='last', kept=None)
  figure = drawing.draw_cell(cell)
  assert [text.get_text() for text in _texts(figure, 'node')] == ['0', '1', '2', 'output']
  assert [text.get_text() for text in _texts(figure, drawing.LABEL)] == ['2 candidates'] * 3
  edges = _edges(drawing.to_graphviz(cell, 'mine'))
  assert edges == collections.Counter(
    [(source, target, name) for source, target in ('01', '02', '12') for name in 'ab'] + [('2', 'output', None)]
  )


@pytest.mark.parametrize('name', ['"', '\\', 'a\\"; evil -> node; "', 'two\nlines', 'é→"\\\\'])
def test_dot_escapes_any_name(name):
  plain = drawing.to_graphviz(_CELLS['DARTS_V2-normal'], 'x')
  source = drawing.to_graphviz(_CELLS['DARTS_V2-normal'], name)
  tokens = _tokens(source)
  assert [token for token in tokens if token != tokens[1]] == [t for t in _tokens(plain) if t != '"x']
  assert re.sub(r'\\(.)', lambda m: {'n': '\n'}.get(m[1], m[1]), tokens[1][1:]) == name
