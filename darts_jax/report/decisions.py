"""Sections on a search that decides its edges one after the other: scores, decisions, and cells along the way."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from darts_jax.report import drawing, edges, figures, html, sections, style
from darts_jax.report.history import UNDECIDED, Decision, History, kept_edges
from darts_jax.report.workdir import Run
from darts_jax.spaces import Genotype, Look, look_of

#: `gid` of the text artists with the operation that an edge was fixed to.
DECISION = 'decision'
_MAX_CELLS = 4
# Number of heat maps beside one another, and the gap between them in inches.
_COLUMNS, _GAP = 3, 0.3


def section(run: Run) -> str:
  """The section with scores over time and a table of decisions; empty for a search without scores and decisions."""
  history = run.history
  if history is None or not (history.decides or history.scores):
    return ''
  look, times, made = look_of(history.space), run.times(history.steps), history.decisions()
  parts = []
  for cell in history.cells:
    name = look.title(cell)
    figure = draw_scores(history, cell, look, times, run.time_unit)
    parts.append(html.figure(figure, f'scores-{cell}', name, f'{name}: scores and decisions of its edges over time.'))
  table = _table(made, look, times, run.time_unit) if made else html.absent('No edge has been decided yet.')
  lead = (
    'Every line is an edge, darker where its value is larger, up to its decision (◂ and the operation) or removal'
    f' (hatched). {html.escape(history.legend)}'
  )
  return html.section('Decisions', f'<div class="stack">{"".join(parts)}<div>{table}</div></div>', lead)


def draw_scores(history: History, cell: str, look: Look, times: np.ndarray, time_unit: str) -> Figure:
  """Draws the scores of a cell's edges as heat maps over time: the main score, and all other scores below it.

  A row of a map is an edge, a column a snapshot. Values are shown up to and including the snapshot in which the edge is
  decided or removed. After that, the row names the operation of a decided edge, and is hatched for a removed one. Every
  map has its own scale, from its least to its largest value. Except for the main score, snapshots with equal scores of
  all edges are left blank: a score that compares with earlier epochs, for example, is constant at first.

  Args:
    history: history of the search.
    cell: the kind of cell.
    look: how the space is drawn.
    times: `[T]` when the snapshots were taken, ascending.
    time_unit: the name of the horizontal axes.
  """
  states, main = history.decided(cell), history.main_score(cell)
  num_edges = states.shape[1]
  open_before = np.concatenate([np.full((1, num_edges), True), states[:-1] == UNDECIDED])
  maps = {}
  for name, cells in history.scores.items():
    if cell in cells:
      differ = np.ptp(cells[cell], axis=1, keepdims=True) > 0
      maps[name] = np.where(open_before & (differ | (name == main)), cells[cell], np.nan)
  tall, short = edges.LINE * num_edges, 0.125 * num_edges
  # Without scores, the map is blank and shows the decisions only.
  title = 'Decisions' if main is None else _title(main)
  score = np.full(open_before.shape, np.nan) if main is None else maps.pop(main)
  row = edges.TITLE + short + edges.AXIS
  size = (edges.WIDTH, edges.TITLE + tall + edges.AXIS + -(-len(maps) // _COLUMNS) * row)
  figure = Figure(figsize=size)
  width = size[0] - edges.LEFT - 1.06
  axes = figure.add_axes(figures.inches(size, edges.LEFT, size[1] - edges.TITLE - tall, width, tall))
  edges.draw_map(axes, title, score, history, cell, look, times, time_unit)
  _mark(axes, history, cell)
  columns = min(len(maps), _COLUMNS)
  for i, (name, values) in enumerate(maps.items()):
    width = (size[0] - edges.LEFT - 0.1 - _GAP * (columns - 1)) / columns
    x = edges.LEFT + i % _COLUMNS * (width + _GAP)
    y = size[1] - edges.TITLE - tall - edges.AXIS - (i // _COLUMNS + 1) * row + edges.AXIS
    axes = figure.add_axes(figures.inches(size, x, y, width, short))
    edges.draw_map(axes, _title(name), values, history, cell, look, times, time_unit)
    if i % _COLUMNS:
      axes.set_yticklabels([])
  return figure


def along_the_way(run: Run, history: History, genotype: Genotype | None) -> str:
  """The section with earlier cells of a search that decides edges: its supernet at some of the decisions.

  Args:
    run: the search.
    history: history of the search.
    genotype: the architecture at the top of the page.
  """
  title, look = 'Cells along the way', look_of(history.space)
  snapshots = sorted({decision.snapshot for decision in history.decisions()})
  if snapshots and all(_is_final(history, cell, snapshots[-1], genotype) for cell in history.cells):
    snapshots.pop()
  if not snapshots:
    return html.section(title, html.absent('There are too few decisions yet.'))
  spaced = np.linspace(0, len(snapshots) - 1, min(_MAX_CELLS, len(snapshots))).round().astype(int)
  times = run.times(history.steps)
  parts = []
  for i in (snapshots[place] for place in spaced):
    cells = ''.join(_cell_then(history, cell, look, i, genotype) for cell in history.cells)
    parts.append(f'<h3>{run.time_unit.capitalize()} {times[i]:.0f}</h3>\n<div class="cells small">{cells}</div>')
  lead = (
    'The supernet after some of the decisions: labelled edges are fixed to their operation; pale ones are undecided,'
    ' and mix what is left of their candidates; removed ones are left out.'
  )
  return html.section(title, '\n'.join(parts), lead)


def _title(score: str) -> str:
  return score.replace('_', ' ').capitalize()


def _mark(axes: Axes, history: History, cell: str) -> None:
  """Marks each decision in its row of the map, after the last value."""
  end, rows = len(history.steps) - 0.5, history.pairs(cell)
  for decision in history.decisions():
    if decision.cell == cell:
      row, color = rows.index(decision.edge), style.operation_color([decision.operation])
      axes.plot([decision.snapshot + 0.5, end], [row, row], color=color, linewidth=0.9, alpha=0.5)
      axes.plot(decision.snapshot + 0.5, row, '<', color=color, markersize=5, markeredgewidth=0, clip_on=False)
      axes.annotate(
        decision.operation,
        (decision.snapshot + 0.5, row),
        (6, 0),
        textcoords='offset points',
        size=7.5,
        color=color,
        va='center_baseline',
        gid=DECISION,
        bbox={'facecolor': '#FFFFFF', 'edgecolor': 'none', 'pad': 0.8},
      )


def _table(made: tuple[Decision, ...], look: Look, times: np.ndarray, time_unit: str) -> str:
  rows = []
  for decision in made:
    values = [look.title(decision.cell), edges.name(look, decision.edge), decision.operation]
    removed = ', '.join(edges.name(look, edge) for edge in decision.removed) or '–'
    score = '–' if decision.score is None else f'{decision.score:.3f}'
    rows.append(
      f'<tr><td class="number">{times[decision.snapshot]:,.0f}</td>'
      + ''.join(f'<td>{html.escape(value)}</td>' for value in values)
      + f'<td class="number">{score}</td><td>{removed}</td></tr>\n'
    )
  head = (
    f'<tr><th class="number">{time_unit.capitalize()}</th><th>Cell</th><th>Edge</th><th>Operation</th>'
    '<th class="number">Score</th><th>Removed with it</th></tr>'
  )
  return f'<table><thead>{head}</thead>\n<tbody>{"".join(rows)}</tbody></table>'


def _is_final(history: History, cell: str, snapshot: int, genotype: Genotype | None) -> bool:
  """Whether all edges of a cell are decided at a snapshot, as in the architecture at the top of the page."""
  spec = history.cell(cell, snapshot)
  if genotype is None or not spec.is_discrete:
    return False
  return {(edge.source, node, edge.operations[0]) for node, edge in spec.edges} == kept_edges(genotype, cell)


def _cell_then(history: History, cell: str, look: Look, snapshot: int, genotype: Genotype | None) -> str:
  title = look.title(cell)
  if _is_final(history, cell, snapshot, genotype):
    return sections.same_cell(title)
  spec = history.cell(cell, snapshot)
  decided = [(node, edge) for node, edge in spec.edges if len(edge.operations) == 1]
  note = f'{len(decided)} of {sum(spec.num_kept)} edges decided'
  told = '; '.join(f'{edges.name(look, (edge.source, node))} is {edge.operations[0]}' for node, edge in decided)
  drawn = drawing.draw_cell(spec, look, pale=True)
  return html.figure(drawn, f'snapshot-{snapshot}-{cell}', title, f'{title}, {note}: {told}.', note)
