"""The page of a training: what it says was read, and that it is there whatever files are missing."""

import json

import pytest

from darts_jax import genotype, report

CONFIG = {
  'seed': 4,
  'epochs': 2,
  'data': {'name': 'cifar10', 'dir': '/photos', 'dataset': 'birds', 'validation_fraction': 0.1, 'test': True},
  'network': {'channels': 8, 'layers': 5},
  'genotype': genotype.to_dict(genotype.published()['PDARTS']),
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
      genotype.save(genotype.published()['PDARTS'], tmp_path / 'genotype.json')
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


def test_a_training_that_failed_has_stopped(page):
  failed = {'kind': 'event', 'step': 12, 'event': 'failed', 'message': '/a.jpg: cannot be read'}
  assert 'Stopped before its end' in page(*epochs(), failed).text
