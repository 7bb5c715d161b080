"""Reads a user's own dataset from an `.npz` file."""

import pathlib

import numpy as np

from darts_jax.data.arrays import Arrays
from darts_jax.runtime.files import Archive, open_npz

# Larger than the default of `Archive`, since drawings on a blank background are compressed to less than a hundredth.
_UNPACKED = 2**30
_NAMES = ('x_train', 'y_train', 'x_test', 'y_test')


def read(path: pathlib.Path) -> Arrays:
  """Reads `x_train`, `y_train` and, if the file has them, `x_test` and `y_test`.

  Args:
    path: a file written by `np.savez` or `np.savez_compressed`. Nothing in it is unpickled.

  Returns:
    The arrays, not validated; floating-point images are converted to float32, and images [N, H, W] get a channel axis.

  Raises:
    ValueError: the file is missing, damaged or not an npz file, lacks an array, or has an array of Python objects.
  """
  with open_npz(path, 'config.data.path', _UNPACKED) as archive:
    names = [name.removesuffix('.npy') for name in archive.names]
    needed = _NAMES[:2] if {'x_test', 'y_test'}.isdisjoint(names) else _NAMES
    for name in needed:
      if name not in names:
        raise ValueError(f'{path}: array {name} is missing; the file holds {sorted(names)}')
    return Arrays(*(_array(archive, name) for name in needed))


def _array(archive: Archive, name: str) -> np.ndarray:
  array = archive.array(name)
  if name.startswith('y'):
    return array
  if array.dtype.kind == 'f':
    with np.errstate(over='ignore'):  # The validation reports numbers that become infinite.
      array = array.astype(np.float32)
  return array[..., None] if array.ndim == 3 else array
