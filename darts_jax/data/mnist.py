"""Reads MNIST from its idx files."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from darts_jax.data.arrays import Arrays
from darts_jax.data.download import check_sha256
from darts_jax.data.official import Official
from darts_jax.runtime.files import read_bytes

#: Names of the files of training images, training labels, test images and test labels.
FILES = ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')

_UNSIGNED_BYTE = 8


def read(dataset: Official, directory: pathlib.Path) -> Arrays | None:
  """Looks for the four idx files, compressed or not, in a folder, and in its subfolders `mnist` and `MNIST/raw`.

  Args:
    dataset: MNIST.
    directory: the folder.

  Returns:
    uint8 images [N, 28, 28, 1] and int32 labels [N] in the official order, or None if a file is missing.

  Raises:
    ValueError: a compressed file does not have the published checksum, or a file is truncated or not in the published
      format.
  """
  for root in (directory, directory / dataset.name, directory / 'MNIST' / 'raw'):
    paths = [next((root / name for name in (f'{file}.gz', file) if (root / name).is_file()), None) for file in FILES]
    if None not in paths:
      image = dataset.image_shape[:2]
      shapes = ((dataset.num_train, *image), (dataset.num_train,), (dataset.num_test, *image), (dataset.num_test,))
      x_train, y_train, x_test, y_test = (
        _read_idx(path, shape, dataset) for path, shape in zip(paths, shapes, strict=True) if path
      )
      return Arrays(x_train[..., None], y_train.astype(np.int32), x_test[..., None], y_test.astype(np.int32))
  return None


def _read_idx(path: pathlib.Path, shape: tuple[int, ...], dataset: Official) -> np.ndarray:
  """Reads an idx file [http://yann.lecun.com/exdb/mnist/]: a magic number, big-endian sizes, then the values."""
  content = _content(path, dataset)
  header = struct.pack(f'>HBB{len(shape)}I', 0, _UNSIGNED_BYTE, len(shape), *shape)
  if content[: len(header)] != header:
    raise ValueError(
      f'{path}: header is {content[: len(header)].hex()}, expected {header.hex()} (unsigned bytes of shape {shape})'
    )
  size = len(header) + math.prod(shape)
  if len(content) != size:
    raise ValueError(f'{path}: {len(content)} bytes, expected {size}; the file is truncated or not the official one')
  return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _content(path: pathlib.Path, dataset: Official) -> bytes:
  if path.suffix != '.gz':
    return read_bytes(path)
  with path.open('rb') as file:
    check_sha256(file, str(path), dataset.sha256[path.name])
    try:
      return gzip.decompress(file.read())
    except (OSError, EOFError, zlib.error) as error:
      raise ValueError(f'{path}: damaged or truncated gzip file: {error}') from error
