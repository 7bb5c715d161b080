"""The working directory of a run: which run it belongs to, and which files it may contain."""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax

from darts_jax.runtime import checkpoint, lock, processes
from darts_jax.runtime.durable import PARTIAL, write_whole
from darts_jax.runtime.files import kind_of, read_object, user_path
from darts_jax.settings import differences

#: Largest number of differing fields that a message lists.
_MAX_LISTED = 6

#: Name of the folder of the checkpoints of a run.
CHECKPOINTS = 'checkpoints'
# Names of the folders and files that runs write; some folders only by certain kinds of runs.
_FOLDERS = (CHECKPOINTS, 'best', 'tensorboard')
_FOLDERS_OF = {'selection': ('search', 'candidates', 'final'), 'search by proposals': ('trials', 'pick')}
_FILES = (
  *('config.json', 'metrics.jsonl', 'genotype.json', 'alphas.npz', 'model.json', 'report.html'),
  *('trials.jsonl', 'results.json', 'results.md', 'weights.safetensors'),
)
# Files of which one is in every working directory.
_MARKS = ('config.json', 'model.json', 'metrics.jsonl', 'results.json')
# Data sets that are in no folder: parts of installed packages, and arrays that a caller hands over.
_INSTALLED = ('digits', 'pydoc', 'arrays')
# Fields with paths of data, as in the lines of `differences`; data are identified by their fingerprint instead.
_PLACES = ('config.data.dir: ', 'config.data.path: ', 'config.space.table: ')
# Fields that say how data are read; results do not depend on them.
_READING = ('config.data.num_threads: ', 'config.data.num_workers: ')
# Patterns of partial files; the last two are those of earlier versions.
_LEFTOVERS = (f'*{PARTIAL}', '*.tmp', f'*{PARTIAL}.npz')

# Seconds until all hosts see a file that one of them has written to a shared file system.
_PATIENCE = 60.0


@contextlib.contextmanager
def named_errors(workdir: pathlib.Path) -> Iterator[None]:
  """Context that turns errors of the file system into ValueErrors that name the working directory."""
  try:
    yield
  except OSError as error:
    raise ValueError(f'--workdir: {workdir} cannot be written ({error.strerror or error})') from error


