"""Whole trainings, by the command a user gives."""

import json
import re

import jax
import numpy as np
import pytest

import darts_jax
from configs import cifar_eval, digits_eval, ptb_eval, text_eval, wikitext2_eval
from darts_jax import spaces, training
from darts_jax.commands import train
from darts_jax.data import images
from darts_jax.runtime import metrics
from darts_jax.runtime.mesh import make_mesh
from darts_jax.settings import build
from darts_jax.spaces import darts
from darts_jax.training.language import loop as language_loop

pytestmark = pytest.mark.usefixtures('same_programs')

SMALL = (
  '--config=configs/digits_eval.py',
  '--config.epochs=3',
  '--config.network.channels=4',
  '--config.network.layers=3',
)


@pytest.fixture(scope='module')
def finished(tmp_path_factory, command):
  """Two trainings of a cell from a file."""
  folder = tmp_path_factory.mktemp('train')
  spaces.save(spaces.published()['DARTS_V1'], folder / 'found.json')
  workdir = folder / 'run'
  process = command('train', *SMALL, f'--genotype={folder / "found.json"}', '--seeds=2', f'--workdir={workdir}')
  assert process.returncode == 0, process.stderr
  return workdir, process.stdout.splitlines()


def test_what_is_printed_is_what_was_measured(finished):
  workdir, output = finished
  tests = []
  for seed in (0, 1):
    lines = metrics.read(workdir / f'seed_{seed}')
    (test,) = [line for line in lines if line['kind'] == 'test']
    # 1,294 of 1,438 training images in batches of 64: 20 steps an epoch; the test comes after the last.
    epochs = [line for line in lines if line['kind'] == 'epoch']
    assert [line['step'] for line in epochs] == [20, 40, 60]
    assert test['step'] == 60
    tests.append(test['accuracy'])
  mean, std = np.mean(tests), np.std(tests, ddof=1)
  assert f'test accuracy: {100 * mean:.2f} ± {100 * std:.2f} % over 2 seeds' in output
  # One in ten is chance.
  assert mean > 0.25
  assert tests[0] != tests[1]


def test_loaded_network_has_the_accuracy_that_was_measured(finished):
  workdir, _ = finished
  apply, variables = darts_jax.load(workdir / 'seed_1')
  digits = images.load('digits')
  accuracy = np.mean(np.argmax(apply(variables, digits.x_test), -1) == digits.y_test)
  (test,) = [line for line in metrics.read(workdir / 'seed_1') if line['kind'] == 'test']
  assert accuracy == pytest.approx(test['accuracy'], abs=1e-6)


def test_the_page_says_what_was_read_when(finished, parse_page):
  workdir, _ = finished
  text = parse_page((workdir / 'seed_0' / 'report.html').read_text()).text
  assert 'Training from scratch' in text
  assert 'DARTS_V1' in text
  assert 'The test images were read once, after the last epoch' in text
  (test,) = [line for line in metrics.read(workdir / 'seed_0') if line['kind'] == 'test']
  assert f'Test {test["loss"]:.4f} {100 * test["accuracy"]:.2f} %' in text


def test_a_finished_training_is_not_trained_again(finished, command):
  workdir, output = finished
  before = {path: path.read_bytes() for path in workdir.rglob('metrics.jsonl')}
  process = command('train', *SMALL, '--genotype=DARTS_V1', '--seeds=2', f'--workdir={workdir}')
  assert (process.returncode, process.stdout.splitlines()) == (0, output)
  assert {path: path.read_bytes() for path in workdir.rglob('metrics.jsonl')} == before


def test_another_architecture_is_refused_in_the_same_folder(finished):
  workdir, _ = finished
  other = spaces.published()['DARTS_V2']
  config = json.loads((workdir / 'seed_0' / 'config.json').read_text())
  for name in ('genotype', 'dataset'):
    config.pop(name)
  with pytest.raises(ValueError, match='holds a training with another config .config.genotype.normal'):
    training.run(config, workdir / 'seed_0', other)


