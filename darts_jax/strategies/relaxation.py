"""Architecture parameters → mixing weights: mathematics that strategies share."""

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
  """α = `scale` · N(0, 1) for every kind of cell, `[E, O]` float32; consumes the key."""
  keys = jax.random.split(key, len(cells))
  return {
    name: scale * jax.random.normal(k, (spec.num_edges, len(spec.operations)))
    for k, (name, spec) in zip(keys, sorted(cells.items()), strict=True)
  }


def softmax(alphas: Array, spec: CellSpec, searched: CellSpec, temperature: Array | float = 1.0) -> Array:
  """The continuous relaxation of the paper: a softmax over the operations of each edge [DARTS §2.2].

  Args:
    alphas: `[E', O]` architecture parameters, rows and columns as `searched` has edges and operations.
    spec: a cell with some of the edges of `searched`, each with some of its operations.
    searched: the searched cell.
    temperature: `[]`, what α are divided by; the smaller, the closer weights are to 0 and 1.

  Returns:
    `[E, O]` mixing weights, rows as `spec` has edges; every row sums to 1 over the operations that its edge has.
  """
  if spec.num_edges != searched.num_edges:
    alphas = alphas[rows_of(spec, searched)]
  allowed = candidates(spec)
  if allowed.all():
    return jax.nn.softmax(alphas / temperature, axis=-1)
  return jax.nn.softmax(alphas / temperature, axis=-1, where=allowed)


def preferences(alphas: Mapping[str, Array], space: CellSpace) -> dict[str, Array]:
  """The softmax of α over the operations of each edge of the searched cells, at a temperature of 1."""
  return {name: softmax(alphas[name], spec, spec) for name, spec in space.cells.items()}


def gumbel(key: Array, alphas: Mapping[str, Array]) -> dict[str, Array]:
  """Independent draws from the standard Gumbel distribution, as many as there are α; consumes the key.

  The largest of α + G belongs to an operation with the probability that a softmax of α gives it.
  """
  keys = jax.random.split(key, len(alphas))
  pairs = zip(keys, sorted(alphas.items()), strict=True)
  return {name: jax.random.gumbel(k, value.shape, value.dtype) for k, (name, value) in pairs}


def straight_through(weights: Array) -> tuple[Array, Array]:
  """The largest of the weights of every edge as 1, the others as 0, with the derivatives of the weights.

  Args:
    weights: `[E, O]`.

  Returns:
    The same shape, and `[E, O]` bool: which of them are 1. Of equal weights it is the first.
  """
  chosen = jax.nn.one_hot(jnp.argmax(weights, axis=1), weights.shape[1], dtype=bool)
  # The difference is exactly zero, so that it rounds nothing.
  return chosen.astype(weights.dtype) + (weights - jax.lax.stop_gradient(weights)), chosen


def rows_of(spec: CellSpec, searched: CellSpec) -> np.ndarray:
  """`[E]` rows that the edges of a cell have in a cell of which it is a part."""
  rows = {(target, edge.source): row for row, (target, edge) in enumerate(searched.edges)}
  return np.array([rows[target, edge.source] for target, edge in spec.edges], int)


def candidates(spec: CellSpec) -> np.ndarray:
  """`[E, O]` bool: the operations that each edge has."""
  return np.array([[name in edge.operations for name in spec.operations] for _, edge in spec.edges], bool)


def annealed(temperature: tuple[float, float], time: Time) -> Array | float:
  """`[]`: a temperature that goes from the first to the second value by the same factor at every step.

  A number if both are the same.
  """
  initial, final = temperature
  if initial == final:
    return initial
  return initial * (final / initial) ** (jnp.asarray(time.step, jnp.float32) / time.steps)


@dataclasses.dataclass(frozen=True)
class Softmax(Relaxed):
  """A strategy whose architecture parameters are α, `[E, O]` of every kind of cell, and which mixes by their softmax.

  Attributes:
    init_scale: α start at this times a standard normal.
    temperature: of the softmax at the first and after the last step; it changes by the same factor at every step.
  """

  draws: ClassVar[bool] = False

  init_scale: float = setting(1e-3, at_least=0, at_most=limits.FACTOR)
  temperature: tuple[float, float] = setting((1.0, 1.0), at_least=1e-6, at_most=1e6)

  def init(self, space: CellSpace, key: Array) -> Arch:
    """Draws α."""
    return normal_alphas(key, space.cells, self.init_scale)

  def temperature_at(self, time: Time) -> Array | float:
    """See `Relaxed`."""
    return annealed(self.temperature, time)

  def mix(self, arch: Arch, space: CellSpace, cells: Cells, time: Time, key: Any, purpose: Any) -> dict[str, Mixing]:
    """The softmax of every edge over the operations that it has."""
    del key, purpose
    temperature = self.temperature_at(time)
    return {name: Mixing(softmax(arch[name], cells[name], spec, temperature)) for name, spec in space.cells.items()}
