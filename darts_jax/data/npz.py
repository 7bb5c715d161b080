"""Reads a user's own dataset from an `.npz` file."""

import io
import pathlib
import zipfile
import zlib

import numpy as np

from darts_jax.data.arrays import Arrays

_NAMES = ('x_train', 'y_train', 'x_test', 'y_test')
# What numpy and zipfile raise on files that are missing, damaged, or hold Python objects.
_ERRORS = (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def read(path: pathlib.Path) -> Arrays:
  """Reads `x_train`, `y_train` and, if the file has them, `x_test` and `y_test`.

  Args:
    path: a file written by `np.savez` or `np.savez_compressed`. Nothing in it is unpickled.

  Returns:
    The arrays as they are, except that floating-point images become float32, and images [N, H, W] get a channel axis.

  Raises:
    ValueError: if the file is missing, damaged or not an npz file, lacks an array, or holds one of Python objects.
  """
  try:
    with path.open('rb') as file:
      return _read(file, path)
  except OSError as error:
    raise ValueError(f'{path} (config.data.path): cannot be read: {error}') from error


def _read(file: io.BufferedReader, path: pathlib.Path) -> Arrays:
  try:
    archive = np.load(file, allow_pickle=False)
  except _ERRORS as error:
    raise ValueError(f'{path} (config.data.path): not a whole npz file: {error}') from error
  if not isinstance(archive, np.lib.npyio.NpzFile):
    raise ValueError(f'{path} (config.data.path): a single array; an npz file with x_train and y_train is needed')
  with archive:
    needed = _NAMES[:2] if {'x_test', 'y_test'}.isdisjoint(archive.files) else _NAMES
    for name in needed:
      if name not in archive.files:
        raise ValueError(f'{path}: array {name} is missing; the file holds {sorted(archive.files)}')
    return Arrays(*(_array(archive, name, path) for name in needed))


def _array(archive: np.lib.npyio.NpzFile, name: str, path: pathlib.Path) -> np.ndarray:
  try:
    array = archive[name]
  except _ERRORS as error:
    raise ValueError(f'{path}: array {name} cannot be read: {error}') from error
  if name.startswith('y'):
    return array
  if array.dtype.kind == 'f':
    with np.errstate(over='ignore'):  # What becomes infinite is reported by the validation.
      array = array.astype(np.float32)
  return array[..., None] if array.ndim == 3 else array
