"""SGAS: edges are decided greedily, one after the other, and every decision shrinks the supernet [SGAS §3]."""

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
  """A decided edge: after `epoch`, the edge in row `edge` of α of the kind of cell `cell` keeps only `operation`."""

  epoch: int
  cell: str
  edge: int
  operation: str


@dataclasses.dataclass(frozen=True)
class Sgas(Softmax):
  """Sequential greedy architecture search.

  At a decision epoch, in every kind of cell, the undecided edge with the highest score is fixed to its best operation
  other than `none`. When a node has as many decided edges as it keeps, its other edges are removed. The score is the
  product of criteria, each of which is scaled to [0, 1] over all edges of the cell:

  - importance: Σ_{o ≠ none} p_o, where p are the mixing weights of the edge;
  - certainty: 1 − H(q) / log n, where q are the n weights other than `none`, scaled to sum to 1;
  - stability, with criterion 2 only: the mean of Σ_o min(q_o, q'_o) over the q' of the latest epochs.

  The memory is `{'decisions': […], 'past': {cell: […]}}`: the decisions in order, and the latest q, oldest first.
  Epochs are counted from 0. Scores are computed at temperature 1.

  Attributes:
    criterion: 1: importance and certainty; 2: also stability.
    warmup_epochs: the epoch after which the first edges are decided.
    decision_frequency: epochs from one decision to the next.
    history: number of epochs whose q are kept for stability.
    batch_growth: number of examples by which the batch size grows with every decision.
    decisions: number of decisions in every kind of cell, after which the other edges are derived at the end; 0: until
      all edges are decided.
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
    """Raises a ValueError if a kind of cell has nothing to decide, or fewer edges to decide than `decisions`."""
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

  # Architecture parameters.

  def project(self, before: Arch, after: Arch, space: CellSpace, cells: Cells) -> Arch:
    """Moves only the α of undecided edges; decay and momentum would move the others, too."""
    moved = {}
    for name, spec in space.cells.items():
      # The edges of the supernet that still have all of their candidates are the undecided ones.
      left = {(target, edge.source, edge.operations) for target, edge in cells[name].edges}
      rows = np.array([[(target, edge.source, edge.operations) in left] for target, edge in spec.edges])
      moved[name] = after[name] if rows.all() else jnp.where(rows, after[name], before[name])
    return moved

  # Decisions.

  def start(self) -> Memory:
    """The memory without decisions."""
    return {'decisions': [], 'past': {}}

  def plan(self, space: CellSpace, epochs: int) -> tuple[Stage, ...]:
    """A stage up to each decision, and one for the rest; a decision after the last epoch adds no stage."""
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
    """Decided edges with their operation and undecided edges with all candidates; other edges are removed."""
    return {name: _remaining(spec, _decided(memory, name)) for name, spec in space.cells.items()}

  def scores(self, arch: Arch, space: CellSpace, memory: Memory) -> Scores:
    """The criteria of all edges before scaling, `[E]` in [0, 1] each, and `score`, the product of the scaled ones."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, spec in space.cells.items():
      importance, chances = _chances(spec, arch[name])
      entropy = -np.sum(chances * np.log(np.maximum(chances, 1e-300)), axis=1)
      # An edge with a single operation has entropy 0; 2 avoids a division by log 1 = 0.
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
    """Keeps q of the epoch in the memory, and at decision epochs decides an edge in every kind of cell."""
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
    """The decided edges; nodes with too few take the most important undecided edges, in the order of the edges."""
    return space.genotype(
      {name: complete(_weights(spec, arch[name]), spec, _decided(memory, name)) for name, spec in space.cells.items()}
    )


def _decided(memory: Memory, name: str) -> dict[int, str]:
  """The operations of the decided edges of a kind of cell, by row of α."""
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
  """The columns of the operations other than `none`."""
  return [column for column, operation in enumerate(spec.operations) if operation != 'none']


def _chances(spec: CellSpec, alphas: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """The importance, `[E]`, and q, the weights other than `none` scaled to sum to 1, `[E, n]`; see `Sgas`.

  Operations that an edge does not have get weight 0.
  """
  weights = _weights(spec, alphas)[:, _columns(spec)]
  importance = weights.sum(axis=1)
  return importance, weights / importance[:, None]


def _weights(spec: CellSpec, alphas: ArrayLike) -> np.ndarray:
  """The softmax over the candidates, `[E, O]` float64; on the host, so that decisions do not depend on the device."""
  exact = np.where(candidates(spec), np.asarray(alphas, np.float64), -np.inf)
  weights: np.ndarray = np.exp(exact - exact.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


def _scaled(values: np.ndarray) -> np.ndarray:
  """Scales values linearly to [0, 1]; zeros if all values are equal."""
  spread = np.ptp(values)
  return (values - values.min()) / spread if spread else np.zeros_like(values)
