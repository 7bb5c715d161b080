"""Whole searches that are stopped, killed, damaged or diverge."""

import copy
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from darts_jax import search
from darts_jax.data.images import load
from darts_jax.report import workdir as workdirs
from darts_jax.runtime import metrics
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.lock import locked
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import loop
from darts_jax.settings import build

pytestmark = pytest.mark.usefixtures('undrawn')

ROOT = pathlib.Path(__file__).parents[2]

# 11 steps an epoch.
CONFIG = {
  'epochs': 3,
  'batch_size': 64,
  'log_every': 4,
  'data': {'name': 'digits'},
  'augment': {'crop_padding': 1, 'flip': False},
  'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'avg_pool_3x3')},
  'network': {'channels': 2, 'layers': 3},
  'weights': {'learning_rate': 0.05},
  'alphas': {'learning_rate': 0.01},
  'hypergradient': {'name': 'first_order'},
}

# Runs a search in a process of its own, which gets a signal after a step, or instead of renaming a file or folder,
# the moment at which a checkpoint becomes complete.
PROGRAM = """
import json, os, pathlib, signal, sys
from darts_jax import search
from darts_jax.runtime.progress import Progress
from darts_jax.runtime import loop as loops
from darts_jax.search import loop
from matplotlib.figure import Figure

config, workdir, name, moment = json.loads(sys.argv[1])
update, rename = Progress.update, pathlib.Path.rename

def update_or_die(self, step, values):
  update(self, step, values)
  if step == moment:
    os.kill(os.getpid(), getattr(signal, name))

def rename_or_die(self, target):
  if self.name == moment:
    os.kill(os.getpid(), getattr(signal, name))
  return rename(self, target)

Figure.savefig = lambda self, file, **how: file.write('<svg></svg>')  # As `undrawn` does.
loop.enable_cache = lambda: None  # As the tests have set it up: it keeps small programs, too.
if name:
  loops._SECONDS_A_CALL = 0.0  # One step a call.
  Progress.update, pathlib.Path.rename = update_or_die, rename_or_die
print(search.run(config, workdir).finished)
"""


class Finished(NamedTuple):
  code: int
  output: str
  errors: str


def run(workdir: pathlib.Path, signal_name: str = '', moment: int | str = '') -> Finished:
  quick = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
  environment = os.environ | {'XLA_FLAGS': ' '.join(quick), 'PYTHONPATH': str(ROOT)}
  arguments = json.dumps([CONFIG, str(workdir), signal_name, moment])
  command = [sys.executable, '-c', PROGRAM, arguments]
  process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
  return Finished(process.returncode, process.stdout, process.stderr)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp('uninterrupted')
  finished = run(workdir)
  assert (finished.code, finished.output) == (0, 'True\n'), finished.errors
  return workdir


class History(NamedTuple):
  """A search that was stopped again and again: its directory, and what each of its processes left behind."""

  workdir: pathlib.Path
  finished: list[Finished]
  events: list[list[dict[str, Any]]]
  checkpoints: list[list[int]]


