import struct

import numpy as np
import pytest

from darts_jax.data import images


@pytest.mark.parametrize('compressed', [True, False])
@pytest.mark.parametrize('below', ['', 'mnist', 'MNIST/raw'])
def test_idx_files(tmp_path, mnist, below, compressed):
  mnist.write_mnist(tmp_path / below, compressed)

  loaded = images.load('mnist', directory=str(tmp_path))

  assert mnist.is_equal(loaded)
  assert loaded.num_classes == 10
  np.testing.assert_allclose(loaded.mean, [33.3285])
  np.testing.assert_allclose(loaded.std, [78.5655])


def test_compressed_files_come_first(tmp_path, mnist):
  mnist.write_mnist(tmp_path, compressed=False)
  path = mnist.write_mnist(tmp_path, compressed=True)[1]
  path.write_bytes(b'damaged')

  with pytest.raises(ValueError, match=f'{path.name}: SHA-256 is [0-9a-f]{{64}}, expected [0-9a-f]{{64}}'):
    images.load('mnist', directory=str(tmp_path))


def test_truncated_compressed_file(tmp_path, mnist):
  path = mnist.write_mnist(tmp_path, compressed=True)[0]
  path.write_bytes(path.read_bytes()[:-100])
  mnist.trust(path)

  with pytest.raises(ValueError, match=f'{path.name}: damaged or truncated gzip file'):
    images.load('mnist', directory=str(tmp_path))


@pytest.mark.parametrize(('file', 'expected'), [(0, 16 + 12 * 784), (1, 8 + 12), (2, 16 + 5 * 784), (3, 8 + 5)])
def test_truncated_file(tmp_path, mnist, file, expected):
  path = mnist.write_mnist(tmp_path, compressed=False)[file]
  path.write_bytes(path.read_bytes()[:-1])

  with pytest.raises(ValueError, match=f'{path.name}: {expected - 1} bytes, expected {expected}'):
    images.load('mnist', directory=str(tmp_path))


@pytest.mark.parametrize(
  'header',
  [
    b'',
    struct.pack('>4I', 2051, 11, 28, 28),  # One image less.
    struct.pack('>4I', 2051, 12, 32, 32),
    struct.pack('>4I', 3331, 12, 28, 28),  # Floating point.
  ],
)
def test_other_header(tmp_path, mnist, header):
  path = mnist.write_mnist(tmp_path, compressed=False)[0]
  path.write_bytes(header + path.read_bytes()[16:])

  with pytest.raises(ValueError, match=rf'{path.name}: header is .* \(unsigned bytes of shape \(12, 28, 28\)\)'):
    images.load('mnist', directory=str(tmp_path))


def test_missing_file(tmp_path, mnist):
  mnist.write_mnist(tmp_path, compressed=False)[3].unlink()

  with pytest.raises(ValueError, match=r'holds no mnist: put there the idx files .*t10k-labels-idx1-ubyte'):
    images.load('mnist', directory=str(tmp_path))
