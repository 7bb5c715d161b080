"""Training images of a search that lie in prepared datasets and folders."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from darts_jax.data.files import ImageFiles
from darts_jax.data.official import IMAGENET_MEAN, IMAGENET_STD
from darts_jax.data.settings import Source
from darts_jax.data.stream import Listed, centre_box, decode

pytest.importorskip('grain')


def expected(image, size):
  """An image as an evaluation of a training has it."""
  content = io.BytesIO()
  Image.fromarray(image).save(content, 'PNG')
  return decode(content.getvalue(), size, lambda width, height: centre_box(width, height, size))


def test_prepared_datasets_are_read_in_the_stored_order(tmp_path, cifar10):
  pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('array_record')
  cifar10.write_tfds(tmp_path / 'cifar10' / '3.0.2', ids=True)
  source = Source(name='tfds', dir=str(tmp_path), dataset='cifar10', image_size=12, num_threads=2)
  files = ImageFiles.open(source)
  images = files.decoded()
  order = cifar10.stored_order(15)
  np.testing.assert_array_equal(images.x_train, [expected(cifar10.x_train[index], 12) for index in order])
  np.testing.assert_array_equal(images.y_train, cifar10.y_train[order])
  assert (images.name, images.num_classes, images.damaged) == ('cifar10', 10, None)
  assert (images.mean, images.std) == (IMAGENET_MEAN, IMAGENET_STD)
  assert files.fingerprint()['images'] == 15
  # Their labels are in the records.
  few = ImageFiles.open(dataclasses.replace(source, num_images=3))
  first = min({*range(10)} - {*images.y_train[few.indices].tolist()})
  with pytest.raises(
    ValueError, match=f'^config.data.num_images: 3 leave out class {first} of cifar10; more are needed$'
  ):
    few.decoded()


@pytest.fixture
def source(tmp_path):
  """Ten images of one colour each, which is their number, of two classes; the first is damaged."""
  for i in range(10):
    path = tmp_path / 'train' / 'ab'[i // 5] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((5, 6, 3), i, np.uint8)).save(path)
  (tmp_path / 'train' / 'a' / '0.png').write_bytes(b'')
  return Source(name='image_folder', dir=str(tmp_path), image_size=4, num_threads=1)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_rows_of_a_table_are_read_from_either_part(source, num_workers):
  records = source.open()
  # Positions of the second part begin at four.
  listed = Listed(
    records,
    (np.array([7, 0, 5, 3]), np.array([9, 2, 4])),
    np.array([[0, 1, 4, -1], [6, 3, 5, 1]]),
    image_size=4,
    num_threads=1,
    num_workers=num_workers,
  )
  first, second = listed.batches()
  # The damaged one is replaced by the one that follows it in its part.
  assert first.images.max(axis=(1, 2, 3)).tolist() == [7, 5, 9, 0]
  assert first.labels.tolist() == [1, 1, 1, 0]
  assert first.counts.tolist() == [True, True, True, False]
  assert first.damaged.tolist() == [-1, 0, -1, -1]
  assert second.images.max(axis=(1, 2, 3)).tolist() == [4, 3, 2, 5]
  assert second.damaged.tolist() == [-1, -1, -1, 0]


def test_a_part_without_an_image_is_an_error(source):
  listed = Listed(source.open(), (np.array([0]), np.array([1])), np.array([[0]]), image_size=4, num_threads=0)
  with pytest.raises(ValueError, match=r'0.png: cannot be decoded, nor can any other of the training images$'):
    next(listed.batches())


def test_a_folder_without_an_image_is_an_error(source, tmp_path):
  for path in (tmp_path / 'train').rglob('*.png'):
    path.write_bytes(b'')
  with pytest.raises(ValueError, match=r'^config.data.dir: .*: not one of the images can be decoded$'):
    ImageFiles.open(source).decoded()
