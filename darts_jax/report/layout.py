"""Layered layout of directed acyclic graphs whose edges have labels.

Nodes are placed in columns by depth. Between two columns of nodes there is a column for labels, which are placed like
nodes, and an edge that passes through a column has a place in it, too. Places in a column never overlap, so labels do
not overlap, and no edge crosses a label or a node that is not its own (Sugiyama, Tagawa, Toda 1981; placement of labels
as in Gansner et al. 1993).
"""

import dataclasses
import itertools
from collections.abc import Sequence

_SWEEPS = 24
_RELAXATIONS = 80


@dataclasses.dataclass(frozen=True)
class Place:
  """A rectangle in a column: its centre and size, in inches; y grows upwards."""

  x: float
  y: float
  width: float
  height: float


@dataclasses.dataclass(frozen=True)
class Layout:
  """Places of the parts of a graph.

  Attributes:
    nodes: place of each node.
    routes: for each edge, its places in the columns between its two nodes, left to right.
    labels: for each edge, the place of its label, or None for an edge without a label.
    width: width of the drawing, in inches, from x = 0.
    height: height of the drawing, in inches, from y = 0.
  """

  nodes: tuple[Place, ...]
  routes: tuple[tuple[Place, ...], ...]
  labels: tuple[Place | None, ...]
  width: float
  height: float


def layered(
  node_sizes: Sequence[tuple[float, float]],
  edges: Sequence[tuple[int, int]],
  label_sizes: Sequence[tuple[float, float] | None],
  column_gap: float = 0.32,
  row_gap: float = 0.1,
) -> Layout:
  """Lays out an acyclic graph from left to right; deterministic.

  Args:
    node_sizes: (width, height) of each node, in inches, in topological order. The last node is in the last column.
    edges: (source, target) of each edge, source < target; parallel edges are allowed.
    label_sizes: (width, height) of each edge's label, in inches; None for an edge without a label.
    column_gap: distance between columns, where edges bend, in inches.
    row_gap: least distance between two places of a column, in inches.
  """
  columns_of = [2 * depth for depth in _depths(len(node_sizes), edges)]
  sizes = list(node_sizes)
  chains = []
  for (source, target), label in zip(edges, label_sizes, strict=True):
    chain = []
    for column in range(columns_of[source] + 1, columns_of[target]):
      chain.append(len(sizes))
      columns_of.append(column)
      # The label is in the column right before the target.
      sizes.append(label if label and column == columns_of[target] - 1 else (0.0, 0.06))
    chains.append(chain)
  links = [
    pair
    for (source, target), chain in zip(edges, chains, strict=True)
    for pair in itertools.pairwise([source, *chain, target])
  ]
  columns: list[list[int]] = [[] for _ in range(max(columns_of) + 1)]
  for item, column in enumerate(columns_of):
    columns[column].append(item)
  neighbours: list[tuple[list[int], list[int]]] = [([], []) for _ in sizes]
  for left, right in links:
    neighbours[right][0].append(left)
    neighbours[left][1].append(right)

  columns = _order(columns, neighbours)
  # The places of an edge attract each other, so that long edges stay straight.
  pulls = [list(around[0] + around[1]) for around in neighbours]
  for chain in chains:
    for item in chain:
      pulls[item] += 5 * [other for other in chain if other != item]
  y = _heights(columns, pulls, sizes, len(node_sizes), row_gap)
  if len(node_sizes) > 1 and columns_of[1] == 0 and y[0] < y[1]:
    y = [-centre for centre in y]
  lowest = min(centre - size[1] / 2 for centre, size in zip(y, sizes, strict=True))

  widths = [max(sizes[item][0] for item in column) for column in columns]
  lefts = list(itertools.accumulate((width + column_gap for width in widths), initial=0.0))
  places = [
    Place(lefts[column] + widths[column] / 2, y[item] - lowest, widths[column], sizes[item][1])
    for item, column in enumerate(columns_of)
  ]
  sized = [dataclasses.replace(place, width=size[0]) for place, size in zip(places, sizes, strict=True)]
  return Layout(
    nodes=tuple(sized[: len(node_sizes)]),
    routes=tuple(tuple(places[item] for item in chain) for chain in chains),
    labels=tuple(sized[chain[-1]] if label else None for chain, label in zip(chains, label_sizes, strict=True)),
    width=lefts[-1] - column_gap,
    height=max(place.y + place.height / 2 for place in places),
  )


