"""Reads CIFAR-10 and CIFAR-100 from their official archives, packed or unpacked, in the binary or python version."""

import dataclasses
import functools
import math
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from darts_jax.data import unpickling
from darts_jax.data.arrays import Arrays
from darts_jax.data.download import check_sha256
from darts_jax.data.official import Official
from darts_jax.runtime.files import read_bytes

_Part = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Packaging:
  """A version in which a dataset is published; all training files have the same number of images."""

  archive: str
  folder: str
  train: tuple[str, ...]
  test: str
  decode: Callable[[bytes, str, Official, int], _Part]


def read(dataset: Official, directory: pathlib.Path) -> Arrays | None:
  """Looks for the dataset in a folder and in its subfolder with the dataset's name, for archives before unpacked files.

  Archives are read in memory, member by member.

  Args:
    dataset: CIFAR-10, or CIFAR-100 with its fine labels.
    directory: the folder.

  Returns:
    uint8 images [N, 32, 32, 3] and int32 labels [N] in the official order, or None if there is no such dataset.

  Raises:
    ValueError: an archive does not have the published checksum, or a file is missing, truncated or not in the published
      format.
  """
  roots = (directory, directory / dataset.name)
  for packaging in _PACKAGINGS[dataset.name]:
    for root in roots:
      archive = root / packaging.archive
      if archive.is_file():
        return _assemble(dataset, packaging, archive, _archive_members(archive, packaging, dataset))
  for packaging in _PACKAGINGS[dataset.name]:
    for root in roots:
      for folder in (root / packaging.folder, root):
        if (folder / packaging.train[0]).is_file():
          return _assemble(dataset, packaging, folder, _folder_files(folder, packaging))
  return None


def _archive_members(archive: pathlib.Path, packaging: _Packaging, dataset: Official) -> Iterator[tuple[str, bytes]]:
  with archive.open('rb') as file:
    check_sha256(file, str(archive), dataset.sha256[packaging.archive])
    wanted = {f'{packaging.folder}/{name}': name for name in (*packaging.train, packaging.test)}
    try:
      with tarfile.open(fileobj=file, mode='r:gz') as tar:
        for member in tar:
          content = tar.extractfile(member) if member.name in wanted else None
          if content is not None:
            yield wanted[member.name], content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
      raise ValueError(f'{archive}: damaged or truncated archive: {error}') from error


def _folder_files(folder: pathlib.Path, packaging: _Packaging) -> Iterator[tuple[str, bytes]]:
  for name in (*packaging.train, packaging.test):
    if (folder / name).is_file():
      yield name, read_bytes(folder / name)


def _assemble(
  dataset: Official, packaging: _Packaging, source: pathlib.Path, files: Iterator[tuple[str, bytes]]
) -> Arrays:
  parts: dict[str, _Part] = {}
  for name, content in files:
    num_images = dataset.num_test if name == packaging.test else dataset.num_train // len(packaging.train)
    parts[name] = packaging.decode(content, f'{source}/{name}', dataset, num_images)
  for name in (*packaging.train, packaging.test):
    if name not in parts:
      raise ValueError(f'{source}: {name} is missing')
  x_train, y_train = (np.concatenate(arrays) for arrays in zip(*(parts[name] for name in packaging.train), strict=True))
  return Arrays(x_train, y_train, *parts[packaging.test])


def _decode_binary(content: bytes, source: str, dataset: Official, num_images: int, *, label_bytes: int) -> _Part:
  """Decodes records of labels, the fine one last, and an image; see https://www.cs.toronto.edu/~kriz/cifar.html."""
  record = label_bytes + math.prod(dataset.image_shape)
  if len(content) != num_images * record:
    raise ValueError(
      f'{source}: {len(content)} bytes, expected {num_images * record} ({num_images} records of {record}); '
      'the file is truncated or not the official one'
    )
  records = np.frombuffer(content, np.uint8).reshape(num_images, record)
  return _to_images(records[:, label_bytes:], dataset), records[:, label_bytes - 1].astype(np.int32)


def _decode_python(content: bytes, source: str, dataset: Official, num_images: int, *, label_key: str) -> _Part:
  batch = unpickling.loads(content, source)
  data, labels = batch.get('data'), batch.get(label_key)
  shape = (num_images, math.prod(dataset.image_shape))
  if not isinstance(data, np.ndarray) or data.shape != shape:
    found = f'an array of shape {data.shape}' if isinstance(data, np.ndarray) else f'{type(data).__name__}'
    raise ValueError(f'{source}: data is {found}, expected an array of shape {shape}')
  if not isinstance(labels, list) or len(labels) != num_images:
    found = f'a list of {len(labels)}' if isinstance(labels, list) else f'{type(labels).__name__}'
    raise ValueError(f'{source}: {label_key} is {found}, expected a list of {num_images}')
  for label in labels:
    if type(label) is not int or not 0 <= label < dataset.num_classes:
      # Printing an object of a pickle can take forever: a number with many digits, tuples of tuples.
      found = (
        str(label) if isinstance(label, int) and abs(label) < 2**63 else f'something of type {type(label).__name__}'
      )
      raise ValueError(f'{source}: {label_key} holds {found}; labels have to be in 0..{dataset.num_classes - 1}')
  return _to_images(data, dataset), np.asarray(labels, np.int32)


def _to_images(pixels: np.ndarray, dataset: Official) -> np.ndarray:
  height, width, channels = dataset.image_shape
  return np.ascontiguousarray(pixels.reshape(-1, channels, height, width).transpose(0, 2, 3, 1))


_PACKAGINGS = {
  'cifar10': (
    _Packaging(
      archive='cifar-10-binary.tar.gz',
      folder='cifar-10-batches-bin',
      train=tuple(f'data_batch_{batch}.bin' for batch in range(1, 6)),
      test='test_batch.bin',
      decode=functools.partial(_decode_binary, label_bytes=1),
    ),
    _Packaging(
      archive='cifar-10-python.tar.gz',
      folder='cifar-10-batches-py',
      train=tuple(f'data_batch_{batch}' for batch in range(1, 6)),
      test='test_batch',
      decode=functools.partial(_decode_python, label_key='labels'),
    ),
  ),
  'cifar100': (
    _Packaging(
      archive='cifar-100-binary.tar.gz',
      folder='cifar-100-binary',
      train=('train.bin',),
      test='test.bin',
      decode=functools.partial(_decode_binary, label_bytes=2),
    ),
    _Packaging(
      archive='cifar-100-python.tar.gz',
      folder='cifar-100-python',
      train=('train',),
      test='test',
      decode=functools.partial(_decode_python, label_key='fine_labels'),
    ),
  ),
}
