"""One run at a time in a working directory.

The lock is a record lock [POSIX, `fcntl`] on a file in the directory. The kernel lets go of it when the process ends,
however it ends, so that nothing is left to heal, and NFS, Lustre, GPFS and CephFS pass it on to other hosts, as they
do not all do with `flock`; nor do child processes inherit it. The file says who holds the lock, for messages. It is
removed at the end, and a process that has got the lock of a removed file tries again.

A process that closes the file loses the lock, even if it had only opened it to read or copy it. So the lock is also
held as long as the file names a process of this host that is there. A file system without locks leaves nothing but
that. Of a process on another host nobody here knows: without locks, the directory stays locked until somebody removes
the file; with them, a run goes on and says whose file it found, because some mounts lock for their own host alone.
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

#: The file of the lock.
FILE = 'run.lock'

# What the file of a lock says of the process that has it.
Owner = dict[str, Any]

# Of a file system without locks.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EACCES, errno.EAGAIN)
# A process that looks whether a directory above or below its own is locked holds that lock for a moment.
_ATTEMPTS, _PAUSE = 5, 0.1
# Runs lie up to so many levels below the run that they belong to.
_LEVELS = 3
_MAX_PID = 2**31

# Directories that this process has locked; record locks do not keep a process from itself, nor a thread from another.
_held: set[pathlib.Path] = set()
_threads = threading.Lock()


@contextlib.contextmanager
def locked(workdir: pathlib.Path, folders: Sequence[pathlib.Path] = ()) -> Iterator[None]:
  """Within, no other process runs in a working directory, nor in one that lies up to three levels below it.

  None begins there, and those that run there already are found at the beginning. Threads of a process are kept apart
  likewise, but may run below each other's directories, as the parts of a run do; so may the worker processes of a run.
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
  number = None
  # A signal may end a run at any moment, this one included.
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
  """The number of the file of a directory that is locked now."""
  if path in _held:
    raise ValueError(f'--workdir: {workdir} is in use by this process already')
  path.mkdir(parents=True, exist_ok=True)
  number = _acquire(path / FILE, str(workdir), _lock_and_sign, os.O_RDWR | os.O_CREAT)
  _held.add(path)
  try:
    # Afterwards, so that of two that begin at once at least one sees the other.
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
    # While it is locked, so that it is nobody else's.
    if _is(path / FILE, number):
      try:
        (path / FILE).unlink()
      except OSError:
        # Then it must not go on to say that it is held.
        os.ftruncate(number, 0)
  os.close(number)
  _held.discard(path)


def _check_free(folder: pathlib.Path, place: str) -> None:
  """Raises a ValueError, which names the place, if another process has locked a folder."""
  path = folder / FILE
  if folder in _held or not os.access(path, os.R_OK | os.W_OK) or _is_of_parent(path):
    return
  with contextlib.suppress(FileNotFoundError):
    # Something else of this name, in a folder that is no run's, is nobody's lock.
    if stat.S_ISREG(path.lstat().st_mode):
      # Only for a moment: what it shows is that nobody else has it.
      os.close(_acquire(path, place, _lock, os.O_RDWR))


def _is_of_parent(path: pathlib.Path) -> bool:
  """Whether the file of a lock says that it is held by the process that has this one for a worker."""
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
  """The number of the open, locked file; a ValueError, which names the place, if another process has it."""
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
  """The number of the open file of a lock; a ValueError if it is no file of its own, which would be written over."""
  try:
    # A pipe would wait for somebody else.
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
  """Whether an open file is locked now; where there are no locks, whether its last owner is gone."""
  try:
    fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _HELD:
      return False
    if error.errno in _UNSUPPORTED:
      return not _lives(owner)
    raise
  # The lock of one that is there was lost.
  return owner is None or owner['host'] != socket.gethostname() or not _lives(owner)


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
  """Who holds the lock, or held it last; None if the file does not say so."""
  try:
    found = json.loads(os.pread(number, 4096, 0))
    if type(found['pid']) is not int or not 0 < found['pid'] < _MAX_PID:
      return None
    return {name: found[name] for name in ('pid', 'begun')} | {
      name: one_line(found[name]) for name in ('host', 'since')
    }
  except Exception:  # What is damaged fails in many ways.
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
  except OSError:
    pass
  # Numbers of processes are used again.
  return bool(owner['pid'] != os.getpid() and _begun(owner['pid']) == owner['begun'])


def _begun(pid: int) -> str | None:
  """What tells a process from later ones of the same number; None where the system does not say it."""
  try:
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    # One that has ended may wait for long until its parent asks how.
    return None if fields[0] in 'ZX' else fields[19]
  except (OSError, IndexError):
    return None


def _remove_empty(folders: Sequence[pathlib.Path]) -> None:
  """Removes folders, innermost first, up to one that is not empty."""
  with contextlib.suppress(OSError):
    for folder in folders:
      folder.rmdir()
