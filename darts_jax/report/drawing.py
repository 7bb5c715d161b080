"""Draws cells, as figures and as Graphviz source: a directed acyclic graph from the inputs to the output."""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from darts_jax.report import layout, style
from darts_jax.spaces import CellSpec, Genotype, Look, look_of

#: `gid` of the text artists with the operation of an edge.
LABEL = 'operation'

_LABEL_SIZE = 8.5
_NODE_SIZE = 9.5
_MARGIN = 0.08
_TITLE_HEIGHT = 0.34
_PORT_GAP = 0.07
_PLAIN = Look()
_INDEX = re.compile(r'_\{([0-9kt+-]+)\}|_([0-9kt])|(?<=[A-Za-z])([0-9]+)$')
_SUBSCRIPTS = str.maketrans('0123456789+-kt', '₀₁₂₃₄₅₆₇₈₉₊₋ₖₜ')


@dataclasses.dataclass(frozen=True)
class _Graph:
  """The graph to draw.

  Attributes:
    names: names of the nodes; the last is the output.
    num_inputs: number of input nodes, which come first.
    edges: (source, target) of each edge.
    operations: names of each edge's operations; empty for edges that apply none, such as those to the output.
  """

  names: tuple[str, ...]
  num_inputs: int
  edges: tuple[tuple[int, int], ...]
  operations: tuple[tuple[str, ...], ...]


def node_name(look: Look, node: int) -> str:
  """The printed name of a node, with its index as a subscript: `cₖ₋₁`, or `s₀`."""
  return _printed(look.node(node))


def draw_cell(cell: CellSpec, look: Look = _PLAIN, title: str = '', pale: bool = False) -> Figure:
  """Draws a cell from left to right, with operations as labels of edges, coloured by family of operations.

  A node that neither the output nor another node reads has a dashed outline. Labels overlap neither each other nor
  other edges and nodes. The size of the figure fits the cell; its units are inches.

  Args:
    cell: a cell of a genotype, or a searched cell; edges with several candidates are labelled with their number.
    look: how the space is drawn; by default nodes have numbers.
    title: text above the cell; none if empty.
    pale: whether edges with several candidates are thin, pale and without labels.
  """
  plan = _plan(cell, look, title, pale)
  figure = Figure(figsize=plan.size)
  _paint(figure.add_axes((0, 0, 1, 1)), plan)
  return figure


def draw_genotype(genotype: Genotype) -> Figure:
  """Draws the cells of an architecture below one another; see `draw_cell`."""
  look = look_of(genotype.space)
  plans = [_plan(cell, look, look.title(name)) for name, cell in genotype.cells]
  width, height = max(plan.size[0] for plan in plans), sum(plan.size[1] for plan in plans)
  figure = Figure(figsize=(width, height))
  top = height
  for plan in plans:
    top -= plan.size[1]
    _paint(figure.add_axes((0, top / height, plan.size[0] / width, plan.size[1] / height)), plan)
  return figure


@dataclasses.dataclass(frozen=True)
class _Plan:
  """The layout of a drawing; sizes are in inches."""

  graph: _Graph
  labels: tuple[str, ...]
  places: layout.Layout
  title: str
  size: tuple[float, float]


def _plan(cell: CellSpec, look: Look, title: str, pale: bool = False) -> _Plan:
  graph = _graph(cell, look)
  labels = tuple('' if pale and len(operations) > 1 else _label(operations) for operations in graph.operations)
  places = layout.layered(
    [(max(0.3, _text_width(name, _NODE_SIZE) + 0.2), 0.3) for name in graph.names],
    graph.edges,
    [(_text_width(label, _LABEL_SIZE) + 0.16, 0.21) if label else None for label in labels],
  )
  title_width = _text_width(title, 10.5) if title else 0.0
  width = max(places.width, title_width) + 2 * _MARGIN
  height = places.height + 2 * _MARGIN + (_TITLE_HEIGHT if title else 0.0)
  return _Plan(graph, labels, places, title, (width, height))


