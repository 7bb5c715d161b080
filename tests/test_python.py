"""The functions of the package: the examples of docs/python.md, data of one's own, and who is told of metrics."""

import pathlib
import re

import numpy as np
import pytest

import darts_jax
from darts_jax import training
from darts_jax.data.images import from_arrays
from darts_jax.runtime import metrics
from darts_jax.runtime.files import read_object
from darts_jax.runtime.mesh import make_mesh
from darts_jax.settings import build
from darts_jax.spaces import darts
from darts_jax.training.feeds import open_feed

TEXT = (pathlib.Path(__file__).parents[1] / 'docs' / 'python.md').read_text(encoding='utf-8')
EXAMPLES = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


class Recorder:
  def __init__(self):
    self.told = []

  def write(self, step, values):
    self.told.append((step, values))


CELL = darts.genotype((('skip_connect', 0), ('avg_pool_3x3', 1)), (2,), (('skip_connect', 0),) * 2, (2,))
TRAINING = {
  'epochs': 1,
  'batch_size': 32,
  'log_every': 1,
  'augment': {'crop_padding': 1, 'flip': False, 'cutout': 0},
  'network': {'channels': 4, 'layers': 3, 'auxiliary': False},
}


@pytest.fixture(scope='module')
def example(tmp_path_factory):
  folder = tmp_path_factory.mktemp('python')
  names = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    for text in EXAMPLES:
      exec(text, names)
  return folder, names


def test_the_examples_of_the_document(example):
  folder, names = example
  found = names['found']
  assert [epoch['epoch'] for epoch in found.history] == [0, 1]
  assert found.history[-1]['valid_accuracy'] == pytest.approx(found.valid_accuracy)
  assert found.finished
  trained = names['trained']
  # A multiple of one in 297 test images.
  assert 297 * trained.test_accuracy == pytest.approx(round(297 * trained.test_accuracy), abs=1e-4)
  assert [epoch['epoch'] for epoch in trained.history] == [0, 1]
  assert trained.history[-1]['valid_accuracy'] == trained.valid_accuracy
  assert (folder / 'mine.stablehlo').stat().st_size > 1000
  assert float(names['gradient']) == 2.0
  config = read_object(folder / 'runs' / 'mine' / 'config.json')
  assert config['data']['name'] == 'arrays'
  config = read_object(folder / 'runs' / 'mine_trained' / 'config.json')
  assert config['data']['name'] == 'arrays'
  assert (config['dataset']['train']['images'], config['dataset']['test']['images']) == (1500, 297)


def test_a_finished_search_tells_the_same_again_and_another_one_is_refused(example, monkeypatch):
  folder, names = example
  monkeypatch.chdir(folder)
  recorder = Recorder()
  again = darts_jax.search(names['config'], 'runs/mine', data=(names['images'], names['y']), writers=[recorder])
  assert again.genotype == names['found'].genotype
  assert again.history == names['found'].history
  assert recorder.told == []
  other = names['y'].copy()
  other[0] += 1
  with pytest.raises(ValueError, match=r'^--workdir: runs/mine holds a search with another config \(config.dataset'):
    darts_jax.search(names['config'], 'runs/mine', data=(names['images'], other))


def test_a_finished_training_tells_the_same_again_and_other_arrays_are_refused(example, monkeypatch):
  folder, names = example
  monkeypatch.chdir(folder)
  x, y, (x_test, y_test) = names['images'], names['y'], names['test']

  def again(data, test, **more):
    return darts_jax.train(
      names['training'], 'runs/mine_trained', names['found'].genotype, data=data, test=test, **more
    )

  recorder = Recorder()
  assert again((x, y), (x_test, y_test), writers=[recorder]) == names['trained']
  assert recorder.told == []
  for data, test in (
    ((x, (y + 1) % 10), (x_test, y_test)),
    ((x[1:], y[1:]), (x_test, y_test)),
    ((x, y), (x_test, (y_test + 1) % 10)),
    ((x, y), None),
  ):
    with pytest.raises(
      ValueError,
      match=r'^--workdir: runs/mine_trained holds a training with another config \(config.dataset[^\n]*: the data of'
      ' arrays are not those of before; ',
    ):
      again(data, test)


