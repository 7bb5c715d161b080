"""How the variables of a node are divided among the edges that leave it, as is noted where they are made.

All edges that leave a node by one operation share arrays (see `darts_jax.nets.operations`). Who wants to know which
numbers are whose (`darts_jax.nets.owners`) traces a node within `noting`.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import NamedTuple

#: The names of modules and of a variable, or of modules alone for all variables in there.
Path = tuple[str, ...]


class Parts(NamedTuple):
  """How a variable is divided along one axis, in parts of one size.

  Attributes:
    axis: of the variable.
    counts: operations in the order of their parts, and how many each has: one an edge, or one that its edges share.
    member: of a variable that is not divided, the one edge whose it is, by its place among those with the operation.
  """

  axis: int
  counts: tuple[tuple[str, int], ...]
  member: int | None = None


_notes: contextvars.ContextVar[dict[Path, Parts] | None] = contextvars.ContextVar('notes', default=None)


@contextlib.contextmanager
def noting() -> Iterator[dict[Path, Parts]]:
  """Within, modules that are traced note how their variables are divided."""
  found: dict[Path, Parts] = {}
  token = _notes.set(found)
  try:
    yield found
  finally:
    _notes.reset(token)


def note(path: Path, axis: int, counts: Sequence[tuple[str, int]]) -> None:
  """Notes how a variable, or all variables of a module, are divided; does nothing outside `noting`."""
  found = _notes.get()
  if found is not None:
    found[path] = Parts(axis, tuple(counts))


def note_member(path: Path, operation: str, member: int) -> bool:
  """Notes that all variables of a module are those of one edge (see `Parts`); returns whether this is in `noting`."""
  found = _notes.get()
  if found is not None:
    found[path] = Parts(0, ((operation, 1),), member)
  return found is not None
