"""Where evaluations run: in this process, or in worker processes, each with one evaluation at a time.

Worker processes import the file that the search was started with, so that it starts the search under
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
  """Runs what is submitted at once, in this process."""

  def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
    """Calls the function; the future has ended when this returns."""
    future: futures.Future[T] = futures.Future()
    try:
      future.set_result(function(*args, **kwargs))
    except Exception as error:  # As executors do: whoever asks for the result gets it.
      future.set_exception(error)
    return future


class _Worker(NamedTuple):
  """A process that is kept for further evaluations.

  Attributes:
    pool: with this process alone, so that the end of a process fails one evaluation and no other.
    pid: its number.
    latest: the latest evaluation.
  """

  pool: futures.ProcessPoolExecutor
  pid: int
  latest: futures.Future[Any]


class Processes(futures.Executor):
  """Runs up to so many evaluations at once, each in a process of its own, which the next one uses again.

  Functions, arguments and results are pickled, and so are exceptions. A process that ends in the middle of an
  evaluation fails it with `concurrent.futures.process.BrokenProcessPool`, and another process takes its place.
  Every process imports the file that Python was started with. It has to use this class under
  `if __name__ == '__main__':`, without which each process would begin the search again.
  """

  def __init__(self, workers: int, modules: Sequence[str] = ()) -> None:
    """Processes start when they are needed.

    Args:
      workers: how many there may be.
      modules: that every process imports first, such as one that adds a space to `SPACES`.
    """
    self._max_workers = workers
    self._modules = tuple(modules)
    self._workers: list[_Worker] = []

  def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
    """Starts a call in a free process.

    Raises:
      RuntimeError: no process is free.
    """
    while True:
      pool, pid = self._free()
      try:
        future = pool.submit(function, *args, **kwargs)
        break
      except futures.BrokenExecutor:
        # The process has ended since its latest evaluation.
        pool.shutdown()
    self._workers.append(_Worker(pool, pid, future))
    return future

  def _free(self) -> tuple[futures.ProcessPoolExecutor, int]:
    """Takes a process that has nothing to do from the list, or starts one."""
    for worker in [each for each in self._workers if each.latest.done()]:
      self._workers.remove(worker)
      if not isinstance(worker.latest.exception(), futures.BrokenExecutor):
        return worker.pool, worker.pid
      worker.pool.shutdown()
    if len(self._workers) == self._max_workers:
      raise RuntimeError(f'all {self._max_workers} processes are busy')
    # A fork of a process with threads, as JAX has them, can lock up.
    context = multiprocessing.get_context('spawn')
    pool = futures.ProcessPoolExecutor(1, mp_context=context, initializer=_prepare, initargs=(self._modules,))
    return pool, pool.submit(os.getpid).result()

  def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
    """Ends the processes.

    Args:
      wait: until they have ended.
      cancel_futures: asks evaluations that are running to stop, by SIGTERM; a training saves itself then.
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
  """Makes a new process one that ends when this executor says so, or with its parent."""
  # A terminal sends SIGINT to all processes of its group; the parent decides what happens to this one.
  os.setpgrp()
  threading.Thread(target=_end_with_parent, daemon=True).start()
  for name in modules:
    importlib.import_module(name)


def _end_with_parent() -> None:
  # Without it, a process whose parent was killed would wait for work for ever.
  parent = multiprocessing.parent_process()
  assert parent is not None
  connection.wait([parent.sentinel])
  os._exit(1)
