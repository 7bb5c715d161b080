"""What one process does alone, and what becomes of what several say; test_distributed.py has several."""

import socket
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.runtime import processes
from darts_jax.runtime.mesh import batch_sharding, make_mesh, put, replicated


def test_one_process_is_the_first_and_agrees_with_itself():
  assert processes.is_first()
  found = processes.gather([0.1, 3])
  assert found.dtype == np.float64
  assert found.tolist() == [[0.1, 3.0]]
  assert processes.together(lambda: 'result') == 'result'
  done = []
  processes.by_first(lambda: done.append(1))
  assert done == [1]


def test_an_error_of_one_process_stays_what_it_is():
  class MyError(ValueError):
    pass

  def fail():
    raise MyError('config.epochs: 0')

  with pytest.raises(MyError, match=r'^config.epochs: 0$'):
    processes.together(fail)


def test_an_error_that_is_not_unicode_reaches_the_others(three):
  said = three(np.zeros(1024, np.uint8), np.zeros(1024, np.uint8))

  def fail():
    raise ValueError('a/\udcff: cannot be read')

  with pytest.raises(processes.AgreedError, match=r'^process 1: a/.udcff: cannot be read$'):
    processes.together(fail)
  assert len(said) == 1


@pytest.fixture
def three(monkeypatch):
  """Makes this the second of three processes, of which the others say what is given."""

  def make(*others: np.ndarray):
    monkeypatch.setattr(jax, 'process_count', lambda: 3)
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    said = []

    def allgather(own):
      said.append(own)
      first, last = (other if isinstance(other, np.ndarray) else other(own) for other in others)
      return np.stack([first, own, last])

    monkeypatch.setattr(processes.multihost_utils, 'process_allgather', allgather)
    return said

  return make


def test_numbers_of_all_processes_are_gathered_without_rounding(three):
  others = [np.frombuffer(np.array([value, 1e300]).tobytes(), np.uint8) for value in (1 / 3, -2.0)]
  said = three(*others)
  assert processes.gather([1 + 1e-15, 0]).tolist() == [[1 / 3, 1e300], [1 + 1e-15, 0.0], [-2.0, 1e300]]
  assert said[0].dtype == np.uint8


def message(text: str):
  """What a process says that failed so."""

  def say(own: np.ndarray) -> np.ndarray:
    padded = np.zeros_like(own)
    padded[: len(text.encode())] = np.frombuffer(text.encode(), np.uint8)
    return padded

  return say


def test_an_error_of_another_process_is_raised_here(three):
  three(message(''), message('config.data.dir: größer'))
  with pytest.raises(processes.AgreedError, match=r'^process 2: config.data.dir: größer$'):
    processes.together(lambda: 'fine')


def test_the_error_of_the_lowest_process_is_raised_by_all(three):
  said = three(message(''), message('mine'))

  def fail():
    raise ValueError('x' * 2000)

  with pytest.raises(processes.AgreedError, match='^process 1: xxx'):
    processes.together(fail)
  # Messages have one length, whatever they say.
  assert len(said[0]) == 1024


def test_only_the_first_process_does_what_one_has_to(three):
  three(message(''), message(''))
  assert not processes.is_first()
  processes.by_first(lambda: pytest.fail('this is the second'))


def test_topology_is_a_line(monkeypatch):
  assert processes.topology() == '8 × cpu'
  monkeypatch.setattr(jax, 'process_count', lambda: 1)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(jax, 'devices', lambda: [types.SimpleNamespace(device_kind='NVIDIA H200', process_index=0)] * 2)
  assert processes.topology() == '2 × NVIDIA H200 (gpu)'
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert processes.topology() == '2 processes, 2 devices (2 a process), NVIDIA H200'


def test_arrays_are_fetched_whole_and_put_where_they_belong():
  mesh = make_mesh(4)
  shardings = {'shared': batch_sharding(mesh), 'same': replicated(mesh)}
  tree = {'shared': np.arange(8.0).reshape(4, 2), 'same': np.float32(3)}
  placed = put(tree, shardings)
  assert [shard.data.shape for shard in placed['shared'].addressable_shards] == [(1, 2)] * 4
  assert placed['same'].is_fully_replicated
  found = processes.fetch(placed | {'host': np.ones(2), 'device': jnp.zeros(3)})
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
  np.testing.assert_array_equal(found['shared'], tree['shared'])


def test_an_address_that_answers_is_found():
  with socket.socket() as listening:
    listening.bind(('127.0.0.1', 0))
    listening.listen()
    processes._find(f'127.0.0.1:{listening.getsockname()[1]}', 5.0, listens=False)
