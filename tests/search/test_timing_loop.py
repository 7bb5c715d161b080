"""Whole searches in which α move at some steps, with the weights or not at all; and what is logged of them."""

import contextlib
import io
import math
import os
import pathlib
import signal
from typing import Any

import jax
import numpy as np
import pytest

from darts_jax import search
from darts_jax.data.images import load
from darts_jax.runtime import loop as loops
from darts_jax.runtime import metrics
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.progress import Progress
from darts_jax.search import Search, Searcher, loop
from darts_jax.settings import build

pytestmark = pytest.mark.usefixtures('undrawn', 'same_programs')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """Sentences that count on from a word."""
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  for name, sentences in (('train', 60), ('valid', 14), ('test', 4)):
    lines = [' '.join(f'word{(first + i) % 9}' for i in range(6)) for first in rng.integers(9, size=sentences)]
    (folder / f'{name}.txt').write_text('\n'.join(lines) + '\n')
  return folder


def make_config(folder: pathlib.Path, **changes: Any) -> dict[str, Any]:
  return {
    'epochs': 3,
    'batch_size': 8,
    'task': {'bptt': 6, 'short_fraction': 0.4},
    'log_every': 2,
    'checkpoint': {'keep': 9},
    'data': {'name': 'files', 'dir': str(folder)},
    'space': {'name': 'recurrent', 'nodes': 1, 'operations': ('none', 'tanh', 'identity')},
    'network': {'width': 4},
    'weights': {'learning_rate': 3.0, 'final_learning_rate': 3.0},
    'hypergradient': {'name': 'finite_difference'},
    'alphas': {'learning_rate': 0.01},
    **changes,
  }


@pytest.fixture
def in_process(monkeypatch):
  """Searches on one device, and with programs kept as the tests have set it up."""
  monkeypatch.setattr(loop, 'make_mesh', lambda seeds: make_mesh(1))
  monkeypatch.setattr(loop, 'enable_cache', lambda: None)
  return monkeypatch


def run(config: dict[str, Any], workdir: pathlib.Path) -> search.Result:
  with contextlib.redirect_stdout(io.StringIO()):
    return search.run(config, workdir)


def states(workdir: pathlib.Path, result: search.Result) -> list[tuple[int, Any]]:
  """Of the checkpoints, in NumPy."""
  checkpoints = Checkpoints(workdir / 'checkpoints')
  template = jax.tree.map(lambda x: x, result.state)
  return [(step, checkpoints.restore(template, at=step).state) for step in checkpoints.steps()]


def lines(workdir: pathlib.Path, kind: str) -> list[dict[str, Any]]:
  found = [line for line in metrics.read(workdir) if line['kind'] == kind]
  # Which differ from run to run.
  return [{key: value for key, value in line.items() if key not in ('seconds', 'tokens_per_second')} for line in found]


def history(workdir: pathlib.Path) -> np.ndarray:
  """α before the first epoch and after each."""
  with np.load(workdir / 'alphas.npz') as found:
    return found['recurrent']


def moves(step: int, start: int) -> bool:
  return step >= start and (step + 1) % 3 == 0


