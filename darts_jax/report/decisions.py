"""How a search decided its edges one after the other: by which scores, in which order, and the cells on the way."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from darts_jax.report import drawing, figures, html, sections, style
from darts_jax.report.workdir import REMOVED, SCORES, UNDECIDED, Alphas, Decision, Run, kept_edges
from darts_jax.spaces import Genotype, look_of

_TITLES = dict(zip(SCORES, ('Score', 'Edge importance', 'Selection certainty', 'Selection stability'), strict=True))
_FORMULAS = {
  'importance': 'importance (the weight of operations other than none)',
  'certainty': 'certainty (one minus the entropy of those weights, relative to uniform ones)',
  'stability': 'stability (their overlap with those of earlier epochs)',
}
#: What text artists that name what an edge was fixed to have as their `gid`.
DECISION = 'decision'
_MAX_CELLS = 4
# The palest colour is not white, which is that of edges that have no score any more.
_COLORS = LinearSegmentedColormap.from_list('scores', ['#E6EFF6', '#A9CFE5', '#5BA3CC', '#1F6FA8', '#0A2F5C'])


def section(run: Run) -> str:
  """Scores over time and a table of decisions; nothing for a search that does not decide."""
  alphas = run.alphas
  if alphas is None or not alphas.decides:
    return ''
  times, made = run.times(alphas.steps), alphas.decisions()
  parts = []
  for cell in alphas.alphas:
    name = look_of(cell).title(cell)
    figure = draw_scores(alphas, cell, times, run.time_unit)
    parts.append(html.figure(figure, f'scores-{cell}', name, f'{name}: what its edges were decided by, over time.'))
  table = _table(made, times, run.time_unit) if made else html.absent('No edge has been decided yet.')
  return html.section('Decisions', f'<div class="stack">{"".join(parts)}<div>{table}</div></div>', _lead(alphas))


def draw_scores(alphas: Alphas, cell: str, times: np.ndarray, time_unit: str) -> Figure:
  """What the edges of a cell were decided by, as heat maps over time: the score, and under it what it is made of.

  A row of a map is an edge, a column a snapshot. A value is shown up to the snapshot in which its edge was decided or
  removed, that one included; behind it stands what the edge was fixed to, or it is hatched. Every map has a scale of
  its own, from the least to the largest value that it shows. A criterion is left out where it is the same for every
  edge, as the stability is before there is anything to compare with.

  Args:
    alphas: of a search that decides.
    cell: the cell type.
    times: `[T]` when the snapshots were taken, ascending.
    time_unit: the name of the horizontal axes.
  """
  edges = alphas.edges[cell]
  open_before = np.concatenate([np.full((1, len(edges)), True), alphas.decided(cell)[:-1] == UNDECIDED])
  maps = {
    name: np.where(
      open_before & ((np.ptp(cells[cell], axis=1, keepdims=True) > 0) | (name == 'score')), cells[cell], np.nan
    )
    for name, cells in alphas.scores.items()
    if cell in cells
  }
  left, right, title, axis, gap = 0.86, 1.06, 0.26, 0.42, 0.3
  tall, short = 0.17 * len(edges), 0.125 * len(edges)
  # Without the score there still are decisions to show.
  score = maps.pop('score', np.full(open_before.shape, np.nan))
  size = (11.3, title + tall + axis + (title + short + axis if maps else 0.0))
  figure = Figure(figsize=size)
  width = size[0] - left - right
  axes = figure.add_axes(figures.inches(size, left, size[1] - title - tall, width, tall))
  _draw_map(axes, _TITLES['score'], score, alphas, cell, times)
  axes.set_xlabel(time_unit, size=figures.TEXT, color=style.MUTED, labelpad=1)
  _mark(axes, alphas, cell)
  width = (size[0] - left - 0.1 - gap * (len(maps) - 1)) / max(len(maps), 1)
  for i, (name, values) in enumerate(maps.items()):
    axes = figure.add_axes(figures.inches(size, left + i * (width + gap), axis, width, short))
    _draw_map(axes, _TITLES[name], values, alphas, cell, times)
    axes.set_xlabel(time_unit, size=figures.TEXT, color=style.MUTED, labelpad=1)
    if i:
      axes.set_yticklabels([])
  return figure


def along_the_way(run: Run, alphas: Alphas, genotype: Genotype | None) -> str:
  """The section of earlier cells for a search that decides: those of some of the snapshots with a decision.

  Args:
    run: the search.
    alphas: its α.
    genotype: the architecture at the top of the page.
  """
  title = 'Cells along the way'
  snapshots = sorted({decision.snapshot for decision in alphas.decisions()})
  try:
    if snapshots and all(_is_final(alphas, cell, snapshots[-1], genotype) for cell in alphas.alphas):
      snapshots.pop()
    if not snapshots:
      return html.section(title, html.absent('There are too few decisions yet.'))
    spaced = np.linspace(0, len(snapshots) - 1, min(_MAX_CELLS, len(snapshots))).round().astype(int)
    times = run.times(alphas.steps)
    parts = []
    for i in (snapshots[place] for place in spaced):
      cells = ''.join(_cell_then(alphas, cell, i, genotype) for cell in alphas.alphas)
      parts.append(f'<h3>{run.time_unit.capitalize()} {times[i]:.0f}</h3>\n<div class="cells small">{cells}</div>')
  except ValueError as error:
    return html.section(title, html.absent(f'No cell can be drawn: {error}'))
  lead = (
    'The supernet after some of the decisions: labelled edges are fixed to their operation; pale ones are undecided,'
    ' with all candidates mixed; removed ones are left out.'
  )
  return html.section(title, '\n'.join(parts), lead)


def _lead(alphas: Alphas) -> str:
  parts = [text for name, text in _FORMULAS.items() if name in alphas.scores]
  product = (
    f', the product of {", ".join(parts[:-1])} and {parts[-1]}, each scaled to [0, 1] over the edges of the cell,'
    if len(parts) > 1
    else ''
  )
  return (
    'Every line is an edge, darker where its value is larger, up to its decision (◂ and the operation) or removal'
    f' (hatched); at a decision, the undecided edge with the highest score{product} is fixed to its best operation.'
  )


def _draw_map(axes: Axes, title: str, values: np.ndarray, alphas: Alphas, cell: str, times: np.ndarray) -> None:
  """Draws `[T, E]` values, blank where they are not finite."""
  edges = alphas.edges[cell]
  finite = values[np.isfinite(values)]
  low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
  count = len(values)
  axes.imshow(
    np.ma.masked_invalid(values.T),
    cmap=_COLORS,
    vmin=low,
    vmax=high if high > low else low + 1.0,
    aspect='auto',
    interpolation='none',
    extent=(-0.5, count - 0.5, len(edges) - 0.5, -0.5),
  )
  figures.clean(axes)
  axes.spines[:].set(visible=True, color=style.RULE, linewidth=0.7)
  axes.set_yticks(range(len(edges)), [_edge_name(cell, edge) for edge in edges])
  axes.tick_params(axis='y', labelsize=7.5, pad=3)
  axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
  axes.xaxis.set_major_formatter(
    FuncFormatter(lambda value, _: f'{times[round(value)]:,.0f}' if 0 <= round(value) < count else '')
  )
  for row in range(1, len(edges)):
    if edges[row][1] != edges[row - 1][1]:
      axes.axhline(row - 0.5, color='#FFFFFF', linewidth=2.2)
      axes.axhline(row - 0.5, color=style.FAINT, linewidth=0.6)
  for row, since in enumerate((alphas.decided(cell) == REMOVED).argmax(axis=0)):
    if since:
      place = (since + 0.5, row - 0.5)
      axes.add_patch(Rectangle(place, count - 1 - since, 1, hatch='/////', fill=False, color=style.RULE, linewidth=0))
  axes.set_title(title, size=figures.TEXT, weight='bold', color=style.INK, loc='left', pad=4)
  if len(finite):
    axes.set_title(f'{low:.2g} pale, {high:.2g} dark', size=figures.TEXT - 0.5, color=style.MUTED, loc='right', pad=4)


def _mark(axes: Axes, alphas: Alphas, cell: str) -> None:
  """Marks decisions behind the values that they were made by."""
  end = len(alphas.steps) - 0.5
  for decision in alphas.decisions():
    if decision.cell == cell:
      row, color = alphas.edges[cell].index(decision.edge), style.operation_color([decision.operation])
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


def _table(made: tuple[Decision, ...], times: np.ndarray, time_unit: str) -> str:
  rows = []
  for decision in made:
    values = [
      look_of(decision.cell).title(decision.cell),
      _edge_name(decision.cell, decision.edge),
      decision.operation,
    ]
    removed = ', '.join(_edge_name(decision.cell, edge) for edge in decision.removed) or '–'
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


def _edge_name(cell: str, edge: tuple[int, int]) -> str:
  look = look_of(cell)
  return f'{drawing.node_name(look, edge[0])} → {drawing.node_name(look, edge[1])}'


def _is_final(alphas: Alphas, cell: str, snapshot: int, genotype: Genotype | None) -> bool:
  """Whether nothing is undecided, and the cell is that of the architecture at the top."""
  spec = alphas.cell(cell, snapshot)
  if genotype is None or not spec.is_discrete:
    return False
  return {(edge.source, node, edge.operations[0]) for node, edge in spec.edges} == kept_edges(genotype, cell)


def _cell_then(alphas: Alphas, cell: str, snapshot: int, genotype: Genotype | None) -> str:
  title = look_of(cell).title(cell)
  if _is_final(alphas, cell, snapshot, genotype):
    return sections.same_cell(cell)
  spec = alphas.cell(cell, snapshot)
  decided = [(node, edge) for node, edge in spec.edges if len(edge.operations) == 1]
  note = f'{len(decided)} of {sum(spec.num_kept)} edges decided'
  told = '; '.join(f'{_edge_name(cell, (edge.source, node))} is {edge.operations[0]}' for node, edge in decided)
  drawn = drawing.draw_cell(spec, look_of(cell), pale=True)
  return html.figure(drawn, f'snapshot-{snapshot}-{cell}', title, f'{title}, {note}: {told}.', note)
