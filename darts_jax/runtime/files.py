"""Reads files whatever they hold: how much memory they can ask for is bounded, and what is wrong with them is one line.

A file can be damaged by a kill or a disk, made by somebody else, or another thing than a file. No list of exceptions
covers what the readers of libraries raise on such content; here all of them become a ValueError that names the file.
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

#: Bytes of a file with one JSON value: settings, an architecture, results. Python's objects take 25 times as much.
MAX_JSON = 2**24
#: Bytes of other files that are read as a whole: a log, a text.
MAX_BYTES = 2**30

# Deeper values than any that is written here; what walks through values by recursion is safe.
_MAX_DEPTH = 64
# Folders of a path, which are made by recursion, too.
_MAX_LEVELS = 256
# Bytes of the header of an array: its shape has at most 64 numbers.
_MAX_HEADER = 2_000
# An archive may be of any size, but one of numbers that is larger than this does not shrink to a hundredth.
_MAX_UNPACKED, _MAX_RATIO = 2**26, 100
# Characters of a message, and those of a text that they are made of.
_MAX_MESSAGE, _MAX_READ = 400, 10_000
_KINDS = ((stat.S_ISDIR, 'a folder'), (stat.S_ISFIFO, 'a pipe'), (stat.S_ISSOCK, 'a socket'))
# As in gs://bucket; pathlib makes gs:/bucket of it.
_URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')


class UnfitFile(ValueError):
  """A file does not hold what it should; the message says what is wrong, without the file's name."""


def user_path(path: str | os.PathLike[str], field: str) -> pathlib.Path:
  """A path that a user gave, with the home folder in place of `~`.

  Args:
    path: need not exist.
    field: what the user set, which errors name.

  Raises:
    ValueError: it is no path of this system: it has a zero byte, is not UTF-8, a URL, too long or deep, or of an
      unknown user.
  """
  text = os.fspath(path)
  if '\0' in text:
    raise ValueError(f'{field}: {text!r} has a zero byte, which no path has')
  if as_unicode(str(text)) != text:
    # It would be written into files that are UTF-8.
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
    pass  # Whether it has to be there is for others to say.
  except (OSError, ValueError) as error:
    raise ValueError(f'{field}: {one_line(text)} is no usable path ({_reason(error)})') from error
  return found


def as_unicode(text: str) -> str:
  """A text that can be written as UTF-8: bytes of a file's name that are not UTF-8 are escaped."""
  return text.encode(errors='backslashreplace').decode()


def one_line(text: object) -> str:
  """A message of a library as one printable line of bounded length; it may quote a file."""
  whole = str(text)
  # Of megabytes it would take seconds.
  line = ' '.join(''.join(letter if letter.isprintable() else ' ' for letter in whole[:_MAX_READ]).split())
  return line if len(line) <= _MAX_MESSAGE and len(whole) <= _MAX_READ else f'{line[:_MAX_MESSAGE]}…'


def kind_of(mode: int) -> str:
  """What something is that is not a file, by its mode."""
  return next((name for is_kind, name in _KINDS if is_kind(mode)), 'a device')


def read_bytes(path: pathlib.Path, limit: int = MAX_BYTES, remedy: str = '') -> bytes:
  """The content of a file.

  Args:
    path: of the file.
    limit: bytes that it may have.
    remedy: what to do if it cannot be read, for the message.

  Raises:
    ValueError: it cannot be read, is not a file but a folder, a pipe or a device, or is larger.
  """
  with _opened(path, str(path), remedy) as file:
    size = os.fstat(file.fileno()).st_size
    if size > limit:
      raise ValueError(f'{path}: {size:,} bytes; at most {limit:,} are read')
    return file.read(size)


def parse_json(content: bytes) -> Any:
  """A JSON value in UTF-8.

  Raises:
    UnfitFile: it is not one, is nested too deeply, has a text that is not Unicode, or an object a name twice.
  """
  try:
    text = content.decode('utf-8-sig')
    value = json.loads(text, object_pairs_hook=_to_dict)
    _check_depth(value, _MAX_DEPTH)
    if '\\u' in text:
      # Half of a surrogate pair passes as a text until it is written.
      json.dumps(value, ensure_ascii=False).encode()
  except UnfitFile:
    raise
  except RecursionError as error:
    raise UnfitFile('not JSON that is read here: nested too deeply') from error
  except ValueError as error:
    raise UnfitFile(f'not JSON ({_reason(error)})') from error
  return value


def read_json(path: pathlib.Path, remedy: str = '') -> Any:
  """The JSON value that a file holds.

  Args:
    path: of the file.
    remedy: see `read_bytes`.

  Raises:
    ValueError: as `read_bytes`; or it does not hold one.
  """
  content = read_bytes(path, MAX_JSON, remedy)
  try:
    return parse_json(content)
  except UnfitFile as error:
    raise ValueError(f'{path}: {one_line(error)}') from error


def read_object(path: pathlib.Path, remedy: str = '') -> dict[str, Any]:
  """The JSON object that a file holds.

  Args:
    path: of the file.
    remedy: see `read_bytes`.

  Raises:
    ValueError: as `read_json`; or the value is no object.
  """
  value = read_json(path, remedy)
  if not isinstance(value, dict):
    raise ValueError(f'{path}: not an object of JSON, but a value of type {type(value).__name__}')
  return value


