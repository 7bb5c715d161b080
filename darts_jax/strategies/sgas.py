"""SGAS: edges are decided one after the other, greedily, and the supernet shrinks with every decision [SGAS §3]."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from darts_jax import limits
from darts_jax.settings import setting
from darts_jax.spaces.cells import CellSpace, CellSpec, Edge, Genotype
from darts_jax.spaces.decisions import complete, undecided_edges
from darts_jax.strategies.relaxation import Softmax, candidates
from darts_jax.strategies.relaxed import Arch, Cells, Memory, Probe, Scores, Stage, Turn


class Decision(NamedTuple):
  """An edge, a row of α, that keeps one operation from the end of an epoch on."""

  epoch: int
  cell: str
  edge: int
  operation: str


@dataclasses.dataclass(frozen=True)
class Sgas(Softmax):
  """Sequential greedy architecture search.

  At decision epochs, the edge with the highest score among those undecided is fixed, in every kind of cell, to its best
  operation other than `none`. When a node has as many decided edges as it keeps, its others are removed. Scores are
  products of criteria, each brought to [0, 1] over all edges of a cell:

  - importance Σ_{o ≠ none} p_o, of the mixing weights p;
  - certainty 1 − H(q) / log n, of q, the n weights of the edge other than `none` scaled to sum to 1;
  - stability, by criterion 2 only: the mean of Σ_o min(q_o, q'_o) over the latest q' of former epochs.

  The memory is `{'decisions': […], 'past': {cell: […]}}`: the decisions in their order, and the latest q, oldest first.
  Epochs are counted from 0. Decisions go by a temperature of 1.

  Attributes:
    criterion: 1: importance and certainty of edges; 2: stability, too.
    warmup_epochs: the epoch after which the first edges are decided.
    decision_frequency: epochs from one decision to the next.
    history: epochs whose distributions are remembered for stability.
    batch_growth: by how many examples batches grow with every decision.
    decisions: how many there are in every kind of cell, before the rest is derived; 0: until all edges are decided.
  """

  name: ClassVar[str] = 'sgas'

  criterion: int = setting(1, choices=(1, 2))
  warmup_epochs: int = setting(9, at_least=0, at_most=limits.EPOCHS)
  decision_frequency: int = setting(5, at_least=1, at_most=limits.EPOCHS)
  history: int = setting(4, at_least=1, at_most=limits.EPOCHS)
  batch_growth: int = setting(8, at_least=0, at_most=limits.BATCH)
  decisions: int = setting(0, at_least=0, at_most=limits.EDGES)

  @property
  def legend(self) -> str:
    """See `Relaxed`."""
    criteria = ['importance (the weight of operations other than none)']
    criteria.append('certainty (one minus the entropy of those weights, relative to uniform ones)')
    if self.criterion == 2:
      criteria.append('stability (their overlap with those of earlier epochs)')
    return (
      'At a decision, the undecided edge with the highest score, the product of'
      f' {", ".join(criteria[:-1])} and {criteria[-1]}, each scaled to [0, 1] over the edges of the cell, is fixed to'
      ' its best operation.'
    )

  def check(self, space: CellSpace) -> None:
    """Raises a ValueError unless there is something to decide in every kind of cell."""
    for name, spec in space.cells.items():
      counts = [len(edge.choices(keeps_none=False)) for _, edge in spec.edges]
      if min(counts) < 1 or max(counts) < 2:
        raise ValueError(
          f'config.space.operations: {", ".join(spec.operations)} leave nothing to decide; two or more besides none do'
        )
      if self.decisions > sum(spec.num_kept):
        raise ValueError(
          f'config.strategy.decisions: {self.decisions} is not allowed; a {name} cell keeps {sum(spec.num_kept)} edges,'
          ' and there is no more to decide'
        )

  # What is searched.

  def project(self, before: Arch, after: Arch, space: CellSpace, cells: Cells) -> Arch:
    """α of undecided edges as the optimiser has moved them; others stay, whatever its decay and momentum say."""
    moved = {}
    for name, spec in space.cells.items():
      # An edge with all of its candidates is undecided.
      left = {(target, edge.source, edge.operations) for target, edge in cells[name].edges}
      rows = np.array([[(target, edge.source, edge.operations) in left] for target, edge in spec.edges])
      moved[name] = after[name] if rows.all() else jnp.where(rows, after[name], before[name])
    return moved

  # What is decided.

  def start(self) -> Memory:
    """Nothing is decided."""
    return {'decisions': [], 'past': {}}

  def plan(self, space: CellSpace, epochs: int) -> tuple[Stage, ...]:
    """A stage up to each decision; one after the last epoch makes no further stage."""
    ends = [epoch + 1 for epoch in self.decision_epochs(space) if epoch < epochs - 1]
    starts = [0, *ends]
    return tuple(
      Stage(end - start, number * self.batch_growth)
      for number, (start, end) in enumerate(zip(starts, [*ends, epochs], strict=True))
    )

  def decision_epochs(self, space: CellSpace) -> range:
    """The epochs after which edges are decided, one in every kind of cell."""
    number = self.decisions or max(sum(spec.num_kept) for spec in space.cells.values())
    return range(self.warmup_epochs, self.warmup_epochs + self.decision_frequency * number, self.decision_frequency)

  def cells(self, space: CellSpace, memory: Memory) -> Cells:
    """Decided edges with their operation, undecided ones with all candidates, no others."""
    return {name: _remaining(spec, _decided(memory, name)) for name, spec in space.cells.items()}

  def scores(self, arch: Arch, space: CellSpace, memory: Memory) -> Scores:
    """Every criterion `[E]` in [0, 1] before it is scaled, and their product `score`, of all edges."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, spec in space.cells.items():
      importance, chances = _chances(spec, arch[name])
      entropy = -np.sum(chances * np.log(np.maximum(chances, 1e-300)), axis=1)
      # The entropy of a single operation is 0, whatever it is divided by.
      counts = [max(len(edge.choices(keeps_none=False)), 2) for _, edge in spec.edges]
      criteria = {'importance': importance, 'certainty': 1 - entropy / np.log(counts)}
      if self.criterion == 2:
        past = [np.array(each) for each in memory['past'].get(name, ())]
        overlaps = [np.minimum(chances, other).sum(axis=1) for other in past] or [np.zeros(len(chances))]
        criteria['stability'] = np.mean(overlaps, axis=0)
      criteria['score'] = np.prod([_scaled(values) for values in criteria.values()], axis=0)
      for criterion, values in criteria.items():
        found.setdefault(criterion, {})[name] = values
    return found

  def turn(self, memory: Memory, arch: Arch, space: CellSpace, epoch: int, probe: Probe) -> Turn:
    """Remembers the epoch, and decides an edge in every kind of cell if its time has come."""
    del probe
    scores = self.scores(arch, space, memory)
    decisions, past, messages = list(memory['decisions']), {}, []
    for name, spec in space.cells.items():
      _, chances = _chances(spec, arch[name])
      past[name] = [*memory['past'].get(name, ()), chances.tolist()][-self.history :]
      undecided = undecided_edges(spec, _decided(memory, name))
      if epoch in self.decision_epochs(space) and undecided.any():
        row = int(np.argmax(np.where(undecided, scores['score'][name], -np.inf)))
        operation = spec.operations[_columns(spec)[int(np.argmax(chances[row]))]]
        decisions.append(list(Decision(epoch, name, row, operation)))
        target, edge = spec.edges[row]
        where = f'edge {edge.source} → {target} of the {name} cell'
        messages.append(f'epoch {epoch + 1} has ended: {where} is {operation}')
    after = {'decisions': decisions, 'past': past}
    return Turn(after, scores, tuple(messages))

  def read(self, arch: Arch, space: CellSpace, memory: Memory) -> Genotype:
    """Decided edges; nodes that are short of edges take the most important undecided ones, in the order of edges."""
    return space.genotype(
      {name: complete(_weights(spec, arch[name]), spec, _decided(memory, name)) for name, spec in space.cells.items()}
    )


def _decided(memory: Memory, name: str) -> dict[int, str]:
  """By row of α, the operations of the decided edges of a kind of cell."""
  found = [Decision(*decision) for decision in memory['decisions']]
  return {decision.edge: decision.operation for decision in found if decision.cell == name}


def _remaining(spec: CellSpec, decided: Mapping[int, str]) -> CellSpec:
  undecided = undecided_edges(spec, decided)
  nodes = tuple(
    tuple(
      Edge(spec.edges[row][1].source, (decided[row],) if row in decided else spec.edges[row][1].operations)
      for row in rows
      if row in decided or undecided[row]
    )
    for rows in spec.rows
  )
  return dataclasses.replace(spec, nodes=nodes)


def _columns(spec: CellSpec) -> list[int]:
  """Columns of operations other than `none`."""
  return [column for column, operation in enumerate(spec.operations) if operation != 'none']


def _chances(spec: CellSpec, alphas: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """`[E]` importance, and `[E, n]` the weights of operations other than `none`, scaled to sum to 1.

  Operations that an edge does not have weigh 0.
  """
  weights = _weights(spec, alphas)[:, _columns(spec)]
  importance = weights.sum(axis=1)
  return importance, weights / importance[:, None]


def _weights(spec: CellSpec, alphas: ArrayLike) -> np.ndarray:
  """`[E, O]` float64 softmax over candidates: on the host, so that a decision does not depend on the device."""
  exact = np.where(candidates(spec), np.asarray(alphas, np.float64), -np.inf)
  weights: np.ndarray = np.exp(exact - exact.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


def _scaled(values: np.ndarray) -> np.ndarray:
  """Brought to [0, 1] by the least and the largest; zeros if those are the same."""
  spread = np.ptp(values)
  return (values - values.min()) / spread if spread else np.zeros_like(values)
