"""Charts of the report as Matplotlib figures, and the conversion of figures to SVG inside an HTML page."""

import dataclasses
import functools
import html
import io
import math
import re
from collections.abc import Collection, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from darts_jax.report import drawing, layout, style
from darts_jax.spaces import Look

_MAX_POINTS = 360
#: Size of text in a figure, in points.
TEXT = 8.5
_WEIGHT_COLORS = LinearSegmentedColormap.from_list(
  'weights',
  ['#F7F8FA', '#D3E4F0', '#8FC1DD', '#3F8FC0', '#0F5A96', '#0A2F5C'],
)


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of a chart.

  Attributes:
    times: `[N]` horizontal positions, ascending.
    values: `[N]`; where a value is not finite, the line has a gap and a cross marks the time.
    color: colour of the line and its name.
    name: text beside the end of the line; empty for none.
    faint: whether the line is thin and pale, as the noisy background of another line.
    stepped: whether the line holds each value until the next one instead of sloping.
  """

  times: np.ndarray
  values: np.ndarray
  color: str
  name: str = ''
  faint: bool = False
  stepped: bool = False


def chart(
  lines: Sequence[Line],
  time_unit: str,
  size: tuple[float, float] = (4.6, 2.5),
  log: bool = False,
  percent: bool = False,
  integer: bool = False,
  reference: tuple[float, str] | None = None,
  from_zero: bool = False,
  marks: Sequence[float] = (),
  notes: Sequence[tuple[float, str]] = (),
) -> Figure:
  """Draws lines over time, with names at their ends; long lines are thinned by averaging neighbouring values.

  Args:
    lines: the lines; at least one value is finite.
    time_unit: the name of the horizontal axis.
    size: width and height, in inches.
    log: whether the vertical axis is logarithmic; values that are not positive are then left out.
    percent: whether values are fractions and are labelled as percentages.
    integer: whether values are whole numbers.
    reference: value and name of a horizontal line to compare with.
    from_zero: whether the vertical axis starts at 0.
    marks: times that are marked by a dotted vertical line.
    notes: times that are marked by a dashed vertical line, each with the text at its top.
  """
  names = [line.name for line in lines if line.name]
  right = 0.14 + max((0.075 * len(name) for name in names), default=0.0)
  figure = Figure(figsize=size)
  axes = figure.add_axes(inches(size, 0.52, 0.42, size[0] - 0.52 - right, size[1] - 0.42 - 0.12))
  clean(axes)
  axes.set_axisbelow(True)
  axes.grid(axis='y', color='#E8ECF1', linewidth=0.8)
  if log:
    axes.set_yscale('log')
  broken: list[float] = []
  for line in lines:
    finite = np.isfinite(line.values)
    broken.extend(line.times[~finite])
    keep = finite & (line.values > 0) if log else finite
    times, values = _thin(line.times, np.where(keep, line.values, np.nan))
    axes.plot(
      times,
      values,
      color=line.color,
      linewidth=0.8 if line.faint else 1.6,
      alpha=0.4 if line.faint else 1.0,
      drawstyle='steps-post' if line.stepped else 'default',
      solid_joinstyle='round',
      marker='o' if np.isfinite(values).sum() == 1 else None,
      markersize=3.5,
      zorder=2 if line.faint else 3,
    )
  if reference is not None:
    axes.axhline(reference[0], color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)
    axes.annotate(
      reference[1],
      (1, reference[0]),
      (-2, 3),
      xycoords=('axes fraction', 'data'),
      textcoords='offset points',
      size=TEXT - 0.5,
      color=style.MUTED,
      ha='right',
    )
  for mark in marks:
    axes.axvline(mark, color=style.MUTED, linewidth=0.9, linestyle=':', zorder=1)
  # Rounded up to a whole epoch, so that the axis shows the number of the last epoch.
  end = max(math.ceil(max(float(line.times[-1]) for line in lines) - 1e-6), 1)
  axes.set_xlim(0, end)
  for time, note in notes:
    axes.axvline(time, color=style.GREEN, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    late = time > 0.6 * end
    axes.annotate(
      note,
      (time, 1),
      (-4 if late else 4, -2),
      xycoords=('data', 'axes fraction'),
      textcoords='offset points',
      size=TEXT - 0.5,
      color=style.GREEN,
      ha='right' if late else 'left',
      va='top',
    )
  if from_zero or integer:
    axes.set_ylim(0, max(axes.get_ylim()[1], (reference[0] if reference else 0) * 1.18, 1.0 if integer else 0.0))
  if broken:
    cross(axes, broken)
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
  axes.set_xlabel(time_unit, size=TEXT, color=style.MUTED, labelpad=2)
  if log:
    # A tall chart has room for more tick labels.
    _log_ticks(axes, least=4 if size[1] >= 3 else 2)
  else:
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=integer))
    scale, unit = (100, ' %') if percent else (1, '')
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{_brief(value * scale, 4)}{unit}'))
  name_ends(axes, size[1], lines)
  return figure


def mixing_weights(
  times: np.ndarray,
  weights: np.ndarray,
  operations: Sequence[str],
  edges: Sequence[tuple[int, int]],
  kept: Collection[tuple[int, int, str]],
  largest: float,
  time_unit: str,
  look: Look,
) -> Figure:
  """Draws mixing weights over time, as a small heat map for each edge, arranged as the cell's adjacency matrix.

  A row of maps has the edges into one node, a column the edges out of one node.

  Args:
    times: `[T]` when the snapshots were taken, ascending.
    weights: `[T, E, O]` mixing weights.
    operations: names of the `O` operations.
    edges: (source, target) of the `E` edges.
    kept: (source, target, operation) of the edges of the architecture; their maps have bold titles with the operation.
    largest: the weight that has the darkest colour.
    time_unit: the name of the horizontal axes.
    look: how the space is drawn.
  """
  sources = sorted({source for source, _ in edges})
  targets = sorted({target for _, target in edges})
  name = functools.partial(drawing.node_name, look)
  left, top, bottom, gap = 1.12, 0.06, 0.42, 0.24
  title, panel_height = 0.24, 0.125 * len(operations)
  panel_width = max(1.0, (11.3 - left) / max(len(sources), 5) - gap)
  row = panel_height + title + 0.1
  size = (left + max(len(sources), 5) * (panel_width + gap), top + len(targets) * row + bottom)
  figure = Figure(figsize=size)
  grid, columns = np.linspace(times[0], times[-1], 240), 240
  nearest = np.abs(grid[:, None] - times[None, :]).argmin(axis=1) if len(times) > 1 else np.zeros(columns, int)
  end = float(times[-1]) if times[-1] > times[0] else float(times[0]) + 1.0
  lowest = {source: max(target for s, target in edges if s == source) for source in sources}
  first = {target: min(source for source, t in edges if t == target) for target in targets}
  for e, (source, target) in enumerate(edges):
    x = left + sources.index(source) * (panel_width + gap)
    y = size[1] - top - (targets.index(target) + 1) * row + 0.1
    axes = figure.add_axes(inches(size, x, y, panel_width, panel_height))
    axes.imshow(
      weights[nearest, e].T,
      cmap=_WEIGHT_COLORS,
      vmin=0.0,
      vmax=largest,
      aspect='auto',
      interpolation='none',
      extent=(float(times[0]), end, len(operations) - 0.5, -0.5),
    )
    clean(axes)
    axes.spines[:].set(visible=True, color=style.RULE, linewidth=0.7)
    axes.set_yticks(range(len(operations)), operations if source == first[target] else [])
    axes.tick_params(axis='y', labelsize=7.5, pad=3)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2.5, 5, 10]))
    if lowest[source] == target:
      axes.set_xlabel(time_unit, size=TEXT, color=style.MUTED, labelpad=1)
    else:
      axes.set_xticklabels([])
    chosen = [operation for s, t, operation in kept if (s, t) == (source, target) and operation in operations]
    for operation in chosen:
      axes.plot(
        1.025,
        operations.index(operation),
        '<',
        transform=axes.get_yaxis_transform(),
        color=style.VERMILION,
        markersize=4.5,
        clip_on=False,
        markeredgewidth=0,
      )
    axes.text(
      0,
      1 + 0.05 / panel_height,
      f'{name(source)} → {name(target)}',
      transform=axes.transAxes,
      size=TEXT,
      color=style.INK if chosen else style.MUTED,
      weight='bold' if chosen else 'regular',
      va='bottom',
    )
    axes.text(
      1,
      1 + 0.05 / panel_height,
      ', '.join(chosen),
      transform=axes.transAxes,
      size=TEXT - 0.5,
      color=style.VERMILION,
      va='bottom',
      ha='right',
    )
  _color_scale(figure, size, largest, len(operations))
  return figure


def to_svg(figure: Figure, name: str, description: str) -> str:
  """The figure as an `<svg>` element for HTML: deterministic, without outside references, in the page's fonts.

  Args:
    figure: the figure.
    name: unique name of the figure in its page; ids inside the SVG are derived from it.
    description: text for readers who cannot see the figure.
  """
  buffer = io.StringIO()
  absent = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': name, 'path.simplify': True}):
    figure.savefig(buffer, format='svg', metadata=absent, transparent=True)
  text = buffer.getvalue()
  text = text[text.index('<svg') :]
  # The ids of groups repeat from figure to figure, and nothing refers to them.
  text = re.sub(r'<g id="[^"]*"', '<g', text)
  text = re.sub(r'\sxmlns(:xlink)?="[^"]*"', '', text)
  text = re.sub(r'<style.*?</style>', '', text, flags=re.DOTALL)
  return text.replace('<svg', f'<svg role="img" aria-label="{html.escape(description)}"', 1).strip()


def inches(
  size: tuple[float, float], x: float, y: float, width: float, height: float
) -> tuple[float, float, float, float]:
  """Converts a rectangle in inches, in a figure of size `size`, to the fractions that `Figure.add_axes` takes."""
  return x / size[0], y / size[1], width / size[0], height / size[1]


def clean(axes: Axes) -> None:
  """Styles axes as in all charts of the report: a pale horizontal axis and no other spines."""
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.spines['bottom'].set(color=style.FAINT, linewidth=0.8)
  axes.tick_params(labelsize=TEXT - 0.5, labelcolor=style.MUTED, color=style.FAINT, length=3, width=0.8)
  axes.tick_params(axis='y', length=0)
  axes.patch.set_visible(False)


def name_ends(axes: Axes, height: float, lines: Sequence[Line]) -> None:
  """Writes the names of lines to the right of the axes, at the height of their last values, without overlap.

  Args:
    axes: axes with the lines.
    height: height of the figure, in inches.
    lines: the lines; lines without a name or a finite value are skipped.
  """
  axes.get_ylim()  # applies the pending autoscaling, which the transforms below need
  named = []
  for line in lines:
    finite = np.flatnonzero(np.isfinite(line.values))
    if line.name and len(finite):
      position = axes.transAxes.inverted().transform(
        axes.transData.transform((line.times[finite[-1]], line.values[finite[-1]]))
      )[1]
      named.append((float(position), line))
  if not named:
    return
  named.sort(key=lambda pair: pair[0])
  gap = 0.16 / (height * axes.get_position().height)
  positions = layout.spread([position for position, _ in named], [gap] * (len(named) - 1))
  for position, (_, line) in zip(positions, named, strict=True):
    axes.text(1.02, position, line.name, transform=axes.transAxes, size=TEXT, color=line.color, va='center_baseline')


def cross(axes: Axes, positions: Sequence[float] | np.ndarray) -> None:
  """Draws crosses at the bottom of the axes, at the positions of values that are not finite."""
  axes.plot(
    positions,
    np.full(len(positions), 0.03),
    'x',
    transform=axes.get_xaxis_transform(),
    color=style.VERMILION,
    markersize=5,
    markeredgewidth=1.4,
    clip_on=False,
    zorder=5,
  )


def _thin(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  if len(times) <= _MAX_POINTS:
    return times, values
  bins = np.array_split(np.arange(len(times)), _MAX_POINTS)
  # A bin without a finite value becomes NaN.
  means = [np.nanmean(values[b]) if np.isfinite(values[b]).any() else np.nan for b in bins]
  return np.array([times[b].mean() for b in bins]), np.array(means)


def _log_ticks(axes: Axes, least: int) -> None:
  """Sets ticks of a logarithmic axis: powers of ten, and more between them until at least `least` are in view."""
  low, high = axes.get_ylim()
  steps = ((1.0,), (1.0, 2.0, 5.0), (1.0, 2.0, 3.0, 5.0, 7.0))
  locators: list[Locator] = [LogLocator(subs=subs, numticks=6) for subs in steps[math.log10(high / low) <= 2 :]]
  # A small part of a decade is nearly linear, so that linear ticks serve as well.
  for locator in (*locators, MaxNLocator(5)):
    axes.yaxis.set_major_locator(locator)
    if sum(low <= tick <= high for tick in axes.yaxis.get_majorticklocs()) >= least:
      break
  axes.yaxis.set_minor_locator(NullLocator())
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _brief(value, 3)))


def _brief(value: float, digits: int) -> str:
  """A number as a short label of an axis, such as `5,000` or `20k`."""
  if 1e4 <= abs(value) < 1e7:
    return f'{value / 1e3:,.4g}k'
  return f'{value:,.0f}' if 1e3 <= abs(value) < 1e4 else f'{value:,.{digits}g}'


def _color_scale(figure: Figure, size: tuple[float, float], largest: float, num_operations: int) -> None:
  width = 2.4
  axes = figure.add_axes(inches(size, size[0] - width - 0.2, size[1] - 0.5, width, 0.12))
  axes.imshow(
    np.linspace(0, largest, 128)[None],
    cmap=_WEIGHT_COLORS,
    vmin=0.0,
    vmax=largest,
    aspect='auto',
    interpolation='none',
    extent=(0.0, largest, 0.0, 1.0),
  )
  clean(axes)
  axes.spines[:].set(visible=True, color=style.RULE, linewidth=0.7)
  axes.set_yticks([])
  axes.xaxis.set_major_locator(MaxNLocator(5))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.3g}'))
  uniform = 1 / num_operations
  axes.plot([uniform, uniform], [0, 1], color=style.VERMILION, linewidth=1.2)
  axes.text(0, 1.35, 'mixing weight', transform=axes.transAxes, size=TEXT, color=style.INK)
  axes.text(
    1,
    1.35,
    f'│ uniform: 1/{num_operations}',
    transform=axes.transAxes,
    size=TEXT,
    color=style.VERMILION,
    ha='right',
  )