def test_a_search_whose_alphas_begin_late_resumes_bit_for_bit(folder, tmp_path, in_process):
  alphas = {'learning_rate': 0.01, 'order': 'weights_first', 'every': 3, 'from_epoch': 1}
  config = make_config(folder, alphas=alphas)
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  result = run(config, whole)
  ends = [line['step'] for line in lines(whole, 'epoch')]
  start = ends[0]
  update, happenings = Progress.update, {start - 2, start + 2, ends[1] + 1}

  def update_and_stop(self, step, values):
    update(self, step, values)
    if step in happenings:
      happenings.remove(step)
      os.kill(os.getpid(), signal.SIGTERM)

  in_process.setattr(loops, '_SECONDS_A_CALL', 0.0)  # One step a call.
  in_process.setattr(Progress, 'update', update_and_stop)
  for _ in range(3):
    assert not run(config, stopped).finished
  resumed = run(config, stopped)
  assert resumed.finished
  assert not happenings
  for leaf, other in zip(jax.tree.leaves(result.state), jax.tree.leaves(resumed.state), strict=True):
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf, other = jax.random.key_data(leaf), jax.random.key_data(other)
    np.testing.assert_array_equal(leaf, other)
  for kind in ('step', 'epoch'):
    assert lines(stopped, kind) == lines(whole, kind)

  # Before their epoch α, and all that their optimiser has, stay as they were.
  beginning, early, late, _ = history(whole)
  np.testing.assert_array_equal(early, beginning)
  assert np.any(late != early)
  first = dict(states(whole, result))[start]
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(first.alphas_optimizer))
  assert np.any(first.carried.train)
  assert not np.any(first.carried.valid)
  count = sum(moves(step, start) for step in range(ends[-1]))
  assert result.state.alphas_optimizer[1][0].count == count > 1

  # Means are over the steps at which α moved, and left out where there are none.
  for line in lines(whole, 'step'):
    moved = [step for step in range(line['step'] - 2, line['step']) if moves(step, start)]
    of_alphas = {'valid_loss', 'alphas_gradient_norm', 'second_order_fraction', 'epsilon', 'disagreement'}
    assert of_alphas & set(line) == (of_alphas if moved else set())
    assert {'train_loss', 'weights_gradient_norm', 'learning_rate'} <= set(line)
    assert not {'alphas_updates', 'checks'} & set(line)
    # A network that knows nothing has log 10; the mean with zeros of other steps would be half of that.
    assert all(1.5 < line[name] < 3 for name in ('valid_loss', 'train_loss') if name in line)
    assert line['disagreement'] > 0 if moved else True


@pytest.mark.parametrize('name', ['joint', 'none'])
def test_searches_without_an_outer_loss(folder, tmp_path, in_process, parse_page, name):
  result = run(make_config(folder, epochs=2, hypergradient={'name': name}), tmp_path)
  assert result.finished
  assert math.isfinite(result.valid_loss)
  before, *_, after = history(tmp_path)
  assert np.any(before != after) == (name == 'joint')
  for line in lines(tmp_path, 'step'):
    assert 'train_loss' in line
    assert 'valid_loss' not in line
    assert ('alphas_gradient_norm' in line) == (name == 'joint')
  # Epochs are evaluated as always.
  assert all('valid_loss' in line for line in lines(tmp_path, 'epoch'))
  assert 'Perplexity' in parse_page((tmp_path / 'report.html').read_text()).text
  moved = jax.tree.leaves(result.state.alphas_optimizer)
  assert any(np.any(leaf) for leaf in moved) == (name == 'joint')


@pytest.mark.parametrize('name', ['joint', 'none'])
def test_images_of_the_training_half_are_all_that_is_learnt_from(tiny_search, name):
  """The other half may be anything: what is not a number would be seen at once."""
  config = tiny_search(hypergradient={'name': name}, batch_size=32)
  config['space'] = {'nodes': 1, 'operations': ('none', 'skip_connect')}
  settings, images = build(Search, config), load('digits')
  searcher = Searcher.open(settings, images, make_mesh(1))
  halves = settings.task.halves(images, settings, settings.seed)
  nothing = halves.valid._replace(images=np.full_like(halves.valid.images, np.nan, np.float32))
  data = searcher.place([halves._replace(valid=nothing)])
  state = searcher.init(searcher.keys())
  before = jax.device_get(state.alphas)
  state, sums = searcher.run(state, data, np.int32(3))
  assert sums['finite']
  assert sums['steps'] == 3
  for kind, alphas in jax.device_get(state.alphas).items():
    assert np.any(alphas != before[kind]) == (name == 'joint')


def test_alphas_that_would_never_move_are_refused(tiny_search):
  settings, images = build(Search, tiny_search(alphas={'every': 1000})), load('digits')
  with pytest.raises(ValueError, match=r'^config.alphas.every: 1000 is not allowed; α would move at none of 10 steps$'):
    Searcher.open(settings, images, make_mesh(1))
