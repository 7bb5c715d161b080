"""One run at a time in a working directory.

The lock is a record lock [POSIX, `fcntl`] on a file in the directory. The kernel lets go of it when the process ends,
however it ends, so that nothing is left to heal, and NFS, Lustre, GPFS and CephFS pass it on to other hosts, as they
do not all do with `flock`; nor do child processes inherit it. The file says who holds the lock, for messages. It is
removed at the end, and a process that has got the lock of a removed file tries again.

A file system without locks leaves what the file says: a process of this host that is there no more has lost the lock.
Of one on another host nobody here knows, so that the directory stays locked until somebody removes the file.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from darts_jax.runtime import processes

#: The file of the lock.
FILE = 'run.lock'

# What the file of a lock says of the process that has it.
Owner = dict[str, Any]

# Of a file system without locks.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EACCES, errno.EAGAIN)
# A process that looks whether a directory above its own is locked holds that lock for a moment.
_ATTEMPTS, _PAUSE = 5, 0.1

# Directories that this process has locked; record locks do not keep a process from itself.
_held: set[pathlib.Path] = set()


@contextlib.contextmanager
def locked(workdir: pathlib.Path, folders: Sequence[pathlib.Path] = ()) -> Iterator[None]:
  """Within, no other process runs in a working directory, nor in a directory below it.

  Of several processes the first one locks for all. Directories that are not there are made, and removed at the end if
  nothing has been written into them.

  Args:
    workdir: the directory.
    folders: further ones that belong to it, inside it.

  Raises:
    ValueError: a directory is in use, by whom, where and since when; or it cannot be written.
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
  try:
    if path in _held:
      raise ValueError(f'--workdir: {workdir} is in use by this process already')
    for above in path.parents:
      # Only for a moment: what it shows is that nobody else has it.
      if above not in _held and os.access(above / FILE, os.R_OK | os.W_OK):
        with contextlib.suppress(FileNotFoundError):
          os.close(_acquire(above / FILE, f'{workdir} lies in {above}, which', _lock, os.O_RDWR))
    path.mkdir(parents=True, exist_ok=True)
    number = _acquire(path / FILE, str(workdir), _lock_and_sign, os.O_RDWR | os.O_CREAT)
  except OSError as error:
    _remove_empty(made)
    raise ValueError(f'--workdir: {workdir} cannot be written ({error.strerror or error})') from error
  except ValueError:
    _remove_empty(made)
    raise
  _held.add(path)
  try:
    yield
  finally:
    _held.discard(path)
    with contextlib.suppress(OSError):
      # While it is locked, so that it is nobody else's.
      if _is(path / FILE, number):
        (path / FILE).unlink()
    os.close(number)
    _remove_empty(made)


def _acquire(path: pathlib.Path, place: str, lock: Callable[[int, Owner | None], bool], flags: int) -> int:
  """The number of the open, locked file; a ValueError, which names the place, if another process has it."""
  owner = None
  for attempt in range(_ATTEMPTS):
    if attempt:
      time.sleep(_PAUSE)
    number = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
      owner = _read(number)
      if lock(number, owner) and _is(path, number):
        return number
    except BaseException:
      os.close(number)
      raise
    os.close(number)
  who = f'process {owner["pid"]} on {owner["host"]} since {owner["since"]}' if owner else 'another process'
  elsewhere = f' (if it has ended, remove {path})' if owner and owner['host'] != socket.gethostname() else ''
  raise ValueError(
    f'--workdir: {place} is in use by {who}{elsewhere}; wait for it, stop it or choose another --workdir'
  )


def _lock(number: int, owner: Owner | None) -> bool:
  """Whether an open file is locked now; where there are no locks, whether its last owner is gone."""
  try:
    fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _HELD:
      return False
    if error.errno in _UNSUPPORTED:
      return not _lives(owner)
    raise
  return True


def _lock_and_sign(number: int, owner: Owner | None) -> bool:
  """As `_lock`; the file says then that this process has the lock, also to other hosts."""
  if not _lock(number, owner):
    return False
  since = datetime.datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')
  pid = os.getpid()
  mine = {'host': socket.gethostname(), 'pid': pid, 'since': since, 'begun': _begun(pid)}
  os.ftruncate(number, 0)
  os.pwrite(number, (json.dumps(mine) + '\n').encode(), 0)
  with contextlib.suppress(OSError):
    os.fsync(number)
  return _read(number) == mine


def _is(path: pathlib.Path, number: int) -> bool:
  try:
    return os.path.samestat(path.stat(), os.fstat(number))
  except FileNotFoundError:
    return False


def _read(number: int) -> Owner | None:
  """Who holds the lock, or held it last; None if the file does not say so."""
  try:
    found = json.loads(os.pread(number, 4096, 0))
    return {'pid': int(found['pid']), 'begun': found['begun']} | {key: str(found[key]) for key in ('host', 'since')}
  except (OSError, KeyError, RecursionError, TypeError, ValueError):
    return None


def _lives(owner: Owner | None) -> bool:
  """Whether a process is there, as far as is known here."""
  if owner is None:
    return False
  if owner['host'] != socket.gethostname():
    return True
  try:
    os.kill(owner['pid'], 0)
  except ProcessLookupError:
    return False
  except (OSError, OverflowError):
    pass
  # Numbers of processes are used again.
  return bool(owner['pid'] != os.getpid() and _begun(owner['pid']) == owner['begun'])


def _begun(pid: int) -> str | None:
  """What tells a process from later ones of the same number; None where the system does not say it."""
  try:
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return fields[19]
  except (OSError, IndexError):
    return None


def _remove_empty(folders: Sequence[pathlib.Path]) -> None:
  """Removes folders, innermost first, up to one that is not empty."""
  with contextlib.suppress(OSError):
    for folder in folders:
      folder.rmdir()
