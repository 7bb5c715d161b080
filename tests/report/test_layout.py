"""The layout against its definitions: least squares, distances, and edges that leave everything else alone."""

import itertools

import numpy as np
import pytest

from darts_jax.report import layout


def test_positions_that_already_keep_their_distance_stay():
  assert layout.spread([0.0, 2.0, 5.0], [1.0, 2.0]) == [0.0, 2.0, 5.0]


def test_equal_positions_spread_around_their_mean():
  # min (x-4)² + (y-4)² + (z-4)² with distances of 1 and 2: the mean stays at 4.
  np.testing.assert_allclose(layout.spread([4.0, 4.0, 4.0], [1.0, 2.0]), [8 / 3, 11 / 3, 17 / 3])


def test_spread_is_the_least_squares_solution():
  rng = np.random.default_rng(0)
  for _ in range(20):
    desired, gaps = rng.normal(size=5), rng.uniform(0.1, 1.0, size=4)
    result = np.array(layout.spread(list(desired), list(gaps)))
    slack = np.diff(result) - gaps
    assert (slack > -1e-9).all()
    # Optimality (KKT): the pulls below every gap sum up to a push across it, which only a tight gap can take.
    push = np.cumsum(result - desired)
    assert push[-1] == pytest.approx(0.0, abs=1e-9)
    assert (push[:-1] < 1e-9).all()
    np.testing.assert_allclose(push[:-1] * slack, 0.0, atol=1e-9)


def _overlap(a: layout.Place, b: layout.Place) -> bool:
  return abs(a.x - b.x) < (a.width + b.width) / 2 - 1e-9 and abs(a.y - b.y) < (a.height + b.height) / 2 - 1e-9


def test_random_graphs_overlap_nowhere():
  rng = np.random.default_rng(1)
  for _ in range(8):
    edges = [(int(rng.integers(node)), node) for node in range(2, 8) for _ in range(2)]
    edges += [(node, 8) for node in range(2, 8)]
    labels = [(float(rng.uniform(0.5, 1.2)), 0.2) if target < 8 else None for _, target in edges]
    result = layout.layered([(0.3, 0.3)] * 9, edges, labels)
    boxes = [*result.nodes, *(label for label in result.labels if label)]
    assert len(boxes) == 9 + 12
    assert not any(_overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    for edge, route, own in zip(edges, result.routes, result.labels, strict=True):
      others = [box for box in boxes if box is not own and box not in [result.nodes[node] for node in edge]]
      assert not any(_overlap(place, box) for place in route for box in others)
      xs = [result.nodes[edge[0]].x, *(place.x for place in route), result.nodes[edge[1]].x]
      assert xs == sorted(xs)


def test_a_graph_without_crossings_is_drawn_without():
  # Listed so that drawing nodes in their order would cross: 0 → 3 and 1 → 2.
  result = layout.layered([(0.3, 0.3)] * 5, [(0, 3), (1, 2), (2, 4), (3, 4)], [None] * 4)
  assert (result.nodes[0].y - result.nodes[1].y) * (result.nodes[3].y - result.nodes[2].y) > 0