def test_writers_are_told_of_the_numbers_of_the_log(tmp_path, tiny_search):
  recorder = Recorder()
  config = tiny_search(epochs=1, batch_size=32, log_every=1)
  data = config.pop('data')
  assert data == {'name': 'digits'}
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (300, 8, 8, 1)).astype(np.uint8)
  found = darts_jax.search(config, tmp_path, data=(images, np.arange(300) % 3), writers=[recorder])
  lines = [line for line in metrics.read(tmp_path) if line['kind'] != 'event']
  assert len(lines) > 1
  told = [(step, {name.split('/', 1)[1]: value for name, value in values.items()}) for step, values in recorder.told]
  expected = [(line['step'], {k: v for k, v in line.items() if k not in ('kind', 'step')}) for line in lines]
  assert told == expected
  names = {name for _, values in recorder.told for name in values}
  assert {'step/train_loss', 'epoch/valid_accuracy'} <= names
  assert found.history[0]['train_loss'] == expected[-1][1]['train_loss']


def test_writers_are_told_of_the_numbers_of_a_training_without_a_test(tmp_path):
  recorder = Recorder()
  images = np.random.default_rng(0).random((100, 8, 8))
  found = darts_jax.train(TRAINING, tmp_path, CELL, data=(images, np.arange(100) % 3), writers=[recorder])
  lines = [line for line in metrics.read(tmp_path) if line['kind'] != 'event']
  # Two of three batches of 90 images are whole.
  assert [(line['kind'], line['step']) for line in lines] == [('step', 1), ('step', 2), ('epoch', 2)]
  numbers = [
    {f'{line["kind"]}/{name}': value for name, value in line.items() if name not in ('kind', 'step')} for line in lines
  ]
  assert recorder.told == [(line['step'], values) for line, values in zip(lines, numbers, strict=True)]
  assert found.history == (lines[-1],)
  assert np.isnan(found.test_accuracy)
  # Images are normalised by the statistics of those that were given.
  assert training.Model.read(tmp_path).mean == pytest.approx([images.mean()], rel=1e-6)


def pair(number=40, side=8, kind=np.uint8):
  return np.arange(number * side * side).reshape(number, side, side).astype(kind), np.arange(number) % 2


@pytest.mark.parametrize(
  ('data', 'test', 'message'),
  [
    (pair()[0], None, r'^data: has to be a pair of arrays, inputs and targets: data=\(x, y\)$'),
    (pair(), (pair()[0], None), r'^test: has to be a pair of arrays, inputs and targets: test=\(x, y\)$'),
    ((None, pair()[1]), None, r'^data: has to be a pair of arrays, inputs and targets: data=\(x, y\)$'),
    (pair(), pair()[0], r'^test: has to be a pair of arrays, inputs and targets: test=\(x, y\)$'),
    (None, pair(), '^test: needs data, the training images, as arrays too$'),
    ((pair(), pair()), None, '^data: x_train is no array: '),
    ((pair()[0], np.zeros(39, int)), None, '^data: y_train has shape '),
    (pair(), pair(side=4), r'^data: images of x_train have shape \(8, 8, 1\), those of x_test \(4, 4, 1\)'),
    (pair(), pair(kind=np.float64), '^data: x_train has dtype uint8, x_test float32; they have to be equal$'),
    (pair(), (pair()[0], np.full(40, 2)), '^data: class 2 occurs in y_test but not in y_train$'),
  ],
)
def test_arrays_that_are_unfit_for_a_training_are_one_line_and_nothing_is_written(tmp_path, data, test, message):
  with pytest.raises(ValueError, match=message) as caught:
    darts_jax.train(TRAINING, tmp_path / 'run', CELL, data=data, test=test)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('genotype', [3, None, [('skip_connect', 0)]])
