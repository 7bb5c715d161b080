"""Reads untrusted files: memory is bounded, and every error is a ValueError of one line that names the file.

A file can be damaged by a kill or a disk, be made by somebody else, or be a folder, a pipe or a device. The readers of
libraries can raise any exception on such content; here all of them become a ValueError.
"""

import contextlib
import io
import json
import math
import os
import pathlib
import re
import stat
import sys
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

#: Largest size in bytes of a file with one JSON value (settings, an architecture, results). Python's objects take 25
#: times as much memory.
MAX_JSON = 2**24
#: Largest size in bytes of other files that are read as a whole, such as a log or a text.
MAX_BYTES = 2**30

# Largest depth of JSON values, more than any value that the package writes; recursive functions are safe with it.
_MAX_DEPTH = 64
# Largest number of parts of a path; folders are created recursively, too.
_MAX_LEVELS = 256
# Largest size in bytes of the header of an array, whose shape has at most 64 numbers.
_MAX_HEADER = 2_000
# Archives whose members have more bytes than this may not be compressed to less than a hundredth, as arrays of numbers
# never are.
_MAX_UNPACKED, _MAX_RATIO = 2**26, 100
# Largest number of characters of a message, and of the text that it is made from.
_MAX_MESSAGE, _MAX_READ = 400, 10_000
_KINDS = ((stat.S_ISDIR, 'a folder'), (stat.S_ISFIFO, 'a pipe'), (stat.S_ISSOCK, 'a socket'))
# Matches gs://bucket, and gs:/bucket, which pathlib makes of it.
_URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')


class UnfitFile(ValueError):
  """A file does not have the expected content; the message gives the reason without the file's name."""


def user_path(path: str | os.PathLike[str], field: str) -> pathlib.Path:
  """Checks a path that a user has given, and replaces `~` by the home folder.

  Args:
    path: the path; it need not exist.
    field: name of the setting, for error messages.

  Raises:
    ValueError: the path is not valid: it has a zero byte, is not UTF-8, is a URL, is too long or too deep, or names an
      unknown user.
  """
  text = os.fspath(path)
  if '\0' in text:
    raise ValueError(f'{field}: {text!r} has a zero byte, which no path has')
  if as_unicode(str(text)) != text:
    # Paths are written into files, which are UTF-8.
    raise ValueError(f'{field}: {text!r} is not UTF-8; rename it, or use a link of another name')
  if _URL.match(text):
    raise ValueError(f'{field}: {text} is a URL; allowed are paths of folders and files on this machine, or mounted')
  found = pathlib.Path(text)
  if len(found.parts) > _MAX_LEVELS:
    raise ValueError(f'{field}: {one_line(text)} has {len(found.parts)} parts; there may be up to {_MAX_LEVELS}')
  try:
    found = found.expanduser()
    found.stat()
  except RuntimeError as error:
    raise ValueError(f'{field}: {text}: no home folder is known of that user; give the whole path') from error
  except (FileNotFoundError, NotADirectoryError):
    pass  # The caller decides whether it has to exist.
  except (OSError, ValueError) as error:
    raise ValueError(f'{field}: {one_line(text)} is no usable path ({_reason(error)})') from error
  return found


def as_unicode(text: str) -> str:
  """Escapes what cannot be encoded as UTF-8, such as undecodable bytes of a file's name."""
  return text.encode(errors='backslashreplace').decode()


def one_line(text: object) -> str:
  """Turns a message, which may quote the content of a file, into one printable line of bounded length."""
  whole = str(text)
  # Limited, since megabytes would take seconds.
  line = ' '.join(''.join(letter if letter.isprintable() else ' ' for letter in whole[:_MAX_READ]).split())
  return line if len(line) <= _MAX_MESSAGE and len(whole) <= _MAX_READ else f'{line[:_MAX_MESSAGE]}…'


def kind_of(mode: int) -> str:
  """A phrase such as `'a folder'` for a path that is not a regular file, from its mode."""
  return next((name for is_kind, name in _KINDS if is_kind(mode)), 'a device')


def read_bytes(path: pathlib.Path, limit: int = MAX_BYTES, remedy: str = '') -> bytes:
  """Reads a file.

  Args:
    path: path of the file.
    limit: largest allowed size in bytes.
    remedy: advice for the message if the file cannot be read.

  Raises:
    ValueError: the file cannot be read, is larger than the limit, or is a folder, a pipe or a device.
  """
  with _opened(path, str(path), remedy) as file:
    size = os.fstat(file.fileno()).st_size
    if size > limit:
      raise ValueError(f'{path}: {size:,} bytes; at most {limit:,} are read')
    return file.read(size)


