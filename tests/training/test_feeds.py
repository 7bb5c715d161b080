"""Where images come from: parts that do not overlap, and streams that a resumed training goes on with."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import imagenet_eval
from darts_jax import training
from darts_jax.data.images import load
from darts_jax.data.jitter import color_jitter
from darts_jax.data.stream import Batch
from darts_jax.runtime import files, metrics
from darts_jax.runtime import loop as loops
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.progress import Progress
from darts_jax.settings import build
from darts_jax.spaces import darts
from darts_jax.training import feeds
from darts_jax.training import loop as training_loop

pytestmark = pytest.mark.usefixtures('undrawn', 'same_programs')

CELL = (('skip_connect', 0), ('max_pool_3x3', 1))
GENOTYPE = darts.genotype(CELL, (2,), CELL, (2,))
COLOURS = {'blue': (60, 60, 200), 'green': (60, 200, 60), 'red': (200, 60, 60)}
NUM_TRAIN, NUM_TEST = 20, 7  # Of a class.


@pytest.fixture(autouse=True)
def shared_cache(monkeypatch):
  """The compilation cache as the tests have set it up."""
  monkeypatch.setattr(training_loop, 'enable_cache', lambda: None)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Noisy images of three colours, two files damaged."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for split, count in (('train', NUM_TRAIN), ('val', NUM_TEST)):
    for name, colour in COLOURS.items():
      inside = root / split / name
      inside.mkdir(parents=True)
      for i in range(count):
        size = (*rng.integers(36, 70, 2), 3)
        pixels = np.clip(rng.normal(colour, 30, size), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(inside / f'{i:02}.jpg')
  (root / 'train' / 'green' / '03.jpg').write_bytes(b'\xff\xd8\xff\xe0 cut off')
  (root / 'val' / 'red' / '05.jpg').write_bytes(b'')
  return root


def config(folder, **changes):
  found = imagenet_eval.get_config()
  found.update(epochs=3, batch_size=8, log_every=3)
  found.data.update(dir=str(folder), image_size=32, validation_fraction=0.2, num_threads=2)
  found.network.update(channels=2, layers=3, auxiliary=False)
  found.weights.learning_rate = 0.05
  found.update_from_flattened_dict(changes)
  return found


def settings_of(folder, **changes):
  return build(training.Training, config(folder, **changes))


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, folder):
  workdir = tmp_path_factory.mktemp('streamed')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training_loop, 'enable_cache', lambda: None)
    return workdir, training.run(config(folder), workdir, GENOTYPE)


def test_streamed_training_resumes_in_the_middle_of_an_epoch(tmp_path, monkeypatch, folder, uninterrupted, make_guard):
  workdir, result = uninterrupted
  monkeypatch.setattr(loops, '_SECONDS_A_CALL', 0.0)  # One step a call.
  update, requested = Progress.update, []

  def updated(self, step, values):
    update(self, step, values)
    if step == 8:
      requested.append(step)

  with monkeypatch.context() as patch:
    patch.setattr(Progress, 'update', updated)
    patch.setattr(training_loop, 'InterruptGuard', make_guard(lambda: 'SIGTERM' if requested else None))
    # 48 of 60 training images, 6 steps an epoch: the second epoch has begun.
    assert not training.run(config(folder), tmp_path, GENOTYPE).finished
  resumed = training.run(config(folder), tmp_path, GENOTYPE)
  assert any(line.get('message') == 'resumed at step 8 of 18' for line in metrics.read(tmp_path))
  assert (resumed.finished, resumed.test_loss, resumed.valid_loss) == (True, result.test_loss, result.valid_loss)
  states = [training.load(place).variables for place in (workdir, tmp_path)]
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_file_that_vanishes_costs_no_step(tmp_path, monkeypatch, folder, uninterrupted):
  """What was done is saved, and goes on to the same end when the file is back."""
  workdir, result = uninterrupted
  # Found at the latest in the second epoch, which has it again.
  feed = feeds.open_feed(settings_of(folder), make_mesh(1))
  records = feed.streams['train'].records
  path = pathlib.Path(records.name(int(feed.streams['train'].indices[0])))
  content, update = path.read_bytes(), Progress.update

  def updated(self, step, values):
    update(self, step, values)
    path.unlink(missing_ok=True)

  monkeypatch.setattr(Progress, 'update', updated)
  try:
    with pytest.raises(ValueError, match=re.escape(f'{path}: cannot be read')):
      training.run(config(folder), tmp_path, GENOTYPE)
  finally:
    path.write_bytes(content)
  (event,) = [line for line in metrics.read(tmp_path) if line.get('event') == 'failed']
  assert str(path) in event['message']
  assert Checkpoints(tmp_path / 'checkpoints').steps()[-1] == event['step'] > 0
  monkeypatch.setattr(Progress, 'update', update)
  resumed = training.run(config(folder), tmp_path, GENOTYPE)
  assert (resumed.finished, resumed.test_loss) == (True, result.test_loss)
  states = [training.load(place).variables for place in (workdir, tmp_path)]
  jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize('num_processes', [1, 2])
def test_an_error_waits_for_the_steps_before_it_unless_others_would_wait_too(folder, monkeypatch, num_processes):
  feed = feeds.open_feed(settings_of(folder), make_mesh(1))

  def batches():
    nothing = np.zeros(8, np.int32)
    yield Batch(np.zeros((8, 32, 32, 3), np.uint8), nothing, nothing == 0, nothing - 1)
    raise ValueError('00.jpg: cannot be read')

  monkeypatch.setattr(feed, '_batches', batches())
  monkeypatch.setattr(feed, '_step', lambda state, examples: (state, {'train_loss': np.float32(1)}))
  monkeypatch.setattr(feed, '_place', lambda *arrays: arrays)
  monkeypatch.setattr(jax, 'process_count', lambda: num_processes)
  if num_processes == 1:
    each = {'train_loss': np.ones(1, np.float32)}
    assert feed.advance('state', 3) == ('state', {'train_loss': 1.0, 'steps': 1, 'finite': True, 'each': each})
  with pytest.raises(ValueError, match=r'^00.jpg: cannot be read$'):
    feed.advance('state', 2)


def test_damaged_images_are_named_once_and_counted(folder, uninterrupted, parse_page):
  workdir, _ = uninterrupted
  messages = [line['message'] for line in metrics.read(workdir) if line.get('event') == 'damaged_image']
  bad = folder / 'train' / 'green' / '03.jpg'
  assert messages[-1] == f'{folder}/val/red/05.jpg: cannot be decoded; it is left out'
  # It is of the training images or of those that are held out.
  assert [message.partition(';')[0] for message in messages[:-1]] == [f'{bad}: cannot be decoded']
  text = parse_page((workdir / 'report.html').read_text()).text
  assert '2 images could not be read; see the log of events.' in text


def test_evaluation_is_over_the_images_that_can_be_read(folder, uninterrupted):
  """The test accuracy, from files decoded one by one."""
  workdir, result = uninterrupted
  apply, variables = training.load(workdir)
  losses, correct = [], []
  for label, name in enumerate(COLOURS):
    for path in sorted((folder / 'val' / name).iterdir()):
      if path.stat().st_size:
        image = Image.open(path)
        width, height = image.size
        side = min(width, height) * 32 / 37  # round(32 · 256/224) = 37
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
        pixels = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR, box))
        logits = np.asarray(apply(variables, pixels[None]), np.float64)[0]
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
        correct.append(logits.argmax() == label)
  assert len(losses) == 3 * NUM_TEST - 1
  np.testing.assert_allclose(result.test_loss, np.mean(losses), rtol=1e-4)
  np.testing.assert_allclose(result.test_accuracy, np.mean(correct), rtol=1e-5)


def test_held_out_images_are_not_trained_on(folder):
  settings = settings_of(folder)
  feed = feeds.open_feed(settings, make_mesh(1))
  indices = {name: stream.indices for name, stream in feed.streams.items()}
  assert sorted([*indices['train'], *indices['valid']]) == list(range(60))
  assert (len(indices['valid']), feed.num_train, list(indices['test'])) == (12, 48, list(range(21)))
  assert feed.parts == ('valid', 'test')
  whole = feeds.open_feed(settings_of(folder, **{'data.validation_fraction': 0.0}), make_mesh(1))
  assert (whole.num_train, whole.parts) == (60, ('test',))


def test_placed_images_are_divided_without_overlap():
  settings = build(training.Training, {'batch_size': 8, 'data': {'name': 'digits'}, 'network': {'auxiliary': False}})
  digits = load('digits')
  feed = feeds.open_feed(settings, make_mesh(1))
  sizes = {name: len(part.labels) for name, part in feed.examples.items()}
  assert sizes == {'train': 1294, 'valid': 144, 'test': 359}
  seen = [np.concatenate([feed.examples[name].images for name in names]) for names in (('train', 'valid'), ('test',))]
  for found, expected in zip(seen, (digits.x_train, digits.x_test), strict=True):
    assert sorted(map(bytes, np.asarray(found))) == sorted(map(bytes, expected))
  whole = dataclasses.replace(settings, data=dataclasses.replace(settings.data, validation_fraction=0.0))
  assert feeds.open_feed(whole, make_mesh(1)).parts == ('test',)
  blind = dataclasses.replace(settings, data=dataclasses.replace(settings.data, test=False))
  assert feeds.open_feed(blind, make_mesh(1)).parts == ('valid',)


def test_colours_are_jittered_before_normalisation():
  model = training.Model(
    GENOTYPE, 2, 3, 4, 'cifar', False, True, 1, (8, 8, 3), (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)
  )
  augment = {'crop_padding': 0, 'flip': False, 'cutout': 0, 'brightness': 0.4, 'hue': 0.1}
  network = {'channels': 2, 'layers': 3, 'auxiliary': False, 'stem_multiplier': 1}
  settings = build(training.Training, {'batch_size': 4, 'augment': augment, 'network': network})
  trainer = training.Trainer(settings, model, 16, make_mesh(1))
  state = trainer.init(jax.random.key(0))
  raw = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
  found = jax.jit(trainer._augmented)(state, raw)
  # The key of the augmentation at step 0, folded with the number of images, which no image has as its place.
  key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(state.key, 0), 2), 4)
  jittered = color_jitter(
    jnp.asarray(raw / 255, jnp.float32), key, brightness=0.4, contrast=0.0, saturation=0.0, hue=0.1
  )
  expected = (255 * np.asarray(jittered) - np.array(model.mean)) / np.array(model.std)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert np.abs(np.asarray(found) - (raw - np.array(model.mean)) / np.array(model.std)).max() > 0.1


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'batch_size': 64}, 'config.batch_size: 64 is larger than the training part of .*, which has 48 images'),
    ({'data.dir': '/nowhere'}, 'config.data.dir: /nowhere: not a folder'),
    ({'network.auxiliary': True}, 'too small for an auxiliary head; .* .config.network.auxiliary=False.'),
    ({'data.name': 'tfds'}, 'config.data.dir: .*: holds no tensorflow-datasets array_record folder imagenet2012/'),
    ({'data.name': 'image_folders'}, "config.data.name: 'image_folders' is not known; did you mean 'image_folder'?"),
  ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(tmp_path, folder, changes, said):
  with pytest.raises(ValueError, match=said):
    training.run(config(folder, **changes), tmp_path / 'run', GENOTYPE)
  assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_and_unknown_classes_are_named(tmp_path, folder):
  (tmp_path / 'train').mkdir()
  with pytest.raises(ValueError, match=re.escape(f'config.data.dir: {tmp_path}/train: holds no folder of a class')):
    feeds.open_feed(settings_of(tmp_path), make_mesh(1))
  for split, names in (('train', 'ab'), ('val', 'abc')):
    for name in names:
      (tmp_path / split / name).mkdir(parents=True)
      (tmp_path / split / name / '1.jpg').write_bytes(b'')
  with pytest.raises(ValueError, match=re.escape(f'config.data.dir: {tmp_path}/val/c: a class that')):
    feeds.open_feed(settings_of(tmp_path), make_mesh(1))


def test_names_of_classes_that_are_not_utf8_can_be_read_again(tmp_path):
  for split in ('train', 'val'):
    for name in ('a', '\udcfe'):
      inside = tmp_path / split / name
      inside.mkdir(parents=True)
      for i in range(8):
        (inside / f'{i}.jpg').write_bytes(b'')
  found = feeds.open_feed(settings_of(tmp_path), make_mesh(1)).fingerprint
  assert files.parse_json(json.dumps(found).encode())['classes'] == ['a', '\\udcfe']


def test_grey_or_float_images_have_no_colours_to_jitter():
  settings = build(training.Training, {'data': {'name': 'digits'}, 'augment': {'hue': 0.1}})
  with pytest.raises(ValueError, match='config.augment: brightness, .* those of digits are uint8 with 1 channels'):
    feeds.open_feed(settings, make_mesh(1))


def test_config_names_every_field():
  fields = build(training.Training, imagenet_eval.get_config())
  assert fields.weights.schedule == 'exponential'
  assert set(imagenet_eval.get_config().data) == {field.name for field in dataclasses.fields(fields.data)}
  assert fields.augment.jitters


def test_batches_of_single_numbers_are_refused(folder):
  settings = build(training.Training, config(folder, batch_size=1, **{'data.image_size': 32}))
  feed = feeds.open_feed(settings, make_mesh(1))
  with pytest.raises(ValueError, match='^config.batch_size: 1 is not allowed with images of 32×32 pixels'):
    training_loop.make_model(settings, GENOTYPE, feed)
