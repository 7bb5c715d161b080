"""Reads the tensors of PyTorch's files without PyTorch and without executing their pickles.

`torch.save` pickles the object and writes the numbers of its tensors, the storages, separately: since PyTorch 1.6 as
members of a zip archive, before that one after the other after the pickle (torch/serialization.py). A tensor is a view
of a storage: an offset, a shape and strides, in elements.
"""

import dataclasses
import io
import math
import pickletools
import re
import struct
import sys
import types
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from darts_jax.runtime.files import UnfitFile

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
#: Keys under which training programs store the state dict in a checkpoint.
_STATE_DICT_KEYS = ('state_dict', 'model_state_dict', 'model', 'net', 'network', 'model_state', 'module', 'weights')
#: Entries of a checkpoint whose keys contain one of these are not searched for a state dict.
_OTHER_STATES = ('optim', 'sched', 'scaler')
_MAX_NESTING = 5
_MAX_DIMENSIONS = 64  # NumPy's limit.
_MAX_ARGUMENTS = 8  # No allowed function takes more.
# An instruction of one byte can create an object of seventy bytes. A thousand tensors take fifty thousand instructions.
_MAX_INSTRUCTIONS = 2**22


def read_zip(names: Collection[str], member: Callable[[str], bytes]) -> dict[str, np.ndarray]:
  """Reads the state dict of a checkpoint in PyTorch's zip format.

  Args:
    names: the archive's members, `<prefix>/data.pkl` among them.
    member: returns the content of a member.

  Returns:
    Views of the storages by the names of the tensors; bfloat16 becomes float32.

  Raises:
    UnfitFile: the pickle is damaged or contains anything but tensors and plain values; it has no state dict, or several
      with equally many tensors; a storage is missing or of another size; a tensor exceeds its storage.
    Exception: anything that a damaged file makes Python or NumPy raise.
  """
  pickles = [name for name in names if name.endswith('/data.pkl')]
  if len(pickles) != 1:
    raise UnfitFile(f'{len(pickles)} members named data.pkl; one is needed')
  prefix = pickles[0].removesuffix('data.pkl')
  byte_order = '<'
  if f'{prefix}byteorder' in names:
    content = member(f'{prefix}byteorder')
    if content not in (b'little', b'big'):
      raise UnfitFile('unknown byte order; known: little, big')
    byte_order = '<' if content == b'little' else '>'

  def numbers(storage: _Storage) -> np.ndarray:
    name = f'{prefix}data/{storage.key}'
    if name not in names:
      raise UnfitFile(f'storage {storage.key} is missing')
    content = member(name)
    if len(content) != storage.num_bytes:
      raise UnfitFile(f'storage {storage.key} has {len(content)} bytes; its tensors need {storage.num_bytes}')
    return decode(content, storage.dtype, byte_order)

  return _arrays(_state_dict(_unpickle(io.BytesIO(member(pickles[0])), {})), numbers)