def parse_json(content: bytes) -> Any:
  """Parses a JSON value in UTF-8.

  Raises:
    UnfitFile: the content is not JSON, is nested too deeply, has a string that is not Unicode, or has an object in
      which a name occurs twice.
  """
  try:
    text = content.decode('utf-8-sig')
    value = json.loads(text, object_pairs_hook=_to_dict)
    _check_depth(value, _MAX_DEPTH)
    if '\\u' in text:
      # Half of a surrogate pair fails only when it is encoded.
      json.dumps(value, ensure_ascii=False).encode()
  except UnfitFile:
    raise
  except RecursionError as error:
    raise UnfitFile('not JSON that is read here: nested too deeply') from error
  except ValueError as error:
    raise UnfitFile(f'not JSON ({_reason(error)})') from error
  return value


def read_json(path: pathlib.Path, remedy: str = '') -> Any:
  """Reads a file with one JSON value.

  Args:
    path: path of the file.
    remedy: see `read_bytes`.

  Raises:
    ValueError: see `read_bytes`; or the file is not JSON.
  """
  content = read_bytes(path, MAX_JSON, remedy)
  try:
    return parse_json(content)
  except UnfitFile as error:
    raise ValueError(f'{path}: {one_line(error)}') from error


def read_object(path: pathlib.Path, remedy: str = '') -> dict[str, Any]:
  """Reads a file with one JSON object.

  Args:
    path: path of the file.
    remedy: see `read_bytes`.

  Raises:
    ValueError: see `read_json`; or the value is not an object.
  """
  value = read_json(path, remedy)
  if not isinstance(value, dict):
    raise ValueError(f'{path}: not an object of JSON, but a value of type {type(value).__name__}')
  return value


def read_json_lines(path: pathlib.Path) -> list[Any | UnfitFile]:
  """Reads a file with one JSON value per line; lines that cannot be read become the error.

  Raises:
    ValueError: see `read_bytes`.
  """
  return [_parse_or_error(line) for line in read_bytes(path).splitlines()]


def _parse_or_error(line: bytes) -> Any | UnfitFile:
  try:
    return parse_json(line)
  except UnfitFile as error:
    return error


class Archive:
  """A zip archive, such as an `.npz` file, whose members take no more memory than its directory says.

  Attributes:
    names: names of its members; arrays with the suffix `.npy`.
  """

  def __init__(self, file: BinaryIO, kind: str = 'zip archive', unpacked: int = _MAX_UNPACKED) -> None:
    """Reads the directory of the archive.

    Args:
      file: a seekable file; it has to stay open while members are read.
      kind: name of the format, for messages.
      unpacked: total bytes of all members that are allowed whatever the size of the file; more are only allowed up to a
        hundred times that size.

    Raises:
      UnfitFile: the file is not a complete zip archive, or its members are too large for its size.
    """
    size = file.seek(0, os.SEEK_END)
    try:
      self._zip = zipfile.ZipFile(file)
      self._members = {info.filename: info for info in self._zip.infolist()}
    except Exception as error:  # Damaged directories cause many kinds of exceptions.
      raise UnfitFile(f'not a whole {kind}: {_reason(error)}') from error
    found = sum(info.file_size for info in self._members.values())
    if found > max(unpacked, _MAX_RATIO * size):
      raise UnfitFile(f'refused: {size} bytes that unpack to {found}; written without compression it is read')
    self.names = tuple(self._members)

  def read(self, name: str) -> bytes:
    """Reads a member; raises an `UnfitFile` if it is damaged."""
    try:
      with self._open(name) as member:
        # Without a limit, a member larger than the directory says would be unpacked as a whole.
        content = member.read(self._members[name].file_size + 1)
    except UnfitFile:
      raise
    except Exception as error:  # Damaged members cause many kinds of exceptions.
      raise UnfitFile(f'member {name} cannot be read: {_reason(error)}') from error
    if len(content) != self._members[name].file_size:
      raise UnfitFile(f'member {name} has another size than the directory says')
    return content

  def array(self, name: str) -> np.ndarray:
    """Reads an array of numbers, booleans or strings.

    Args:
      name: name of the member without the suffix `.npy`.

    Raises:
      UnfitFile: the member is missing, damaged, or of another dtype, such as objects, which would be unpickled.
    """
    try:
      with warnings.catch_warnings():
        # Headers are parsed as Python code, for which Python can print warnings.
        warnings.simplefilter('ignore')
        with self._open(f'{name}.npy') as member:
          self._check_header(member, self._members[f'{name}.npy'].file_size)
        with self._open(f'{name}.npy') as member:
          array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
      if array.dtype.kind == 'U':
        _check_characters(array)
    except Exception as error:  # NumPy's parser of headers alone raises half a dozen kinds of exceptions.
      raise UnfitFile(f'array {name} cannot be read: {_reason(error)}') from error
    return array

  def _open(self, name: str) -> Any:
    info = self._members[name]
    # Decoders of other methods allocate as much memory as the content says.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise UnfitFile(f'member {name}: unsupported compression')
    return self._zip.open(info)

  @staticmethod
  def _check_header(member: Any, size: int) -> None:
    """Checks the header of an array, since NumPy allocates as much memory as the header says."""
    version = np.lib.format.read_magic(member)
    begin = member.tell()
    length = int.from_bytes(member.read(2 if version == (1, 0) else 4), 'little')
    if length > _MAX_HEADER:
      raise UnfitFile(f'its header has {length:,} bytes; at most {_MAX_HEADER:,} are read')
    header = member.read(length)
    # Python's parser would raise a MemoryError.
    if sum(header.count(bracket) for bracket in (b'(', b'[', b'{')) > _MAX_DEPTH:
      raise UnfitFile('its header is nested too deeply')
    member.seek(begin)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(member)
    if dtype.hasobject:
      raise UnfitFile('Object arrays are not read, because they are pickled')
    if dtype.kind not in 'biufcUS' or not dtype.itemsize:
      raise UnfitFile(f'unsupported dtype {dtype}')
    if min(shape, default=1) < 0 or size - member.tell() != math.prod(shape) * dtype.itemsize:
      raise UnfitFile(f'its shape {shape} and its size do not fit')


