"""Figures show the numbers they are given, and name the regimes that are in them."""

import itertools

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from darts_jax.laboratory import figures, radius
from darts_jax.laboratory.radius import Regime


def _texts(axes):
  return [text for text in axes.texts if text.get_text()]


def _line(axes, color):
  """The solid line of a color that has most points."""
  return max((line for line in axes.lines if line.get_color() == color), key=lambda line: len(line.get_xdata()))


def _every(results):
  supernet = results['supernet']
  return {
    'radius': radius.draw(supernet['radius']),
    'term': figures.batches(supernet['batches'], 'term'),
    'whole': figures.batches(supernet['batches'], 'whole'),
    'cost': figures.cost(supernet['unrolled']),
    'dots': figures.dots(supernet['rows']),
    'toy': figures.toy(results['toy']),
    'convergence': figures.convergence(results['quadratic']['convergence']),
    **{panel.name: panel.figure for panel in figures.along(supernet['along'])},
  }


def test_regimes_are_found_where_the_data_has_them(results):
  assert set(radius.regimes(results['supernet']['radius'])) == {
    Regime('round-off', 'network', 'float32', 1e-6, 1e-4),
    Regime('round-off', 'twin', 'float32', 1e-6, 1e-2),
    Regime('kinks', 'network', 'float64', 1e-4, 1e-2),
    Regime('truncation', 'twin', 'float64', 1e-4, 1.0),
  }


def test_a_network_without_kinks_has_no_regime_of_them(results):
  part = results['supernet']['radius']
  part['network'] = part['twin']
  assert {regime.cause for regime in radius.regimes(part)} == {'round-off', 'truncation'}


def test_without_float64_kinks_are_told_in_float32_and_round_off_is_not(results):
  part = results['supernet']['radius']
  for network in ('network', 'twin'):
    del part[network]['float64']
  # 2e-2 against 1e-3, and alike elsewhere; the twin's grows like ε² from 5e-3 to 5e-1 alone.
  assert radius.regimes(part) == (
    Regime('kinks', 'network', 'float32', 1e-2, 1e-2),
    Regime('truncation', 'twin', 'float32', 1e-1, 1.0),
  )


def test_regimes_do_not_depend_on_the_order_of_radii_or_on_holes(results):
  part = results['supernet']['radius']
  before = set(radius.regimes(part))
  for curve in (curve for network in ('network', 'twin') for curve in part[network].values()):
    curve['radii'] = [*curve['radii'][::-1], 3e-3, None]
    curve['errors'] = [*curve['errors'][::-1], None, 1.0]
  assert set(radius.regimes(part)) == before


def test_of_several_runs_of_a_regime_the_longest_counts(results):
  part = results['supernet']['radius']
  part['network']['float64']['errors'][0] = 1.0
  (kinks,) = [regime for regime in radius.regimes(part) if regime.cause == 'kinks']
  assert (kinks.low, kinks.high) == (1e-4, 1e-2)


def test_the_radius_figure_has_the_curves_the_paper_and_the_regimes(results):
  part = results['supernet']['radius']
  network, twin = radius.draw(part).axes
  for axes, name in ((network, 'network'), (twin, 'twin')):
    for precision, curve in part[name].items():
      drawn = [line for line in axes.lines if line.get_marker() == 'o' and list(line.get_ydata()) == curve['errors']]
      assert len(drawn) == 1
      np.testing.assert_array_equal(drawn[0].get_xdata(), curve['radii'])
      (label,) = [text for text in _texts(axes) if text.get_text() == precision]
      assert label.get_color() == drawn[0].get_color()
    assert 'the paper’s 0.01' in [text.get_text() for text in _texts(axes)]
  assert {'kinks', 'float32 round-off'} <= {text.get_text() for text in _texts(network)}
  assert {'truncation, ∝ ε²', 'float32 round-off'} <= {text.get_text() for text in _texts(twin)}
  assert network.get_xlim() == twin.get_xlim()
  assert network.get_ylim() == twin.get_ylim()
  # Half of the distance to the next radius, 10^½, is added on both sides.
  bars = [line for line in network.lines if line.get_linewidth() == 3]
  spans = sorted(tuple(np.round(np.log10(line.get_xdata()), 1)) for line in bars)
  assert spans[1] == (-4.5, -1.5)
  (filled,) = network.collections
  xs = filled.get_paths()[0].vertices[:, 0]
  assert (xs.min(), xs.max()) == (1e-4, 1e-2)