def read_legacy(content: bytes) -> dict[str, np.ndarray]:
  """Reads the state dict of a checkpoint in the format of PyTorch before 1.6.

  Args:
    content: the whole file: pickles of a magic number, the protocol's version, facts about the system, the object and
      the keys of its storages; then, in the order of the keys, every storage: the number of its elements as a
      little-endian int64 and the elements, little-endian on any machine.

  Returns:
    See `read_zip`.

  Raises:
    UnfitFile: see `read_zip`; or the file does not begin as described.
  """
  stream = io.BytesIO(content)
  if _unpickle(stream, {}) != _MAGIC:
    raise UnfitFile('a pickle, but not one of torch.save')
  if _unpickle(stream, {}) != _PROTOCOL_VERSION:
    raise UnfitFile(f'unknown version of the protocol of torch.save; known: {_PROTOCOL_VERSION}')
  _unpickle(stream, {})
  storages: dict[str, _Storage] = {}
  checkpoint = _unpickle(stream, storages)
  keys = _unpickle(stream, {})
  if type(keys) is not list:
    raise UnfitFile('damaged pickle: no list of the storages')
  begins: dict[str, int] = {}
  end = stream.tell()
  for key in keys:
    if type(key) is not str or key not in storages:
      raise UnfitFile('damaged pickle: its storages are not those that are listed')
    begin = end + 8
    end = begin + storages[key].num_bytes
    if end > len(content):
      raise UnfitFile(f'truncated: storage {key} ends at byte {end} of {len(content)}')
    (num_elements,) = struct.unpack_from('<q', content, begin - 8)
    if num_elements != storages[key].num_elements:
      raise UnfitFile(f'storage {key} has {num_elements} elements; its tensors need {storages[key].num_elements}')
    begins[key] = begin

  def numbers(storage: _Storage) -> np.ndarray:
    if storage.key not in begins:
      raise UnfitFile(f'storage {storage.key} is missing')
    begin = begins[storage.key]
    return decode(memoryview(content)[begin : begin + storage.num_bytes], storage.dtype)

  return _arrays(_state_dict(checkpoint), numbers)


def decode(content: bytes | bytearray | memoryview, dtype: str, byte_order: str = '<') -> np.ndarray:
  """Decodes bytes to an array of numbers.

  Args:
    content: N elements.
    dtype: NumPy's code of a dtype, without byte order, or `bfloat16`.
    byte_order: `<` or `>`.

  Returns:
    `[N]`, in the machine's byte order: a view of the content where possible, and float32 for bfloat16, which NumPy
    lacks.
  """
  if dtype == 'bfloat16':
    # A bfloat16 is the upper half of a float32.
    return (np.frombuffer(content, f'{byte_order}u2').astype(np.uint32) << 16).view(np.float32)
  if dtype == '?':
    # NumPy requires booleans to be 0 or 1; the bytes of a file can have other values.
    return np.frombuffer(content, np.uint8) != 0
  return np.frombuffer(content, byte_order + dtype).astype(dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class _StorageType:
  dtype: str


@dataclasses.dataclass(frozen=True)
class _Storage:
  """The pickle's description of a storage; the numbers are stored elsewhere in the file."""

  key: str
  dtype: str
  num_elements: int

  @property
  def num_bytes(self) -> int:
    return self.num_elements * (2 if self.dtype == 'bfloat16' else np.dtype(self.dtype).itemsize)


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """The pickled arguments of a tensor, not yet checked."""

  storage: Any
  offset: Any
  shape: Any
  strides: Any

  def to_numpy(self, numbers: np.ndarray) -> np.ndarray:
    """The tensor as a view of the elements `[N]` of its storage.

    Raises:
      UnfitFile: the arguments are not valid, or the tensor exceeds the storage or has more elements than it.
    """
    for sizes in (self.shape, self.strides):
      # The length comes first, since the last check takes time in proportion to it.
      if type(sizes) is not tuple or len(sizes) > _MAX_DIMENSIONS or not all(_is_size(size) for size in sizes):
        raise UnfitFile('damaged pickle: its shape or its strides are no tuple of sizes')
    if len(self.shape) != len(self.strides) or not _is_size(self.offset):
      raise UnfitFile('damaged pickle: its offset and strides do not fit its shape')
    num_elements = math.prod(self.shape)
    last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
    # With strides of 0, a storage of one element could be a tensor of any size; a copy of it would exhaust the memory.
    if num_elements > len(numbers) or (num_elements and last >= len(numbers)):
      raise UnfitFile(f'shape, offset and strides reach past the {len(numbers)} elements of its storage')
    if not num_elements:
      return np.zeros(self.shape, numbers.dtype)
    strides = [stride if size > 1 else 0 for size, stride in zip(self.shape, self.strides, strict=True)]
    itemsize = numbers.itemsize
    # This constructor checks the bounds once more.
    return np.ndarray(
      self.shape, numbers.dtype, numbers, self.offset * itemsize, tuple(stride * itemsize for stride in strides)
    )


def _is_size(value: object) -> bool:
  return type(value) is int and 0 <= value < 2**63


@dataclasses.dataclass(frozen=True)
class _Opaque:
  """A stand-in for an object that is neither tensor nor plain value, with the name of its class or function."""

  name: str


@dataclasses.dataclass(frozen=True)
class _OpaqueType:
  """A stand-in for a class or function; a call of it drops the arguments and gives an `_Opaque`."""

  name: str


def _kind(value: object) -> str:
  return value.name if isinstance(value, _Opaque | _OpaqueType) else type(value).__name__.strip('_')


def _state_dict(checkpoint: object) -> dict[str, _Tensor]:
  state: Any = checkpoint
  place = ''
  while isinstance(state, dict):
    key = next((key for key in _STATE_DICT_KEYS if isinstance(state.get(key), dict)), None)
    if key is None:
      break
    state, place = state[key], f'{place}{key}/'
    if len(place) > 100:
      raise UnfitFile('a dictionary that contains itself')
  if not isinstance(state, dict):
    raise UnfitFile(
      f'it holds an object of type {_kind(state)} instead of a state dict; torch.save(model.state_dict(), …) writes one'
    )
  found = sorted(_with_tensors(state, place, {}).items(), key=lambda item: -len(item[1]))
  if len(found) > 1 and len(found[0][1]) == len(found[1][1]):
    raise UnfitFile(
      f'as many tensors below {found[0][0] or "the top"!r} as below {found[1][0]!r}; a file with one of them is needed'
    )
  if not found:
    for name, value in state.items():
      raise UnfitFile(
        f'entry {name!r} is of type {_kind(value)}, not a named tensor; a state dict is looked for below'
        f' {", ".join(_STATE_DICT_KEYS)}, then anywhere'
      )
    return {}
  return found[0][1]


def _with_tensors(state: dict[Any, Any], place: str, seen: dict[int, None]) -> dict[str, dict[str, _Tensor]]:
  """The named tensors of a dictionary and of the dictionaries in it, by place; only places with tensors are included.

  Args:
    state: the dictionary.
    place: its keys from the top, each followed by `/`.
    seen: ids of dictionaries that have been searched; gets further ones.
  """
  tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, _Tensor)}
  found = {place.removesuffix('/'): tensors} if tensors else {}
  seen[id(state)] = None
  for name, value in state.items():
    is_below = isinstance(value, dict) and isinstance(name, str) and id(value) not in seen
    if is_below and place.count('/') < _MAX_NESTING and not any(word in name.lower() for word in _OTHER_STATES):
      found |= _with_tensors(value, f'{place}{name}/', seen)
  return found


