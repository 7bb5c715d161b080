"""Images in files, in the memory of a search and streamed: the same examples at every step, and the same search."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from darts_jax.data.images import split
from darts_jax.data.records import image_folder
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import Search, Searcher, loop
from darts_jax.search.probe import Evaluator, SupernetProbe
from darts_jax.settings import build
from darts_jax.tasks import Placed, windows
from darts_jax.tasks.base import Moment

pytest.importorskip('grain')
Image = pytest.importorskip('PIL.Image')

ROOT = pathlib.Path(__file__).parents[2]
COLOURS = {'blue': (40, 60, 200), 'green': (60, 200, 40), 'red': (200, 40, 60)}
NUM_IMAGES = 42
# Of the training images in the order of their paths.
DAMAGED = (3, 17)
# A batch of 8×8 images of both halves, twice.
TWO_STEPS = 2 * 2 * 8 * 8 * 8 * 3


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Noisy images of three colours, two files damaged."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for name, colour in COLOURS.items():
    inside = root / 'train' / name
    inside.mkdir(parents=True)
    for i in range(NUM_IMAGES // 3):
      pixels = np.clip(rng.normal(colour, 60, (9, 12, 3)), 0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(inside / f'{i:02}.png')
  records = image_folder(root)
  for index in DAMAGED:
    pathlib.Path(records.name(index)).write_bytes(b'\x89PNG cut off')
  return root


def config(folder, **data):
  return {
    'epochs': 3,
    'batch_size': 8,
    'log_every': 2,
    'data': {
      **{'name': 'image_folder', 'dir': str(folder), 'image_size': 8, 'num_threads': 1, 'validation_fraction': 0.4},
      **data,
    },
    'augment': {'crop_padding': 1, 'flip': True},
    'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'avg_pool_3x3')},
    'network': {'channels': 2, 'layers': 3},
    'weights': {'learning_rate': 0.05},
    'alphas': {'learning_rate': 0.01},
    'hypergradient': {'name': 'first_order'},
  }


def feed_of(fields, num_devices=1, seeds=1):
  """A search, and what feeds it with data."""
  settings = build(Search, {**fields, 'mesh': {'seed': seeds}})
  images = settings.task.load()
  searcher = Searcher.open(settings, images, make_mesh(num_devices, seeds=seeds))
  return searcher, searcher.feed([settings.task.halves(images, settings, seed) for seed in range(seeds)])


def drawn(searcher, feed, steps, notes=None):
  """What a search trains on at some steps, `[steps, B, …]` by half."""
  seeds, axes = searcher.mesh.shape['seed'], searcher.learner.data_axes
  keys = searcher.keys()

  def batches(step, key, data):
    return searcher.learner.batches(Moment(key, step, step, ()), data)

  whole = jax.jit(searcher.spread(batches, (PartitionSpec(), PartitionSpec(), axes), PartitionSpec('data')))
  found = []
  for step in steps:
    step = np.int32(step) if seeds == 1 else np.full(seeds, step, np.int32)
    data, count = feed.read(step, keys, 1, lambda *note: notes.append(note))
    assert count == 1
    found.append(jax.device_get(whole(step, keys, data)))
  feed.close()
  return jax.tree.map(lambda *each: np.stack(each), *found)


@pytest.fixture
def two_steps(monkeypatch):
  """Windows of two steps of a search by itself."""
  monkeypatch.setattr(windows, '_WINDOW', TWO_STEPS)


@pytest.mark.parametrize(('num_devices', 'seeds'), [(1, 1), (8, 1), (4, 2)])
def test_streamed_examples_are_those_in_memory(folder, two_steps, monkeypatch, num_devices, seeds):
  # An epoch of three steps is drawn at a time, and no window is as long as one.
  monkeypatch.setattr(windows, '_DRAWN', 1)
  # What the network draws for an image is a part of its example.
  strategy = {'strategy': {'name': 'robust_darts', 'drop_path': 0.3}} if seeds == 1 else {}
  searcher, feed = feed_of(config(folder) | strategy, num_devices, seeds)
  assert isinstance(feed, Placed)
  expected = drawn(searcher, feed, range(9))
  assert (expected.train.keys is None) == (seeds > 1)
  searcher, feed = feed_of(config(folder, stream=True) | strategy, num_devices, seeds)
  notes = []
  found = drawn(searcher, feed, range(9), notes)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  # Reading begins at any step.
  jax.tree.map(np.testing.assert_array_equal, drawn(searcher, feed, [4], notes), jax.tree.map(lambda x: x[4:5], found))
  # A damaged image is named once, also if a strategy asks for its batch again.
  for step in range(9):
    feed.at(step, searcher.keys(), lambda *note: notes.append(note))
  records = image_folder(folder)
  names = {records.name(index) for index in DAMAGED}
  assert {event for _, event, _ in notes} == {'damaged_image'}
  assert {message.partition(': ')[0] for _, _, message in notes} == names
  assert len(notes) == len(names)


def test_streamed_examples_of_a_later_supernet_are_those_in_memory(folder, two_steps):
  """Its epochs are the later ones, and α move at every second step of the whole search."""
  stages = {'name': 'sgas', 'warmup_epochs': 0, 'decision_frequency': 1, 'batch_growth': 0}
  found = []
  for stream in (False, True):
    searcher, feed = feed_of({**config(folder, stream=stream), 'strategy': stages, 'alphas': {'every': 2}})
    later = searcher.restage(searcher.searched, 1)
    assert list(later.epoch_ends) == [3, 6, 9]
    found.append(drawn(later, feed.again(later.feed), range(3, 9), []))
  in_memory, streamed = found
  jax.tree.map(np.testing.assert_array_equal, streamed.train, in_memory.train)
  # Steps 3, 5 and 7, where the number of steps becomes even.
  own = [jax.tree.map(lambda each: each[::2], half.valid) for half in found]
  jax.tree.map(np.testing.assert_array_equal, *own)


def test_batches_of_alphas_are_read_where_alphas_move(folder, two_steps):
  fields = config(folder, stream=True)
  searcher, feed = feed_of({**fields, 'alphas': {'every': 2}})
  data, _ = feed.read(np.int32(0), searcher.keys(), 2, print)
  still, moving = (np.asarray(data.valid.images)[i] for i in range(2))
  assert still.max() == 0
  assert moving.max(axis=(1, 2, 3)).min() > 0
  feed.close()
  searcher, feed = feed_of({**fields, 'hypergradient': {'name': 'joint'}})
  data, count = feed.read(np.int32(0), searcher.keys(), 5, print)
  assert count == 2
  assert np.asarray(data.valid.images).max() == 0
  assert np.asarray(data.train.images).max() > 0
  feed.close()


@pytest.mark.parametrize('tracked', [True, False])
def test_a_streamed_evaluation_measures_the_whole_half(folder, two_steps, tracked):
  fields = {**config(folder), 'batch_norm': {'tracked': tracked}}
  found = []
  for stream in (False, True):
    searcher, feed = feed_of({**fields, 'data': {**fields['data'], 'stream': stream}})
    state = searcher.init(searcher.keys())
    parts = [searcher.evaluate(state, data) for data in feed.evaluation(0, lambda *note: None)]
    # 17 images are three batches.
    assert len(parts) == (2 if stream else 1)
    found.append([sum(map(float, values)) for values in zip(*parts, strict=True)])
  # Sums are divided by the number of images before they are added, or afterwards.
  np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def test_a_probe_answers_of_a_streamed_search_as_of_one_in_memory(folder, two_steps):
  # α do not move yet, so that no window of the steps has batches of their half; and the latest step is none of theirs.
  fields = {**config(folder), 'alphas': {'from_epoch': 2, 'every': 2}}
  found = []
  for stream in (False, True):
    searcher, feed = feed_of({**fields, 'data': {**fields['data'], 'stream': stream}})
    state = searcher.init(searcher.keys()).replace(step=np.int32(5))
    evaluator = Evaluator(searcher, state, 5, feed, print, lambda _, function, *rest: function)
    probe = SupernetProbe(evaluator)
    mixing = jax.device_get(searcher.searched.look(state.alphas, state.step, state.key))
    found.append([probe.curvature(), *probe.measure(mixing).values()])
  np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
  assert found[0][0] > 0


def test_halves_have_the_next_image_that_can_be_decoded(folder):
  settings = build(Search, config(folder))
  images = settings.task.load()
  assert np.flatnonzero(images.damaged).tolist() == [*DAMAGED]
  halves = settings.task.halves(images, settings, 0)
  for half, indices in zip(halves, split(NUM_IMAGES, 0.4, 0), strict=True):
    own = [int(index) for index in indices]
    for place, index in enumerate(own):
      while index in DAMAGED:
        index = own[(own.index(index) + 1) % len(own)]
      np.testing.assert_array_equal(half.images[place], images.x_train[index])
      assert half.labels[place] == images.y_train[index] == index // 14


PROGRAM = """
import contextlib, json, sys
import jax, numpy as np
from darts_jax import search
from darts_jax.runtime import loop as loops
from darts_jax.runtime.progress import Progress
from darts_jax.search import loop

