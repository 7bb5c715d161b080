"""Figures of the laboratory's results, except the figure of the radius (`darts_jax.laboratory.radius`).

Numbers that are null in the results are left out; a function returns None if nothing is left to draw.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from darts_jax.report import figures, style
from darts_jax.report.curves import Panel
from darts_jax.report.figures import TEXT, Line

#: Colours by estimator; estimators of a family (one step, unrolled, implicit) have similar hues.
_ESTIMATOR_COLORS = {
  'first_order': style.MUTED,
  'finite_difference': style.VERMILION,
  'exact': style.BLUE,
  'exact_reverse': '#3F8FC0',
  'unrolled': style.GREEN,
  'truncated': '#4C9A80',
  'neumann': style.PURPLE,
  'conjugate_gradient': style.AMBER,
  'amended': style.INK,
}
#: The small charts of `along`: by name of the panel, the metric, the title, and whether values are percentages.
SHARES = {
  'along-fraction': ('term_fraction', 'Second-order term, as part of the norm of ∇α L_val', True),
  'along-norm': ('outer_norm', 'Norm of ∇α L_val', False),
  'along-loss': ('loss', 'Loss', False),
}
_SHADES = LinearSegmentedColormap.from_list('shades', ['#5AA0CC', style.BLUE, '#0A2F5C'])
_SUPERSCRIPTS = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
_GRID = '#E8ECF1'
#: Background box of text that is written over a line.
PAPER = {'facecolor': 'white', 'edgecolor': 'none', 'pad': 1.0}
#: Width of a figure that fills the page, in inches.
WIDTH = 11.3
_SMALL = (5.5, 2.5)


def batches(part: Mapping[str, Any], what: str) -> Figure | None:
  """Cosine to the gradient over many images, against the number of images: a panel by estimator, a line by batch size.

  Args:
    part: `supernet.batches` of the results.
    what: 'term' for the second-order term alone, 'whole' for the gradient.
  """
  lines: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}
  for line in part.get('lines') or ():
    images, cosines = series(line.get('images'), line.get(what))
    if np.isfinite(cosines).any():
      lines.setdefault(line['estimator'], []).append((line['batch_size'], images, cosines))
  if not lines:
    return None
  columns = min(len(lines), 4)
  rows = math.ceil(len(lines) / columns)
  left, gap, bottom, height, title = 0.5, 0.86, 0.42, 1.9, 0.3
  size = (min(WIDTH, left + 3.6 * columns), rows * (bottom + height + title))
  width = (size[0] - left - columns * gap) / columns + 0.12
  every = [cosines[np.isfinite(cosines)] for drawn in lines.values() for _, _, cosines in drawn]
  low, high = _limits(np.concatenate(every))
  sizes = sorted({batch_size for drawn in lines.values() for batch_size, _, _ in drawn})
  all_images = np.concatenate([images for drawn in lines.values() for _, images, _ in drawn])
  figure = Figure(figsize=size)
  for i, (estimator, drawn) in enumerate(lines.items()):
    row, column = divmod(i, columns)
    y = size[1] - (row + 1) * (bottom + height + title) + bottom
    axes = axes_at(figure, size, left + column * (width + gap - 0.12), y, width - 0.12, height)
    axes.set_xscale('log', base=2)
    axes.set_xlim(all_images.min() / 1.1, all_images.max() * 1.1)
    axes.set_ylim(low, high)
    names = []
    for batch_size, images, cosines in sorted(drawn, key=lambda entry: -entry[0]):
      shade = sizes.index(batch_size) / max(len(sizes) - 1, 1)
      color = to_hex(_SHADES(shade))
      # Lines of small batches lie on those of large ones, and are thinner where they coincide.
      axes.plot(images, cosines, color=color, linewidth=1.2 + 1.2 * shade, marker='o', markersize=3, zorder=3)
      names.append(Line(images, cosines, color, f'batch {batch_size}'))
    figures.name_ends(axes, size[1], names)
    _title(axes, estimator, height)
    ticks = np.unique(all_images)
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: math.ceil(len(ticks) / 5)].tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel('images', size=TEXT, color=style.MUTED, labelpad=2)
    if column:
      axes.set_yticklabels([])
  return figure


def along(part: Mapping[str, Any]) -> Iterator[Panel]:
  """Yields charts of the estimates' errors during a search.

  Args:
    part: `supernet.along` of the results.
  """
  steps = part.get('steps')
  charts: tuple[tuple[str, str, str, bool], ...] = (
    ('term', 'along-term', 'Second-order term: cosine to the exact one', False),
    ('error', 'along-error', 'Second-order term: relative error', True),
    ('whole', 'along-whole', 'Whole gradient: cosine to the exact one', False),
  )
  for what, name, title, log in charts:
    lines = []
    for estimator, values in (part.get('estimators') or {}).items():
      times, numbers = series(steps, values.get(what))
      # `chart` marks non-finite values by crosses, but a number missing in the results is no divergence of the search.
      times, numbers = times[np.isfinite(numbers)], numbers[np.isfinite(numbers)]
      if (numbers > 0).any() if log else len(numbers):
        lines.append(Line(times, numbers, _estimator_color(estimator), estimator))
    if lines:
      yield Panel(name, title, figures.chart(lines, 'search step', _SMALL, log=log))
  for name, (what, title, percent) in SHARES.items():
    times, numbers = series(steps, part.get(what))
    times, numbers = times[np.isfinite(numbers)], numbers[np.isfinite(numbers)]
    if len(numbers):
      line = Line(times, numbers, style.INK)
      figure = figures.chart([line], 'search step', (3.75, 2.2), percent=percent, from_zero=True)
      yield Panel(name, title, figure)


def cost(part: Mapping[str, Any]) -> Figure | None:
  """Time and memory of an unrolled hypergradient against its number of steps, both relative to one gradient.

  Args:
    part: `supernet.unrolled` of the results.
  """
  drawn = []
  for what, of, title in (('seconds', 'gradient_seconds', 'Time'), ('bytes', 'gradient_bytes', 'Memory')):
    steps, values = series(part.get('steps'), part.get(what))
    one = number(part.get(of))
    if one and np.isfinite(values).any():
      keep = np.isfinite(values)
      drawn.append((f'{title}, in gradients', steps[keep], values[keep] / one))
  if not drawn:
    return None
  left, gap, bottom, height, title_height = 0.4, 0.55, 0.42, 2.1, 0.32
  size = (0.5 * WIDTH * len(drawn), bottom + height + title_height)
  width = (size[0] - left - gap * (len(drawn) - 1) - 0.35) / len(drawn)
  figure = Figure(figsize=size)
  for column, (title, steps, values) in enumerate(drawn):
    axes = axes_at(figure, size, left + column * (width + gap), bottom, width, height)
    axes.plot(steps, values, color=style.GREEN, linewidth=1.6, marker='o', markersize=4, zorder=3)
    axes.axhline(1, color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)
    axes.set_xlim(0, steps.max() * 1.06)
    axes.set_ylim(0, max(values.max(), 1.0) * 1.16)
    note(axes, 'one gradient', (1, 1), (-2, 3), style.MUTED, xycoords=axes.get_yaxis_transform(), ha='right')
    for step, value in zip(steps, values, strict=True):
      side = 'right' if step == steps.max() and len(steps) > 1 else 'center'
      note(axes, f'{value:.3g}', (step, value), (0, 6), style.GREEN, ha=side)
    _title(axes, title, height)
    axes.xaxis.set_major_locator(FixedLocator(steps.tolist()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.0f}'))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel('unrolled steps', size=TEXT, color=style.MUTED, labelpad=2)
  return figure


def toy(part: Mapping[str, Any]) -> Figure | None:
  """Searches on the paper's toy problem in the plane of α and w, as in its figure 2.

  Args:
    part: `toy` of the results.
  """
  searches = []
  for trajectory in part.get('trajectories') or ():
    alphas, weights = series(trajectory.get('alphas'), trajectory.get('weights'))
    keep = np.isfinite(alphas) & np.isfinite(weights)
    if keep.any():
      searches.append((trajectory['learning_rate'], number(trajectory.get('rest')), alphas[keep], weights[keep]))
  if not searches:
    return None
  searches.sort(key=lambda search: search[0])
  size = (5.5, 4.3)
  figure = Figure(figsize=size)
  axes = axes_at(figure, size, 0.55, 0.46, size[0] - 0.55 - 0.25, size[1] - 0.46 - 0.12)
  axes.grid(axis='x', color=_GRID, linewidth=0.8)
  low_alpha, high_alpha = _span([alphas for _, _, alphas, _ in searches])
  low_weight, high_weight = _span([weights for _, _, _, weights in searches])
  # Leaves room for the labels to the left of the end points.
  axes.set_xlim(low_alpha - 0.36 * (high_alpha - low_alpha), high_alpha + 0.06 * (high_alpha - low_alpha))
  axes.set_ylim(low_weight - 0.06 * (high_weight - low_weight), high_weight + 0.06 * (high_weight - low_weight))
  # Clipped to the range that both axes cover, so that its ends are visible.
  diagonal = [max(axes.get_xlim()[0], axes.get_ylim()[0]), min(axes.get_xlim()[1], axes.get_ylim()[1])]
  axes.plot(
    diagonal, diagonal, '--', label='w = α: w solves the inner problem', color=style.MUTED, linewidth=0.9, zorder=1.5
  )
  for i, (rate, rest, alphas, weights) in enumerate(searches):
    color = to_hex(_SHADES(i / max(len(searches) - 1, 1)))
    axes.plot(alphas, weights, color=color, linewidth=1.5, zorder=3)
    axes.plot(alphas[-1:], weights[-1:], 'o', color=color, markersize=5, zorder=4)
    at = f' ends at {rest:.3g}' if rest is not None else ''
    note(axes, f'ξ = {rate:g}{at}', (alphas[-1], weights[-1]), (-7, 5), color, ha='right', zorder=5)
  (ring,) = axes.plot([1], [1], 'o', color=style.VERMILION, markersize=12, label='the optimum, (1, 1)', zorder=5)
  ring.set_markerfacecolor('none')
  start = searches[0][2][0], searches[0][3][0]
  axes.plot(*start, 'o', color=style.INK, markersize=5, zorder=5)
  note(axes, 'start', start, (8, 0), style.INK, va='center')
  axes.legend(loc='lower left', frameon=False, fontsize=TEXT, labelcolor=style.MUTED, borderaxespad=0.2)
  for axis, name in ((axes.xaxis, 'α'), (axes.yaxis, 'w')):
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'.replace('-', '−')))
    axis.set_label_text(name, size=TEXT, color=style.MUTED)
  axes.yaxis.label.set_rotation(0)
  return figure


def convergence(part: Mapping[str, Any]) -> Figure | None:
  """Distance to the true hypergradient of the quadratic problem against the number of passes.

  Args:
    part: `quadratic.convergence` of the results.
  """
  lines = []
  for estimator, values in part.items():
    passes, distances = series((values or {}).get('passes'), (values or {}).get('distance'))
    keep = np.isfinite(distances) & (distances > 0)
    if keep.any():
      lines.append(Line(passes[keep], distances[keep], _estimator_color(estimator), estimator))
  if not lines:
    return None
  last = max(line.times[-1] for line in lines)
  # Lines that end early are labelled at their last point, all others beside the axes.
  early = [line for line in lines if line.times[-1] < 0.75 * last]
  drawn = [dataclasses.replace(line, name='') if line.times[-1] < 0.75 * last else line for line in lines]
  figure = figures.chart(drawn, 'passes', (7.4, 3.1), log=True)
  for line in early:
    note(figure.axes[0], line.name, (line.times[-1], line.values[-1]), (6, 0), line.color, va='center')
  return figure


def dots(rows: Sequence[Mapping[str, Any]], precision: str = 'float32') -> Figure | None:
  """The second-order term of every estimator against the exact one: relative error and cosine.

  Args:
    rows: `supernet.rows` of the results; rows of other precisions are left out.
    precision: precision of the estimates to draw.
  """
  shown = []
  for row in rows:
    term = (row.get('one_step') or {}).get('term') or {}
    if row.get('precision') == precision:
      shown.append((row['estimator'], number(term.get('error')), number(term.get('cosine'))))
  if not any(error is not None for _, error, _ in shown):
    return None
  left, gap, bottom, pitch, title = 1.42, 0.5, 0.34, 0.3, 0.3
  height = pitch * len(shown)
  size = (7.9, bottom + height + title)
  width = (size[0] - left - gap - 0.2) / 2
  figure = Figure(figsize=size)
  errors = [error for _, error, _ in shown if error]
  low = 10 ** math.floor(math.log10(min(errors, default=1e-1)) - 0.5)
  high = 10 ** math.ceil(math.log10(max([*errors, 2.0])) + 0.2)
  least = min([cosine for _, _, cosine in shown if cosine is not None], default=0.0)
  panels = ((0, 'Relative error', low, high), (1, 'Cosine', min(-0.02, 1.1 * least), 1.04))
  for column, name, start, end in panels:
    axes = axes_at(figure, size, left + column * (width + gap), bottom, width, height)
    axes.grid(False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    if column == 0:
      axes.set_xscale('log')
      axes.xaxis.set_major_locator(LogLocator(numticks=6))
      axes.xaxis.set_minor_locator(NullLocator())
      axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
      axes.axvline(1, color=style.MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1.5)
      place = axes.get_xaxis_transform()
      note(axes, 'as without the term', (1, 1), (0, 7), style.MUTED, xycoords=place, ha='center')
    else:
      axes.xaxis.set_major_locator(MaxNLocator(5))
      axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'.replace('-', '−')))
    axes.set_xlim(start, end)
    for y, (estimator, *values) in enumerate(shown):
      axes.axhline(y, color=_GRID, linewidth=0.8, zorder=1)
      _dot(axes, y, values[column], _estimator_color(estimator), start, 'log' if column == 0 else 'linear')
    axes.set_yticks(range(len(shown)), [estimator for estimator, _, _ in shown] if column == 0 else [])
    axes.tick_params(axis='y', labelsize=TEXT, labelcolor=style.INK)
    _title(axes, name, height)
  return figure


def scientific(value: float) -> str:
  """A non-negative number with two significant digits, such as 0.71 or 2.1·10⁻⁶."""
  if value == 0 or 0.01 <= value < 100:
    return f'{value:.2g}'
  mantissa, exponent = f'{value:.1e}'.split('e')
  return f'{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}'


def number(value: Any) -> float | None:
  """A finite number as a float; None for anything else."""
  return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _dot(axes: Axes, y: int, value: float | None, color: str, start: float, scale: str) -> None:
  """Draws a dot, labelled on the side with more room; a zero on a logarithmic axis is drawn at the axis's start."""
  if value is None:
    place = axes.get_yaxis_transform()
    note(axes, 'no such term', (0, y), (4, 0), style.MUTED, xycoords=place, va='center', bbox=PAPER)
    return
  at_edge = scale == 'log' and value <= 0
  x = start if at_edge else value
  axes.plot([x], [y], '<' if at_edge else 'o', color=color, markersize=6, zorder=3, clip_on=False)
  right = float(axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0]) > 0.6
  number = f'{value:.3f}' if scale == 'linear' else scientific(value)
  note(
    axes,
    number.replace('-', '−'),
    (x, y),
    (-7 if right else 7, 0),
    color,
    va='center_baseline',
    ha='right' if right else 'left',
    zorder=4,
    bbox=PAPER,
  )