def _arrays(state: dict[str, _Tensor], numbers: Callable[[_Storage], np.ndarray]) -> dict[str, np.ndarray]:
  decoded: dict[_Storage, np.ndarray] = {}
  arrays = {}
  for name, tensor in state.items():
    try:
      if not isinstance(tensor.storage, _Storage):
        raise UnfitFile('damaged pickle: it has no storage')
      if tensor.storage not in decoded:
        decoded[tensor.storage] = numbers(tensor.storage)
      arrays[name] = tensor.to_numpy(decoded[tensor.storage])
    except ValueError as error:
      raise UnfitFile(f'tensor {name}: {error}') from error
  return arrays


def _rebuild_tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> _Tensor:
  return _Tensor(storage, offset, shape, strides)


def _first(value: object, *_: object) -> object:
  return value


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
  result: dict[Any, Any] = {}
  for key, value in pairs:
    _set_item(result, key, value)
  if pairs:
    # Pickles of Python 2 pass a list. It is cleared, since a few bytes of a pickle could copy a long list many times.
    pairs.clear()
  return result


_GLOBALS = {
  'collections.OrderedDict': _ordered_dict,
  'torch._utils._rebuild_tensor': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': _first,
  'torch._utils._rebuild_parameter_with_state': _first,
  'torch.Size': _first,
  'torch.device': _first,
  'torch.DoubleStorage': _StorageType('f8'),
  'torch.FloatStorage': _StorageType('f4'),
  'torch.HalfStorage': _StorageType('f2'),
  'torch.BFloat16Storage': _StorageType('bfloat16'),
  'torch.LongStorage': _StorageType('i8'),
  'torch.IntStorage': _StorageType('i4'),
  'torch.ShortStorage': _StorageType('i2'),
  'torch.CharStorage': _StorageType('i1'),
  'torch.ByteStorage': _StorageType('u1'),
  'torch.BoolStorage': _StorageType('?'),
}


