"""The page of a training: what it says was read, and that it is there whatever files are missing."""

import json
import re

import pytest

from darts_jax import report, spaces
from darts_jax.report import curves, workdir

CONFIG = {
  'seed': 4,
  'epochs': 2,
  'data': {'name': 'cifar10', 'dir': '/photos', 'dataset': 'birds', 'validation_fraction': 0.1, 'test': True},
  'network': {'channels': 8, 'layers': 5},
  'genotype': spaces.to_json(spaces.published()['PDARTS']),
}
EPOCH = {'train_loss': 0.5, 'train_accuracy': 0.8, 'valid_loss': 0.6, 'valid_accuracy': 0.75, 'seconds': 3.0}
TEST = {'kind': 'test', 'step': 20, 'loss': 0.6543, 'accuracy': 0.7654}
FINISHED = {'kind': 'event', 'step': 20, 'event': 'finished', 'message': ''}


@pytest.fixture
def page(tmp_path, parse_page):
  """Writes a training with these records and changes of its data, and reads its page."""

  def write(*records, genotype_file=True, **data):
    config = {**CONFIG, 'data': {**CONFIG['data'], **data}}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    if genotype_file:
      spaces.save(spaces.published()['PDARTS'], tmp_path / 'genotype.json')
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    return parse_page(report.write(tmp_path).read_text())

  return write


def epochs(**changes):
  return [{'kind': 'epoch', 'step': 10 * (i + 1), 'epoch': i, **EPOCH, **changes} for i in range(2)]


def test_a_finished_training(page):
  text = page(*epochs(), TEST, FINISHED).text
  assert 'Architecture PDARTS' in text
  assert 'Test 0.6543 76.54 %' in text
  assert 'Validation 0.6000 75.00 %' in text
  assert 'The test images were read once, after the last epoch; no choice was made by them.' in text
  assert 'Among the first five' not in text


def test_top_five_are_shown_where_they_were_measured(page):
  text = page(*epochs(valid_top5_accuracy=0.9), {**TEST, 'top5_accuracy': 0.95}, FINISHED).text
  assert 'Test 0.6543 76.54 % 95.00 %' in text
  assert 'Validation 0.6000 75.00 % 90.00 %' in text


@pytest.mark.parametrize(
  ('records', 'data', 'said'),
  [
    (epochs(), {}, 'The test images have not been read; they are after the last epoch.'),
    ([*epochs(), FINISHED], {}, 'There are no test images.'),
    ([*epochs(), FINISHED], {'test': False}, 'The test images are not read: candidates are compared by validation'),
    (epochs(), {'validation_fraction': 0.0}, 'No training image was held out.'),
  ],
)
def test_what_was_read_is_said_as_it_was(page, records, data, said):
  assert said in page(*records, **data).text


@pytest.mark.parametrize(('name', 'title'), [('image_folder', '/photos'), ('tfds', 'birds'), ('cifar10', 'cifar10')])
def test_the_title_is_what_the_images_are(page, name, title):
  assert f'Training from scratch {title}' in page(*epochs(), name=name).text


def test_a_training_that_has_just_begun_or_lost_files(page):
  text = page(genotype_file=False).text
  assert 'No epoch has ended yet.' in text
  assert 'genotype.json is not there (yet).' in text
  assert 'Nothing has been recorded yet.' in text


def test_warnings(page):
  damaged = {'kind': 'event', 'step': 3, 'event': 'damaged_image'}
  messages = ['/a.jpg: cannot be decoded; it is left out', '/b.jpg: cannot be decoded; the next one takes its place']
  # Whoever resumes comes across an image again.
  records = [{**damaged, 'message': message} for message in (*messages, messages[0])]
  text = page(*epochs(train_loss='nan'), *records).text
  assert '2 images could not be read; see the log of events.' in text
  assert 'train_loss was not finite at step 10' in text
  assert 'Look at this first' not in page(*epochs()).text


@pytest.fixture
def recurrent(tmp_path, parse_page):
  """Writes a training of a language model with these records and changes of its data, and reads its page."""

  def write(*records, **data):
    architecture = spaces.published()['RNN_DARTS_V2']
    config = {
      'task': 'text',
      'seed': 4,
      'epochs': 2,
      'data': {'name': 'ptb', 'dir': '/texts', 'test': True, **data},
      'network': {'width': 850},
      'genotype': spaces.to_json(architecture),
      'dataset': 'a fingerprint',
    }
    (tmp_path / 'config.json').write_text(json.dumps(config))
    spaces.save(architecture, tmp_path / 'genotype.json')
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    return parse_page(report.write(tmp_path).read_text())

  return write