def _paint(axes: Axes, plan: _Plan) -> None:
  graph, labels, places, (width, height) = plan.graph, plan.labels, plan.places, plan.size
  axes.set_xlim(-_MARGIN, width - _MARGIN)
  axes.set_ylim(-_MARGIN, height - _MARGIN)
  axes.set_axis_off()
  if plan.title:
    axes.text(0, height - 2 * _MARGIN, plan.title, size=10.5, weight='bold', color=style.INK, va='top')
  for i, path in enumerate(_paths(graph, places)):
    color, linewidth, zorder = _stroke(graph.operations[i], labels[i])
    axes.add_artist(
      FancyArrowPatch(
        path=path,
        arrowstyle='-|>',
        mutation_scale=8,
        color=color,
        fill=False,
        linewidth=linewidth,
        zorder=zorder,
      )
    )
  for label, operations, place in zip(labels, graph.operations, places.labels, strict=True):
    if place is not None:
      color = style.operation_color(operations)
      _box(axes, place, '#FFFFFF', color, 0.9)
      axes.text(
        place.x,
        place.y,
        label,
        size=_LABEL_SIZE,
        color=color,
        ha='center',
        va='center_baseline',
        zorder=4,
        gid=LABEL,
      )
  read = {source for source, _ in graph.edges}
  for node, (name, place) in enumerate(zip(graph.names, places.nodes, strict=True)):
    inner = graph.num_inputs <= node < len(graph.names) - 1
    unread = node < len(graph.names) - 1 and node not in read
    _box(
      axes,
      place,
      '#FFFFFF' if unread else '#E4EEF7' if inner else '#ECEFF3',
      style.MUTED if unread or not inner else style.BLUE,
      1.1,
      '--' if unread else '-',
    )
    axes.text(
      place.x,
      place.y,
      name,
      size=_NODE_SIZE,
      color=style.INK,
      ha='center',
      va='center_baseline',
      zorder=4,
      gid='node',
    )


def to_graphviz(cell: CellSpec, name: str, look: Look = _PLAIN) -> str:
  """The cell in the DOT language, with an edge for every candidate operation and edges to the output.

  Nodes have the names of the space, such as `c_{k-2}`, `c_{k-1}`, `0`, …, `c_{k}` in cells of `darts`, and `x_t`,
  `h_{t-1}`, `s0`, `s1`, …, `h_t` in recurrent ones.

  Args:
    cell: a cell of a genotype, or a searched cell.
    name: name and caption of the graph; any text.
    look: how the space is drawn; by default nodes have numbers.
  """
  nodes = [look.node(index) for index in range(cell.num_inputs + len(cell.nodes))]
  if look.origins:
    inputs, inner = list(look.origins), nodes
  else:
    inputs, inner = nodes[: cell.num_inputs], nodes[cell.num_inputs :]
  links, output = [(origin, nodes[0]) for origin in look.origins], look.output
  lines = [
    f'digraph {_quote(name)} {{',
    f'  graph [rankdir=LR, label={_quote(name)}, labelloc=t, fontname="Helvetica"];',
    '  node [shape=box, style="rounded,filled", fillcolor="#e4eef7", color="#0067a5", fontname="Helvetica"];',
    '  edge [fontname="Helvetica", fontsize=11];',
    '  { rank=same; node [fillcolor="#eceff3", color="#5b6675"]; '
    + ' '.join(f'{_quote(node)};' for node in inputs)
    + ' }',
    f'  {_quote(output)} [fillcolor="#eceff3", color="#5b6675"];',
    *(f'  {_quote(node)};' for node in inner),
    *(f'  {_quote(source)} -> {_quote(target)};' for source, target in links),
  ]
  for target, edge in cell.edges:
    lines.extend(
      f'  {_quote(nodes[edge.source])} -> {_quote(nodes[target])} [label={_quote(operation)}];'
      for operation in edge.operations
    )
  lines.extend(f'  {_quote(nodes[index])} -> {_quote(output)};' for index in cell.outputs)
  return '\n'.join([*lines, '}']) + '\n'


def _quote(text: str) -> str:
  text = text.replace('\\', '\\\\').replace('"', '\\"').replace('\r', '').replace('\n', '\\n').replace('\0', '')
  return f'"{text}"'