def damage(checkpoint: pathlib.Path) -> None:
  """Changes one byte of the largest file."""
  path = max((path for path in checkpoint.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.fixture(scope='module')
def interrupted(tmp_path_factory, uninterrupted) -> History:
  workdir = tmp_path_factory.mktemp('interrupted')
  history = History(workdir, [], [], [])
  moments = [
    ('SIGKILL', '11.partial'),  # Before the first checkpoint is complete.
    ('SIGTERM', 18),  # In the middle of the second epoch, and between two lines of the log.
    ('SIGKILL', '33.partial'),
    ('', ''),
  ]
  for i, (name, moment) in enumerate(moments):
    if i == 3:
      damage(workdir / 'checkpoints' / '22')
    history.finished.append(run(workdir, name, moment))
    history.events.append([line for line in metrics.read(workdir) if line['kind'] == 'event'])
    history.checkpoints.append(Checkpoints(workdir / 'checkpoints').steps())
  return history


def final_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  settings = build(search.Search, CONFIG)
  searcher = search.Searcher.open(settings, load('digits'), make_mesh(1))
  restored = Checkpoints(workdir / 'checkpoints').restore(jax.eval_shape(searcher.init, jax.random.key(0)))
  assert (restored.step, restored.damaged) == (33, ())
  state = restored.state.replace(key=jax.random.key_data(restored.state.key))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def test_killed_search_goes_on_from_its_last_checkpoint(interrupted):
  assert interrupted.finished[0].code == -signal.SIGKILL
  assert interrupted.checkpoints[0] == []
  assert interrupted.finished[2].code == -signal.SIGKILL
  assert interrupted.checkpoints[2] == [11, 18, 22]
  assert 'resumed' not in {event['event'] for event in interrupted.events[1]}
  assert [event['step'] for event in interrupted.events[2] if event['event'] == 'resumed'] == [18]


def test_terminated_search_saves_its_state_and_says_how_to_go_on(interrupted):
  assert (interrupted.finished[1].code, interrupted.finished[1].output) == (0, 'False\n')
  assert interrupted.checkpoints[1] == [11, 18]
  message = 'SIGTERM: saved at step 18 of 33; start again to resume'
  assert interrupted.finished[1].errors.splitlines()[-2] == message
  assert interrupted.events[1][-1] == {'kind': 'event', 'step': 18, 'event': 'interrupted', 'message': message}


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(interrupted):
  assert (interrupted.finished[3].code, interrupted.finished[3].output) == (0, 'True\n')
  damaged = [event for event in interrupted.events[3] if event['event'] == 'damaged_checkpoint']
  assert [event['step'] for event in damaged] == [18]
  assert damaged[0]['message'].startswith(str(interrupted.workdir / 'checkpoints' / '22') + ': ')
  assert damaged[0]['message'] in interrupted.finished[3].errors
  assert 'resumed at step 18 of 33' in interrupted.finished[3].errors


def test_stopped_search_ends_bit_for_bit_like_an_uninterrupted_one(uninterrupted, interrupted):
  expected, found = final_state(uninterrupted), final_state(interrupted.workdir)
  assert expected.keys() == found.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)
  assert (interrupted.workdir / 'genotype.json').read_text() == (uninterrupted / 'genotype.json').read_text()
  with np.load(interrupted.workdir / 'alphas.npz') as a, np.load(uninterrupted / 'alphas.npz') as b:
    assert a['step'].tolist() == [0, 11, 22, 33]
    for name in b.files:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_every_step_is_logged_once(uninterrupted, interrupted):
  logs = [metrics.read(workdir) for workdir in (uninterrupted, interrupted.workdir)]
  for kind, steps in (('step', range(4, 33, 4)), ('epoch', (11, 22, 33))):
    expected, found = ([line for line in log if line['kind'] == kind] for log in logs)
    assert [line['step'] for line in found] == [line['step'] for line in expected] == list(steps)
    for a, b in zip(found, expected, strict=True):
      assert a.keys() == b.keys()
      for name in a.keys() - {'images_per_second', 'seconds'}:
        assert a[name] == b[name], (name, a['step'])


def snapshot(workdir: pathlib.Path, *except_for: str) -> dict[str, bytes]:
  paths = [
    path for path in workdir.rglob('*') if path.is_file() and path.relative_to(workdir).parts[0] not in except_for
  ]
  return {str(path.relative_to(workdir)): path.read_bytes() for path in paths}


@pytest.fixture
def in_process(monkeypatch) -> Iterator[None]:
  """Searches in this process: on one device, and leaving JAX configured as before."""
  names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  before = {name: jax.config.values[name] for name in names}
  monkeypatch.setattr(loop, 'make_mesh', lambda seeds: make_mesh(1))
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def finished_search(uninterrupted, tmp_path, in_process) -> pathlib.Path:
  return shutil.copytree(uninterrupted, tmp_path / 'run')


@pytest.mark.parametrize('event', ['', 'finished'])
def test_finished_search_only_reports(finished_search, event):
  # A kill can come between the last checkpoint and the last line of the log.
  log = finished_search / 'metrics.jsonl'
  lines = log.read_text().splitlines(keepends=True)
  log.write_text(''.join(line for line in lines if not event or f'"event": "{event}"' not in line))
  before = snapshot(finished_search, 'metrics.jsonl', 'tensorboard', 'report.html')
  epochs = [line for line in metrics.read(finished_search) if line['kind'] == 'epoch']
  result = search.run(CONFIG, finished_search)
  assert result.finished
  assert result.valid_accuracy == epochs[-1]['valid_accuracy']
  assert result.report == finished_search / 'report.html'
  assert snapshot(finished_search, 'metrics.jsonl', 'tensorboard', 'report.html') == before
  assert [line for line in metrics.read(finished_search) if line['kind'] == 'epoch'] == epochs
  assert workdirs.read(finished_search).status == 'finished'


def test_other_config_is_refused_by_its_differences(finished_search):
  before = snapshot(finished_search)
  config = copy.deepcopy(CONFIG) | {'epochs': 4}
  config['alphas']['learning_rate'] = 0.02
  with pytest.raises(ValueError, match=r'\(config.epochs: 3 → 4; config.alphas.learning_rate: 0.01 → 0.02\)'):
    search.run(config, finished_search)
  assert snapshot(finished_search) == before


class Begun(BaseException):
  pass


@pytest.fixture
def begin(monkeypatch, tmp_path, in_process) -> Callable[[], None]:
  """Begins a search of small images, as far as its first step."""

  def run(self):
    raise Begun

  monkeypatch.setattr(loop.Epochs, 'run', run)
  monkeypatch.setattr(loop, 'enable_cache', lambda: None)
  config = CONFIG | {'data': {'name': 'npz', 'path': str(tmp_path / 'mine.npz')}}
  return lambda: search.run(config, tmp_path / 'run')


def test_other_data_are_refused_and_named(tmp_path, begin):
  with np.load(ROOT / 'tests' / 'cases' / 'resume_before.npz') as file:
    images = dict(file)
  x, y = images['x_train'], images['y_train']
  np.savez(tmp_path / 'mine.npz', **images)
  for _ in range(2):
    with pytest.raises(Begun):
      begin()
  before = snapshot(tmp_path / 'run')
  others = {
    'labels': {'x_train': x, 'y_train': (y + 1) % 10},
    'pixels': {'x_train': 16 - x, 'y_train': y},
    'images': {'x_train': np.concatenate([x, x[:9]]), 'y_train': np.concatenate([y, y[:9]])},
    'kind': {'x_train': x.astype(np.float32), 'y_train': y},
  }
  for name, changed in others.items():
    np.savez(tmp_path / 'mine.npz', **changed)
    named = re.escape(f'the data of npz {tmp_path / "mine.npz"} are not those of before')
    with pytest.raises(ValueError, match=rf'^--workdir: .* \(.*config.dataset.{name}: .* → .*\): {named}[^\n]*$'):
      begin()
    assert snapshot(tmp_path / 'run') == before


def test_search_in_a_directory_in_use_is_refused_before_its_data_are_read(tmp_path, begin):
  with locked(tmp_path / 'run'), pytest.raises(ValueError, match='^--workdir: .*run is in use'):
    begin()


@pytest.mark.parametrize('damage', ['removed', 'emptied', 'cut', 'changed'])
def test_lost_files_come_back_from_the_checkpoint(finished_search, damage):
  names = ('config.json', 'alphas.npz', 'genotype.json', 'metrics.jsonl')
  before = {name: (finished_search / name).read_bytes() for name in names}
  for name, content in before.items():
    path = finished_search / name
    if damage == 'removed':
      path.unlink()
    else:
      size = len(content) // 2
      changed = content[:size] + b'\xff' + content[size + 1 :]
      path.write_bytes({'emptied': b'', 'cut': content[:size], 'changed': changed}[damage])
  assert search.run(CONFIG, finished_search).finished
  for name in names[:3]:
    assert (finished_search / name).read_bytes() == before[name], name
  lines = [json.loads(line) for line in before['metrics.jsonl'].splitlines()]
  found = metrics.read(finished_search)
  assert [line for line in found if line['kind'] != 'event'] == [line for line in lines if line['kind'] != 'event']
  told = {line['message'].partition(':')[0] for line in found if line.get('event') == 'brought_back'}
  assert told == {'alphas.npz', 'genotype.json', 'metrics.jsonl'}
  assert workdirs.read(finished_search).status == 'finished'


def test_history_that_no_checkpoint_has_begins_anew_and_says_so(finished_search):
  for path in finished_search.rglob('alphas.npz*'):
    path.write_bytes(path.read_bytes()[:-20])
  genotype = (finished_search / 'genotype.json').read_bytes()
  (finished_search / 'genotype.json').unlink()
  for _ in range(2):
    assert search.run(CONFIG, finished_search).finished
    found = workdirs.read(finished_search)
    assert found.history.steps.tolist() == [33]
    assert [event['event'] for event in found.events].count('incomplete_log') == 1
    assert (finished_search / 'genotype.json').read_bytes() == genotype


def test_nothing_is_lost_if_every_checkpoint_is_damaged(finished_search):
  for step in (11, 22, 33):
    damage(finished_search / 'checkpoints' / str(step))
  before = snapshot(finished_search)
  with pytest.raises(ValueError, match='^[^\n]*checkpoints: every checkpoint is damaged: [^\n]*$'):
    search.run(CONFIG, finished_search)
  assert snapshot(finished_search) == before


# The learning rate of the second epoch is 10³⁰. Its first step is finite, but the weights after it are of no use: the
# next step, if there is one, has no finite loss, and neither has the evaluation.
@pytest.mark.parametrize(('batch_size', 'last_good', 'step'), [(256, 2, 4), (512, 1, 2)])
def test_search_that_diverges_stops(tmp_path, in_process, batch_size, last_good, step):
  config = copy.deepcopy(CONFIG) | {'batch_size': batch_size}
  config['space']['operations'] = ('none', 'skip_connect')
  config['weights']['final_learning_rate'] = 4e30 / 3
  message = (
    f'step {step}: a loss or gradient is not finite; the last good checkpoint is that of step {last_good},'
    f' in {tmp_path}'
  )
  with pytest.raises(search.Diverged, match=f'^{re.escape(message)}$'):
    search.run(config, tmp_path)
  assert Checkpoints(tmp_path / 'checkpoints').steps() == [last_good]
  found = workdirs.read(tmp_path)
  assert (found.status, found.problems) == ('stopped', {})
  assert (found.events[-1]['event'], found.events[-1]['message']) == ('non_finite', message)
  assert [record['epoch'] for record in found.epochs] == [0]
  assert math.isfinite(found.epochs[0]['valid_loss'])
  assert found.history.steps.tolist() == [0, last_good]
  assert message in (tmp_path / 'report.html').read_text()
