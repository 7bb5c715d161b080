"""Locks a working directory, so that one run at a time uses it.

The lock is a record lock [POSIX, `fcntl`] on a file in the directory. The kernel releases it when the process ends in
any way, so that a crash leaves no lock. NFS, Lustre, GPFS and CephFS share record locks between hosts, which not all of
them do with `flock`, and child processes do not inherit them. The file says which process holds the lock, for messages.
It is removed at the end; a process that has locked a removed file tries again.

A process loses the lock when it closes the file, even if it opened the file only to read or copy it. The lock therefore
also counts as held while the file names a living process of this host. On a file system without locks this is the only
criterion. Processes of other hosts cannot be checked: without locks, the directory stays locked until the file is
removed; with locks, a run goes on with a warning that names the other process, because some mounts lock only within
their own host.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import multiprocessing
import os
import pathlib
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from darts_jax.runtime import processes
from darts_jax.runtime.files import kind_of, one_line

_logger = logging.getLogger(__name__)

#: Name of the lock file.
FILE = 'run.lock'

# The content of a lock file: a description of the process that holds the lock.
Owner = dict[str, Any]

# Errors of a file system without locks.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EACCES, errno.EAGAIN)
# Several attempts, since a process that checks whether a directory is locked holds its lock for a moment.
_ATTEMPTS, _PAUSE = 5, 0.1
# Largest depth of the working directory of a run below that of the run that it is part of.
_LEVELS = 3
_MAX_PID = 2**31

# Directories that this process has locked; record locks do not exclude other threads of the same process.
_held: set[pathlib.Path] = set()
_threads = threading.Lock()


@contextlib.contextmanager
def locked(workdir: pathlib.Path, folders: Sequence[pathlib.Path] = ()) -> Iterator[None]:
  """Context in which no other process can run in a working directory, in one above it, or up to three levels below it.

  Processes that already run there are found on entry. Threads of one process exclude each other in the same directory,
  but may run below each other's directories, like the parts of a run; the worker processes of a run may, too. With
  several processes of one run, the first one locks for all of them. Missing directories are created, and removed at the
  end if they are empty.

  Args:
    workdir: the working directory.
    folders: further directories inside it that are locked, too.

  Raises:
    ValueError: a directory is in use (by which process, where, and since when); or it cannot be written.
  """
  with contextlib.ExitStack() as stack:

    def lock() -> None:
      # The working directory itself comes first.
      for path in dict.fromkeys([workdir, *folders]):
        stack.enter_context(_locked(path))

    processes.by_first(lock)
    yield


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
  path = workdir.absolute().resolve()
  made = [folder for folder in (path, *path.parents) if not folder.exists()]
  number = None
  # All of this is in `try`, since a signal may end a run at any moment.
  try:
    try:
      with _threads:
        number = _take(path, workdir)
    except OSError as error:
      raise ValueError(f'--workdir: {workdir} cannot be written ({error.strerror or error})') from error
    yield
  finally:
    if number is not None:
      with _threads:
        _release(path, number)
    _remove_empty(made)


def _take(path: pathlib.Path, workdir: pathlib.Path) -> int:
  """Locks a directory; returns the file descriptor of its lock file.

  Raises:
    ValueError: the directory, or one above or below it, is in use.
  """
  if path in _held:
    raise ValueError(f'--workdir: {workdir} is in use by this process already')
  path.mkdir(parents=True, exist_ok=True)
  number = _acquire(path / FILE, str(workdir), _lock_and_sign, os.O_RDWR | os.O_CREAT)
  _held.add(path)
  try:
    # After locking, so that of two processes that begin at the same time, at least one sees the other.
    for above in path.parents:
      _check_free(above, f'{workdir} lies in {above}, which')
    for below in _folders_below(path, _LEVELS):
      _check_free(below, f'{workdir} holds {below}, which')
  except BaseException:
    _release(path, number)
    raise
  return number


def _release(path: pathlib.Path, number: int) -> None:
  with contextlib.suppress(OSError):
    # Removed while it is locked, so that no other process holds it.
    if _is(path / FILE, number):
      try:
        (path / FILE).unlink()
      except OSError:
        # If it cannot be removed, it must at least not name this process any more.
        os.ftruncate(number, 0)
  os.close(number)
  _held.discard(path)


def _check_free(folder: pathlib.Path, place: str) -> None:
  """Raises a ValueError, which begins with `place`, if another process has locked a folder."""
  path = folder / FILE
  if folder in _held or not os.access(path, os.R_OK | os.W_OK) or _is_of_parent(path):
    return
  with contextlib.suppress(FileNotFoundError):
    # Another kind of file with this name, in a folder that is not a working directory, is not a lock.
    if stat.S_ISREG(path.lstat().st_mode):
      # Released at once: it only shows that no other process holds it.
      os.close(_acquire(path, place, _lock, os.O_RDWR))


def _is_of_parent(path: pathlib.Path) -> bool:
  """Whether a lock is held by the parent process, whose worker this process is."""
  parent = multiprocessing.parent_process()
  if parent is None:
    return False
  with contextlib.suppress(OSError, ValueError):
    number = _open(path, os.O_RDONLY)
    try:
      owner = _read(number)
    finally:
      os.close(number)
    return owner is not None and owner['pid'] == parent.pid and _lives(owner)
  return False


def _folders_below(folder: pathlib.Path, levels: int) -> Iterator[pathlib.Path]:
  with contextlib.suppress(OSError), os.scandir(folder) as entries:
    for entry in entries:
      if entry.is_dir(follow_symlinks=False):
        yield pathlib.Path(entry.path)
        if levels > 1:
          yield from _folders_below(pathlib.Path(entry.path), levels - 1)


def _acquire(path: pathlib.Path, place: str, lock: Callable[[int, Owner | None], bool], flags: int) -> int:
  """Opens and locks a lock file; returns its file descriptor.

  Args:
    path: path of the lock file.
    place: beginning of the error message.
    lock: `_lock` or `_lock_and_sign`.
    flags: flags of `os.open`.

  Raises:
    ValueError: another process holds the lock.
  """
  owner = None
  for attempt in range(_ATTEMPTS):
    if attempt:
      time.sleep(_PAUSE)
    number = _open(path, flags)
    try:
      owner = _read(number)
      if lock(number, owner) and _is(path, number):
        return number
    except BaseException:
      os.close(number)
      raise
    os.close(number)
  who = f'process {owner["pid"]} on {owner["host"]} since {owner["since"]}' if owner else 'another process'
  raise ValueError(
    f'--workdir: {place} is in use by {who} (if it has ended, remove {path}); wait for it, stop it or choose another'
    ' --workdir'
  )


def _open(path: pathlib.Path, flags: int) -> int:
  """Opens a lock file; returns its file descriptor.

  Raises:
    ValueError: the path is a link, a folder, a pipe or a device.
  """
  try:
    # Non-blocking, since opening a pipe would wait for another process.
    number = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
  except OSError as error:
    if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
      raise
    raise ValueError(_not_a_file(path, path.lstat().st_mode)) from error
  mode = os.fstat(number).st_mode
  if not stat.S_ISREG(mode):
    os.close(number)
    raise ValueError(_not_a_file(path, mode))
  return number


def _not_a_file(path: pathlib.Path, mode: int) -> str:
  kind = 'a link' if stat.S_ISLNK(mode) else kind_of(mode)
  return f'--workdir: {path} is {kind}, in the place of the file of the lock; remove it'


def _lock(number: int, owner: Owner | None) -> bool:
  """Tries to lock an open file; returns whether it is locked now. Without locks: whether its last owner has ended."""
  try:
    fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _HELD:
      return False
    if error.errno in _UNSUPPORTED:
      return not _lives(owner)
    raise
  # A living owner of this host has lost its record lock, but still counts as the owner.
  return owner is None or owner['host'] != socket.gethostname() or not _lives(owner)


def _lock_and_sign(number: int, owner: Owner | None) -> bool:
  """`_lock`, and writes this process into the file as the owner."""
  if not _lock(number, owner):
    return False
  since = datetime.datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')
  pid = os.getpid()
  mine = {'host': socket.gethostname(), 'pid': pid, 'since': since, 'begun': _begun(pid)}
  os.ftruncate(number, 0)
  os.pwrite(number, (json.dumps(mine) + '\n').encode(), 0)
  with contextlib.suppress(OSError):
    os.fsync(number)
  if _read(number) != mine:
    return False
  if owner is not None and owner['host'] != mine['host']:
    _logger.warning(
      'run.lock is from process %s on %s since %s, which did not end in an orderly way; its lock is free here, and this'
      ' run goes on; should that process still run, stop one of the two',
      *(owner['pid'], owner['host'], owner['since']),
    )
  return True


def _is(path: pathlib.Path, number: int) -> bool:
  try:
    return os.path.samestat(path.stat(), os.fstat(number))
  except FileNotFoundError:
    return False


def _read(number: int) -> Owner | None:
  """Reads the process that holds the lock, or held it last; None if the file does not contain it."""
  try:
    found = json.loads(os.pread(number, 4096, 0))
    if type(found['pid']) is not int or not 0 < found['pid'] < _MAX_PID:
      return None
    return {name: found[name] for name in ('pid', 'begun')} | {
      name: one_line(found[name]) for name in ('host', 'since')
    }
  except Exception:  # A damaged file can fail in many ways.
    return None


def _lives(owner: Owner | None) -> bool:
  """Whether a process may be alive; True for other hosts, whose processes cannot be checked."""
  if owner is None:
    return False
  if owner['host'] != socket.gethostname():
    return True
  try:
    os.kill(owner['pid'], 0)
  except ProcessLookupError:
    return False
  except OSError:
    pass
  # A process ID may have been reused by another process, which began at another time.
  return bool(owner['pid'] != os.getpid() and _begun(owner['pid']) == owner['begun'])


def _begun(pid: int) -> str | None:
  """Start time of a process, which distinguishes it from others with the same ID; None if not known or ended."""
  try:
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    # A process that has ended may stay a zombie for long.
    return None if fields[0] in 'ZX' else fields[19]
  except (OSError, IndexError):
    return None


def _remove_empty(folders: Sequence[pathlib.Path]) -> None:
  """Removes folders in the given order, innermost first, until one is not empty."""
  with contextlib.suppress(OSError):
    for folder in folders:
      folder.rmdir()