def _text_epochs(averaging=0, **changes):
  values = {'train_loss': 4.5, 'train_perplexity': 90.0171, 'valid_loss': 4.25, 'valid_perplexity': 70.1054}
  records = [{'kind': 'epoch', 'step': 10 * (i + 1), 'epoch': i, **values, 'seconds': 3.0} for i in range(2)]
  # The first epoch is the better one, unless averaging helps.
  records[0] |= {'valid_loss': 4.5, 'valid_perplexity': 90.0171} if averaging else {}
  return [{**record, 'averaging': averaging * i, **changes} for i, record in enumerate(records)]


TEXT_TEST = {'kind': 'test', 'step': 20, 'loss': 4.2, 'perplexity': 66.6863, 'averaged': 1}
AVERAGING = {'kind': 'event', 'step': 10, 'event': 'averaging', 'message': 'weights are averaged'}
BACK = {'kind': 'event', 'step': 15, 'event': 'rolled_back', 'message': 'to the weights of step 10'}


def test_a_finished_training_of_a_language_model(recurrent):
  text = recurrent(*_text_epochs(averaging=1), AVERAGING, TEXT_TEST, FINISHED).text
  assert 'Training from scratch ptb' in text
  assert 'Architecture RNN_DARTS_V2 Width 850 Seed 4' in text
  assert 'Test perplexity 66.69 Validation perplexity 70.11 epoch 2 Epochs 2 of 2' in text
  assert 'Text Loss, nats per token Perplexity' in text
  assert 'Training, with dropout, the mean of the last epoch 4.5000 90.02' in text
  assert 'Validation after epoch 2, the best, averaged weights 4.2500 70.11 Test' in text
  assert 'Test, averaged weights 4.2000 66.69' in text
  assert 'by it, averaging of weights began after epoch 1. The test text was read once, after the last' in text
  assert 'at batch size 1; no choice was made by it.' in text
  assert 'Dashed: from here on, weights are averaged' in text
  assert 'Look at this first' not in text
  # Of images nothing is said.
  assert not re.search('[Ii]mage|[Aa]ccuracy|augmented|Channels|Cells', text.partition('Training from scratch')[2])


def test_a_training_of_a_language_model_that_averages_nothing(recurrent):
  better, worse = _text_epochs()
  worse |= {'valid_loss': 4.75, 'valid_perplexity': 115.5843}
  parsed = recurrent(better, worse, {**TEXT_TEST, 'averaged': 0, 'perplexity': 12345.6}, FINISHED)
  assert 'Validation after epoch 1, the best 4.2500 70.11 Validation after the last epoch 4.7500 115.58' in parsed.text
  assert 'Validation perplexity 70.11 epoch 1' in parsed.text
  assert 'Test 4.2000 12,346' in parsed.text
  assert not re.search('[Aa]veraged|averaging of|Dashed', parsed.text.partition('Configuration')[0])


@pytest.mark.parametrize(
  ('records', 'data', 'said'),
  [
    (_text_epochs(), {}, 'The test text has not been read; it is after the last epoch, once, at batch size 1.'),
    ([*_text_epochs(), FINISHED], {}, 'There is no test text.'),
    ([*_text_epochs(), FINISHED], {'test': False}, 'The test text is not read: candidates are compared by validation'),
    ([], {}, 'No epoch has ended yet.'),
  ],
)
def test_what_was_read_of_a_text_is_said_as_it_was(recurrent, records, data, said):
  text = recurrent(*records, **data).text
  assert said in text
  assert 'Test perplexity –' in text


def test_a_loss_that_is_not_finite_is_not_the_best(recurrent):
  first, second = _text_epochs()
  first |= {'valid_loss': 'nan', 'valid_perplexity': 'nan'}
  assert 'Validation after epoch 2, the best 4.2500 70.11' in recurrent(first, second).text


def test_the_start_of_averaging_and_rollbacks_are_marked(recurrent, tmp_path):
  text = recurrent(*_text_epochs(), AVERAGING, BACK).text
  assert 'The training diverged once and went back to its best weights' in text
  assert 'Dotted lines: it went back to its best weights.' in text
  for panel in curves.learning(workdir.read(tmp_path)):
    axes = panel.figure.axes[0]
    vertical = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert vertical == [1.5, 1.0]
    assert 'averaging' in [found.get_text() for found in axes.texts]
  resumed = {'kind': 'event', 'step': 15, 'event': 'resumed', 'message': ''}
  lead = 'Dotted lines: the run was resumed, or it went back to its best weights.'
  assert lead in recurrent(*_text_epochs(), BACK, resumed).text


def test_a_training_that_failed_has_stopped(page):
  failed = {'kind': 'event', 'step': 12, 'event': 'failed', 'message': '/a.jpg: cannot be read'}
  assert 'Stopped before its end' in page(*epochs(), failed).text
