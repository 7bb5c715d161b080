"""Reads the pickled batches of the CIFAR archives without unpickling anything but plain values and byte arrays.

A pickle may name any importable function and have it called. Here the five names that a pickled array of bytes
consists of stand for inert classes of this module, and every other name is refused; NumPy, whose own
reconstruction trusts its input, never sees the pickle.
"""

import io
import pickle
from typing import Any

import numpy as np


class _Dtype:
  def __init__(self, code: str | bytes, *_: object) -> None:
    self.code = code.decode('latin1') if isinstance(code, bytes) else code

  def __setstate__(self, state: object) -> None:
    pass  # Byte order and alignment, which unsigned bytes have no need of.


class _Array:
  def __init__(self, *_: object) -> None:
    pass

  def __setstate__(self, state: tuple[Any, ...]) -> None:
    _, self.shape, self.dtype, self.column_major, self.content = state

  def to_numpy(self) -> np.ndarray:
    if self.dtype.code != 'u1':
      raise ValueError(f'array of dtype {self.dtype.code!r} instead of unsigned bytes')
    return np.frombuffer(self.content, np.uint8).reshape(self.shape, order='F' if self.column_major else 'C')


def _reconstruct(*_: object) -> _Array:
  return _Array()


def _encode(text: str, encoding: str) -> bytes:
  # How Python 3 writes bytes in the protocols of Python 2.
  if encoding != 'latin1':
    raise pickle.UnpicklingError(f'it asks for the encoding {encoding!r}; allowed: latin1')
  return text.encode('latin1')


_ALLOWED = {
  ('numpy', 'ndarray'): _Array,
  ('numpy', 'dtype'): _Dtype,
  ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
  ('numpy._core.multiarray', '_reconstruct'): _reconstruct,
  ('_codecs', 'encode'): _encode,
}


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(f'it asks for {module}.{name}; allowed: lists, numbers, bytes and arrays of bytes')
    return _ALLOWED[module, name]


def loads(content: bytes, source: str) -> dict[str, Any]:
  """Reads a pickled dictionary of plain values and uint8 arrays.

  Args:
    content: the pickle, in any protocol up to 4, as written by Python 2 or 3.
    source: the file it comes from, which errors name.

  Returns:
    The dictionary with its keys as text; arrays are read-only uint8.

  Raises:
    ValueError: if the pickle asks for anything else, is damaged, or holds no dictionary.
  """
  try:
    batch = _Unpickler(io.BytesIO(content), encoding='bytes').load()
    if not isinstance(batch, dict):
      raise ValueError(f'it holds a {type(batch).__name__} instead of a dictionary')
    return {
      key.decode('latin1') if isinstance(key, bytes) else str(key): (
        value.to_numpy() if isinstance(value, _Array) else value
      )
      for key, value in batch.items()
    }
  except Exception as error:  # The bytes of a damaged or hostile pickle can make its reader raise anything.
    raise ValueError(f'{source}: refused or damaged pickle: {error}') from error
