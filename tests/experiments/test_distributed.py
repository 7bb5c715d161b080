"""Searches by several processes, each with four devices, that find each other over the loopback interface."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs import imagenet_eval
from darts_jax import search, spaces, training
from darts_jax.runtime import metrics
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import loop
from darts_jax.spaces import darts
from darts_jax.training import loop as training_loop

ROOT = pathlib.Path(__file__).parents[2]
#: Seconds within which processes have to end when one of them is gone: more than their heartbeats take.
BOUND = 120


@pytest.fixture(scope='module')
def settings(tiny_search) -> dict[str, Any]:
  """A search of 2 steps an epoch."""
  return tiny_search(batch_size=256, log_every=2)


@pytest.fixture(scope='module')
def config(tmp_path_factory, settings) -> pathlib.Path:
  """The same as a config file."""
  path = tmp_path_factory.mktemp('config') / 'tiny.py'
  path.write_text(f'from ml_collections import ConfigDict\n\n\ndef get_config():\n  return ConfigDict({settings!r})\n')
  return path


def start(
  config: pathlib.Path, workdir: pathlib.Path, *arguments: str, command: str = 'search'
) -> 'subprocess.Popen[str]':
  """A process of a command, as a user starts it, with the quick compilation of the tests."""
  kept = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
  flags = ' '.join([*kept, '--xla_force_host_platform_device_count=4'])
  program = [sys.executable, '-m', f'experiments.{command}', f'--config={config}', f'--workdir={workdir}']
  return subprocess.Popen(
    [*program, '--distributed', *arguments],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': flags},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@contextlib.contextmanager
def pair(
  config: pathlib.Path, workdir: pathlib.Path, *arguments: str, late: float = 0.0, command: str = 'search'
) -> Iterator[list[Any]]:
  """Two processes, the second some seconds after the first; whatever is left of them is killed."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes: list[Any] = []
  try:
    for i in range(2):
      where = f'--coordinator={address}', '--num_processes=2', f'--process_id={i}', f'--timeout={BOUND}'
      processes.append(start(config, workdir, *where, *arguments, command=command))
      time.sleep(late * (1 - i))
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.wait()
      process.stdout.close()
      process.stderr.close()


def wait_for_checkpoint(workdir: pathlib.Path) -> None:
  """Returns when there is that of the first epoch."""
  deadline = time.monotonic() + BOUND
  while not (workdir / 'checkpoints' / '2').exists():
    assert time.monotonic() < deadline, 'no checkpoint'
    time.sleep(0.05)


def finish(processes: list[Any]) -> list[tuple[str, str]]:
  """What processes print that end as they should."""
  outputs = [process.communicate(timeout=300) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  return outputs


def own(text: str) -> list[str]:
  """The lines that are not of the library which connects processes, several of whose threads print at a time."""
  return [line for line in text.splitlines() if not re.search(r'Gloo|peer ranks|^[\d\s]*$', line)]


def alphas(workdir: pathlib.Path, epochs: int | None = None) -> np.ndarray:
  """α of both cells before the first epoch and after each of two; or of that many lines of a search that goes on."""
  with np.load(workdir / 'alphas.npz') as saved:
    assert saved['epoch'][:epochs].tolist() == [0, 1, 2][:epochs]
    return np.stack([saved['normal'], saved['reduce']])[:, :epochs]


def events(workdir: pathlib.Path) -> list[str]:
  found = [line['event'] for line in metrics.read(workdir) if line['kind'] == 'event']
  return [event for event in found if event not in ('compiled', 'not_settled')]


@pytest.fixture(scope='module')
def alone(tmp_path_factory, settings) -> pathlib.Path:
  """The search of one process, with as many devices."""
  workdir = tmp_path_factory.mktemp('alone')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'enable_cache', lambda: None)
    assert search.run(settings, workdir).finished
  return workdir


@pytest.fixture(scope='module')
def together(tmp_path_factory, config) -> tuple[pathlib.Path, list[tuple[str, str]]]:
  """The search of two processes, of which one is late, and what they printed."""
  workdir = tmp_path_factory.mktemp('together')
  with pair(config, workdir, late=3.0) as processes:
    return workdir, finish(processes)


def test_two_processes_find_what_one_does(alone, together):
  workdir, _ = together
  # Sums are in another order.
  np.testing.assert_allclose(alphas(workdir), alphas(alone), rtol=0, atol=1e-5)
  assert (workdir / 'genotype.json').read_text() == (alone / 'genotype.json').read_text()
  assert {path.name for path in workdir.iterdir()} == {path.name for path in alone.iterdir()}