def spread(desired: Sequence[float], gaps: Sequence[float]) -> list[float]:
  """The positions nearest to the desired ones, in least squares, with the same order and the given least distances.

  Isotonic regression by pooling adjacent violators.

  Args:
    desired: `[N]` desired positions, in the order to keep.
    gaps: `[N - 1]` least distances between neighbours.
  """
  offsets = list(itertools.accumulate(gaps, initial=0.0))
  pools: list[tuple[float, int]] = []
  for position, offset in zip(desired, offsets, strict=True):
    mean, count = position - offset, 1
    while pools and pools[-1][0] > mean:
      other, others = pools.pop()
      mean, count = (mean * count + other * others) / (count + others), count + others
    pools.append((mean, count))
  means = [mean for mean, count in pools for _ in range(count)]
  return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _depths(num_nodes: int, edges: Sequence[tuple[int, int]]) -> list[int]:
  depths = [0] * num_nodes
  for node in range(num_nodes):
    depths[node] = max((depths[source] + 1 for source, target in edges if target == node), default=0)
  depths[-1] = max(depths)
  return depths


def _order(columns: list[list[int]], neighbours: list[tuple[list[int], list[int]]]) -> list[list[int]]:
  """Orders each column for few crossings: barycentre sweeps, then swaps of neighbours that reduce crossings."""
  best, fewest = columns, _crossings(columns, neighbours)
  columns = [list(column) for column in columns]
  for sweep in range(_SWEEPS):
    side = sweep % 2
    for i in range(len(columns))[:: -1 if side else 1]:
      rank = {item: j for column in columns for j, item in enumerate(column)}
      around = {item: [rank[n] for n in neighbours[item][side]] or [rank[item]] for item in columns[i]}
      means = {item: sum(ranks) / len(ranks) for item, ranks in around.items()}
      columns[i].sort(key=means.__getitem__)
    if (count := _crossings(columns, neighbours)) < fewest:
      best, fewest = [list(column) for column in columns], count
  improved = True
  while improved:
    improved = False
    for column in best:
      for j in range(len(column) - 1):
        column[j], column[j + 1] = column[j + 1], column[j]
        if (count := _crossings(best, neighbours)) < fewest:
          fewest, improved = count, True
        else:
          column[j], column[j + 1] = column[j + 1], column[j]
  return best


def _crossings(columns: list[list[int]], neighbours: list[tuple[list[int], list[int]]]) -> int:
  count = 0
  for left, right in itertools.pairwise(columns):
    rank = {item: j for j, item in enumerate(right)}
    ends = [sorted(rank[n] for n in neighbours[item][1]) for item in left]
    flat = [end for group in ends for end in group]
    count += sum(a > b for a, b in itertools.combinations(flat, 2))
  return count


def _heights(
  columns: list[list[int]],
  pulls: list[list[int]],
  sizes: Sequence[tuple[float, float]],
  num_nodes: int,
  row_gap: float,
) -> list[float]:
  """The height of each item's centre: iteratively moved to the mean of `pulls`, as near as its column allows."""
  gaps = [
    [
      (sizes[a][1] + sizes[b][1]) / 2 + row_gap * (2.5 if max(a, b) < num_nodes else 1.0)
      for a, b in itertools.pairwise(column)
    ]
    for column in columns
  ]
  y = [0.0] * len(sizes)
  for column, gap in zip(columns, gaps, strict=True):
    for item, centre in zip(column, itertools.accumulate(gap, initial=-sum(gap) / 2), strict=True):
      y[item] = centre
  for sweep in range(_RELAXATIONS):
    for i in range(len(columns))[:: -1 if sweep % 2 else 1]:
      desired = [sum(y[j] for j in pulls[item]) / len(pulls[item]) if pulls[item] else y[item] for item in columns[i]]
      for item, centre in zip(columns[i], spread(desired, gaps[i]), strict=True):
        y[item] = centre
  return y
