"""Reads the named arrays of a file of weights: PyTorch's two formats, NumPy's `.npz` and `.safetensors`."""

import io
import os

import numpy as np
import safetensors

from darts_jax.interop import torch_files
from darts_jax.runtime.files import Archive, UnfitFile, one_line, read_bytes, user_path

#: Prefix that `torch.nn.DataParallel` adds to every name.
_PARALLEL_PREFIX = 'module.'
# Largest size of a file of weights, which is read into memory as a whole.
_MAX_BYTES = 2**36
_SAFETENSORS_DTYPES = {
  'F64': 'f8',
  'F32': 'f4',
  'F16': 'f2',
  'BF16': 'bfloat16',
  'I64': 'i8',
  'I32': 'i4',
  'I16': 'i2',
  'I8': 'i1',
  'U64': 'u8',
  'U32': 'u4',
  'U16': 'u2',
  'U8': 'u1',
  'BOOL': '?',
}


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads a file of weights without executing any code from it.

  The format is recognised by the content: the zip format of PyTorch since 1.6, the format of PyTorch before that (not
  the tar archives of its first versions), `.npz`, or `.safetensors`. In a PyTorch checkpoint the state dict is looked
  for under usual keys such as `state_dict` and `model`, then anywhere else except in the states of optimizers and the
  like. The prefix `module.` of `torch.nn.DataParallel` is removed if all names have it.

  Args:
    path: the file, which has to fit into memory.

  Returns:
    At least one array by its name: booleans, integers or floating-point numbers of the file's dtype, but in the
    machine's byte order, and float32 for bfloat16. Arrays are read-only, need not be contiguous and may share memory
    as the tensors in the file do.

  Raises:
    ValueError: the file is missing, not a regular file, damaged, truncated or in no known format; its pickle contains
      anything but tensors and plain values; it has no arrays, or another object where an array is expected. The
      message is one line that names the file.
  """
  path = user_path(path, 'weights')
  content = read_bytes(path, _MAX_BYTES)
  try:
    arrays = _read(content)
    if not arrays:
      raise UnfitFile('it holds no arrays')
  except UnfitFile as error:
    raise ValueError(f'{path}: {one_line(error)}') from error
  except Exception as error:  # The parsers of damaged or malicious files can raise anything.
    raise ValueError(f'{path}: damaged or truncated: {type(error).__name__}: {one_line(error)}') from error
  for array in arrays.values():
    array.flags.writeable = False
  if all(name.startswith(_PARALLEL_PREFIX) for name in arrays):
    return {name.removeprefix(_PARALLEL_PREFIX): array for name, array in arrays.items()}
  return arrays


def _read(content: bytes) -> dict[str, np.ndarray]:
  # No other format has a brace in this place. The length before it can have any value, so this comes first.
  if content[8:9] == b'{':
    return _read_safetensors(content)
  if content.startswith((b'PK\x03\x04', b'PK\x05\x06')):  # The latter begins an empty archive.
    return _read_zip(content)
  if content.startswith(b'\x80'):
    return torch_files.read_legacy(content)
  if content[257:262] == b'ustar':
    raise UnfitFile("a tar archive; if it is one of PyTorch's first versions, save it anew with a later one")
  raise UnfitFile("no file of weights; known formats: PyTorch's two, .npz, .safetensors")


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
  arrays = {}
  # The library's own conversion to NumPy refuses bfloat16.
  for name, tensor in safetensors.deserialize(content):
    if tensor['dtype'] not in _SAFETENSORS_DTYPES:
      raise UnfitFile(f'tensor {name}: unsupported dtype {tensor["dtype"]}')
    arrays[name] = torch_files.decode(tensor['data'], _SAFETENSORS_DTYPES[tensor['dtype']]).reshape(tensor['shape'])
  return arrays


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
  archive = Archive(io.BytesIO(content))
  if any(name.endswith('/data.pkl') for name in archive.names):
    return torch_files.read_zip(archive.names, archive.read)
  if all(name.endswith('.npy') for name in archive.names):
    return {name.removesuffix('.npy'): _numbers(archive, name.removesuffix('.npy')) for name in archive.names}
  raise UnfitFile("a zip archive, but neither PyTorch's nor NumPy's")


def _numbers(archive: Archive, name: str) -> np.ndarray:
  array = archive.array(name)
  if array.dtype.kind not in 'biuf':
    raise UnfitFile(f'array {name}: unsupported dtype {array.dtype}')
  return array.astype(array.dtype.newbyteorder('='), copy=False)