def claim(workdir: pathlib.Path, config: Mapping[str, Any], kind: str, growing: Collection[str] = ()) -> None:
  """Makes `workdir` the working directory of a run with this config, or checks that it is.

  If `config.json` is lost or damaged, it is written again, provided that a checkpoint was saved with this config.
  Partial files of killed processes are removed.

  Args:
    workdir: the working directory; created if missing.
    config: JSON values of the settings; `dataset`, if present, is the fingerprint of the data.
    kind: kind of the run, such as `'search'`.
    growing: names of fields with whole numbers that may be larger when a run resumes.

  Raises:
    ValueError: the directory cannot be written, or belongs to a run with another config; the message names the fields
      that differ.
  """
  # Checkpoints are written to the absolute path.
  user_path(workdir.absolute(), '--workdir')
  path = workdir / 'config.json'
  config = as_json(config)
  with named_errors(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    _check_places(workdir, kind)
    # Checkpoints have a copy of the config that is protected by a digest.
    known = checkpoint.claims(workdir / CHECKPOINTS)
    if path.exists():
      try:
        old = read_object(path)
      except ValueError as error:
        if not known:
          raise ValueError(f'{error}; choose another --workdir') from error
      else:
        known = [old, *known]
    for claimed in known:
      _check_same(workdir, claimed, config, kind, growing)
    if known:
      remove_leftovers(workdir)
    write_whole(path, (json.dumps(config, indent=2) + '\n').encode())


def check_claimed(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Checks that a config is the one with which the checkpoints of a run were saved, except for the paths of data.

  Args:
    workdir: working directory of the run.
    config: content of its `config.json`.

  Raises:
    ValueError: the config has been changed; the message names the fields.
  """
  for claimed in checkpoint.claims(workdir / CHECKPOINTS):
    changed = [line for line in differences(claimed, config) if not line.startswith((*_PLACES, *_READING))]
    if changed:
      raise ValueError(
        f'{workdir / "config.json"}: not what the checkpoints were saved with ({_listed(changed)}); write it as it was'
      )


def check_free(path: pathlib.Path) -> None:
  """Checks that a path to be written is not that of a file of a run.

  Raises:
    ValueError: the path is in a working directory, and a run writes a file or folder of this name.
  """
  place = pathlib.Path(os.path.realpath(path))
  folders = {*_FOLDERS, *itertools.chain.from_iterable(_FOLDERS_OF.values())}
  for inner, folder in itertools.pairwise((place, *place.parents)):
    names = {*_FILES, lock.FILE} | folders if inner == place else folders
    if inner.name in names and any((folder / mark).is_file() for mark in _MARKS):
      raise ValueError(f'{path}: {inner.name} in {folder} is written by a run; choose another name or folder')


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
  """The values after a round trip through JSON, in which tuples become lists."""
  found: dict[str, Any] = json.loads(json.dumps(values))
  return found


def _check_places(workdir: pathlib.Path, kind: str) -> None:
  """Raises a ValueError if the name of a folder that runs write is taken by a file, or that of a file by a folder."""
  for name in (*_FOLDERS, *_FOLDERS_OF.get(kind, ())):
    if os.path.lexists(workdir / name) and not (workdir / name).is_dir():
      raise ValueError(f'--workdir: {workdir / name} is a file, in the place of a folder; remove it or choose another')
  for path in (workdir / name for name in _FILES):
    if path.exists() and not path.is_file():
      kind = kind_of(path.stat().st_mode)
      raise ValueError(f'--workdir: {path} is {kind}, in the place of a file; remove it or choose another')


def _check_same(workdir: pathlib.Path, old: Any, new: Mapping[str, Any], kind: str, growing: Collection[str]) -> None:
  if not isinstance(old, Mapping) or set(old) != set(new):
    raise ValueError(f'--workdir: {workdir} holds another run than a {kind} of this kind; choose another --workdir')
  grown = {name: new[name] for name in growing if type(old[name]) is int}
  free = (*_PLACES, *_READING) if old.get('dataset') and new.get('dataset') else _READING
  changed = [line for line in differences({**old, **grown}, new) if not line.startswith(free)]
  if not changed:
    for name, value in grown.items():
      if value < old[name]:
        raise ValueError(
          f'config.{name}: {value} is not allowed; {workdir} holds a {kind} of {old[name]}, which can only become more'
        )
    return
  message = f'--workdir: {workdir} holds a {kind} with another config ({_listed(changed)})'
  if all(line.startswith('config.dataset') for line in changed):
    named = f'the data of {_data(new)} are not those of before'
    raise ValueError(f'{message}: {named}; choose another --workdir or the same data')
  raise ValueError(f'{message}; choose another --workdir or the same config')


def _listed(changed: Sequence[str]) -> str:
  more = f'; and {len(changed) - _MAX_LISTED} more' if len(changed) > _MAX_LISTED else ''
  return f'{"; ".join(changed[:_MAX_LISTED])}{more}'


def _data(config: Mapping[str, Any]) -> str:
  """Names the data of a config, from all of its groups of settings that have data."""
  groups = [group for group in (config, *config.values()) if isinstance(group, Mapping)]
  sources = [group['data'] for group in groups if isinstance(group.get('data'), Mapping)]
  named = [' '.join(str(source[key]) for key in ('name', 'dataset', 'path') if source.get(key)) for source in sources]
  named = [
    name if source.get('path') or source['name'] in _INSTALLED else f'{name} in {source.get("dir")}'
    for name, source in zip(named, sources, strict=True)
  ]
  return ' and '.join(dict.fromkeys(named)) or 'this config'


def remove_leftovers(workdir: pathlib.Path) -> None:
  """Removes partial files that killed processes have left."""
  for pattern in _LEFTOVERS:
    for path in workdir.glob(pattern):
      if path.is_file():
        # A process that writes a report may have removed its own partial file meanwhile.
        path.unlink(missing_ok=True)


def claim_together(workdir: pathlib.Path, action: Callable[[], None], identity: Callable[[], Any]) -> None:
  """Lets the first process claim `workdir` for all, and checks that all processes share the folder and the config.

  Args:
    workdir: the working directory; it has a `config.json` afterwards.
    action: claims the working directory (see `claim`); only the first process calls it.
    identity: returns JSON values that have to be equal in all processes: settings, and a fingerprint of the data.

  Raises:
    ValueError: in all processes, if the directory cannot be claimed, or if a process does not see it, has another
      config or has other data.
  """
  if jax.process_count() > 1:
    digest = hashlib.sha256(json.dumps(identity(), sort_keys=True).encode()).digest()
    numbers = processes.gather(list(digest))
    for index, row in enumerate(numbers):
      if (row != numbers[0]).any():
        raise processes.AgreedError(f'--config: process {index} has another config, or other data, than process 0')
  processes.by_first(action)
  processes.together(lambda: _see(workdir / 'config.json'))


def _see(path: pathlib.Path) -> None:
  deadline = time.monotonic() + _PATIENCE
  while not path.exists():
    if time.monotonic() > deadline:
      raise ValueError(
        f'--workdir: {path.parent} has no {path.name}, which process 0 has written; all have to share it'
      )
    time.sleep(0.5)
