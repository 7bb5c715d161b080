"""The functions of the package: the examples of docs/python.md, data of one's own, and who is told of metrics."""

import pathlib
import re

import numpy as np
import pytest

import darts_jax
from darts_jax.runtime import metrics
from darts_jax.runtime.files import read_object

TEXT = (pathlib.Path(__file__).parents[1] / 'docs' / 'python.md').read_text(encoding='utf-8')
EXAMPLES = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


class Recorder:
  def __init__(self):
    self.told = []

  def write(self, step, values):
    self.told.append((step, values))


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
  assert 0 < names['trained'].test_accuracy <= 1
  assert (folder / 'mine.stablehlo').stat().st_size > 1000
  assert float(names['gradient']) == 2.0
  config = read_object(folder / 'runs' / 'mine' / 'config.json')
  assert config['data']['name'] == 'arrays'


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


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ((np.zeros((40, 8, 8, 1)), np.zeros(39, int)), 'data'),
    ((np.zeros((40, 8)), np.zeros(40, int)), 'data'),
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
