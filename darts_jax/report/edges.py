"""Heat maps of a value of every edge of a cell, over time."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from darts_jax.report import drawing, figures, style
from darts_jax.report.history import REMOVED, History
from darts_jax.spaces import Look

#: Sizes of figures with maps, in inches: the whole width, the margin left of a map, its title, its horizontal axis.
WIDTH, LEFT, TITLE, AXIS = 11.3, 0.86, 0.26, 0.42
#: Height of a row of a map, which is an edge, in inches.
LINE = 0.17
# The palest colour is not white, since white stands for a missing value.
_COLORS = LinearSegmentedColormap.from_list('scores', ['#E6EFF6', '#A9CFE5', '#5BA3CC', '#1F6FA8', '#0A2F5C'])


def name(look: Look, edge: tuple[int, int]) -> str:
  """The printed name of an edge, (source, target)."""
  return f'{drawing.node_name(look, edge[0])} → {drawing.node_name(look, edge[1])}'


def draw_weights(history: History, cell: str, look: Look, times: np.ndarray, time_unit: str) -> Figure:
  """Draws the weights of edges in the sums of their nodes, over time.

  Args:
    history: history of a search with weights of edges.
    cell: the kind of cell.
    look: how the space is drawn.
    times: `[T]` when the snapshots were taken, ascending.
    time_unit: the name of the horizontal axis.
  """
  values = np.where(history.decided(cell) == REMOVED, np.nan, history.edges[cell])
  tall = LINE * values.shape[1]
  size = (WIDTH, TITLE + tall + AXIS)
  figure = Figure(figsize=size)
  axes = figure.add_axes(figures.inches(size, LEFT, AXIS, WIDTH - LEFT - 0.1, tall))
  draw_map(axes, 'Weights of edges', values, history, cell, look, times, time_unit)
  return figure


def draw_map(
  axes: Axes,
  title: str,
  values: np.ndarray,
  history: History,
  cell: str,
  look: Look,
  times: np.ndarray,
  time_unit: str,
) -> None:
  """Draws `[T, E]` values of a cell's edges: a row is an edge, a column a snapshot.

  Values that are not finite are blank, and an edge is hatched after its removal. The colour scale goes from the least
  to the largest value.
  """
  edges = history.pairs(cell)
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
  axes.set_yticks(range(len(edges)), [name(look, edge) for edge in edges])
  axes.tick_params(axis='y', labelsize=7.5, pad=3)
  axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
  axes.xaxis.set_major_formatter(
    FuncFormatter(lambda value, _: f'{times[round(value)]:,.0f}' if 0 <= round(value) < count else '')
  )
  axes.set_xlabel(time_unit, size=figures.TEXT, color=style.MUTED, labelpad=1)
  for row in range(1, len(edges)):
    if edges[row][1] != edges[row - 1][1]:
      axes.axhline(row - 0.5, color='#FFFFFF', linewidth=2.2)
      axes.axhline(row - 0.5, color=style.FAINT, linewidth=0.6)
  for row, since in enumerate((history.decided(cell) == REMOVED).argmax(axis=0)):
    if since:
      place = (since + 0.5, row - 0.5)
      axes.add_patch(Rectangle(place, count - 1 - since, 1, hatch='/////', fill=False, color=style.RULE, linewidth=0))
  axes.set_title(title, size=figures.TEXT, weight='bold', color=style.INK, loc='left', pad=4)
  if len(finite):
    axes.set_title(f'{low:.2g} pale, {high:.2g} dark', size=figures.TEXT - 0.5, color=style.MUTED, loc='right', pad=4)
