"""The contract of a search space: which architectures there are, and what their neighbours are.

A space is a frozen dataclass, whose fields are its settings. Architectures are frozen and hashable; what they look like
is the space's own affair. This package imports no JAX.
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
    name: by which configs and files refer to it, its key in `SPACES`.
  """

  name: ClassVar[str]

  @abc.abstractmethod
  def sample(self, rng: np.random.Generator) -> A:
    """Draws an architecture from a uniform distribution; the method of each space says over what."""

  @abc.abstractmethod
  def neighbours(self, arch: A) -> Iterator[A]:
    """All architectures that are one edit away, each once, in a fixed order; `arch` is not among them."""

  def mutate(self, arch: A, rng: np.random.Generator) -> A:
    """Draws a neighbour; every neighbour is equally likely.

    Raises:
      ValueError: `arch` has no neighbours.
    """
    found = list(self.neighbours(arch))
    if not found:
      raise ValueError(f'{self.name}: an architecture of this space has no neighbours; allow more operations or nodes')
    return found[int(rng.integers(len(found)))]

  @abc.abstractmethod
  def key(self, arch: A) -> str:
    """A text that architectures share if their networks compute the same functions."""

  @abc.abstractmethod
  def to_json(self, arch: A) -> Any:
    """The architecture as JSON values."""

  @abc.abstractmethod
  def from_json(self, values: Any) -> A:
    """The architecture that `to_json` wrote.

    Raises:
      ValueError: the values are of the wrong form, or describe no architecture of this kind; one line.
    """