@contextlib.contextmanager
def open_npz(path: pathlib.Path, field: str = '', unpacked: int = _MAX_UNPACKED) -> Iterator[Archive]:
  """Context that opens an `.npz` file.

  Args:
    path: path of the file.
    field: name of the setting that names the file, for messages.
    unpacked: see `Archive`.

  Yields:
    The archive; within the context, an `UnfitFile` becomes a ValueError that names the file.

  Raises:
    ValueError: the file cannot be read, or is not an npz file.
  """
  source = f'{path} ({field})' if field else str(path)
  with _opened(path, source) as file:
    try:
      if file.read(6) == b'\x93NUMPY':
        raise UnfitFile('a single array; an npz file is needed')
      yield Archive(file, 'npz file', unpacked)
    except UnfitFile as error:
      raise ValueError(f'{source}: {one_line(error)}') from error


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads all arrays of an `.npz` file, by name.

  Raises:
    ValueError: see `open_npz`; or an array cannot be read.
  """
  with open_npz(path) as archive:
    return {name.removesuffix('.npy'): archive.array(name.removesuffix('.npy')) for name in archive.names}


@contextlib.contextmanager
def _opened(path: pathlib.Path, source: str, remedy: str = '') -> Iterator[io.BufferedReader]:
  try:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
      # Reading a pipe or a device might wait forever or never end.
      raise ValueError(f'{source}: not a file, but {kind_of(mode)}')
    with path.open('rb') as file:
      yield file
  except OSError as error:
    raise ValueError(f'{source}: cannot be read ({_reason(error)}){f"; {remedy}" if remedy else ""}') from error


def _reason(error: Exception) -> str:
  text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
  return one_line(text) or type(error).__name__


def _check_characters(array: np.ndarray) -> None:
  """Raises an `UnfitFile` unless all characters are Unicode: 4 bytes can exceed it or be half of a surrogate pair."""
  codes = np.frombuffer(array.astype(array.dtype.newbyteorder('=')).tobytes(), np.uint32)
  if ((codes > sys.maxunicode) | ((codes >= 0xD800) & (codes < 0xE000))).any():
    raise UnfitFile('it has a character that is not Unicode')


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for i, name in enumerate(names) if name in names[:i])
    raise UnfitFile(f'not JSON that is read here: {one_line(twice)} stands twice in an object')
  return found


def _check_depth(value: Any, levels: int) -> None:
  if not levels:
    raise UnfitFile('not JSON that is read here: nested too deeply')
  for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
    if isinstance(item, dict | list):
      _check_depth(item, levels - 1)
