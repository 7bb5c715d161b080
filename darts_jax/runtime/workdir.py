"""The working directory of a run: whose it is, and files that are whole or absent."""

import contextlib
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from darts_jax.runtime import processes
from darts_jax.runtime.files import read_object
from darts_jax.settings import differences

#: Differing fields that a message lists.
_MAX_LISTED = 6

# Seconds that a shared file system may take to show all hosts what one has written.
_PATIENCE = 60.0


@contextlib.contextmanager
def named_errors(workdir: pathlib.Path) -> Iterator[None]:
  """Turns an error of the file system into one line that names the working directory."""
  try:
    yield
  except OSError as error:
    raise ValueError(f'--workdir: {workdir} cannot be written ({error.strerror or error})') from error


def claim(workdir: pathlib.Path, config: Mapping[str, Any], kind: str) -> None:
  """Makes `workdir` the directory of a run with this config, or finds that it is.

  Args:
    workdir: is made if it is not there.
    config: JSON values.
    kind: what the run is, for messages: a 'search', say.

  Raises:
    ValueError: it cannot be written, or belongs to a run with another config, whose differing fields are named.
  """
  path = workdir / 'config.json'
  config = json.loads(json.dumps(config))
  with named_errors(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists():
      try:
        old = read_object(path)
      except ValueError as error:
        raise ValueError(f'{error}; choose another --workdir') from error
      if set(old) != set(config):
        raise ValueError(f'--workdir: {workdir} holds another run than a {kind} of this kind; choose another --workdir')
      changed = differences(old, config)
      if changed:
        more = f'; and {len(changed) - _MAX_LISTED} more' if len(changed) > _MAX_LISTED else ''
        raise ValueError(
          f'--workdir: {workdir} holds a {kind} with another config ({"; ".join(changed[:_MAX_LISTED])}{more});'
          ' choose another --workdir or the same config'
        )
    else:
      write_whole(path, (json.dumps(config, indent=2) + '\n').encode())


def claim_together(workdir: pathlib.Path, action: Callable[[], None], identity: Callable[[], Any]) -> None:
  """Lets the first process claim `workdir` for all, which have to see what it writes and to be about the same.

  Args:
    workdir: holds `config.json` afterwards.
    action: claims it (see `claim`).
    identity: gives JSON values that have to be the same in all processes: settings, and what tells data from others.

  Raises:
    ValueError: it cannot be claimed, or a process does not see it, or has another config or other data; in all
      processes.
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


def write_whole(path: pathlib.Path, content: bytes) -> None:
  """Writes a file that is never seen half-written."""
  partial = path.with_name(path.name + '.partial')
  partial.write_bytes(content)
  partial.replace(path)
