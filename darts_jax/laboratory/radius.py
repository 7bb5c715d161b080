"""The error of the finite difference against its radius: its causes, and its figure."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from darts_jax.laboratory.figures import PAPER, WIDTH, axes_at, note, number, power, series
from darts_jax.report import layout, style
from darts_jax.report.figures import TEXT, Line

#: Factor by which an error has to exceed another one to be attributed to the difference between both.
EXCESS = 10.0
#: Range of slopes on double logarithmic axes that counts as ε², the growth of the truncation error of a smooth
#: function.
TRUNCATION_SLOPES = (1.5, 2.5)

PRECISIONS = ('float64', 'float32', 'bfloat16')
_PRECISION_COLORS = {'float64': style.BLUE, 'float32': style.VERMILION, 'bfloat16': style.AMBER}


@dataclasses.dataclass(frozen=True)
class Regime:
  """Radii at which one cause makes most of a finite difference's error.

  Attributes:
    cause: 'round-off': the error is more than `EXCESS` times the error in float64; 'kinks': it is more than `EXCESS`
      times the error in the smooth twin; 'truncation': the error of the smooth twin grows like ε².
    network: 'network' or 'twin'.
    precision: precision in which the error was measured.
    low: the smallest measured radius of the regime.
    high: the largest measured radius of the regime.
  """

  cause: str
  network: str
  precision: str
  low: float
  high: float


def regimes(part: Mapping[str, Any]) -> tuple[Regime, ...]:
  """The regimes in `supernet.radius` of the results: for each cause, the longest run of neighbouring radii."""
  found: list[Regime | None] = []
  curves = {network: errors_of(part.get(network)) for network in ('network', 'twin')}
  for network, errors in curves.items():
    for precision in errors:
      if precision != 'float64' and 'float64' in errors:
        radii, coarse, fine = _matched(errors[precision], errors['float64'])
        found.append(_regime('round-off', network, precision, radii, coarse > EXCESS * fine))
  finest = next((p for p in PRECISIONS if all(p in errors for errors in curves.values())), None)
  if finest is not None:
    radii, rough, smooth = _matched(curves['network'][finest], curves['twin'][finest])
    found.append(_regime('kinks', 'network', finest, radii, rough > EXCESS * smooth))
  finest = next(iter(curves['twin']), None)
  if finest is not None:
    radii, smooth = _positive(*curves['twin'][finest])
    slopes = np.diff(np.log(smooth)) / np.diff(np.log(radii))
    steep = (slopes > TRUNCATION_SLOPES[0]) & (slopes < TRUNCATION_SLOPES[1])
    # A slope lies between two radii, and a run of slopes covers one radius more.
    run = _longest(steep)
    if run is not None:
      found.append(Regime('truncation', 'twin', finest, float(radii[run[0]]), float(radii[run[1] + 1])))
  return tuple(regime for regime in found if regime is not None)


def draw(part: Mapping[str, Any]) -> Figure | None:
  """Error of the finite difference against its radius, in the network and its smooth twin, with the regimes.

  Args:
    part: `supernet.radius` of the results.
  """
  titles = {'network': 'The network: ReLU, max pooling', 'twin': 'Its smooth twin: SiLU, average pooling'}
  curves = {network: errors_of(part.get(network)) for network in titles}
  shown = {network: {p: _positive(*c) for p, c in errors.items()} for network, errors in curves.items()}
  points = [curve for errors in shown.values() for curve in errors.values() if len(curve[0])]
  if not points:
    return None
  marked = regimes(part)
  tracks = max((sum(regime.network == network for regime in marked) for network in titles), default=0)
  all_radii, all_errors = (np.concatenate([point[i] for point in points]) for i in (0, 1))
  paper = number(part.get('paper'))
  left, gap, bottom, height = 0.62, 0.42, 0.44, 3.3
  size = (WIDTH, bottom + height + 0.1 + 0.3 * tracks + 0.3)
  width = (size[0] - left - gap - 0.12) / 2
  figure = Figure(figsize=size)
  for column, (network, title) in enumerate(titles.items()):
    axes = axes_at(figure, size, left + column * (width + gap), bottom, width, height)
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlim(all_radii.min() / 1.5, all_radii.max() * 1.5)
    axes.set_ylim(all_errors.min() / 3, all_errors.max() * 6)
    if paper:
      axes.axvline(paper, color=style.MUTED, linewidth=1.1, linestyle=(0, (1, 2)), zorder=1.5)
      note(axes, f'the paper’s {paper:g}', (paper, 0), (4, 4), style.MUTED, xycoords=axes.get_xaxis_transform())
    if network == 'network':
      _fill_kinks(axes, curves, [regime for regime in marked if regime.cause == 'kinks'])
    names = []
    for precision, (radii, errors) in shown[network].items():
      if len(radii):
        color = _PRECISION_COLORS.get(precision, style.INK)
        axes.plot(radii, errors, color=color, linewidth=1.6, marker='o', markersize=3, zorder=3)
        names.append(Line(radii, errors, color, precision))
    _name_starts(axes, height, names)
    own = [regime for regime in marked if regime.network == network]
    for track, regime in enumerate(own):
      _mark_regime(axes, regime, 1 + (0.1 + 0.3 * (len(own) - 1 - track)) / height, len(all_radii) // len(points))
    axes.text(
      0,
      1 + (0.1 + 0.3 * tracks) / height,
      title,
      transform=axes.transAxes,
      size=TEXT + 1,
      color=style.INK,
      weight='bold',
    )
    axes.set_xlabel('radius ε·‖u‖', size=TEXT, color=style.MUTED, labelpad=2)
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_locator(LogLocator(numticks=9))
      axis.set_minor_locator(NullLocator())
      axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
    if column:
      axes.set_yticklabels([])
  figure.axes[0].set_ylabel('relative error of the term', size=TEXT, color=style.MUTED, labelpad=3)
  return figure


def errors_of(curves: Mapping[str, Any] | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Ascending radii and their finite errors by precision, the finest first, from a part of `supernet.radius`."""
  found = {}
  for precision in PRECISIONS:
    curve = (curves or {}).get(precision) or {}
    radii, errors = series(curve.get('radii'), curve.get('errors'))
    order = np.argsort(radii, kind='stable')
    order = order[np.isfinite(errors[order]) & (radii[order] > 0)]
    if len(order):
      found[precision] = (radii[order], errors[order])
  return found


