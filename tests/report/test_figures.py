"""Charts show the values they are given, at the places they belong to."""

import itertools
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from darts_jax import spaces
from darts_jax.report import figures, style
from darts_jax.report.figures import Line


def test_a_long_line_shows_means_of_neighbours():
  values = np.arange(3600.0)
  figure = figures.chart([Line(np.arange(3600.0), values, style.BLUE)], 'step')
  shown = figure.axes[0].lines[0].get_ydata()
  # Means of ten neighbours: 4.5, 14.5, …
  np.testing.assert_allclose(shown, np.arange(360) * 10 + 4.5)


def test_values_that_are_not_finite_are_gaps_with_a_cross():
  times = np.array([1.0, 2.0, 3.0, 4.0])
  figure = figures.chart([Line(times, np.array([1.0, np.nan, 2.0, np.inf]), style.BLUE)], 'step')
  line, *others = figure.axes[0].lines
  np.testing.assert_array_equal(line.get_ydata(), [1.0, np.nan, 2.0, np.nan])
  (crosses,) = [other for other in others if other.get_marker() == 'x']
  np.testing.assert_array_equal(crosses.get_xdata(), [2.0, 4.0])


def test_on_a_logarithmic_axis_zero_is_a_gap_without_a_cross():
  figure = figures.chart([Line(np.arange(3.0), np.array([0.0, 0.1, 10.0]), style.BLUE)], 'step', log=True)
  (line,) = figure.axes[0].lines
  np.testing.assert_array_equal(line.get_ydata(), [np.nan, 0.1, 10.0])
  assert figure.axes[0].get_yscale() == 'log'


def _ticks(figure: Figure) -> list[str]:
  figure.canvas.draw()
  axes = figure.axes[0]
  low, high = axes.get_ylim()
  return [
    label.get_text()
    for label, tick in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    if low <= tick <= high
  ]


@pytest.mark.parametrize(
  ('low', 'high', 'height', 'expected'),
  [
    (0.5, 60, 2.2, ['1', '10']),
    (50, 12_000, 3.1, ['50', '100', '200', '500', '1,000', '2,000', '5,000', '10k']),
    (57, 700, 3.1, ['70', '100', '200', '300', '500', '700']),
    (60, 190, 3.1, ['60', '90', '120', '150', '180']),
    (60, 190, 2.2, ['100', '200']),
  ],
)
def test_a_logarithmic_axis_has_ticks_whatever_it_spans(low, high, height, expected):
  figure = figures.chart([Line(np.arange(2.0), np.array([low, high]), style.BLUE)], 'epoch', (4.0, height), log=True)
  assert _ticks(figure) == expected


def test_large_numbers_on_an_axis_are_short():
  values = np.array([0.0, 40_000.0])
  figure = figures.chart([Line(np.arange(2.0), values, style.BLUE)], 'epoch', from_zero=True)
  assert _ticks(figure)[:3] == ['0', '10k', '20k']


@pytest.mark.parametrize(('time', 'side'), [(2.0, 'left'), (9.0, 'right')])
def test_a_note_stands_at_its_time_and_inside_the_chart(time, side):
  line = Line(np.arange(11.0), np.arange(11.0), style.BLUE)
  figure = figures.chart([line], 'epoch', notes=[(time, 'averaging')])
  axes = figure.axes[0]
  assert [list(found.get_xdata()) for found in axes.lines[1:]] == [[time, time]]
  (text,) = axes.texts
  assert (text.get_text(), text.get_horizontalalignment()) == ('averaging', side)
  box, inside = text.get_window_extent(FigureCanvasAgg(figure).get_renderer()), axes.get_window_extent()
  assert inside.x0 < box.x0 < box.x1 < inside.x1


def test_names_beside_lines_that_end_together_do_not_overlap():
  times = np.arange(3.0)
  names = ('training', 'validation', 'test')
  lines = [Line(times, times + 0.001 * i, style.BLUE, name) for i, name in enumerate(names)]
  figure = figures.chart(lines, 'epoch')
  renderer = FigureCanvasAgg(figure).get_renderer()
  texts = [text for text in figure.axes[0].texts if text.get_text() in names]
  boxes = [text.get_window_extent(renderer) for text in texts]
  assert len(boxes) == 3
  assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
  assert [text.get_text() for text in sorted(texts, key=lambda text: text.get_position()[1])] == list(names)
  assert max(box.x1 for box in boxes) <= figure.bbox.width


def test_mixing_weights_stand_where_the_adjacency_matrix_has_them():
  spec = spaces.Darts().cells['normal']
  edges = [(edge.source, target) for target, edge in spec.edges]
  rng = np.random.default_rng(0)
  weights = rng.dirichlet(np.ones(8), size=(2, 14))
  kept = {(0, 2, 'sep_conv_3x3'), (3, 5, 'skip_connect')}
  look = spaces.Darts.look
  figure = figures.mixing_weights(np.array([0.0, 1.0]), weights, spec.operations, edges, kept, 1.0, 'epoch', look)
  maps = figure.axes[: len(edges)]
  assert len(figure.axes) == len(edges) + 1
  for (source, target), axes, shown in zip(edges, maps, np.moveaxis(weights, 1, 0), strict=True):
    image = axes.images[0].get_array()
    np.testing.assert_allclose(image[:, 0], shown[0])
    np.testing.assert_allclose(image[:, -1], shown[1])
    (title,) = [text.get_text() for text in axes.texts if '→' in text.get_text()]
    assert title == f'{("cₖ₋₂", "cₖ₋₁", "0", "1", "2")[source]} → {target - 2}'
    marks = [spec.operations[int(line.get_ydata()[0])] for line in axes.lines]
    assert marks == [operation for s, t, operation in kept if (s, t) == (source, target)]
  places = {edge: axes.get_position() for edge, axes in zip(edges, maps, strict=True)}
  for a, b in itertools.combinations(edges, 2):
    assert np.sign(round(places[a].x0 - places[b].x0, 6)) == np.sign(a[0] - b[0])
    assert np.sign(round(places[b].y0 - places[a].y0, 6)) == np.sign(a[1] - b[1])


def test_one_snapshot_is_a_map_too():
  weights = np.array([[[0.25, 0.75], [0.5, 0.5]]])
  edges = [(0, 2), (1, 2)]
  look = spaces.Darts.look
  figure = figures.mixing_weights(np.array([0.0]), weights, ('none', 'skip_connect'), edges, (), 1.0, 'step', look)
  np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), np.repeat([[0.25], [0.75]], 240, axis=1))


def _figure() -> Figure:
  return figures.chart([Line(np.arange(3.0), np.arange(3.0), style.BLUE, 'a < b')], 'step', marks=[1.0])


def test_svg_is_deterministic_and_refers_to_itself_alone():
  first, second = (figures.to_svg(_figure(), 'name', 'says "so" & <so>') for _ in range(2))
  assert first == second
  assert first.startswith('<svg role="img" aria-label="says &quot;so&quot; &amp; &lt;so&gt;"')
  assert first.endswith('</svg>')
  assert 'http' not in first
  ids = re.findall(r'\bid="([^"]*)"', first)
  assert len(set(ids)) == len(ids)
  assert set(re.findall(r'(?:url\(#|href="#)([^")]*)', first)) <= set(ids)
  assert '>a &lt; b</text>' in first


def test_figures_of_other_names_share_no_ids():
  a, b = (set(re.findall(r'\bid="([^"]*)"', figures.to_svg(_figure(), name, ''))) for name in ('a', 'b'))
  assert a
  assert not a & b
