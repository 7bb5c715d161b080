"""Functions from architecture parameters to mixing weights that several strategies use."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax import limits
from darts_jax.settings import setting
from darts_jax.spaces.cells import CellSpace, CellSpec
from darts_jax.spaces.mixing import Mixing
from darts_jax.strategies.relaxed import Arch, Cells, Relaxed, Time

Array = jax.Array


def normal_alphas(key: Array, cells: Mapping[str, CellSpec], scale: float) -> dict[str, Array]:
  """Draws α = `scale` · N(0, 1), `[E, O]` float32, for every kind of cell; consumes the key."""
  keys = jax.random.split(key, len(cells))
  return {
    name: scale * jax.random.normal(k, (spec.num_edges, len(spec.operations)))
    for k, (name, spec) in zip(keys, sorted(cells.items()), strict=True)
  }


def softmax(alphas: Array, spec: CellSpec, searched: CellSpec, temperature: Array | float = 1.0) -> Array:
  """The continuous relaxation of the paper: a softmax over the operations of each edge [DARTS §2.2].

  Args:
    alphas: `[E', O]` architecture parameters; rows are the edges of `searched`, columns its operations.
    spec: a cell with some of the edges of `searched`, each with some of its operations.
    searched: the searched cell.
    temperature: `[]`, divides α; the smaller it is, the closer are the weights to 0 and 1.

  Returns:
    `[E, O]` mixing weights; rows are the edges of `spec`, and each sums to 1 over the candidates of its edge.
  """
  if spec.num_edges != searched.num_edges:
    alphas = alphas[rows_of(spec, searched)]
  allowed = candidates(spec)
  if allowed.all():
    return jax.nn.softmax(alphas / temperature, axis=-1)
  return jax.nn.softmax(alphas / temperature, axis=-1, where=allowed)


def preferences(alphas: Mapping[str, Array], space: CellSpace) -> dict[str, Array]:
  """The softmax of α over the operations of each edge of the searched cells, at temperature 1."""
  return {name: softmax(alphas[name], spec, spec) for name, spec in space.cells.items()}


def gumbel(key: Array, alphas: Mapping[str, Array]) -> dict[str, Array]:
  """Draws G from the standard Gumbel distribution, independently for each α; consumes the key.

  The probability that an operation has the largest α + G of its edge is its softmax of α.
  """
  keys = jax.random.split(key, len(alphas))
  pairs = zip(keys, sorted(alphas.items()), strict=True)
  return {name: jax.random.gumbel(k, value.shape, value.dtype) for k, (name, value) in pairs}


def straight_through(weights: Array) -> tuple[Array, Array]:
  """The straight-through estimator: the largest weight of every edge becomes 1, the others 0.

  Args:
    weights: `[E, O]`.

  Returns:
    `[E, O]`, the one-hot weights, whose derivatives are those of `weights`; and `[E, O]` bool, which of them are 1.
    Among equal weights the first is chosen.
  """
  chosen = jax.nn.one_hot(jnp.argmax(weights, axis=1), weights.shape[1], dtype=bool)
  # The difference is exactly zero, so the sum is not rounded.
  return chosen.astype(weights.dtype) + (weights - jax.lax.stop_gradient(weights)), chosen


def rows_of(spec: CellSpec, searched: CellSpec) -> np.ndarray:
  """The rows of `searched` that the edges of `spec`, a part of it, belong to: `[E]` int."""
  rows = {(target, edge.source): row for row, (target, edge) in enumerate(searched.edges)}
  return np.array([rows[target, edge.source] for target, edge in spec.edges], int)


def candidates(spec: CellSpec) -> np.ndarray:
  """The candidates of each edge as a mask, `[E, O]` bool."""
  return np.array([[name in edge.operations for name in spec.operations] for _, edge in spec.edges], bool)


def annealed(temperature: tuple[float, float], time: Time) -> Array | float:
  """A temperature, `[]`, that changes from the first to the second value by the same factor at every step.

  It is a Python number if both values are equal, so that XLA sees a constant.
  """
  initial, final = temperature
  if initial == final:
    return initial
  return initial * (final / initial) ** (jnp.asarray(time.step, jnp.float32) / time.steps)


@dataclasses.dataclass(frozen=True)
class Softmax(Relaxed):
  """A strategy with architecture parameters α, `[E, O]` for every kind of cell, whose softmax is the mixing weights.

  Attributes:
    init_scale: standard deviation of the initial α, which are normal.
    temperature: temperature of the softmax at the first and after the last step; it changes by the same factor at every
      step.
  """

  draws: ClassVar[bool] = False

  init_scale: float = setting(1e-3, at_least=0, at_most=limits.FACTOR)
  temperature: tuple[float, float] = setting((1.0, 1.0), at_least=1e-6, at_most=1e6)

  def init(self, space: CellSpace, key: Array) -> Arch:
    """Draws α; consumes the key."""
    return normal_alphas(key, space.cells, self.init_scale)

  def temperature_at(self, time: Time) -> Array | float:
    """See `Relaxed`."""
    return annealed(self.temperature, time)

  def mix(self, arch: Arch, space: CellSpace, cells: Cells, time: Time, key: Any, purpose: Any) -> dict[str, Mixing]:
    """The softmax over the candidates of every edge."""
    del key, purpose
    temperature = self.temperature_at(time)
    return {name: Mixing(softmax(arch[name], cells[name], spec, temperature)) for name, spec in space.cells.items()}
