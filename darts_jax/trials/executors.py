"""Executors of evaluations: in this process, or in worker processes with one evaluation each at a time.

Worker processes import the script that started the search, so the script has to start it under
`if __name__ == '__main__':`.
"""

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from multiprocessing import connection
from typing import Any, NamedTuple, TypeVar

T = TypeVar('T')


class InProcess(futures.Executor):
  """Runs every submitted call immediately, in this process."""

  def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
    """Calls the function; returns a future that is done."""
    future: futures.Future[T] = futures.Future()
    try:
      future.set_result(function(*args, **kwargs))
    except Exception as error:  # As in other executors, `result()` raises it.
      future.set_exception(error)
    return future


class _Worker(NamedTuple):
  """A worker process, which is kept for further evaluations.

  Attributes:
    pool: a pool of this process alone, so that the end of a process fails only its own evaluation.
    pid: process id.
    latest: future of its latest evaluation.
  """

  pool: futures.ProcessPoolExecutor
  pid: int
  latest: futures.Future[Any]


class Processes(futures.Executor):
  """Runs up to `workers` evaluations at once, each in a worker process; later evaluations reuse the processes.

  Functions, arguments, results and exceptions are pickled. If a process ends during an evaluation, that evaluation
  fails with `concurrent.futures.process.BrokenProcessPool`, and a new process replaces it. Every worker imports the
  script that Python was started with. The script has to use this class under `if __name__ == '__main__':`; otherwise
  each worker would start the search again.
  """

  def __init__(self, workers: int, modules: Sequence[str] = ()) -> None:
    """Starts no process yet; `submit` does when it needs one.

    Args:
      workers: largest number of processes.
      modules: names of modules that every process imports first, such as one that adds a space to `SPACES`.
    """
    self._max_workers = workers
    self._modules = tuple(modules)
    self._workers: list[_Worker] = []

  def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
    """Starts a call in a free process.

    Raises:
      RuntimeError: no process is free.
      ValueError: a new process ended at its start, as it does if it cannot import one of the modules.
    """
    while True:
      try:
        pool, pid = self._free()
      except futures.BrokenExecutor as error:
        raise ValueError(
          'config.workers: a new process ended before its first evaluation; the lines above say why'
        ) from error
      try:
        future = pool.submit(function, *args, **kwargs)
        break
      except futures.BrokenExecutor:
        # The process has ended since its latest evaluation.
        pool.shutdown()
    self._workers.append(_Worker(pool, pid, future))
    return future

  def _free(self) -> tuple[futures.ProcessPoolExecutor, int]:
    """Takes an idle process from the list, or starts a new one."""
    for worker in [each for each in self._workers if each.latest.done()]:
      self._workers.remove(worker)
      if not isinstance(worker.latest.exception(), futures.BrokenExecutor):
        return worker.pool, worker.pid
      worker.pool.shutdown()
    if len(self._workers) == self._max_workers:
      raise RuntimeError(f'all {self._max_workers} processes are busy')
    # A forked copy of a process with threads, such as JAX's, can deadlock.
    context = multiprocessing.get_context('spawn')
    pool = futures.ProcessPoolExecutor(1, mp_context=context, initializer=_prepare, initargs=(self._modules,))
    return pool, pool.submit(os.getpid).result()

  def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
    """Ends the processes.

    Args:
      wait: whether to wait until they have ended.
      cancel_futures: whether to send SIGTERM to processes with a running evaluation; a training then saves a
        checkpoint and stops.
    """
    for worker in self._workers:
      if cancel_futures and not worker.latest.done():
        os.kill(worker.pid, signal.SIGTERM)
    for worker in self._workers:
      worker.pool.shutdown(wait, cancel_futures=cancel_futures)
    self._workers = []

  def __exit__(self, *exception: object) -> None:
    self.shutdown(cancel_futures=True)


def _prepare(modules: Sequence[str]) -> None:
  """Prepares a new worker process: it ends with its parent, gets no signals of the terminal, and imports modules."""
  # A terminal sends SIGINT to all processes of a group; in a group of its own, only the parent signals this one.
  os.setpgrp()
  threading.Thread(target=_end_with_parent, daemon=True).start()
  for name in modules:
    importlib.import_module(name)


def _end_with_parent() -> None:
  # Without this thread, a process whose parent was killed would wait for work for ever.
  parent = multiprocessing.parent_process()
  assert parent is not None
  connection.wait([parent.sentinel])
  os._exit(1)