# Modules of the standard library whose classes only hold data.
_PLAIN_MODULES = ('argparse', 'collections', 'datetime', 'decimal', 'enum', 'fractions', 'pathlib', 'uuid')
# Modules of Python 2 that have other names in Python 3.
_PYTHON_2 = ('', '__builtin__', 'commands')
# Functions and classes that create plain values.
_PLAIN_FUNCTIONS = re.compile(
  r'(builtins|__builtin__)\.(bool|bytearray|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple|xrange)'
  r'|(copyreg|copy_reg)\._reconstructor|_codecs\.encode|types\.SimpleNamespace|collections\.(defaultdict|deque)'
  r'|datetime\.(date|datetime|time|timedelta|timezone)'
  r'|numpy\.(_?core\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)|dtype|ndarray)'
  r'|torch\.(bfloat16|bool|complex\d+|float\d+|u?int\d+)'
)


def _find_global(name: str) -> object:
  """Resolves a global name of a pickle to an object of this module; nothing is imported.

  Besides weights, a checkpoint may contain the configuration of a program. Names of plain types, and of classes outside
  the standard library, therefore resolve to stand-ins, which are never called. Of the standard library only harmless
  names do, so that malicious files are refused.

  Raises:
    UnfitFile: the name is not allowed.
  """
  if name in _GLOBALS:
    return _GLOBALS[name]
  module, _, last = name.rpartition('.')
  root = module.partition('.')[0]
  is_class = last.lstrip('_')[:1].isupper() and not name.endswith('Storage')
  is_plain = root in _PLAIN_MODULES or not (root in sys.stdlib_module_names or root in _PYTHON_2)
  if _PLAIN_FUNCTIONS.fullmatch(name) or (is_class and is_plain):
    return _OpaqueType(name)
  raise UnfitFile(f'refused: it asks for {name}; only tensors, dictionaries and plain values are read')


def _set_item(dictionary: object, key: object, value: object) -> None:
  if isinstance(dictionary, _Opaque) or isinstance(key, _Opaque):
    return
  # Other types are refused, since hashing nested tuples, for example, can take exponential time.
  if type(dictionary) is not dict or not (key is None or type(key) in (str, int, float, bool)):
    raise UnfitFile(f'damaged pickle: a key of type {type(key).__name__}')
  dictionary[key] = value


def _storage(identifier: Any, storages: dict[str, _Storage]) -> _Storage:
  if type(identifier) is tuple and len(identifier) == 5:
    identifier = (*identifier, None)  # Only the older format has the sixth entry, which tells of views of storages.
  match identifier:
    case ('storage', _StorageType(dtype=dtype), str(key), str(), num_elements, part) if _is_size(num_elements):
      if part is not None:
        raise UnfitFile(f'storage {key} is part of another storage, which is not supported')
      storage = _Storage(key, dtype, num_elements)
      if storages.setdefault(key, storage) != storage:
        raise UnfitFile(f'storage {key} is described in two ways')
      return storage
  raise UnfitFile('damaged pickle: no description of a storage')


