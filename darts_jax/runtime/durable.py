"""Files that are whole or absent, also after a kill or a loss of power."""

import os
import pathlib
from collections.abc import Iterable

#: Ends the name of a file or folder that is not complete yet, or not any more.
PARTIAL = '.partial'


def write_whole(path: pathlib.Path, content: bytes, *, sync: bool = True) -> None:
  """Writes a file that is never seen half-written; one that has this content already is left alone.

  Args:
    path: of the file, in a folder that exists.
    content: of it.
    sync: whether it has to be on the disk when this returns; not so for what can be made again.
  """
  if holds(path, content):
    return
  partial = path.with_name(path.name + PARTIAL)
  with partial.open('wb') as file:
    file.write(content)
    if sync:
      file.flush()
      os.fsync(file.fileno())
  partial.replace(path)
  if sync:
    sync_to_disk([path.parent])


def sync_to_disk(paths: Iterable[pathlib.Path]) -> None:
  """Waits until files, and the names in folders, are on the disk."""
  for path in paths:
    number = os.open(path, os.O_RDONLY)
    try:
      os.fsync(number)
    except OSError:
      # Some file systems know no fsync of a folder, and have the names in it on the disk anyway.
      if not path.is_dir():
        raise
    finally:
      os.close(number)


def holds(path: pathlib.Path, content: bytes) -> bool:
  """Whether a file is there and has this content."""
  try:
    return path.stat().st_size == len(content) and path.read_bytes() == content
  except OSError:
    return False
