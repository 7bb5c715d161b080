"""GDAS: every step samples an architecture, and computes and trains only its operations [GDAS §3].

Each edge uses the operation with the largest α + G, where G are draws from a Gumbel distribution; so operation o is
chosen with probability softmax(α)_o. For the gradient in α, the one-hot choice is replaced by softmax((α + G) / τ).

Sources: [GDAS] arXiv 1910.04465; the authors' code, AutoDL-Projects, for the schedule of the temperature.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from darts_jax import limits
from darts_jax.settings import setting
from darts_jax.spaces.cells import CellSpace, CellSpec, Genotype
from darts_jax.spaces.doubts import Doubts, doubts
from darts_jax.spaces.mixing import Mixing
from darts_jax.strategies.relaxation import gumbel, normal_alphas, preferences, softmax, straight_through
from darts_jax.strategies.relaxed import EVALUATE, Arch, Cells, Memory, Relaxed, Time

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Gdas(Relaxed):
  """Gradient-based search with a differentiable architecture sampler.

  Attributes:
    init_scale: standard deviation of the initial α, which are normal.
    tau: temperature τ of the first and of the last epoch; it changes linearly from epoch to epoch.
    inactive_gradient: the output that replaces an operation that was not chosen, in the gradient of its weight. `none`:
      zeros, as in the paper, where gradients pass through chosen operations only. `exact`: its own output, for which it
      has to be computed. `released`: ones, as in the authors' code, which adds the weight itself to the sum.
  """

  name: ClassVar[str] = 'gdas'

  init_scale: float = setting(1e-3, at_least=0, at_most=limits.FACTOR)
  tau: tuple[float, float] = setting((10.0, 0.1), at_least=1e-6, at_most=1e6)
  inactive_gradient: str = setting('none', choices=('none', 'exact', 'released'))

  def check(self, space: CellSpace) -> None:
    """Raises a ValueError if the networks of the space do not support `released`."""
    if self.inactive_gradient == 'released' and space.task != 'images':
      raise ValueError("config.strategy.inactive_gradient: 'released' is not allowed; on text it is 'none' or 'exact'")

  @property
  def legend(self) -> str:
    """See `Relaxed`."""
    return 'Every step draws one operation an edge. Weights over time are the probabilities that they are drawn with.'

  def chances(self, arch: Arch, space: CellSpace, cells: Cells) -> dict[str, Array]:
    """The softmax of α at temperature 1."""
    return {name: softmax(arch[name], cells[name], spec) for name, spec in space.cells.items()}

  def init(self, space: CellSpace, key: Array) -> Arch:
    """Draws α; consumes the key."""
    return normal_alphas(key, space.cells, self.init_scale)

  def temperature_at(self, time: Time) -> Array:
    """The temperature of the epoch, `[]`."""
    first, last = self.tau
    return first + (last - first) * time.epoch.astype(jnp.float32) / max(time.epochs - 1, 1)

  def mix(self, arch: Arch, space: CellSpace, cells: Cells, time: Time, key: Any, purpose: Any) -> dict[str, Mixing]:
    """One operation per edge with weight 1: a random draw or, in evaluations, the most likely one."""
    wanted, tau = jnp.asarray(purpose) != EVALUATE, self.temperature_at(time)
    noise = {name: jnp.where(wanted, value, 0) for name, value in gumbel(key, arch).items()}
    return {name: self.choose(arch[name] + noise[name], cells[name], spec, tau) for name, spec in space.cells.items()}

  def choose(self, scores: Array, spec: CellSpec, searched: CellSpec, tau: Array | float) -> Mixing:
    """One operation per edge with weight 1, that of the largest score α + G, `[E', O]`; see `softmax` for the rest."""
    operations, chosen = straight_through(softmax(scores, spec, searched, tau))
    return Mixing(
      operations,
      active=chosen,
      computed=None if self.inactive_gradient == 'exact' else chosen,
      constant=jnp.ones((), operations.dtype) if self.inactive_gradient == 'released' else None,
    )

  def read(self, arch: Arch, space: CellSpace, memory: Memory) -> Genotype:
    """The strongest edges of every node, each with its most likely operation."""
    del memory
    return space.strongest(preferences(arch, space))

  def doubts(self, before: Arch, after: Arch, space: CellSpace) -> Doubts:
    """The edges and operations that another epoch like the last one could change."""
    return doubts(preferences(before, space), preferences(after, space), space.cells, keeps_none=space.keeps_none)
