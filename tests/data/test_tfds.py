import json
import sys

import numpy as np
import pytest

from darts_jax.data import images

pytest.importorskip('tensorflow_datasets')
pytest.importorskip('array_record')


@pytest.mark.parametrize('where', ['.', 'cifar10', 'cifar10/3.0.2'])
def test_cifar_in_its_official_order(tmp_path, cifar10, where):
  cifar10.write_tfds(tmp_path / 'cifar10' / '3.0.2', ids=True)

  assert cifar10.is_equal(images.load('cifar10', directory=str(tmp_path / where)))


def test_mnist_in_the_stored_order(tmp_path, mnist):
  mnist.write_tfds(tmp_path / 'mnist' / '3.0.1', ids=False)

  loaded = images.load('mnist', directory=str(tmp_path))

  np.testing.assert_array_equal(loaded.x_train, mnist.x_train[mnist.stored_order(12)])
  np.testing.assert_array_equal(loaded.y_train, mnist.y_train[mnist.stored_order(12)])
  np.testing.assert_array_equal(loaded.x_test, mnist.x_test[mnist.stored_order(5)])


def test_prepared_folder_comes_before_archives(tmp_path, cifar10):
  cifar10.write_tfds(tmp_path / 'cifar10' / '3.0.2', ids=True)
  cifar10.write_cifar_archive(tmp_path, 'binary').write_bytes(b'damaged')

  assert cifar10.is_equal(images.load('cifar10', directory=str(tmp_path)))


def test_newest_version_is_read(tmp_path, cifar10):
  cifar10.write_tfds(tmp_path / 'cifar10' / '3.0.10', ids=True)
  (tmp_path / 'cifar10' / '3.0.9').mkdir()
  (tmp_path / 'cifar10' / '3.0.9' / 'dataset_info.json').write_text(
    json.dumps({'name': 'cifar10', 'version': '3.0.9', 'fileFormat': 'array_record'})
  )

  assert cifar10.is_equal(images.load('cifar10', directory=str(tmp_path)))


def test_other_datasets_and_formats_are_passed_over(tmp_path, cifar10, monkeypatch):
  cifar10.write_tfds(tmp_path / 'cifar10' / '3.0.2', ids=True, file_format='tfrecord')
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)

  for name in ('cifar10', 'cifar100'):
    with pytest.raises(ValueError, match=f'holds no {name}: .* tensorflow-datasets array_record folder {name}/'):
      images.load(name, directory=str(tmp_path))


def test_without_the_package(tmp_path, cifar10, monkeypatch):
  cifar10.write_tfds(tmp_path / 'cifar10' / '3.0.2', ids=True)
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)

  with pytest.raises(ValueError, match=r'cifar10/3.0.2: reading it needs: pip install darts_jax\[tfds\]'):
    images.load('cifar10', directory=str(tmp_path))


def test_truncated_records(tmp_path, cifar10):
  cifar10.write_tfds(tmp_path / 'cifar10' / '3.0.2', ids=True)
  path = tmp_path / 'cifar10' / '3.0.2' / 'cifar10-test.array_record-00000-of-00001'
  path.write_bytes(path.read_bytes()[:-1000])

  with pytest.raises(ValueError, match=r'cifar10/3.0.2: cannot be read by tensorflow-datasets'):
    images.load('cifar10', directory=str(tmp_path))


def test_no_record_starts_a_program(tmp_path, cifar10, monkeypatch):
  from array_record.python import array_record_module
  from PIL import EpsImagePlugin
  from tensorflow_datasets.proto import tf_example_pb2

  started = []
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *arguments, **options: started.append(arguments))
  cifar10.write_tfds(tmp_path / 'cifar10' / '3.0.2', ids=False)
  path = tmp_path / 'cifar10' / '3.0.2' / 'cifar10-test.array_record-00000-of-00001'
  example = tf_example_pb2.Example()
  example.features.feature['image'].bytes_list.value.append(
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n'
  )
  example.features.feature['label'].int64_list.value.append(0)
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for _ in range(4):
    writer.write(example.SerializeToString())
  writer.close()

  with pytest.raises(ValueError, match=r'cifar10/3.0.2: cannot be read by tensorflow-datasets: cannot identify image'):
    images.load('cifar10', directory=str(tmp_path))
  assert not started


def test_other_number_of_images(tmp_path, cifar10):
  cifar10.write_tfds(tmp_path / 'cifar10' / '3.0.2', ids=True)
  cifar10.change(num_test=6)

  with pytest.raises(ValueError, match=r'images of split test have shape \(4, 32, 32, 3\), expected \(6, 32, 32, 3\)'):
    images.load('cifar10', directory=str(tmp_path))


def test_damaged_description(tmp_path, cifar10):
  cifar10.write_tfds(tmp_path / 'cifar10' / '3.0.2', ids=True)
  (tmp_path / 'cifar10' / '3.0.2' / 'dataset_info.json').write_text('{"name": ')

  with pytest.raises(ValueError, match=r'dataset_info.json: not the description of a prepared dataset'):
    images.load('cifar10', directory=str(tmp_path))