def _graph(cell: CellSpec, look: Look) -> _Graph:
  # The origins of the first node are drawn as nodes, although they are no nodes of the cell.
  shift = len(look.origins)
  num_nodes = cell.num_inputs + len(cell.nodes)
  names = [*look.origins, *map(look.node, range(num_nodes)), look.output]
  edges = [(origin, shift) for origin in range(shift)]
  operations: list[tuple[str, ...]] = [()] * len(edges)
  for target, edge in cell.edges:
    edges.append((edge.source + shift, target + shift))
    operations.append(edge.operations)
  edges += [(node + shift, num_nodes + shift) for node in cell.outputs]
  operations += [()] * len(cell.outputs)
  return _Graph(tuple(map(_printed, names)), shift or cell.num_inputs, tuple(edges), tuple(operations))


def _printed(name: str) -> str:
  """The name with its index, which follows `_` or a letter, as a subscript."""
  return _INDEX.sub(lambda found: ''.join(found.groups(default='')).translate(_SUBSCRIPTS), name)


def _label(operations: Sequence[str]) -> str:
  return operations[0] if len(operations) == 1 else f'{len(operations)} candidates' if operations else ''


def _stroke(operations: Sequence[str], label: str) -> tuple[str, float, float]:
  """Colour, width in points and z-order of the line of an edge."""
  if label:
    return style.operation_color(operations), 1.3, 1.5
  # Without a label: an edge with operations is undecided, an edge without any comes from an origin or goes to the
  # output.
  return (style.RULE, 0.9, 0.5) if operations else (style.FAINT, 1.0, 1.0)


@functools.cache
def _text_width(text: str, size: float) -> float:
  return TextPath((0, 0), text, size=size, prop=FontProperties(family='DejaVu Sans')).get_extents().width / 72


def _box(axes: Axes, place: layout.Place, face: str, edge: str, linewidth: float, linestyle: str = '-') -> None:
  axes.add_artist(
    FancyBboxPatch(
      (place.x - place.width / 2, place.y - place.height / 2),
      place.width,
      place.height,
      boxstyle=f'round,pad=0,rounding_size={min(place.height / 2, 0.1)}',
      facecolor=face,
      edgecolor=edge,
      linewidth=linewidth,
      linestyle=linestyle,
      zorder=3,
    )
  )


def _paths(graph: _Graph, places: layout.Layout) -> list[Path]:
  """The path of each edge: straight through its places in the columns it passes, curved between columns."""
  starts = _ports(graph, places, 0)
  ends = _ports(graph, places, 1)
  paths = []
  for i, (source, target) in enumerate(graph.edges):
    tail, head = places.nodes[source], places.nodes[target]
    points = [(tail.x + tail.width / 2, starts[i])]
    codes = [Path.MOVETO]
    for place in places.routes[i]:
      points += _bend(points[-1], (place.x - place.width / 2, place.y))
      points.append((place.x + place.width / 2, place.y))
      codes += [Path.CURVE4] * 3 + [Path.LINETO]
    points += _bend(points[-1], (head.x - head.width / 2 - 0.01, ends[i]))
    codes += [Path.CURVE4] * 3
    paths.append(Path(points, codes))
  return paths


def _bend(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
  middle = (start[0] + end[0]) / 2
  return [(middle, start[1]), (middle, end[1]), end]


def _ports(graph: _Graph, places: layout.Layout, side: int) -> list[float]:
  """The height at which each edge meets its source (side 0) or target (side 1); edges of a node are spread out."""
  heights = [0.0] * len(graph.edges)
  for node, place in enumerate(places.nodes):
    touching = [i for i, edge in enumerate(graph.edges) if edge[side] == node]
    touching.sort(key=lambda i: places.routes[i][-side].y if places.routes[i] else 0.0)
    gap = min(_PORT_GAP, 0.7 * place.height / max(len(touching) - 1, 1))
    offsets = (np.arange(len(touching)) - (len(touching) - 1) / 2) * gap
    for i, offset in zip(touching, offsets, strict=True):
      heights[i] = place.y + float(offset)
  return heights