def changed(**changes):
  config = digits_eval.get_config()
  for path, value in changes.items():
    config.update_from_flattened_dict({path.replace('__', '.'): value})
  return config


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'network__auxiliary': True},
      'config.data.name: digits: image_size: 8×8 is too small for an auxiliary head; it needs sides of 29 pixels'
      ' (config.network.auxiliary=False)',
    ),
    ({'network__channels': 7}, 'config.network.channels: 7 is not allowed; it has to be even'),
    ({'batch_size': 1400}, 'config.batch_size: 1400 is larger than the training part of digits, which has 1294 images'),
    ({'weights__schedule': 'cosin'}, "config.weights.schedule: 'cosin' is not known; did you mean 'cosine'? allowed"),
    ({'weights__warmup_epochs': 31.0}, 'config.weights.warmup_epochs: 31.0 is not allowed; there are 30 epochs'),
    ({'network__drop_path': 1.0}, 'config.network.drop_path: 1.0 is not allowed; it has to be < 1'),
    ({'data__validation_fraction': 0.0001}, 'config.data.validation_fraction is 0.0001, which leaves one part'),
  ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(tmp_path, changes, said):
  with pytest.raises(ValueError, match=f'^{re.escape(said)}'):
    training.run(changed(**changes), tmp_path / 'run', spaces.published()['DARTS_V2'])
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('genotype', 'seeds', 'said'),
  [
    (None, '1', '--genotype: missing'),
    ('DARTS_V3', '1', "genotype: 'DARTS_V3' is neither a file nor a published architecture; did you mean 'DARTS_V"),
    (
      'RNN_DARTS_V2',
      '1',
      "--genotype: RNN_DARTS_V2 is a recurrent architecture, whose task is text; this config has config.task='images'",
    ),
    ('DARTS_V2', '0', '--seeds: 0 is not allowed; it has to be a whole number ≥ 1'),
    ('DARTS_V2', 'two', '--seeds: two is not allowed'),
  ],
)
def test_wrong_flags_are_one_line(tmp_path, genotype, seeds, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    train.run(digits_eval.get_config(), tmp_path, genotype, seeds)


def test_a_cell_is_transferred_to_images_of_ones_own_in_bfloat16(tmp_path):
  """Two classes that are told apart by their brightness; 12×16 pixels, three colours."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, 96)
  pixels = rng.normal(90 + 70 * labels[:, None, None, None], 25, (96, 12, 16, 3)).clip(0, 255).astype(np.uint8)
  arrays = {'x_train': pixels[:80], 'y_train': labels[:80], 'x_test': pixels[80:], 'y_test': labels[80:]}
  np.savez(tmp_path / 'mine.npz', **arrays)
  config = changed(
    data__name='npz', data__path=str(tmp_path / 'mine.npz'), epochs=6, batch_size=16, precision='bfloat16'
  )
  config.network.update(channels=2, layers=3)
  # Without convolutions in its cells the network is compiled in no time, which bfloat16 on a CPU else takes.
  cell = (('max_pool_3x3', 0), ('skip_connect', 1))
  result = training.run(config, tmp_path / 'run', darts.genotype(cell, (2,), cell, (2,)))
  assert result.test_accuracy > 0.8
  _, variables = darts_jax.load(tmp_path / 'run')
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype('float32')}
  assert variables['params']['classifier'].shape[1] == 2


def test_configs_hold_every_field_and_the_published_values_are_the_defaults():
  assert build(training.Training, cifar_eval.get_config()) == training.Training()
  assert build(training.Training, digits_eval.get_config()).data.name == 'digits'


@pytest.fixture
def text_config(tmp_path):
  """The paper's evaluation on text of one's own, as small as it gets: words that follow each other in one order."""
  folder = tmp_path / 'text'
  folder.mkdir()
  for name, sentences in (('train', 40), ('valid', 10), ('test', 10)):
    (folder / f'{name}.txt').write_text('one two three four five six seven\n' * sentences)
  config = ptb_eval.get_config()
  config.data.update(name='files', dir=str(folder))
  config.network.width = 8
  config.update(epochs=4, batch_size=8, valid_batch_size=2, bptt=8, spread=1.0, log_every=5)
  return config


def test_a_recurrent_cell_is_trained_on_text_with_several_seeds(tmp_path, capsys, monkeypatch, text_config):
  # One of eight devices is compiled for in half the time.
  monkeypatch.setattr(language_loop, 'make_mesh', lambda: make_mesh(1))
  text_config.remat = True
  assert train.run(text_config, tmp_path / 'run', 'RNN_DARTS_V2', '2') == 0
  output = capsys.readouterr().out.splitlines()
  # Eight words of width 8 with a bias each; 16 × 16 for s₀; 8 × 16 for each of eight nodes.
  assert output[0] == f'parameters: {8 * 9 + 256 + 8 * 128:,}'
  tests = []
  for seed in (0, 1):
    (test,) = [line for line in metrics.read(tmp_path / 'run' / f'seed_{seed}') if line['kind'] == 'test']
    tests.append(test['perplexity'])
  mean, std = np.mean(tests), np.std(tests, ddof=1)
  assert f'test perplexity: {mean:.2f} ± {std:.2f} over 2 seeds' in output
  assert tests[0] != tests[1]
  # Better than drawing one of eight words.
  assert mean < 8
  _, variables = darts_jax.load(tmp_path / 'run' / 'seed_1')
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype('float32')}
  assert 'Training from scratch' in (tmp_path / 'run' / 'seed_1' / 'report.html').read_text()


def test_wrong_architectures_and_spaces_for_text_are_one_line(tmp_path, text_config):
  said = (
    "--genotype: DARTS_V2 is a convolutional architecture, whose task is images; this config has config.task='text'"
  )
  with pytest.raises(ValueError, match=re.escape(said)):
    train.run(text_config, tmp_path / 'run', 'DARTS_V2', '1')
  text_config.task = 'txt'
  with pytest.raises(ValueError, match=re.escape("config.task: 'txt' is not known; allowed are images, text")):
    train.run(text_config, tmp_path / 'run', 'RNN_DARTS_V2', '1')
  assert not (tmp_path / 'run').exists()


def test_language_configs_hold_the_published_values():
  assert build(training.LanguageTraining, ptb_eval.get_config()) == training.LanguageTraining()
  wikitext = build(training.LanguageTraining, wikitext2_eval.get_config())
  assert (wikitext.network.width, wikitext.network.dropout.h, wikitext.weights.weight_decay) == (700, 0.15, 5e-7)
  assert (wikitext.data.name, wikitext.batch_size, wikitext.network.dropout.x) == ('wikitext2', 64, 0.75)
  assert build(training.LanguageTraining, text_eval.get_config()).data.name == 'pydoc'