def test_the_first_process_speaks_for_all(together):
  workdir, [(output, errors), (silent_output, silent_errors)] = together
  assert '2 processes, 8 devices (4 a process), cpu' in errors.splitlines()
  said = [line.partition(':')[0] for line in own(output)]
  assert said == ['genotype', 'validation accuracy in the supernet', 'report']
  assert own(silent_output) == []
  assert [line.partition(' at ')[0] for line in own(silent_errors)] == ['waiting for all processes']
  # One log, with one line for every epoch.
  assert [line['epoch'] for line in metrics.read(workdir) if line['kind'] == 'epoch'] == [0, 1]
  assert events(workdir) == ['finished']


@pytest.fixture(scope='module')
def killed(tmp_path_factory, config) -> tuple[pathlib.Path, int, str]:
  """A search whose second process is killed after the first checkpoint; what became of the other."""
  workdir = tmp_path_factory.mktemp('killed')
  with pair(config, workdir) as processes:
    wait_for_checkpoint(workdir)
    processes[1].kill()
    _, errors = processes[0].communicate(timeout=BOUND)
    return workdir, processes[0].returncode, errors


def test_a_killed_process_ends_the_others_with_a_message(killed):
  _, code, errors = killed
  assert code not in (0, None)
  # That of this package, or that of JAX if its heartbeats are first.
  assert 'of which one has probably ended' in errors or 'another task died' in errors


def test_all_go_on_from_the_last_checkpoint(tmp_path, config, killed, together):
  workdir = tmp_path / 'again'
  shutil.copytree(killed[0], workdir)
  with pair(config, workdir) as processes:
    finish(processes)
  np.testing.assert_array_equal(alphas(workdir), alphas(together[0]))
  assert events(workdir)[0] == 'resumed'


@pytest.mark.parametrize('devices', [8, 1])
def test_one_process_goes_on_with_what_two_began(tmp_path, monkeypatch, settings, killed, alone, devices):
  workdir = tmp_path / 'again'
  shutil.copytree(killed[0], workdir)
  monkeypatch.setattr(loop, 'enable_cache', lambda: None)
  monkeypatch.setattr(loop, 'make_mesh', lambda seeds: make_mesh(devices))
  assert search.run(settings, workdir).finished
  np.testing.assert_allclose(alphas(workdir), alphas(alone), rtol=0, atol=1e-5)
  assert events(workdir) == ['resumed', 'finished']


def test_two_processes_stream_a_part_of_each_batch_to_search_a_cell(tmp_path, settings, alone):
  config = tmp_path / 'streamed.py'
  content = {**settings, 'data': {'name': 'digits', 'stream': True}}
  config.write_text(f'from ml_collections import ConfigDict\n\n\ndef get_config():\n  return ConfigDict({content!r})\n')
  with pair(config, tmp_path / 'run') as processes:
    finish(processes)
  np.testing.assert_allclose(alphas(tmp_path / 'run'), alphas(alone), rtol=0, atol=1e-5)
  epochs = [[line for line in metrics.read(path) if line['kind'] == 'epoch'] for path in (tmp_path / 'run', alone)]
  for ours, expected in zip(*epochs, strict=True):
    for name in ('train_loss', 'valid_loss', 'valid_accuracy'):
      assert ours[name] == pytest.approx(expected[name], rel=1e-4), name


def test_searches_side_by_side_have_a_process_each_and_stop_together(
  tmp_path, config, settings, monkeypatch, make_guard
):
  workdir, one = tmp_path / 'run', tmp_path / 'one'
  with pair(config, workdir, '--config.mesh.seed=2', '--config.epochs=2000') as processes:
    wait_for_checkpoint(workdir)
    # The signal is for one of them.
    processes[1].terminate()
    outputs = [process.communicate(timeout=BOUND) for process in processes]
  assert [process.returncode for process in processes] == [130, 130], outputs
  assert 'SIGTERM: saved at step ' in outputs[0][1]
  steps = [max(line['step'] for line in metrics.read(workdir / f'seed_{seed}')) for seed in (3, 4)]
  assert steps[0] == steps[1]
  # One process with as many devices takes the same steps.
  monkeypatch.setattr(loop, 'enable_cache', lambda: None)
  guard = make_guard(lambda: 'SIGTERM' if (one / 'checkpoints' / '2').exists() else None)
  monkeypatch.setattr(loop, 'InterruptGuard', guard)
  search.run_side_by_side(settings | {'mesh': {'seed': 2}, 'epochs': 2000}, one)
  first = {}
  for seed in (3, 4):
    found, expected = (alphas(folder / f'seed_{seed}', 2) for folder in (workdir, one))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    first[seed] = found
  assert np.abs(first[4] - first[3]).max() > 1e-2


