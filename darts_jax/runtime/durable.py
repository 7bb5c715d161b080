"""Files that are whole or absent, also after a kill or a loss of power."""

import contextlib
import errno
import os
import pathlib
import secrets
import stat
from collections.abc import Iterable, Iterator

from darts_jax.runtime.files import kind_of

#: Ends the name of a file or folder that is not complete yet, or not any more.
PARTIAL = '.partial'


def write_whole(path: pathlib.Path, content: bytes, *, sync: bool = True) -> None:
  """Writes a file that is never seen half-written; one that has this content already is left alone.

  Several may write it at once, and one of them is the last. Of a link, what it leads to is written.

  Args:
    path: of the file, in a folder that exists.
    content: of it.
    sync: whether it has to be on the disk when this returns; not so for what can be made again.

  Raises:
    OSError: it cannot be written, or is not a file but a folder, a pipe or a device, which is left as it is.
  """
  if holds(path, content):
    return
  try:
    _write(path, content, sync)
  except FileNotFoundError:
    # A run that begins takes it for what a kill has left, and removes it.
    _write(path, content, sync)


def _write(path: pathlib.Path, content: bytes, sync: bool) -> None:
  with replacing(path, sync=sync) as partial:
    partial.write_bytes(content)


@contextlib.contextmanager
def replacing(path: pathlib.Path, *, sync: bool = True) -> Iterator[pathlib.Path]:
  """Gives the path of an empty file beside another one, whose place it takes at the end; after an error it is removed.

  Args:
    path: see `write_whole`.
    sync: likewise.

  Raises:
    OSError: likewise.
  """
  check_file(path)
  path = pathlib.Path(os.path.realpath(path))
  # A name of its own for every writer.
  partial = path.with_name(f'{path.name}.{secrets.token_hex(4)}{PARTIAL}')
  partial.open('xb').close()
  try:
    yield partial
    if sync:
      sync_to_disk([partial])
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
  if sync:
    sync_to_disk([path.parent])


def check_file(path: pathlib.Path) -> None:
  """Raises an OSError if something that is no file has this name; there may be nothing."""
  try:
    mode = path.stat().st_mode
  except FileNotFoundError:
    return
  if not stat.S_ISREG(mode):
    raise OSError(errno.EINVAL, f'not a file, but {kind_of(mode)}')


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
    status = path.stat()
    # To read a pipe or a device may never end.
    return stat.S_ISREG(status.st_mode) and status.st_size == len(content) and path.read_bytes() == content
  except OSError:
    return False
