"""Random mutations that damage files or make them hostile."""

import contextlib
import io
import json
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

_BYTES = (b'\0', b'\xff', b'\x80', b'\n', b'"', b'{', b'[', b'\xff\xff\xff\x7f', b'\xff' * 8, b'\xef\xbb\xbf', b'%PDF')


def mutate_bytes(content: bytes, draw: np.random.Generator) -> bytes:
  """Cuts, flips, overwrites, inserts, repeats or removes bytes."""
  data = bytearray(content)
  for _ in range(int(draw.integers(1, 4))):
    place = int(draw.integers(len(data) + 1))
    length = int(draw.integers(1, 1 + max(1, len(data) // 4)))
    kind = draw.integers(7)
    if kind == 0:
      del data[place:]
    elif kind == 1 and place < len(data):
      data[place] ^= 1 << int(draw.integers(8))
    elif kind == 2 and place < len(data):
      data[place] = int(draw.integers(256))
    elif kind == 3:
      data[place:place] = _BYTES[draw.integers(len(_BYTES))]
    elif kind == 4:
      data[place:place] = data[place : place + length]
    elif kind == 5:
      del data[place : place + length]
    else:
      data[place : place + length] = bytes(len(data[place : place + length]))
  return bytes(data)


_VALUES: tuple[Any, ...] = (
  *(None, True, False, 0, -1, 2, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float('nan'), float('inf')),
  *('', 'x', 'none', '\ud800', '\0', 'a' * 5000, [], {}, [[]], [[[[[0]]]]], {'': None}, ['x', -1], [None] * 1000),
)


def mutate_json(content: bytes, draw: np.random.Generator) -> bytes:
  """Replaces, removes or renames a random value in one of the lines; or damages the bytes."""
  kind = draw.integers(10)
  if kind == 0:
    return (b'[' * 100_000, b'{"a":' * 100_000, b'[' * 500 + b']' * 500, b'9' * 10_000)[draw.integers(4)]
  if kind < 4:
    return mutate_bytes(content, draw)
  lines = content.decode().splitlines() if b'\n{' in content else [content.decode()]
  number = int(draw.integers(len(lines)))
  value = json.loads(lines[number])
  for _ in range(int(draw.integers(1, 3))):
    value = _mutate_value(value, draw)
  lines[number] = json.dumps(value)
  return '\n'.join([*lines, '']).encode()


def _mutate_value(value: Any, draw: np.random.Generator) -> Any:
  """A copy of a JSON value with one random change."""
  if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
    return _VALUES[draw.integers(len(_VALUES))]
  keys = list(value) if isinstance(value, dict) else list(range(len(value)))
  key = keys[draw.integers(len(keys))]
  changed: Any = dict(value) if isinstance(value, dict) else list(value)
  kind = draw.integers(6)
  if kind == 0:
    del changed[key]
  elif kind == 1 and isinstance(changed, dict):
    changed[f'{key}_'] = changed.pop(key)
  elif kind == 1:
    changed.insert(key, changed[key])
  else:
    changed[key] = _mutate_value(value[key], draw)
  return changed


def mutate_text(content: bytes, draw: np.random.Generator) -> bytes:
  """Replaces random tokens of a text, such as a printed architecture; or damages the bytes."""
  if draw.random() < 0.5:
    return mutate_bytes(content, draw)
  tokens = content.decode().replace('(', ' ( ').replace(',', ' , ').split(' ')
  others = (
    '(',
    ')',
    '[',
    ']',
    ',',
    '-1',
    '10**9',
    'range(0,10**12)',
    "'",
    '"',
    '((' * 5000,
    '__import__("os")',
    '\x0c',
  )
  for _ in range(int(draw.integers(1, 3))):
    tokens[draw.integers(len(tokens))] = others[draw.integers(len(others))]
  return ' '.join(tokens).encode()


def _header(shape: str, descr: str = "'<f4'", more: str = '') -> bytes:
  return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, {more}}}".encode()


_HEADERS = (
  *map(_header, ('(1000000000000,)', '(-1,)', '(9223372036854775808,)', "('a',)", '(1.5,)', '7', '(True,)', '(0,)*3')),
  *map(_header, ('(2147483648, 2147483648, 8)', '(1000000000000, 0)', '()', '(10L,)', '[4]', '(1,)' + ' ' * 70_000)),
  *(
    _header('(4,)', descr)
    for descr in ("'|O'", "'<M8[ns]'", "'|V8'", "'<U500000000'", "'foo'", "[('a','<f4')]", 'None', "'|S0'", "'<c16'")
  ),
  *(_header('(4,)', "'<f4'", more) for more in ("'more': 1", '(', "'a': {[]: 1}", '"""')),
  *(
    b'',
    b'{}',
    b'[1]',
    b'(' * 300,
    b'(' * 9000,
    b"{'descr':",
    b'\xff\xfe',
    b'\0\0',
    b'{[]: 1}',
    b'1' * 5000,
    b'-' * 9000,
  ),
)


def _npy(header: bytes, draw: np.random.Generator) -> bytes:
  major = (1, 1, 1, 2, 3, 9)[draw.integers(6)]
  length = len(header) if draw.random() < 0.9 else int(draw.integers(2**16))
  sizes = struct.pack('<H', length % 2**16) if major == 1 else struct.pack('<I', length)
  return b'\x93NUMPY' + bytes((major, 0)) + sizes + header + bytes(int(draw.integers(64)))


def mutate_zip(
  content: bytes, draw: np.random.Generator, inner: Callable[[bytes, np.random.Generator], bytes] | None = None
) -> bytes:
  """Damages an archive: its bytes, its directory, or a member, which may become hostile, renamed, missing or huge.

  Args:
    content: a zip archive.
    draw: random generator.
    inner: damages a member; by default a member becomes an array with a hostile header.
  """
  if draw.random() < 0.3:
    return mutate_bytes(content, draw)
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    members = [(name, archive.read(name)) for name in archive.namelist()]
  number = int(draw.integers(len(members)))
  name, old = members[number]
  method, kind = zipfile.ZIP_STORED, draw.integers(8)
  if kind < 3:
    members[number] = (name, inner(old, draw) if inner else _npy(_HEADERS[draw.integers(len(_HEADERS))], draw))
  elif kind == 3:
    members[number] = (name, mutate_bytes(old, draw))
  elif kind == 4:
    del members[number]
  elif kind == 5:
    members[number] = (('.', 'x', f'{name}_', '../x.npy', name.upper())[draw.integers(5)], old)
  elif kind == 6:
    method = (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)[draw.integers(3)]
  else:
    members[number] = (name, bytes(2 * 10**8))
    method = zipfile.ZIP_DEFLATED
  stream = io.BytesIO()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    with zipfile.ZipFile(stream, 'w', method) as archive:
      for each, data in members:
        archive.writestr(each, data)
  made = bytearray(stream.getvalue())
  place = made.find(b'PK\x01\x02')
  if draw.random() < 0.3 and place >= 0:
    # Change a field of the directory: encryption, compression method, sizes or offset of a member.
    field, form = ((8, '<H'), (10, '<H'), (20, '<I'), (24, '<I'), (42, '<I'))[draw.integers(5)]
    value = (1, 2, 8, 12, 14, 97, 2**16 - 1, 2**31, 2**32 - 1)[draw.integers(9)]
    struct.pack_into(form, made, place + field, value % 2 ** (8 * struct.calcsize(form)))
  elif kind == 6:
    made[int(draw.integers(40, max(41, place)))] ^= 0x55
  return bytes(made)


_OPCODES = (
  *(b'r' + struct.pack('<I', index) for index in (10**8, 2**31 - 1, 2**32 - 1)),
  *(code + struct.pack('<I', size) for code in (b'X', b'B', b'T', b'\x8b', b'j') for size in (2**31 - 1, 2**32 - 1)),
  *(
    code + struct.pack('<Q', size)
    for code in (b'\x8d', b'\x8e', b'\x95', b'\x96')
    for size in (2**33, 2**63, 2**64 - 1)
  ),
  *(b'cos\nsystem\n', b'cnumpy\ndtype\n', b'cnumpy\nndarray\n', b'c_codecs\nencode\n', b'ccollections\nOrderedDict\n'),
  *(
    b'R',
    b'b',
    b'\x81',
    b'\x93',
    b'o',
    b'\x82\x01',
    b'P0\n',
    b'Q',
    b'(',
    b't',
    b'd',
    b'u',
    b's',
    b'a',
    b'e',
    b'0',
    b'2',
  ),
  *(
    b'.',
    b'N',
    b']',
    b'}',
    b'\x8f',
    b'K\x01',
    b'\x8a\xff',
    b'I' + b'9' * 9000 + b'\n',
    b'(' * 10_000,
    b'h\x00',
    b'\x94',
  ),
  *(
    b']' + b'\x85' * 10_000,
    b']\x94h\x00a',
    b'F1e999\n',
    b"S'x\n",
    b'V\\ud800\n',
    b'i__main__\nx\n',
    b'g99999999999\n',
  ),
)


def mutate_pickle(content: bytes, draw: np.random.Generator) -> bytes:
  """Inserts hostile opcodes into a pickle, or damages its bytes."""
  if draw.random() < 0.2:
    return mutate_bytes(content, draw)
  places = [0]
  with contextlib.suppress(Exception):  # Some files have more data after the pickle.
    places = [place for _, _, place in pickletools.genops(content) if place is not None]
  data = bytearray(content)
  for _ in range(int(draw.integers(1, 3))):
    place = places[draw.integers(len(places))]
    chosen = _OPCODES[draw.integers(len(_OPCODES))]
    end = place + (len(chosen) if draw.random() < 0.5 else 0)
    data[place:end] = chosen
  return bytes(data)


def mutate_image(content: bytes, draw: np.random.Generator) -> bytes:
  """Damages an image, or sets another size in its header."""
  if draw.random() < 0.8:
    return mutate_bytes(content, draw)
  size = (1, 2**15, 2**31 - 1, 2**32 - 1)[draw.integers(4)]
  if content.startswith(b'\x89PNG'):
    chunk = b'IHDR' + struct.pack('>II', size, (1, size)[draw.integers(2)]) + content[24:29]
    return content[:12] + chunk + struct.pack('>I', zlib.crc32(chunk)) + content[33:]
  if content.startswith(b'P5'):
    return f'P5 {size} {size} {(255, 65535, 0, -1)[draw.integers(4)]}\n'.encode() + content[12:]
  return (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'GIF89a', b'II*\0')[draw.integers(3)] + content