config, folder = json.loads(sys.argv[1])
loop.enable_cache = lambda: None
update, asked = Progress.update, []

def updated(self, step, values):
  update(self, step, values)
  asked.extend([step] if step == 4 else [])

class Guard(contextlib.nullcontext):
  requested = property(lambda self: 'SIGTERM' if asked else None)
  __enter__ = lambda self: self

def run(name, stream):
  return search.run({**config, 'data': {**config['data'], 'stream': stream}}, f'{folder}/{name}')

whole, streamed = run('whole', False), run('streamed', True)
loops._SECONDS_A_CALL = 0.0  # One step a call.
kept, Progress.update, loop.InterruptGuard = loop.InterruptGuard, updated, Guard
stopped = run('resumed', True)
Progress.update, loop.InterruptGuard = update, kept
resumed = run('resumed', True)
leaves = [[np.asarray(x) for x in jax.tree.leaves(r.state.replace(key=0))] for r in (whole, streamed, resumed)]
same = [all(map(np.array_equal, leaves[0], others)) for others in leaves]
print(json.dumps([stopped.finished, same, [r.valid_loss for r in (whole, streamed, resumed)]]))
"""


def test_a_streamed_search_is_that_in_memory_and_goes_on_at_any_step(tmp_path, folder):
  # The plainer way of writing kernels, which tests have otherwise, rounds sums by what stands around them.
  environment = os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0', 'PYTHONPATH': str(ROOT)}
  command = [sys.executable, '-c', PROGRAM, json.dumps([config(folder), str(tmp_path)])]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr
  finished, same, losses = json.loads(done.stdout)
  assert not finished
  assert 'SIGTERM: saved at step 4 of 9; start again to resume' in done.stderr
  assert same == [True, True, True]
  assert losses[2] == losses[1] == pytest.approx(losses[0], rel=1e-6)
  records = image_folder(folder)
  told = f'{records.name(DAMAGED[0])}: cannot be decoded, nor can 1 more; the next one takes its place'
  assert done.stderr.count(told) == 1
  logs = [(tmp_path / name / 'metrics.jsonl').read_text() for name in ('streamed', 'whole')]
  assert ['damaged_image' in log for log in logs] == [True, False]


def test_a_file_that_vanishes_ends_a_search_with_its_name(tmp_path, folder, monkeypatch):
  root = tmp_path / 'images'
  for path in folder.rglob('*.png'):
    (root / path.parent.relative_to(folder)).mkdir(parents=True, exist_ok=True)
    (root / path.relative_to(folder)).write_bytes(path.read_bytes())
  searcher, feed = feed_of(config(root, stream=True))
  path = root / 'train' / 'blue' / '00.png'
  path.unlink()
  with pytest.raises(ValueError, match=f'^{re.escape(str(path))}: cannot be read.*$') as raised:
    drawn(searcher, feed, range(9), [])
  assert '\n' not in str(raised.value)
  feed.close()


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ({'name': 'tfds'}, "config.data.dataset: '' is not allowed; name the dataset, such as imagenet2012"),
    ({'dir': 'nowhere'}, 'config.data.dir: .*nowhere: not a folder'),
    ({'num_images': 43}, 'config.data.num_images: 43 is not allowed; .* has 42 training images'),
    ({'num_images': 2}, 'config.data.num_images: 2 leave out class 0 of .*; more are needed'),
    ({'validation_fraction': 0.1}, 'config.batch_size: 8 is larger than the valid half of .*, which has 4 images'),
  ],
)
@pytest.mark.parametrize('stream', [False, True])
def test_data_that_do_not_fit_are_one_line(folder, data, message, stream):
  with pytest.raises(ValueError, match=f'^{message}') as raised:
    loop.check(build(Search, config(folder, **{'stream': stream, **data})))
  assert '\n' not in str(raised.value)


def test_a_part_of_the_files_is_read(folder):
  settings = build(Search, config(folder, num_images=30))
  images = settings.task.load()
  whole = build(Search, config(folder)).task.load()
  chosen = np.sort(np.random.Generator(np.random.PCG64(0)).permutation(NUM_IMAGES)[:30])
  np.testing.assert_array_equal(images.x_train, whole.x_train[chosen])
  streamed = build(Search, config(folder, num_images=30, stream=True)).task
  files = streamed.load()
  assert (files.num_train, files.num_classes, files.image_shape) == (30, 3, (8, 8, 3))
  [batch] = files.read((np.arange(30),), np.array([[2, 4]]))
  np.testing.assert_array_equal(batch.images, images.x_train[[2, 4]])


def test_images_that_do_not_fit_into_memory_are_told(folder, monkeypatch):
  def empty(*args):
    raise MemoryError

  monkeypatch.setattr(np, 'empty', empty)
  with pytest.raises(
    ValueError, match=r'^config.data.stream: False is not allowed; 42 images of 8×8 pixels do not fit'
  ):
    build(Search, config(folder)).task.load()


def test_arrays_in_memory_are_streamed_too(two_steps):
  fields = {**config(''), 'data': {'name': 'digits'}}
  found = []
  for stream in (False, True):
    searcher, feed = feed_of({**fields, 'data': {'name': 'digits', 'stream': stream}})
    found.append(drawn(searcher, feed, range(3)))
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_laboratories_refuse_streams():
  from darts_jax.laboratory.settings import Laboratory

  with pytest.raises(ValueError, match=r'^config.search.data.stream: True is not allowed; it has to be False here$'):
    build(Laboratory, {'search': {'data': {'stream': True}}})
