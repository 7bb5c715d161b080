"""Writes the event files that TensorBoard reads.

A file is a sequence of TFRecords: the length of the content, the content, and a checksum of each. The content is an
`Event`, a message in the wire format of Protocol Buffers; scalars need only a few of its fields (event.proto and
summary.proto of TensorBoard). No library is used, since those that write such files import PyTorch or TensorFlow if
installed, which takes seconds, and fails if their installation is broken.
"""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Iterable

import numpy as np

_VERSION = 'brain.Event:2'
_START = 1  # SessionLog.START
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class EventFile:
  """An event file that is open for writing."""

  def __init__(self, folder: pathlib.Path) -> None:
    """Creates a new file in an existing folder."""
    now = time.time_ns()
    # With nanoseconds, two writers that are opened within a second have different files.
    name = f'events.out.tfevents.{now // 10**9:010}.{socket.gethostname()}.{now}'
    self._file = (folder / name).open('wb')
    self._write(_field(3, _VERSION.encode()))

  def start(self, step: int) -> None:
    """Marks a resumption at this step: TensorBoard ignores what earlier files contain from this step on."""
    self._write(_field(2, step) + _field(7, _field(1, _START)))

  def scalars(self, step: int, values: Iterable[tuple[str, float]]) -> None:
    """Appends named numbers of a step, as float32; numbers beyond its range become infinite."""
    summary = b''.join(_field(1, _field(1, tag.encode()) + _field(2, _float32(value))) for tag, value in values)
    self._write(_field(2, step) + _field(5, summary))

  def flush(self) -> None:
    """Writes all appended data to the disk."""
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Flushes and closes the file."""
    try:
      self.flush()
    finally:
      self._file.close()

  def _write(self, fields: bytes) -> None:
    event = _field(1, time.time()) + fields
    length = struct.pack('<Q', len(event))
    self._file.write(length + _checksum(length) + event + _checksum(event))


def _field(number: int, value: int | float | np.float32 | bytes) -> bytes:
  """Encodes a field of a message: an integer, a double, a float, or the bytes of a string or of another message."""
  if isinstance(value, np.float32):
    return _varint(number << 3 | _FIXED32) + struct.pack('<f', value)
  if isinstance(value, float):
    return _varint(number << 3 | _FIXED64) + struct.pack('<d', value)
  if isinstance(value, bytes):
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value
  return _varint(number << 3 | _VARINT) + _varint(value)


def _varint(value: int) -> bytes:
  groups = bytearray()
  value &= 2**64 - 1  # Two's complement.
  while value > 127:
    groups.append(value & 127 | 128)
    value >>= 7
  return bytes((*groups, value))


def _float32(value: float) -> np.float32:
  with np.errstate(over='ignore'):
    return np.float32(value)


def _table() -> tuple[int, ...]:
  """Lookup table of CRC-32C, with the polynomial 0x1EDC6F41 in reversed bit order."""
  table = []
  for byte in range(256):
    for _ in range(8):
      byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    table.append(byte)
  return tuple(table)


_TABLE = _table()


def _checksum(content: bytes) -> bytes:
  """The masked CRC-32C of TFRecords."""
  crc = 2**32 - 1
  for byte in content:
    crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
  crc ^= 2**32 - 1
  return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 2**32 - 1)