def axes_at(figure: Figure, size: tuple[float, float], x: float, y: float, width: float, height: float) -> Axes:
  """Adds axes at a position and of a size in inches, in the style of all figures."""
  axes = figure.add_axes(figures.inches(size, x, y, width, height))
  figures.clean(axes)
  axes.set_axisbelow(True)
  axes.grid(axis='y', color=_GRID, linewidth=0.8)
  return axes


def note(
  axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], color: str, **options: Any
) -> None:
  """Writes small text beside a point of a chart; `offset` is in typographic points."""
  axes.annotate(text, place, offset, textcoords='offset points', size=TEXT, color=color, **options)


def _title(axes: Axes, title: str, height: float) -> None:
  axes.text(0, 1 + 0.1 / height, title, transform=axes.transAxes, size=TEXT, color=style.INK, weight='bold')


def _estimator_color(name: str) -> str:
  return _ESTIMATOR_COLORS.get(name, style.INK)


def _limits(cosines: np.ndarray) -> tuple[float, float]:
  return min(0.0, float(cosines.min()) * 1.05), 1.02


def _span(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
  """The smallest and the largest value of the arrays and of 1, the optimum."""
  values = np.concatenate([*arrays, np.ones(1)])
  return float(values.min()), float(values.max())


def power(value: float) -> str:
  """A power of ten as text: `10ⁿ`, or the plain number from 0.01 to 100."""
  exponent = round(math.log10(value))
  return f'{value:g}' if -2 <= exponent <= 2 else f'10{str(exponent).translate(_SUPERSCRIPTS)}'


def series(positions: Sequence[Any] | None, values: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray]:
  """Positions and values as arrays, `[N]` both; a null value is NaN, a null position drops the pair."""
  pairs = [(number(x), number(y)) for x, y in zip(positions or (), values or (), strict=False)]
  kept = [(x, math.nan if y is None else y) for x, y in pairs if x is not None]
  return np.array([x for x, _ in kept]), np.array([y for _, y in kept])