_NUMBERS = {'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT'}
_TEXTS = {'BINUNICODE', 'SHORT_BINUNICODE', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES'}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}


def _unpickle(stream: io.BytesIO, storages: dict[str, _Storage]) -> Any:
  """Reads one pickle of protocol 2 or later, and adds the storages that it mentions to `storages`.

  Python's unpickler can be kept from importing anything, but not from allocating memory of any size, nor from hashing
  objects in exponential time. Plain values and tensors need only the instructions that are implemented here.

  Raises:
    UnfitFile: the pickle is damaged or contains anything but tensors and plain values.
  """
  stacks: list[list[Any]] = [[]]  # Every mark opens one more.
  memo: dict[Any, Any] = {}
  for count, (opcode, operand, _) in enumerate(pickletools.genops(stream)):
    if count == _MAX_INSTRUCTIONS:
      raise UnfitFile(f'refused: a pickle of more than {_MAX_INSTRUCTIONS:,} instructions')
    stack = stacks[-1]
    match opcode.name:
      case name if name in _NUMBERS or name in _TEXTS:
        stack.append(operand)
      case name if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
      case 'EMPTY_DICT':
        stack.append({})
      case 'EMPTY_LIST':
        stack.append([])
      case 'EMPTY_SET' | 'BYTEARRAY8' as name:
        stack.append(_Opaque(name))
      case 'FROZENSET':
        stacks.pop()
        stacks[-1].append(_Opaque('frozenset'))
      case 'MARK':
        stacks.append([])
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3' as name:
        stack.append(tuple(_pop(stack, int(name[-1]))))
      case 'TUPLE':
        items = stacks.pop()
        stacks[-1].append(tuple(items))
      case 'APPEND' | 'APPENDS' | 'ADDITEMS' as name:
        items = _pop(stack, 1) if name == 'APPEND' else stacks.pop()
        if type(stacks[-1][-1]) is list:
          stacks[-1][-1].extend(items)
        elif not isinstance(stacks[-1][-1], _Opaque):
          raise UnfitFile('damaged pickle: items without a list')
      case 'SETITEM' | 'SETITEMS' as name:
        items = _pop(stack, 2) if name == 'SETITEM' else stacks.pop()
        for key, value in zip(items[::2], items[1::2], strict=True):
          _set_item(stacks[-1][-1], key, value)
      case 'BINPUT' | 'LONG_BINPUT':
        memo[operand] = stack[-1]
      case 'MEMOIZE':
        memo[len(memo)] = stack[-1]
      case 'BINGET' | 'LONG_BINGET':
        stack.append(memo[operand])
      case 'GLOBAL':
        stack.append(_find_global(str(operand).replace(' ', '.')))
      case 'STACK_GLOBAL':
        stack.append(_find_global('.'.join(_pop(stack, 2))))
      case 'REDUCE':
        function, arguments = _pop(stack, 2)
        if isinstance(function, _OpaqueType):
          stack.append(_Opaque(function.name))
          continue
        if not isinstance(function, types.FunctionType) or len(arguments) > _MAX_ARGUMENTS:
          raise UnfitFile('damaged pickle: a call that no tensor needs')
        stack.append(function(*arguments))
      case 'NEWOBJ' | 'NEWOBJ_EX' as name:
        kind = _pop(stack, 2 if name == 'NEWOBJ' else 3)[0]
        if not isinstance(kind, _OpaqueType):
          raise UnfitFile('damaged pickle: an object that no tensor needs')
        stack.append(_Opaque(kind.name))
      case 'BINPERSID':
        stack.append(_storage(stack.pop(), storages))
      case 'BUILD':
        stack.pop()  # Attributes of a state dict, such as the versions of its modules.
        if type(stack[-1]) is not dict and not isinstance(stack[-1], _Opaque):
          raise UnfitFile('refused: it sets attributes of something else than a dictionary')
      case 'STOP':
        return stack.pop()
      case 'PROTO' | 'FRAME':
        pass
      case name:
        raise UnfitFile(f'refused: it uses the instruction {name}; tensors and plain values do without')
  raise UnfitFile('damaged pickle: it has no end')


def _pop(stack: list[Any], count: int) -> list[Any]:
  return [stack.pop() for _ in range(count)][::-1]
