"""PC-DARTS: edges process a part of the channels, and the edges into a node have weights, too [PC-DARTS §3].

The output of a node is Σ_e b_e · f_e over its incoming edges, where b is the softmax of their architecture parameters
β, and f_e concatenates the mixed operation of DARTS on one in K channels of the source with the other channels,
unchanged. In the paper, α and β move from epoch 15 on (`config.alphas.from_epoch`).

Source: [PC-DARTS] arXiv 1907.05737.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax import limits
from darts_jax.settings import setting
from darts_jax.spaces.cells import CellSpace, CellSpec, Genotype
from darts_jax.spaces.doubts import Doubts, doubts
from darts_jax.spaces.mixing import Mixing
from darts_jax.strategies.relaxation import normal_alphas, rows_of, softmax
from darts_jax.strategies.relaxed import Arch, Cells, Memory, Relaxed, Stage, Time

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class PcDarts(Relaxed):
  """Partially-connected DARTS; the architecture parameters are α, `CELL`, and β, `betas_CELL`, of every kind of cell.

  Attributes:
    init_scale: standard deviation of the initial α and β, which are normal.
    channel_part: K, if edges process one in K channels; 4 on CIFAR-10 and 2 on ImageNet in the paper.
  """

  name: ClassVar[str] = 'pc_darts'
  draws: ClassVar[bool] = False

  init_scale: float = setting(1e-3, at_least=0, at_most=limits.FACTOR)
  channel_part: int = setting(4, at_least=1, at_most=limits.CHANNELS)

  @property
  def legend(self) -> str:
    """See `Relaxed`."""
    part = 'all' if self.channel_part == 1 else f'one in {self.channel_part}'
    return (
      f'Operations compute {part} channels. The edges into a node have weights, too, which are shown under those of'
      ' operations; the architecture has the largest products of both.'
    )

  def plan(self, space: CellSpace, epochs: int) -> tuple[Stage, ...]:
    """A single stage, with partial channels."""
    del space
    return (Stage(epochs, channel_part=self.channel_part),)

  def init(self, space: CellSpace, key: Array) -> Arch:
    """Draws α, `[E, O]`, and β, `[E]`; consumes the key."""
    key, *keys = jax.random.split(key, 1 + len(space.cells))
    pairs = zip(keys, sorted(space.cells.items()), strict=True)
    betas = {f'betas_{name}': self.init_scale * jax.random.normal(k, (spec.num_edges,)) for k, (name, spec) in pairs}
    return normal_alphas(key, space.cells, self.init_scale) | betas

  def mix(self, arch: Arch, space: CellSpace, cells: Cells, time: Time, key: Any, purpose: Any) -> dict[str, Mixing]:
    """The softmax over the operations of every edge, and over the incoming edges of every node."""
    del time, key, purpose
    return {
      name: Mixing(softmax(arch[name], cells[name], spec), edge_weights(arch[f'betas_{name}'], cells[name], spec))
      for name, spec in space.cells.items()
    }

  def read(self, arch: Arch, space: CellSpace, memory: Memory) -> Genotype:
    """The edges and operations with the largest products of edge weight and operation weight."""
    del memory
    return space.strongest(self._products(arch, space))

  def doubts(self, before: Arch, after: Arch, space: CellSpace) -> Doubts:
    """The edges and operations that another epoch like the last one could change."""
    found = self._products(before, space), self._products(after, space)
    return doubts(*found, space.cells, keeps_none=space.keeps_none)

  def _products(self, arch: Arch, space: CellSpace) -> dict[str, Array]:
    mixing = self.mix(arch, space, space.cells, Time(0, (1,)), None, None)
    return {name: each.operations * each.edges[:, None] for name, each in mixing.items() if each.edges is not None}


def edge_weights(betas: Array, spec: CellSpec, searched: CellSpec) -> Array:
  """The weights of edges: a softmax over the incoming edges of each node [PC-DARTS §3.3].

  Args:
    betas: `[E']`, β of the edges of `searched`.
    spec: a cell with some of the edges of `searched`.
    searched: the searched cell.

  Returns:
    `[E]`, the weights of the edges of `spec`; the incoming edges of a node sum to 1.
  """
  if spec.num_edges != searched.num_edges:
    betas = betas[rows_of(spec, searched)]
  return jnp.concatenate([jax.nn.softmax(betas[np.array(rows)]) for rows in spec.rows if rows])