def _fill_kinks(axes: Axes, curves: Mapping[str, Mapping[str, Any]], kinks: Sequence[Regime]) -> None:
  """Draws the twin's error beside the network's, and fills the area between them in the regime of kinks."""
  for regime in kinks:
    radii, rough, smooth = _matched(curves['network'][regime.precision], curves['twin'][regime.precision])
    keep = (rough > 0) & (smooth > 0)
    radii, rough, smooth = radii[keep], rough[keep], smooth[keep]
    color = _PRECISION_COLORS[regime.precision]
    axes.plot(radii, smooth, color=color, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
    inside = (radii >= regime.low) & (radii <= regime.high)
    axes.fill_between(radii[inside], smooth[inside], rough[inside], color=color, alpha=0.1, linewidth=0, zorder=1)
    named = int(np.flatnonzero(inside)[int(0.5 * (inside.sum() - 1))])
    note(axes, 'the twin’s', (radii[named], smooth[named]), (6, -5), color, va='top', bbox=PAPER)


def _mark_regime(axes: Axes, regime: Regime, height: float, count: int) -> None:
  """Draws a bar with the regime's name above the axes; it ends halfway to the next measured radius on either side."""
  low, high = axes.get_xlim()
  half = (high / low) ** (0.5 / max(count, 2))
  start, end = max(regime.low / half, low), min(regime.high * half, high)
  named = {
    'round-off': (f'{regime.precision} round-off', _PRECISION_COLORS.get(regime.precision, style.INK)),
    'kinks': ('kinks', style.BLUE),
    'truncation': ('truncation, ∝ ε²', style.BLUE),
  }
  name, color = named[regime.cause]
  place = axes.get_xaxis_transform()
  bar = axes.plot([start, end], [height, height], transform=place, color=color, linewidth=3, clip_on=False)
  bar[0].set_solid_capstyle('butt')
  late = math.sqrt(start * end) > math.sqrt(low * high)
  side = 'right' if late else 'left'
  note(axes, name, (end if late else start, height), (0, 3), color, xycoords=place, ha=side, annotation_clip=False)


def _name_starts(axes: Axes, height: float, lines: Sequence[Line]) -> None:
  """Writes the names of lines beside their first points, above falling lines and below rising ones."""
  to_axes = axes.transData + axes.transAxes.inverted()
  placed = [(float(to_axes.transform((line.times[0], line.values[0]))[1]), line) for line in lines]
  placed.sort(key=lambda pair: pair[0])
  gap = 0.17 / height
  positions = layout.spread([position for position, _ in placed], [gap] * max(len(placed) - 1, 0))
  for position, (_, line) in zip(positions, placed, strict=True):
    falls = len(line.values) < 2 or line.values[1] <= line.values[0]
    place = (float(line.times[0]), position)
    note(axes, line.name, place, (5, 4 if falls else -11), line.color, xycoords=axes.get_xaxis_transform())


def _positive(radii: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  return radii[errors > 0], errors[errors > 0]


def _matched(
  first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The radii that two curves share, and both errors there."""
  pairs = [(i, j) for i, x in enumerate(first[0]) for j, y in enumerate(second[0]) if math.isclose(x, y, rel_tol=1e-6)]
  i, j = [i for i, _ in pairs], [j for _, j in pairs]
  return first[0][i], first[1][i], second[1][j]


def _regime(cause: str, network: str, precision: str, radii: np.ndarray, holds: np.ndarray) -> Regime | None:
  run = _longest(holds)
  return None if run is None else Regime(cause, network, precision, float(radii[run[0]]), float(radii[run[1]]))


def _longest(holds: np.ndarray) -> tuple[int, int] | None:
  """First and last index of the longest run of True, the earliest if several are equally long; None without any."""
  runs = [[i for i, _ in group] for held, group in itertools.groupby(enumerate(holds), lambda x: bool(x[1])) if held]
  longest = max(runs, key=len, default=None)
  return (longest[0], longest[-1]) if longest else None
