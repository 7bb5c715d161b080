"""The contract of a search space: its architectures and their neighbours.

A space is a frozen dataclass, whose fields are its settings. Architectures are immutable and hashable; each space has
its own type of them. This package imports no JAX.
"""

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

A = TypeVar('A')


@dataclasses.dataclass(frozen=True)
class Space(abc.ABC, Generic[A]):
  """A search space; `A` is the type of its architectures.

  Attributes:
    name: name of the space in configs and files, its key in `SPACES`.
  """

  name: ClassVar[str]

  @abc.abstractmethod
  def sample(self, rng: np.random.Generator) -> A:
    """Draws an architecture from a uniform distribution; each space documents the set it is uniform over."""

  @abc.abstractmethod
  def neighbours(self, arch: A) -> Iterator[A]:
    """Yields all architectures that differ from `arch` by one edit, each once and in a fixed order."""

  def mutate(self, arch: A, rng: np.random.Generator) -> A:
    """Draws a neighbour of `arch`, all of them with the same probability.

    Raises:
      ValueError: `arch` has no neighbours.
    """
    found = list(self.neighbours(arch))
    if not found:
      raise ValueError(f'{self.name}: an architecture of this space has no neighbours; allow more operations or nodes')
    return found[int(rng.integers(len(found)))]

  @abc.abstractmethod
  def key(self, arch: A) -> str:
    """A text that is equal for architectures whose networks are recognised to compute the same function."""

  @abc.abstractmethod
  def to_json(self, arch: A) -> Any:
    """The architecture as JSON values."""

  @abc.abstractmethod
  def from_json(self, values: Any) -> A:
    """The architecture that `to_json` wrote.

    Raises:
      ValueError: the values have the wrong form, or describe no architecture of this kind; one line.
    """
