import functools
import pickle

import numpy as np
import pytest

from darts_jax.data import images
from darts_jax.data.official import OFFICIAL


@pytest.mark.parametrize('below', ['', 'name'])
@pytest.mark.parametrize('packaging', ['binary', 'python'])
def test_archive(tmp_path, cifar, packaging, below):
  cifar.write_cifar_archive(tmp_path / below.replace('name', cifar.name), packaging)

  loaded = images.load(cifar.name, directory=str(tmp_path))

  assert cifar.is_equal(loaded)
  assert loaded.num_classes == {'cifar10': 10, 'cifar100': 100}[cifar.name]
  np.testing.assert_allclose(loaded.mean, [125.307, 122.961, 113.8575])
  np.testing.assert_allclose(loaded.std, [62.985, 62.0925, 66.708])


@pytest.mark.parametrize('packaging', ['binary', 'python'])
def test_unpacked(tmp_path, cifar, packaging):
  folder = cifar.write_cifar_folder(tmp_path, packaging)

  assert cifar.is_equal(images.load(cifar.name, directory=str(tmp_path)))
  assert cifar.is_equal(images.load(cifar.name, directory=str(folder)))


def test_archives_come_before_unpacked_files(tmp_path, cifar):
  cifar.write_cifar_folder(tmp_path, 'binary')
  archive = cifar.write_cifar_archive(tmp_path, 'python')
  archive.write_bytes(b'damaged')

  with pytest.raises(ValueError, match=f'{archive.name}: SHA-256'):
    images.load(cifar.name, directory=str(tmp_path))


@pytest.mark.parametrize('packaging', ['binary', 'python'])
def test_archive_with_another_checksum(tmp_path, cifar, packaging):
  archive = cifar.write_cifar_archive(tmp_path, packaging)
  expected = OFFICIAL[cifar.name].sha256[archive.name]
  archive.write_bytes(archive.read_bytes() + b'more')

  with pytest.raises(ValueError, match=f'{archive.name}: SHA-256 is [0-9a-f]{{64}}, expected {expected}'):
    images.load(cifar.name, directory=str(tmp_path))


def test_truncated_archive(tmp_path, cifar):
  archive = cifar.write_cifar_archive(tmp_path, 'binary')
  archive.write_bytes(archive.read_bytes()[:-5000])
  cifar.trust(archive)

  with pytest.raises(ValueError, match=f'{archive.name}: damaged or truncated archive'):
    images.load(cifar.name, directory=str(tmp_path))


def test_truncated_binary_file(tmp_path, cifar):
  folder = cifar.write_cifar_folder(tmp_path, 'binary')
  name, expected = {'cifar10': ('data_batch_4.bin', 3 * 3073), 'cifar100': ('train.bin', 15 * 3074)}[cifar.name]
  (folder / name).write_bytes((folder / name).read_bytes()[:-3072])

  with pytest.raises(ValueError, match=f'{name}: {expected - 3072} bytes, expected {expected}'):
    images.load(cifar.name, directory=str(tmp_path))


def test_truncated_python_file(tmp_path, cifar):
  folder = cifar.write_cifar_folder(tmp_path, 'python')
  name = {'cifar10': 'data_batch_4', 'cifar100': 'train'}[cifar.name]
  (folder / name).write_bytes((folder / name).read_bytes()[:-1000])

  with pytest.raises(ValueError, match=f'{folder.name}/{name}: refused or damaged pickle'):
    images.load(cifar.name, directory=str(tmp_path))


@pytest.mark.parametrize('packaging', ['binary', 'python'])
def test_missing_file(tmp_path, cifar, packaging):
  folder = cifar.write_cifar_folder(tmp_path, packaging)
  file = next(file for file in folder.iterdir() if file.name.startswith('test'))
  file.unlink()

  with pytest.raises(ValueError, match=f'{folder.name}: {file.name} is missing'):
    images.load(cifar.name, directory=str(tmp_path))


def test_binary_label_out_of_range(tmp_path, cifar10):
  file = cifar10.write_cifar_folder(tmp_path, 'binary') / 'data_batch_2.bin'
  file.write_bytes(b'\x0a' + file.read_bytes()[1:])

  with pytest.raises(ValueError, match=r'y_train\[3\] is 10; labels have to be in 0..9'):
    images.load('cifar10', directory=str(tmp_path))


# Printed, it takes 2⁶⁰ characters.
DEEP = functools.reduce(lambda value, _: (value, value), range(60), 0)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({b'labels': [0, 10, 3]}, 'labels holds 10; labels have to be in 0..9'),
    ({b'labels': [0, -1, 3]}, 'labels holds -1'),
    ({b'labels': [0, True, 3]}, 'labels holds True'),
    ({b'labels': [0, 10**100, 3]}, 'labels holds something of type int;'),
    ({b'labels': [0, 'a' * 10**6, 3]}, 'labels holds something of type str;'),
    ({b'labels': [0, DEEP, 3]}, 'labels holds something of type tuple;'),
    ({b'labels': [0, 1]}, 'labels is a list of 2, expected a list of 3'),
    ({b'labels': None}, 'labels is NoneType, expected a list of 3'),
    ({b'data': np.zeros((2, 3072), np.uint8)}, r'data is an array of shape \(2, 3072\), expected .* \(3, 3072\)'),
    ({b'data': [1, 2, 3]}, r'data is list, expected an array of shape \(3, 3072\)'),
  ],
)
def test_python_batch_of_other_content(tmp_path, cifar10, changes, message):
  file = cifar10.write_cifar_folder(tmp_path, 'python') / 'data_batch_2'
  batch = cifar10.cifar_batch(cifar10.x_train[3:6], cifar10.y_train[3:6])
  file.write_bytes(pickle.dumps({**batch, **changes}, protocol=2))

  with pytest.raises(ValueError, match=f'data_batch_2: {message}'):
    images.load('cifar10', directory=str(tmp_path))
