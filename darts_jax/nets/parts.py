"""Notes how the variables of a node are divided among the edges that leave it.

All edges that leave a node with one operation share arrays (see `darts_jax.nets.operations`). The modules that create
these arrays note how they are divided when they are traced within `noting`; `darts_jax.nets.owners` reads the notes.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import NamedTuple

#: The names of nested modules and of a variable; or of modules alone, for all variables of the innermost module.
Path = tuple[str, ...]


class Parts(NamedTuple):
  """How a variable is divided along one axis, into parts of equal size.

  Attributes:
    axis: axis of the variable.
    counts: operations in the order of their parts, with the number of parts: one per edge, or one that its edges share.
    member: for a variable that belongs to a single edge, the index of the edge among those with the operation; None if
      the variable is divided.
  """

  axis: int
  counts: tuple[tuple[str, int], ...]
  member: int | None = None


_notes: contextvars.ContextVar[dict[Path, Parts] | None] = contextvars.ContextVar('notes', default=None)


@contextlib.contextmanager
def noting() -> Iterator[dict[Path, Parts]]:
  """Context in which traced modules note how their variables are divided; yields the notes."""
  found: dict[Path, Parts] = {}
  token = _notes.set(found)
  try:
    yield found
  finally:
    _notes.reset(token)


def note(path: Path, axis: int, counts: Sequence[tuple[str, int]]) -> None:
  """Notes how a variable, or all variables of a module, are divided; does nothing outside `noting`.

  Args:
    path: path of the variable or of the module.
    axis: see `Parts`.
    counts: see `Parts`.
  """
  found = _notes.get()
  if found is not None:
    found[path] = Parts(axis, tuple(counts))


def note_member(path: Path, operation: str, member: int) -> bool:
  """Notes that all variables of a module belong to one edge (see `Parts`); returns whether it is called in `noting`."""
  found = _notes.get()
  if found is not None:
    found[path] = Parts(0, ((operation, 1),), member)
  return found is not None
