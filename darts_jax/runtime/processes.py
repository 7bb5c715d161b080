"""Several processes, on one or many hosts, that run one program together [`jax.distributed`].

All processes run the whole program. Only the first one writes logs, reports and files other than checkpoints. Decisions
that depend on clocks or signals are agreed on, since processes that take different branches would wait for each other
forever.
"""

import contextlib
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from darts_jax.runtime.terminal import say

PyTree = Any
T = TypeVar('T')

#: Seconds without a heartbeat after which a process counts as dead, and the others end.
HEARTBEAT_TIMEOUT = 60

# Largest number of processes, and of seconds to wait for them (eleven days).
_MAX_GIVEN = 10**6

# Seconds between two attempts to reach the first process.
_RETRY = 0.5

# Seconds that the first process leaves to others, which have failed as well, to print their errors.
_LAST_WORDS = 2.0

# Size of an error message that processes exchange.
_MESSAGE_BYTES = 1024


class AgreedError(ValueError):
  """An error that every process raises, because one of them could not go on."""


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: int = 300,
) -> None:
  """Joins the other processes; has to be called before any other use of JAX.

  Missing arguments are taken from the cluster, if JAX supports it (TPU pod slices, Slurm, Open MPI).

  Args:
    coordinator: `host:port` of the first process, at which it listens for the others.
    num_processes: number of processes.
    process_id: number of this process, from 0 on.
    timeout: seconds to wait until all processes have joined.

  Raises:
    ValueError: the processes cannot find each other.
  """
  given = {'--coordinator': coordinator, '--num_processes': num_processes, '--process_id': process_id}
  missing = [name for name, value in given.items() if value is None]
  for name, value in (('timeout', timeout), ('num_processes', num_processes)):
    if value is not None and not 1 <= value <= _MAX_GIVEN:
      raise ValueError(f'--{name}: {value} is not allowed; it has to be ≥ 1 and ≤ {_MAX_GIVEN}')
  if process_id is not None and not 0 <= process_id < (num_processes or _MAX_GIVEN):
    last = 'the number of processes less one' if num_processes is None else num_processes - 1
    raise ValueError(f'--process_id: {process_id} is not allowed; it has to be one of 0 to {last}')
  start = time.monotonic()
  if coordinator is not None and process_id is not None:
    # Checked first, since JAX would abort the process.
    _find(coordinator, timeout, listens=process_id == 0)
    # If other processes do not join, JAX aborts this one with many unclear lines, so this message comes first.
    say(f'waiting for all processes at {coordinator}, at most {timeout} seconds')
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      cluster_detection_method=None if missing else 'deactivate',
      initialization_timeout=max(1, round(timeout - (time.monotonic() - start))),
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
    )
  except ValueError as error:
    raise ValueError(
      f'--distributed: no cluster of a kind that JAX knows was found; {", ".join(missing)} have to be given ({error})'
    ) from error
  except (RuntimeError, OSError) as error:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    raise ValueError(f'--distributed: the processes did not find each other ({reason})') from error


def _find(address: str, timeout: float, *, listens: bool) -> None:
  """Raises a ValueError if no process answers at an address or, with `listens`, if this one cannot listen there."""
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise ValueError(f'--coordinator: {address!r} is not allowed; it has to be of the form host:port')
  place = host.strip('[]'), int(port)
  if listens:
    family = socket.AF_INET6 if ':' in place[0] else socket.AF_INET
    with socket.socket(family) as taken:
      taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        taken.bind(('', place[1]))
      except OSError as error:
        raise ValueError(f'--coordinator: {address}: process 0 cannot listen there ({error.strerror})') from error
    return
  deadline = time.monotonic() + timeout
  while True:
    try:
      socket.create_connection(place, timeout=max(0.1, deadline - time.monotonic())).close()
      return
    except OSError as error:
      if time.monotonic() > deadline - _RETRY:
        # Not raised earlier, since the name of a host may only be known once the host has started.
        if isinstance(error, socket.gaierror):
          raise ValueError(f'--coordinator: {address}: no such host ({error.strerror})') from error
        raise ValueError(
          f'--coordinator: {address}: process 0 was not there after {timeout} seconds ({error.strerror or error})'
        ) from error
    time.sleep(_RETRY)


def is_first() -> bool:
  """Whether this is the first process, which alone writes logs, reports and other files."""
  return jax.process_index() == 0


def topology() -> str:
  """Describes all processes and devices in one line; for a single process only the devices."""
  devices = jax.devices()
  if jax.process_count() == 1:
    numbers = Counter(device.device_kind for device in devices)
    found = ', '.join(f'{count} × {kind}' for kind, count in numbers.items())
    return f'{found} ({jax.default_backend()})' if jax.default_backend() not in numbers else found
  counts = Counter(device.process_index for device in devices)
  each = sorted(set(counts.values()))
  a_process = f'{each[0]}' if len(each) == 1 else f'{each[0]} to {each[-1]}'
  kinds = ', '.join(sorted({device.device_kind for device in devices}))
  return f'{jax.process_count()} processes, {len(devices)} devices ({a_process} a process), {kinds}'


def gather(values: Sequence[float]) -> np.ndarray:
  """Gathers `n` numbers of every process into `[P, n]` float64; all processes have to call this."""
  found = np.asarray(values, np.float64)
  if jax.process_count() == 1:
    return found[None]
  # Gathered as bytes, since JAX would round them to float32.
  bytes_of_all = np.asarray(multihost_utils.process_allgather(np.frombuffer(found.tobytes(), np.uint8)))
  return np.frombuffer(bytes_of_all.tobytes(), np.float64).reshape(jax.process_count(), -1)


def fetch(tree: T) -> T:
  """Fetches global arrays from all processes, as NumPy arrays; all processes have to call this."""

  def one(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
      return multihost_utils.process_allgather(leaf, tiled=True)
    return leaf

  found: T = jax.device_get(jax.tree.map(one, tree) if jax.process_count() > 1 else tree)
  return found


def together(action: Callable[[], T]) -> T:
  """Runs an action in every process, and returns its result if no process fails.

  Raises:
    AgreedError: in all processes, if the action raised a ValueError in one of them. A single process raises the
      ValueError itself.
  """
  if jax.process_count() == 1:
    return action()
  result, failure = None, None
  try:
    result = action()
  except ValueError as error:
    failure = error
  message = np.zeros(_MESSAGE_BYTES, np.uint8)
  if failure is not None:
    text = (str(failure) or type(failure).__name__).encode(errors='backslashreplace')[:_MESSAGE_BYTES]
    message[: len(text)] = np.frombuffer(text, np.uint8)
  messages = np.asarray(multihost_utils.process_allgather(message))
  for index, found in enumerate(messages):
    if found.any():
      text = found[found != 0].tobytes().decode(errors='replace')
      raise AgreedError(f'process {index}: {text}') from failure
  return result  # type: ignore[return-value]


def by_first(action: Callable[[], None]) -> None:
  """Runs an action in the first process only; all processes have to call this, and all fail if it fails."""
  together(lambda: action() if is_first() else None)


def leave(code: int) -> None:
  """Ends this process at once with an exit code, without waiting for other processes, which may wait for it."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  first = True
  # Without devices, the number of this process is not known.
  with contextlib.suppress(AssertionError, RuntimeError):
    first = is_first()
  if first:
    # The first process hosts the coordination service; when that ends, JAX ends all others without a message.
    time.sleep(_LAST_WORDS)
  os._exit(code)