def test_an_error_of_one_process_is_one_line_of_the_first(tmp_path, config):
  (tmp_path / 'file').write_text('')
  with pair(config, tmp_path / 'file' / 'run') as processes:
    outputs = [process.communicate(timeout=BOUND) for process in processes]
  assert [process.returncode for process in processes] == [2, 2]
  assert f'error: process 0: --workdir: {tmp_path}/file/run cannot be written (Not a directory)' in outputs[0][1]
  assert 'error' not in outputs[1][1]


def test_processes_with_different_configs_are_noticed(tmp_path, config):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    where = f'--coordinator=127.0.0.1:{free.getsockname()[1]}', '--num_processes=2', f'--timeout={BOUND}'
  processes = [start(config, tmp_path / 'run', *where, f'--process_id={i}', f'--config.seed={i}') for i in range(2)]
  outputs = [process.communicate(timeout=BOUND) for process in processes]
  assert [process.returncode for process in processes] == [2, 2]
  assert 'error: --config: process 1 has another config, or other data, than process 0' in outputs[0][1].splitlines()
  assert not (tmp_path / 'run').exists()


def test_nobody_at_the_coordinators_address_is_an_error(tmp_path, config):
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))  # And nobody listens.
    address = f'127.0.0.1:{taken.getsockname()[1]}'
    where = f'--coordinator={address}', '--num_processes=2'
    processes = [start(config, tmp_path / 'run', *where, f'--process_id={i}', '--timeout=2') for i in range(2)]
    processes.append(start(config, tmp_path / 'run'))
    errors = [process.communicate(timeout=BOUND)[1] for process in processes]
  assert [process.returncode for process in processes] == [2, 2, 2]
  assert errors[0] == f'error: --coordinator: {address}: process 0 cannot listen there (Address already in use)\n'
  assert errors[1].startswith(f'error: --coordinator: {address}: process 0 was not there after 2 seconds (')
  assert errors[1].count('\n') == 1
  message = (
    'no cluster of a kind that JAX knows was found; --coordinator, --num_processes, --process_id have to be given'
  )
  assert errors[2].startswith(f'error: --distributed: {message}')
  assert errors[2].count('\n') == 1
  assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def colours(tmp_path_factory) -> pathlib.Path:
  """Noisy images of two colours, as files."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for split, count in (('train', 12), ('val', 4)):
    for name, colour in (('blue', (60, 60, 200)), ('green', (60, 200, 60))):
      (root / split / name).mkdir(parents=True)
      for i in range(count):
        pixels = np.clip(rng.normal(colour, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / split / name / f'{i}.png')
  return root


def test_processes_stream_a_part_of_each_batch_to_train_one_network(tmp_path, colours, monkeypatch):
  found = imagenet_eval.get_config()
  found.update(epochs=2, batch_size=8, log_every=3)
  found.data.update(dir=str(colours), image_size=32, num_threads=1, validation_fraction=0.0)
  found.network.update(channels=2, layers=3, auxiliary=False)
  config = tmp_path / 'streamed.py'
  content = json.loads(found.to_json())
  config.write_text(f'from ml_collections import ConfigDict\n\n\ndef get_config():\n  return ConfigDict({content!r})\n')
  cell = (('skip_connect', 0), ('max_pool_3x3', 1))
  network = darts.genotype(cell, (2,), cell, (2,))
  spaces.save(network, tmp_path / 'found.json')
  with pair(config, tmp_path / 'two', f'--genotype={tmp_path / "found.json"}', command='train') as processes:
    [(output, _), _] = finish(processes)
  assert [line.partition(':')[0] for line in own(output)] == ['parameters', 'test accuracy', 'report']
  monkeypatch.setattr(training_loop, 'enable_cache', lambda: None)
  training.run(found, tmp_path / 'one', network)
  two, one = ([line for line in metrics.read(tmp_path / name) if line['kind'] != 'event'] for name in ('two', 'one'))
  assert [line['kind'] for line in two] == ['step', 'epoch', 'step', 'epoch', 'test']
  for ours, expected in zip(two, one, strict=True):
    for name in ('train_loss', 'weights_gradient_norm', 'loss', 'accuracy'):
      if name in expected:
        # Rounding, which grows over six steps of BN of a few images.
        assert ours[name] == pytest.approx(expected[name], rel=1e-3), name
