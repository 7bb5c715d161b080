"""SGAS: edges are decided one after the other, greedily, and the supernet shrinks with every decision [SGAS §3]."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from darts_jax import relaxation
from darts_jax.relaxation import Annealing
from darts_jax.search.settings import Greed
from darts_jax.search.strategy import Alphas, Scores, Strategy, Turn, normal_alphas
from darts_jax.spaces import CellSpace, CellSpec, Edge, Genotype, complete, undecided_edges

Array = jax.Array


class Decision(NamedTuple):
  """An edge, a row of α, that keeps one operation from the end of an epoch on."""

  epoch: int
  cell: str
  edge: int
  operation: str


@dataclasses.dataclass(frozen=True)
class Sgas(Strategy):
  """Sequential greedy architecture search (see `darts_jax.search.strategy.Strategy`).

  At decision epochs, the edge with the highest score among those undecided is fixed, in every kind of cell, to its best
  operation other than `none`. When a node has as many decided edges as it keeps, its others are removed. Scores are
  products of criteria, each brought to [0, 1] over all edges of a cell:

  - importance Σ_{o ≠ none} p_o, of the mixing weights p;
  - certainty 1 − H(q) / log n, of q, the n weights other than `none` scaled to sum to 1;
  - stability, by criterion 2 only: the mean of Σ_o min(q_o, q'_o) over the latest q' of former epochs.

  Attributes:
    space: cells before the first decision, every edge with the same candidates.
    greed: when and by what it decides.
    init_scale: α start at so many times a standard normal.
    temperature: of the softmax in the supernet; 1 in the paper. Decisions go by a temperature of 1.
    decisions: what has been decided, in order.
    past: for every kind of cell the latest q, `[E, n]` float64 each, oldest first.
  """

  space: CellSpace
  greed: Greed = Greed()
  init_scale: float = 1e-3
  temperature: Annealing = Annealing()
  decisions: tuple[Decision, ...] = ()
  past: Mapping[str, tuple[np.ndarray, ...]] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    for name, spec in self.space.cells.items():
      if any(edge.operations != spec.operations for _, edge in spec.edges):
        raise ValueError(f'cell {name}: some edges have lost operations; SGAS begins with undecided edges')
      if len(self._columns(name)) < 2:
        raise ValueError(
          f'network.operations: {", ".join(spec.operations)} leave nothing to decide; two or more besides none do'
        )
      edges = sum(spec.num_kept)
      if self.greed.decisions > edges:
        raise ValueError(
          f'sgas.decisions: {self.greed.decisions} is not allowed; a {name} cell keeps {edges} edges, and there is no'
          ' more to decide'
        )

  # What is searched.

  def init(self, key: Array) -> Alphas:
    """See `Strategy`."""
    return normal_alphas(key, self.space, self.init_scale)

  def temperature_at(self, step: int) -> float:
    """See `Strategy`."""
    return float(self.temperature.at(step))

  def over(self, num_steps: int) -> Self:
    """See `Strategy`."""
    return dataclasses.replace(self, temperature=self.temperature.over(num_steps))

  @functools.cached_property
  def decided(self) -> Mapping[str, Mapping[int, str]]:
    """For every kind of cell the operations of decided edges."""
    return {
      name: {found.edge: found.operation for found in self.decisions if found.cell == name} for name in self.space.cells
    }

  @functools.cached_property
  def active(self) -> Mapping[str, np.ndarray]:
    """Undecided edges, `[E]` bool for every kind of cell."""
    return {name: undecided_edges(spec, self.decided[name]) for name, spec in self.space.cells.items()}

  @functools.cached_property
  def specs(self) -> Mapping[str, CellSpec]:
    """See `Strategy`."""
    return {name: self._spec(name) for name in self.space.cells}

  def relax(self, alphas: Alphas, key: Array, step: Array) -> Alphas:
    """The softmax of every undecided edge; a decided one has its operation whole."""
    del key
    temperature = self.temperature.at(step)
    mixing = {}
    for name, value in alphas.items():
      rows = self._rows(name)
      fixed = np.zeros((len(rows), value.shape[1]), np.float32)
      for place, row in enumerate(rows):
        if row in self.decided[name]:
          fixed[place, self.space.cells[name].operations.index(self.decided[name][row])] = 1
      # Once all is decided, nothing depends on α any more.
      weights = relaxation.softmax(value[rows], temperature)
      mixing[name] = jnp.where(self.active[name][rows][:, None], weights, fixed.astype(weights.dtype))
    return mixing

  # What is decided.

  def growth(self, epoch: int) -> int:
    """See `Strategy`."""
    return self.greed.batch_growth * sum(decided_at < epoch for decided_at in self.decision_epochs)

  def stages(self, epochs: int) -> int:
    """See `Strategy`; a decision after the last epoch makes no further one."""
    return 1 + sum(decided_at < epochs - 1 for decided_at in self.decision_epochs)

  @property
  def decision_epochs(self) -> range:
    """The epochs after which edges are decided, one in every kind of cell."""
    greed = self.greed
    edges = max(sum(spec.num_kept) for spec in self.space.cells.values())
    end = greed.warmup_epochs + greed.decision_frequency * (greed.decisions or edges)
    return range(greed.warmup_epochs, end, greed.decision_frequency)

  def scores(self, alphas: Mapping[str, np.ndarray]) -> Scores:
    """Every criterion `[E]` in [0, 1] before it is scaled, and their product `score`, of all edges."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in self.space.cells:
      importance, chances = self._chances(name, alphas[name])
      entropy = -np.sum(chances * np.log(np.maximum(chances, 1e-300)), axis=1)
      criteria = {'importance': importance, 'certainty': 1 - entropy / np.log(chances.shape[1])}
      if self.greed.criterion == 2:
        past = self.past.get(name, ())
        overlaps = [np.minimum(chances, other).sum(axis=1) for other in past] or [np.zeros(len(chances))]
        criteria['stability'] = np.mean(overlaps, axis=0)
      criteria['score'] = np.prod([_scaled(values) for values in criteria.values()], axis=0)
      for criterion, values in criteria.items():
        found.setdefault(criterion, {})[name] = values
    return found

  def turn(self, alphas: Mapping[str, np.ndarray], epoch: int) -> Turn:
    """See `Strategy`."""
    scores = self.scores(alphas)
    decisions, past = list(self.decisions), {}
    for name, spec in self.space.cells.items():
      _, chances = self._chances(name, alphas[name])
      past[name] = (*self.past.get(name, ()), chances)[-self.greed.history :]
      undecided = self.active[name]
      if epoch in self.decision_epochs and undecided.any():
        edge = int(np.argmax(np.where(undecided, scores['score'][name], -np.inf)))
        operation = spec.operations[self._columns(name)[int(np.argmax(chances[edge]))]]
        decisions.append(Decision(epoch, name, edge, operation))
    after = dataclasses.replace(self, decisions=tuple(decisions), past=past)
    return Turn(after, scores, tuple(map(after._told, decisions[len(self.decisions) :])))

  def derive(self, alphas: Mapping[str, ArrayLike]) -> Genotype:
    """Decided edges; nodes that are short of edges take the most important undecided ones, in the order of edges."""
    found = {
      name: complete(_weights(alphas[name]), spec, self.decided[name]) for name, spec in self.space.cells.items()
    }
    return self.space.genotype(found)

  # What it has learnt.

  @property
  def memory(self) -> Any:
    """See `Strategy`. Numbers come back from JSON as they were."""
    past = {name: [chances.tolist() for chances in series] for name, series in self.past.items()}
    return {'decisions': [list(decision) for decision in self.decisions], 'past': past}

  def recall(self, memory: Any) -> Self:
    """See `Strategy`."""
    past = {name: tuple(np.array(chances) for chances in series) for name, series in memory['past'].items()}
    return dataclasses.replace(self, decisions=tuple(Decision(*found) for found in memory['decisions']), past=past)

  def _chances(self, name: str, alphas: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """`[E]` importance, and `[E, n]` the weights of operations other than `none`, scaled to sum to 1."""
    weights = _weights(alphas)[:, self._columns(name)]
    importance = weights.sum(axis=1)
    return importance, weights / importance[:, None]

  def _columns(self, name: str) -> list[int]:
    """Of operations other than `none`."""
    return [column for column, operation in enumerate(self.space.cells[name].operations) if operation != 'none']

  def _rows(self, name: str) -> np.ndarray:
    """Rows of α that are edges of the supernet."""
    decided, undecided = self.decided[name], self.active[name]
    return np.array([row for row in range(len(undecided)) if undecided[row] or row in decided])

  def _spec(self, name: str) -> CellSpec:
    spec, decided, rows = self.space.cells[name], self.decided[name], set(self._rows(name).tolist())
    nodes = tuple(
      tuple(
        Edge(spec.edges[row][1].source, (decided[row],) if row in decided else spec.operations)
        for row in node
        if row in rows
      )
      for node in spec.rows
    )
    return dataclasses.replace(spec, nodes=nodes)

  def _told(self, decision: Decision) -> str:
    target, edge = self.space.cells[decision.cell].edges[decision.edge]
    where = f'edge {edge.source} → {target} of the {decision.cell} cell'
    return f'epoch {decision.epoch + 1} has ended: {where} is {decision.operation}'


def _weights(alphas: ArrayLike) -> np.ndarray:
  """`[E, O]` float64 softmax: on the host, so that a decision does not depend on the device."""
  exact = np.asarray(alphas, np.float64)
  weights: np.ndarray = np.exp(exact - exact.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


def _scaled(values: np.ndarray) -> np.ndarray:
  """Brought to [0, 1] by the least and the largest; zeros if those are the same."""
  spread = np.ptp(values)
  return (values - values.min()) / spread if spread else np.zeros_like(values)