def test_what_is_no_architecture_is_one_line_and_nothing_is_written(tmp_path, genotype):
  message = r'^genotype: [^\n]* is not an architecture; it has to be a Genotype$'
  with pytest.raises(ValueError, match=message):
    darts_jax.train(TRAINING, tmp_path / 'run', genotype)
  assert not (tmp_path / 'run').exists()


def test_fields_of_the_config_hold_for_arrays():
  settings = build(training.Training, {**TRAINING, 'batch_size': 16, 'data': {'num_images': 30, 'test': False}})
  images = from_arrays(*pair(), *pair(10))
  feed = open_feed(settings, make_mesh(), images)
  assert (feed.num_train, feed.parts, feed.fingerprint['test']) == (27, ('valid',), None)


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ((np.zeros((40, 8, 8, 1)), np.zeros(39, int)), 'data'),
    ((np.zeros((40, 8)), np.zeros(40, int)), 'data'),
    (np.zeros((40, 8, 8)), 'data: has to be a pair'),
    ((np.zeros((40, 8, 8)), None), 'data: has to be a pair'),
    ((np.zeros((40, 8, 8), np.uint8), np.array(['a'] * 40)), 'data'),
  ],
)
def test_data_that_are_unfit_are_one_line_and_nothing_is_written(tmp_path, tiny_search, data, message):
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    darts_jax.search(tiny_search(), tmp_path / 'run', data=data)
  assert not (tmp_path / 'run').exists()


def test_tasks_and_strategies_that_take_no_arrays_say_so(tmp_path):
  with pytest.raises(ValueError, match='^data: the task text takes no arrays$'):
    darts_jax.search({'space': 'recurrent'}, tmp_path / 'run', data=(np.zeros(3), np.zeros(3)))
  for name in ('data', 'test'):
    with pytest.raises(ValueError, match=f'^{name}: the task text takes no arrays$'):
      darts_jax.train({'task': 'text'}, tmp_path / 'run', 'RNN_DARTS_V2', **{name: pair()})
  with pytest.raises(ValueError, match="^config.data.name is 'arrays': such data are handed over in Python"):
    darts_jax.train({**TRAINING, 'data': {'name': 'arrays'}}, tmp_path / 'run', CELL)
  with pytest.raises(ValueError, match='^data: a strategy that proposes architectures takes no data'):
    darts_jax.search({'strategy': 'random_search'}, tmp_path / 'run', data=(np.zeros(3), np.zeros(3)))
  with pytest.raises(ValueError, match=r"^config.data.name is 'arrays': such data are handed over in Python"):
    darts_jax.search({'data': {'name': 'arrays'}}, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_what_is_asked_of_functions_is_checked(tmp_path):
  with pytest.raises(ValueError, match='^chanels: unknown size of a network for images; allowed are channels, layers'):
    darts_jax.describe('DARTS_V2', chanels=3)
  assert darts_jax.describe('DARTS_V2')['parameters'] == 3_349_342
  assert darts_jax.describe('RNN_DARTS_V2')['parameters'] > 20_000_000
  with pytest.raises(ValueError, match="^kind: 'pt' is not known; allowed are "):
    darts_jax.export(tmp_path, tmp_path / 'net.pt')
  with pytest.raises(AttributeError, match="^module 'darts_jax' has no attribute 'serach'$"):
    _ = darts_jax.serach


@pytest.mark.parametrize('writers', [[object()], Recorder(), [None]])
def test_writers_that_cannot_write_are_refused(tmp_path, tiny_search, writers):
  with pytest.raises(ValueError, match=r'^writers: has to be a list of objects with a method write\(step, values\)$'):
    darts_jax.search(tiny_search(), tmp_path / 'run', writers=writers)
  assert not (tmp_path / 'run').exists()
  with pytest.raises(ValueError, match=r'^writers: has to be a list of objects with a method write\(step, values\)$'):
    darts_jax.train(TRAINING, tmp_path / 'run', CELL, writers=writers)
  with pytest.raises(ValueError, match=r'^writers: has to be a list of objects with a method write\(step, values\)$'):
    darts_jax.train({'task': 'text'}, tmp_path / 'run', 'RNN_DARTS_V2', writers=writers)
  assert not (tmp_path / 'run').exists()
