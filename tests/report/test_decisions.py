"""What the page shows of decisions is what was decided, by the scores it was decided by."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from darts_jax import spaces
from darts_jax.report import curves, decisions, figures, page, workdir

_CRITERIA = ('importance', 'certainty', 'stability')


def _draw(folder, cell: str) -> Figure:
  run = workdir.read(folder)
  return decisions.draw_scores(run.history, cell, spaces.Darts.look, run.times(run.history.steps), run.time_unit)


def _made(deciding_search, cell: str) -> list[tuple]:
  """(snapshot, row of the edge, operation, rows of the edges removed) of the decisions of a cell."""
  arrays, told = deciding_search
  rows = {tuple(edge): row for row, edge in enumerate(arrays['edges_normal'].tolist())}
  return [
    (snapshot, rows[edge], operation, [rows[gone] for gone in removed])
    for snapshot, found, edge, operation, _, removed in told
    if found == cell
  ]


@pytest.mark.parametrize('cell', ['normal', 'reduce'])
def test_scores_are_shown_up_to_the_decision(deciding_search_folder, deciding_search, cell):
  until = {}
  for snapshot, row, _, removed in _made(deciding_search, cell):
    until |= dict.fromkeys([row, *removed], snapshot)
  assert sorted(until) == list(range(14))
  axes = _draw(deciding_search_folder, cell).axes
  titles = ['Score', 'Importance', 'Certainty', 'Stability']
  assert [shown.get_title(loc='left') for shown in axes] == titles
  for name, shown in zip(('score', *_CRITERIA), axes, strict=True):
    image, values = shown.images[0].get_array(), deciding_search[0][f'{name}_{cell}']
    # The stability of the first snapshot, which is 0 on every edge, says nothing.
    first = 1 if name == 'stability' else 0
    for row in range(14):
      there = range(first, until[row] + 1)
      assert np.flatnonzero(~np.ma.getmaskarray(image)[row]).tolist() == list(there)
      np.testing.assert_array_equal(image[row, there], values[there, row])
    (low, high) = shown.images[0].get_clim()
    assert (low, high) == (image.min(), image.max())
    assert shown.get_title(loc='right') == f'{low:.2g} pale, {high:.2g} dark'


def test_decisions_are_marked_where_they_were_made(deciding_search_folder, deciding_search):
  made = _made(deciding_search, 'normal')
  score, *criteria = _draw(deciding_search_folder, 'normal').axes
  named = [(text.xy, text.get_text()) for text in score.texts if text.get_gid() == decisions.DECISION]
  assert named == [((snapshot + 0.5, row), operation) for snapshot, row, operation, _ in made]
  assert len(named) == 8
  assert not any(axes.texts for axes in criteria)
  for axes in (score, *criteria):
    hatched = [(patch.get_xy(), patch.get_width()) for patch in axes.patches if isinstance(patch, Rectangle)]
    gone = [(row, snapshot) for snapshot, _, _, removed in made for row in removed]
    assert sorted(hatched, key=lambda found: found[0][1]) == [
      ((snapshot + 0.5, row - 0.5), 17 - snapshot) for row, snapshot in sorted(gone)
    ]


def test_labels_of_decisions_are_readable(deciding_search_folder):
  figure = _draw(deciding_search_folder, 'reduce')
  renderer = FigureCanvasAgg(figure).get_renderer()
  figure.draw(renderer)
  score = figure.axes[0]
  texts = [text for text in score.texts if text.get_gid() == decisions.DECISION]
  boxes = [text.get_window_extent(renderer) for text in texts]
  boxes += [label.get_window_extent(renderer) for label in score.get_yticklabels()]
  assert len(boxes) == 8 + 14
  assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
  assert all(0 <= box.x0 < box.x1 <= figure.bbox.width for box in boxes)


def test_columns_are_called_by_their_epochs(deciding_search_folder):
  figure = _draw(deciding_search_folder, 'normal')
  figure.draw(FigureCanvasAgg(figure).get_renderer())
  for axes in figure.axes:
    labels = [label for label in axes.get_xticklabels() if -0.5 <= label.get_position()[0] <= 17.5]
    assert [label.get_text() for label in labels] == ['0', '5', '10', '15']
    assert axes.get_xlabel() == 'epoch'


@pytest.fixture
def parse(parse_page):
  """Reads the two sections about decisions, or the whole page."""

  def parse(folder, whole=False):
    run = workdir.read(folder)
    if whole:
      return parse_page(page.render(run))
    return parse_page(decisions.section(run) + decisions.along_the_way(run, run.history, run.genotype))

  return parse


def _row(snapshot, cell, edge, operation, score, removed) -> str:
  names = ['cₖ₋₂', 'cₖ₋₁', '0', '1', '2', '3']
  gone = ', '.join(f'{names[source]} → {names[target]}' for source, target in removed) or '–'
  title = {'normal': 'Normal cell', 'reduce': 'Reduction cell'}[cell]
  return f'{snapshot} {title} {names[edge[0]]} → {names[edge[1]]} {operation} {score:.3f} {gone}'


def test_the_page_of_a_search_that_decides(deciding_search_folder, deciding_search, parse):
  parsed = parse(deciding_search_folder, whole=True)
  table = parsed.text.partition('Removed with it ')[2]
  # Epochs are counted as snapshots: one was taken before the first.
  expected = ' '.join(_row(*decision) for decision in deciding_search[1])
  assert table.startswith(f'{expected} Cells along the way')
  assert 'or removal (hatched). The score is <made> up.' in parsed.text
  assert (
    parsed.text.index('Mixing weights over time') < parsed.text.index('Decisions') < parsed.text.index('Cells along')
  )
  # Two cells, one learning curve, the edges that changed, and of either cell mixing weights, scores and four snapshots.
  assert parsed.tags.count('svg') == 2 + 1 + 1 + 2 * (1 + 1 + 4)
  ids = [value for name, value in parsed.attributes if name == 'id']
  assert len(set(ids)) == len(ids) > 0
  # Neither entropies of zero nor pruned operations are signs of anything wrong.
  assert 'Look at this first' not in parsed.text


def _headings(parsed) -> list[str]:
  """What stands above the cells along the way."""
  return [text for text in parsed.texts if text.startswith('Epoch ')]


def test_cells_along_the_way_have_what_was_decided_by_then(deciding_search_folder, deciding_search, parse):
  parsed = parse(deciding_search_folder)
  # Of the decisions after epochs 2, 4, …, 16 the last one made the cells at the top.
  assert _headings(parsed) == ['Epoch 2', 'Epoch 6', 'Epoch 10', 'Epoch 14']
  for count in (1, 3, 5, 7):
    for title in ('Normal cell', 'Reduction cell'):
      assert parsed.text.count(f'{title} {count} of 8 edges decided') == 1
  assert 'pale ones are undecided' in parsed.text
  assert '8 candidates' not in parsed.text
  _, cell, edge, operation, *_ = deciding_search[1][0]
  assert (cell, edge[0] < 2) == ('normal', True)
  name = f'{("cₖ₋₂", "cₖ₋₁")[edge[0]]} → {edge[1] - 2}'
  labels = [value for name, value in parsed.attributes if name == 'aria-label']
  assert f'Normal cell, 1 of 8 edges decided: {name} is {operation}.' in labels


def test_the_last_decision_is_shown_if_the_architecture_is_another(deciding_search_folder, parse):
  spaces.save(spaces.published()['DARTS_V2'], deciding_search_folder / 'genotype.json')
  parsed = parse(deciding_search_folder)
  assert _headings(parsed) == ['Epoch 2', 'Epoch 6', 'Epoch 12', 'Epoch 16']
  assert parsed.text.count('8 of 8 edges decided') == 2


def test_a_cell_that_was_complete_before_the_other_is_not_drawn_again(deciding_search_folder, deciding_search, parse):
  arrays = dict(deciding_search[0])
  # As if the reduction cell were decided whole in the third snapshot.
  arrays['left_reduce'] = arrays['left_reduce'][[0, 0] + [16] * 16]
  np.savez(deciding_search_folder / 'alphas.npz', **arrays)
  assert parse(deciding_search_folder).text.count('The same as at the top.') == 4


def _cut(folder, deciding_search, count: int, *left_out: str) -> None:
  """Leaves the first snapshots, without some of the scores."""
  arrays = {
    name: values if name in ('operations', 'topology', 'scores') or name.startswith('edges') else values[:count]
    for name, values in deciding_search[0].items()
    if name.partition('_')[0] not in left_out
  }
  names = [name for name in arrays.pop('scores') if name not in left_out]
  np.savez(folder / 'alphas.npz', **arrays, **({'scores': np.array(names)} if names else {}))


def test_before_the_first_decision(deciding_search_folder, deciding_search, parse):
  _cut(deciding_search_folder, deciding_search, 2)
  text = parse(deciding_search_folder, whole=True).text
  assert 'No edge has been decided yet.' in text
  assert 'There are too few snapshots yet.' in text


def test_only_the_scores_that_there_are_are_shown(deciding_search_folder, deciding_search, parse):
  _cut(deciding_search_folder, deciding_search, 18, 'stability')
  titles = [axes.get_title(loc='left') for axes in _draw(deciding_search_folder, 'normal').axes]
  assert titles == ['Score', 'Importance', 'Certainty']
  assert 'tability' not in parse(deciding_search_folder).text


def test_scores_of_any_name_are_shown(deciding_search_folder, deciding_search, parse):
  """The first of five is the one that decisions go by; the others stand in rows of three."""
  arrays = {name: values for name, values in deciding_search[0].items() if name != 'scores'}
  names = ['strength_of_edges', 'a', 'b', 'c', 'd']
  made = {name: np.random.default_rng(i).uniform(size=(18, 14)) for i, name in enumerate(names)}
  made['a'][5] = np.nan
  scores = {f'{name}_{cell}': values for name, values in made.items() for cell in ('normal', 'reduce')}
  np.savez(deciding_search_folder / 'alphas.npz', **arrays, **scores, scores=np.array(names))
  main, *others = figure = _draw(deciding_search_folder, 'normal').axes
  assert [axes.get_title(loc='left') for axes in figure] == ['Strength of edges', 'A', 'B', 'C', 'D']
  assert np.ma.getmaskarray(others[0].images[0].get_array())[:, 5].all()
  boxes = [axes.get_position() for axes in figure]
  assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
  assert all(box.y0 > 0 and box.x1 <= 1 for box in boxes)
  assert len({round(box.y0, 6) for box in boxes[1:]}) == 2
  snapshot, row, *_ = _made(deciding_search, 'normal')[0]
  assert main.images[0].get_array()[row, snapshot] == made['strength_of_edges'][snapshot, row]
  assert f' {made["strength_of_edges"][snapshot, row]:.3f} ' in parse(deciding_search_folder).text


def test_decisions_are_shown_without_scores(deciding_search_folder, deciding_search, parse):
  _cut(deciding_search_folder, deciding_search, 18, 'score', *_CRITERIA)
  (axes,) = _draw(deciding_search_folder, 'normal').axes
  assert (axes.get_title(loc='left'), len(axes.texts)) == ('Decisions', 8)
  assert np.ma.getmaskarray(axes.images[0].get_array()).all()
  text = parse(deciding_search_folder).text
  _, cell, edge, operation, *_ = deciding_search[1][-1]
  assert cell == 'reduce'
  assert f'Reduction cell {("cₖ₋₂", "cₖ₋₁")[edge[0]]} → {edge[1] - 2} {operation} – –' in text


def test_a_search_that_does_not_decide_has_no_such_section(search_folder, tmp_path_factory):
  assert decisions.section(workdir.read(search_folder)) == ''
  assert decisions.section(workdir.read(tmp_path_factory.mktemp('empty'))) == ''


def test_maps_of_mixing_weights_have_the_scale_of_undecided_edges(deciding_search_folder, deciding_search, monkeypatch):
  shown = []
  draw = figures.mixing_weights

  def spy(times, weights, operations, edges, kept, largest, *args, **kwargs):
    shown.append((weights, largest))
    return draw(times, weights, operations, edges, kept, largest, *args, **kwargs)

  monkeypatch.setattr(figures, 'mixing_weights', spy)
  page.render(workdir.read(deciding_search_folder))
  mixing = np.stack([deciding_search[0][f'mixing_{cell}'] for cell in ('normal', 'reduce')])
  left = np.stack([deciding_search[0][f'left_{cell}'] for cell in ('normal', 'reduce')]).sum(axis=-1)
  largest = mixing[left > 1].max()
  assert largest < 0.8
  for values, count, (weights, scale) in zip(mixing, left, shown, strict=True):
    assert scale == largest
    np.testing.assert_array_equal(weights, np.where(count[..., None], values, np.nan))
    assert (weights[count == 1].max(axis=-1) == 1).all()


def test_decided_edges_change_no_more(deciding_search_folder):
  panels = {panel.name: panel.figure.axes[0] for panel in curves.optimisation(workdir.read(deciding_search_folder))}
  (line,) = panels['changes'].lines
  times, changes = line.get_xdata(), line.get_ydata()
  assert times.tolist() == list(range(1, 18))
  # After epoch t, 2·⌊t/2⌋ of 16 edges are decided, which leaves so many that can be replaced by the next one.
  assert (changes <= 16 - 2 * ((times - 1) // 2)).all()
  assert changes[-1] == 0
  assert changes[0] > 0
