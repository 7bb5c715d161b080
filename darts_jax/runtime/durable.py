"""Writes files atomically: they are complete or absent, even after a kill or a loss of power."""

import contextlib
import errno
import os
import pathlib
import secrets
import stat
from collections.abc import Iterable, Iterator

from darts_jax.runtime.files import kind_of

#: Suffix of files and folders that are being written or removed.
PARTIAL = '.partial'


def write_whole(path: pathlib.Path, content: bytes, *, sync: bool = True) -> None:
  """Writes a file atomically; a file that has this content already is not written.

  Several processes may write a file at the same time; the last one wins. For a symbolic link, its target is written.

  Args:
    path: path of the file, in an existing folder.
    content: content of the file.
    sync: whether the file has to be on the disk when this returns; not needed for files that can be made again.

  Raises:
    OSError: the file cannot be written, or the path is a folder, a pipe or a device, which is left unchanged.
  """
  if holds(path, content):
    return
  try:
    _write(path, content, sync)
  except FileNotFoundError:
    # A run that begins at the same time may have removed the partial file as a leftover.
    _write(path, content, sync)


def _write(path: pathlib.Path, content: bytes, sync: bool) -> None:
  with replacing(path, sync=sync) as partial:
    partial.write_bytes(content)


@contextlib.contextmanager
def replacing(path: pathlib.Path, *, sync: bool = True) -> Iterator[pathlib.Path]:
  """Context that yields the path of an empty temporary file, which replaces `path` at the end.

  After an error the temporary file is removed, and `path` is unchanged.

  Args:
    path: see `write_whole`.
    sync: see `write_whole`.

  Raises:
    OSError: see `write_whole`.
  """
  check_file(path)
  path = pathlib.Path(os.path.realpath(path))
  # Every writer has its own temporary file.
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
  """Raises an OSError if the path exists and is not a regular file."""
  try:
    mode = path.stat().st_mode
  except FileNotFoundError:
    return
  if not stat.S_ISREG(mode):
    raise OSError(errno.EINVAL, f'not a file, but {kind_of(mode)}')


def sync_to_disk(paths: Iterable[pathlib.Path]) -> None:
  """Waits until the contents of files, and the entries of folders, are on the disk."""
  for path in paths:
    number = os.open(path, os.O_RDONLY)
    try:
      os.fsync(number)
    except OSError:
      # Some file systems do not support fsync of a folder, and write its entries to the disk anyway.
      if not path.is_dir():
        raise
    finally:
      os.close(number)


def holds(path: pathlib.Path, content: bytes) -> bool:
  """Whether the path is a regular file with this content."""
  try:
    status = path.stat()
    # Reading a pipe or a device might never end.
    return stat.S_ISREG(status.st_mode) and status.st_size == len(content) and path.read_bytes() == content
  except OSError:
    return False