def read_json_lines(path: pathlib.Path) -> list[Any | UnfitFile]:
  """The JSON values of a file that has one a line; instead of one that cannot be read, what is wrong with it.

  Raises:
    ValueError: as `read_bytes`.
  """
  return [_parse_or_error(line) for line in read_bytes(path).splitlines()]


def _parse_or_error(line: bytes) -> Any | UnfitFile:
  try:
    return parse_json(line)
  except UnfitFile as error:
    return error


class Archive:
  """A zip archive, such as an `.npz` file, of which no member takes more memory than its directory says.

  Attributes:
    names: of its members, arrays with their ending `.npy`.
  """

  def __init__(self, file: BinaryIO, kind: str = 'zip archive', unpacked: int = _MAX_UNPACKED) -> None:
    """Reads the directory.

    Args:
      file: can be read at any place; stays open as long as members are read.
      kind: what it is called in messages.
      unpacked: bytes of all members together that any archive may have, however small it is.

    Raises:
      UnfitFile: it is no whole zip archive, or its members are too large for the archive that they are in.
    """
    size = file.seek(0, os.SEEK_END)
    try:
      self._zip = zipfile.ZipFile(file)
      self._members = {info.filename: info for info in self._zip.infolist()}
    except Exception as error:  # Damaged directories surface as many kinds.
      raise UnfitFile(f'not a whole {kind}: {_reason(error)}') from error
    found = sum(info.file_size for info in self._members.values())
    if found > max(unpacked, _MAX_RATIO * size):
      raise UnfitFile(f'refused: {size} bytes that unpack to {found}; written without compression it is read')
    self.names = tuple(self._members)

  def read(self, name: str) -> bytes:
    """The content of a member; raises an `UnfitFile` if it is damaged."""
    try:
      with self._open(name) as member:
        # Without a limit, it would unpack more than the directory says before it notices.
        content = member.read(self._members[name].file_size + 1)
    except UnfitFile:
      raise
    except Exception as error:  # As above.
      raise UnfitFile(f'member {name} cannot be read: {_reason(error)}') from error
    if len(content) != self._members[name].file_size:
      raise UnfitFile(f'member {name} has another size than the directory says')
    return content

  def array(self, name: str) -> np.ndarray:
    """The array of a member, given without its ending `.npy`; numbers, truth values or texts.

    Raises:
      UnfitFile: it is damaged, or of another dtype, such as objects, which would be unpickled.
    """
    try:
      with warnings.catch_warnings():
        # Headers are parsed as Python, which warns of what looks like a mistake in a program.
        warnings.simplefilter('ignore')
        with self._open(f'{name}.npy') as member:
          self._check_header(member, self._members[f'{name}.npy'].file_size)
        with self._open(f'{name}.npy') as member:
          array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
      if array.dtype.kind == 'U':
        _check_characters(array)
    except Exception as error:  # As above; NumPy's parser of headers alone raises half a dozen kinds.
      raise UnfitFile(f'array {name} cannot be read: {_reason(error)}') from error
    return array

  def _open(self, name: str) -> Any:
    info = self._members[name]
    # Other methods allocate what the content asks for.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise UnfitFile(f'member {name}: unsupported compression')
    return self._zip.open(info)

  @staticmethod
  def _check_header(member: Any, size: int) -> None:
    """NumPy allocates what the header says before it reads."""
    version = np.lib.format.read_magic(member)
    begin = member.tell()
    length = int.from_bytes(member.read(2 if version == (1, 0) else 4), 'little')
    if length > _MAX_HEADER:
      raise UnfitFile(f'its header has {length:,} bytes; at most {_MAX_HEADER:,} are read')
    header = member.read(length)
    # Python's parser calls it a lack of memory.
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
  """Opens an `.npz` file.

  Args:
    path: of the file.
    field: what names it, for messages.
    unpacked: see `Archive`.

  Yields:
    Its archive; what is wrong with an array becomes a ValueError that names the file.

  Raises:
    ValueError: it cannot be read, or is not an npz file.
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
  """The arrays that an `.npz` file holds, by name.

  Raises:
    ValueError: as `open_npz`; or an array cannot be read.
  """
  with open_npz(path) as archive:
    return {name.removesuffix('.npy'): archive.array(name.removesuffix('.npy')) for name in archive.names}


@contextlib.contextmanager
def _opened(path: pathlib.Path, source: str, remedy: str = '') -> Iterator[io.BufferedReader]:
  try:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
      # It might never end, or not begin before somebody writes.
      raise ValueError(f'{source}: not a file, but {kind_of(mode)}')
    with path.open('rb') as file:
      yield file
  except OSError as error:
    raise ValueError(f'{source}: cannot be read ({_reason(error)}){f"; {remedy}" if remedy else ""}') from error


def _reason(error: Exception) -> str:
  text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
  return one_line(text) or type(error).__name__


def _check_characters(array: np.ndarray) -> None:
  """Four bytes can be more than any character is, and a half of a pair is none."""
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