def test_batches_have_a_panel_for_each_estimator_and_a_line_for_each_size(results):
  part = results['supernet']['batches']
  (only,) = figures.batches(part, 'term').axes
  assert _texts(only)[-1].get_text() == 'exact'
  whole = figures.batches(part, 'whole').axes
  assert [_texts(axes)[-1].get_text() for axes in whole] == ['first_order', 'exact']
  for axes in whole:
    assert [list(line.get_xdata()) for line in axes.lines] == [[128, 256, 512], [32, 64, 128]]
    assert all(list(line.get_ydata()) == [0.5, 0.6, 0.7] for line in axes.lines)
    assert {'batch 32', 'batch 128'} <= {text.get_text() for text in _texts(axes)}


def test_along_a_search_missing_numbers_are_left_out(results):
  panels = {panel.name: panel.figure.axes[0] for panel in figures.along(results['supernet']['along'])}
  (term,) = panels['along-term'].lines
  np.testing.assert_array_equal(term.get_xdata(), [0, 16])
  np.testing.assert_array_equal(term.get_ydata(), [0.7, 0.8])
  np.testing.assert_array_equal(panels['along-whole'].lines[0].get_ydata(), [1, 0, 0.5])
  np.testing.assert_array_equal(panels['along-fraction'].lines[0].get_ydata(), [0.01, 0.02, 0.03])


def test_costs_are_in_those_of_one_gradient(results):
  time, memory = figures.cost(results['supernet']['unrolled']).axes
  np.testing.assert_allclose(time.lines[0].get_ydata(), [3, 5, 9])
  np.testing.assert_allclose(memory.lines[0].get_ydata(), [2, 3, 5])
  results['supernet']['unrolled']['gradient_bytes'] = None
  assert len(figures.cost(results['supernet']['unrolled']).axes) == 1


def test_toy_searches_end_where_their_labels_say(results):
  (axes,) = figures.toy(results['toy']).axes
  ends = [tuple(line.get_xydata()[-1]) for line in axes.lines if len(line.get_xdata()) == 401]
  # 2 / (1 + 2ξ) for ξ = 0 and ½
  assert ends == [(2.0, 2.0), (1.0, 1.0)]
  assert {'ξ = 0 ends at 2', 'ξ = 0.5 ends at 1', 'start'} <= {text.get_text() for text in _texts(axes)}
  (optimum,) = [line for line in axes.lines if line.get_label().startswith('the optimum')]
  np.testing.assert_array_equal(optimum.get_xydata(), [[1.0, 1.0]])


def test_a_line_that_ends_early_has_its_name_there(results):
  (axes,) = figures.convergence(results['quadratic']['convergence']).axes
  names = {text.get_text(): text for text in _texts(axes)}
  assert names['conjugate_gradient'].xy == (43, 0.04)
  assert names['unrolled'].get_transform() is axes.transAxes


def test_dots_stand_at_errors_and_cosines_of_one_precision(results):
  errors, cosines = figures.dots(results['supernet']['rows']).axes
  estimators = ['first_order', 'finite_difference', 'exact', 'neumann']
  assert [label.get_text() for label in errors.get_yticklabels()] == estimators
  dots = [[line.get_xydata()[0] for line in axes.lines if line.get_marker() == 'o'] for axes in (errors, cosines)]
  np.testing.assert_allclose(dots[0], [[1.0, 0], [0.713, 1], [2.31e-6, 2], [2.5, 3]])
  np.testing.assert_allclose(dots[1], [[0.7042, 1], [1.0, 2], [-0.25, 3]])
  assert [text.get_text() for text in _texts(cosines)][:2] == ['no such term', '0.704']
  assert '2.3·10⁻⁶' in [text.get_text() for text in _texts(errors)]


def test_an_error_of_zero_stands_at_the_edge_of_the_logarithmic_axis(results):
  errors, _ = figures.dots(results['supernet']['rows'], 'float64').axes
  (mark,) = [line for line in errors.lines if line.get_marker() == '<']
  assert mark.get_xdata()[0] == errors.get_xlim()[0]
  assert [text.get_text() for text in _texts(errors)][1] == '0'


def test_nothing_to_draw_is_none(results):
  assert radius.draw({}) is None
  assert figures.batches({'lines': []}, 'term') is None
  assert figures.cost({'steps': [1], 'seconds': [None]}) is None
  assert figures.toy({'trajectories': []}) is None
  assert figures.convergence({'unrolled': {'passes': [1], 'distance': [None]}}) is None
  assert figures.dots(results['supernet']['rows'], 'float16') is None
  assert list(figures.along({'steps': [0, 1], 'estimators': {}})) == []


def test_no_label_is_cut_off_or_covers_another(results):
  for name, figure in _every(results).items():
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [text for axes in figure.axes for text in _texts(axes)]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    for text, box in boxes:
      inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
      assert inside, (name, text)
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
      assert not a.overlaps(b), (name, one, other)


def test_numbers_are_written_with_two_digits():
  assert [figures.scientific(x) for x in (0.0, 0.713, 2.31e-6, 1234.0)] == ['0', '0.71', '2.3·10⁻⁶', '1.2·10³']
