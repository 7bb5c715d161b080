"""Reads the pickled batches of the CIFAR archives, which may only consist of plain values and byte arrays.

A pickle can call any importable function, and Python's unpickler allocates as much memory as an operand says: nine
bytes can take 32 GB. Here only the instructions that batches need are implemented. The five global names in a pickled
array of bytes resolve to harmless functions of this module, and every other name is refused. NumPy's reconstruction,
which trusts its input, is not used.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from darts_jax.runtime.files import UnfitFile, one_line

# An instruction of one byte can create an object of seventy bytes. The largest batch has half a million instructions.
_MAX_INSTRUCTIONS = 2**22

_PLAIN = {'INT', 'LONG', 'BININT', 'BININT1', 'BININT2', 'LONG1', 'FLOAT', 'BINFLOAT'}
_TEXTS = {'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE'}
_STRINGS = {'STRING', 'BINSTRING', 'SHORT_BINSTRING'}  # Byte strings, as Python 2 writes them.
_BYTES = {'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}


@dataclasses.dataclass
class _Dtype:
  code: Any


@dataclasses.dataclass
class _Array:
  state: Any = None

  def to_numpy(self) -> np.ndarray:
    match self.state:
      case (_, tuple(shape), _Dtype(code), bool() | int() as column_major, content):
        pass
      case _:
        raise UnfitFile('an array without its state')
    if _text(code) != 'u1':
      # Printing tuples of tuples could take forever.
      found = repr(code) if type(code) is str else f'of type {type(code).__name__}'
      raise UnfitFile(f'array of dtype {found} instead of unsigned bytes')
    if not all(type(size) is int and size >= 0 for size in shape) or not isinstance(content, bytes):
      raise UnfitFile('an array without a shape or content')
    return np.frombuffer(content, np.uint8).reshape(shape, order='F' if column_major else 'C')


def _text(value: Any) -> Any:
  return value.decode('latin1') if isinstance(value, bytes) else value


class _Machine:
  """Executes the instructions of one pickle."""

  def __init__(self) -> None:
    self._stacks: list[list[Any]] = [[]]  # Every mark opens one more.
    self._memo: dict[Any, Any] = {}
    # Encoded strings by identity, since a few instructions could encode a long string many times.
    self._encoded: dict[int, tuple[str, bytes]] = {}
    self._allowed: dict[str, Callable[..., Any]] = {
      'numpy.ndarray': _Array,
      'numpy.dtype': lambda code, *_: _Dtype(_text(code)),
      'numpy.core.multiarray._reconstruct': lambda *_: _Array(),
      'numpy._core.multiarray._reconstruct': lambda *_: _Array(),
      '_codecs.encode': self._encode,
    }

  def run(self, content: bytes) -> Any:
    for count, (opcode, operand, _) in enumerate(pickletools.genops(io.BytesIO(content))):
      if count == _MAX_INSTRUCTIONS:
        raise UnfitFile(f'more than {_MAX_INSTRUCTIONS:,} instructions')
      if opcode.name == 'STOP':
        return self._stacks[-1].pop()
      self._follow(opcode.name, operand)
    raise UnfitFile('it has no end')

  def _follow(self, name: str, operand: Any) -> None:
    stack = self._stacks[-1]
    match name:
      case _ if name in _PLAIN or name in _TEXTS or name in _BYTES:
        stack.append(operand)
      case _ if name in _STRINGS:
        stack.append(operand.encode('latin1'))
      case _ if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
      case 'EMPTY_DICT' | 'EMPTY_LIST':
        stack.append({} if name == 'EMPTY_DICT' else [])
      case 'MARK':
        self._stacks.append([])
      case 'DICT' | 'LIST' | 'TUPLE':
        items = self._stacks.pop()
        value: Any = {} if name == 'DICT' else items if name == 'LIST' else tuple(items)
        if name == 'DICT':
          _set_items(value, items)
        self._stacks[-1].append(value)
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        stack.append(tuple(_pop(stack, int(name[-1]))))
      case 'APPEND' | 'APPENDS':
        items = _pop(stack, 1) if name == 'APPEND' else self._stacks.pop()
        if type(self._stacks[-1][-1]) is not list:
          raise UnfitFile('items without a list')
        self._stacks[-1][-1].extend(items)
      case 'SETITEM' | 'SETITEMS':
        items = _pop(stack, 2) if name == 'SETITEM' else self._stacks.pop()
        _set_items(self._stacks[-1][-1], items)
      case 'PUT' | 'BINPUT' | 'LONG_BINPUT':
        self._memo[operand] = stack[-1]
      case 'MEMOIZE':
        self._memo[len(self._memo)] = stack[-1]
      case 'GET' | 'BINGET' | 'LONG_BINGET':
        stack.append(self._memo[operand])
      case 'GLOBAL' | 'STACK_GLOBAL':
        wanted = str(operand).replace(' ', '.') if name == 'GLOBAL' else '.'.join(_pop(stack, 2))
        if wanted not in self._allowed:
          raise UnfitFile(f'it asks for {wanted}; allowed: lists, numbers, bytes and arrays of bytes')
        stack.append(self._allowed[wanted])
      case 'REDUCE':
        function, arguments = _pop(stack, 2)
        if not any(function == allowed for allowed in self._allowed.values()) or type(arguments) is not tuple:
          raise UnfitFile('a call that no array needs')
        stack.append(function(*arguments[:3]))
      case 'BUILD':
        state = stack.pop()
        if type(stack[-1]) is _Array:
          stack[-1].state = state
        elif type(stack[-1]) is not _Dtype:  # The state of a dtype (byte order, alignment) does not matter for bytes.
          raise UnfitFile('a state that no array has')
      case 'PROTO' | 'FRAME':
        pass
      case _:
        raise UnfitFile(f'it uses the instruction {name}, which no batch needs')

  def _encode(self, text: Any, encoding: Any) -> bytes:
    # Python 3 writes bytes in this way in the protocols of Python 2.
    if encoding != 'latin1':
      found = repr(encoding) if type(encoding) is str else f'of type {type(encoding).__name__}'
      raise UnfitFile(f'it asks for the encoding {found}; allowed: latin1')
    if type(text) is not str:
      raise UnfitFile('an encoding of something else than a text')
    if id(text) not in self._encoded:
      self._encoded[id(text)] = (text, text.encode('latin1'))
    return self._encoded[id(text)][1]


def _set_items(dictionary: Any, items: list[Any]) -> None:
  for key, value in zip(items[::2], items[1::2], strict=True):
    # Other types are refused, since hashing nested tuples, for example, can take exponential time.
    if type(dictionary) is not dict or type(key) not in (str, bytes, int):
      raise UnfitFile(f'a key of type {type(key).__name__}')
    dictionary[key] = value


def _pop(stack: list[Any], count: int) -> list[Any]:
  return [stack.pop() for _ in range(count)][::-1]


def loads(content: bytes, source: str) -> dict[str, Any]:
  """Reads a pickled dictionary of plain values and uint8 arrays.

  Args:
    content: the pickle, in a protocol up to 4, as written by Python 2 or 3.
    source: name of the file, for error messages.

  Returns:
    The dictionary, with strings as keys; arrays are read-only uint8.

  Raises:
    ValueError: the pickle contains anything else, is damaged, or is not a dictionary.
  """
  try:
    batch = _Machine().run(content)
    if not isinstance(batch, dict):
      raise UnfitFile(f'it holds a {type(batch).__name__} instead of a dictionary')
    return {str(_text(key)): value.to_numpy() if isinstance(value, _Array) else value for key, value in batch.items()}
  except Exception as error:  # A damaged or malicious pickle can cause any exception.
    raise ValueError(f'{source}: refused or damaged pickle: {one_line(error)}') from error
