"""Weights from files. Those of PyTorch are written here byte by byte, and by PyTorch itself in `tests/goldens`.

The goldens come from PyTorch 1.12.1: `torch_zip.pt` is a training checkpoint, `torch_legacy.pt` its state dict alone,
saved with `_use_new_zipfile_serialization=False`, and `torch_values.npz` holds the same arrays without the prefix
`module.`, those of bfloat16 as float32.
"""

import argparse
import collections
import datetime
import io
import json
import operator
import os
import pathlib
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import types
import unittest.mock
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from darts_jax.interop import tensors, torch_files

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {
  'Double': 'f8',
  'Float': 'f4',
  'Half': 'f2',
  'BFloat16': 'u2',  # Its bits.
  'Long': 'i8',
  'Int': 'i4',
  'Short': 'i2',
  'Char': 'i1',
  'Byte': 'u1',
  'Bool': '?',
}


def _stand_in(module, name):
  return type(name, (), {'__module__': module, '__qualname__': name})


_TORCH_NAMES = [*(f'{kind}Storage' for kind in KINDS), 'ComplexFloatStorage', 'Size', 'device', 'load']
TORCH = types.SimpleNamespace(**{name: _stand_in('torch', name) for name in _TORCH_NAMES})
_UTILS_NAMES = ['_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter', '_rebuild_sparse_tensor']
UTILS = types.SimpleNamespace(**{name: _stand_in('torch._utils', name) for name in _UTILS_NAMES})


class Call:
  """Pickles as a call, followed by setting attributes if there is a state."""

  def __init__(self, function, *arguments, state=None):
    self.reduced = (function, arguments) if state is None else (function, arguments, state)

  def __reduce__(self):
    return self.reduced


class Storage:
  def __init__(self, kind, elements, key, num_elements=None, part=()):
    self.elements = np.asarray(elements, KINDS[kind])
    num_elements = len(self.elements) if num_elements is None else num_elements
    self.identifier = ('storage', getattr(TORCH, f'{kind}Storage'), key, 'cuda:0', num_elements, *part)


def tensor(storage, offset, shape, strides):
  return Call(UTILS._rebuild_tensor_v2, storage, offset, shape, strides, False, collections.OrderedDict())


def whole(elements, key, kind='Float'):
  """The tensor [N] of all elements of a storage."""
  return tensor(Storage(kind, elements, key), 0, (len(elements),), (1,))


def dump(value, protocol=2):
  """The pickle, and the elements of its storages by their keys."""
  storages = {}

  class Pickler(pickle.Pickler):
    def persistent_id(self, value):
      if not isinstance(value, Storage):
        return None
      storages[value.identifier[2]] = value.elements
      return value.identifier

  file = io.BytesIO()
  with unittest.mock.patch.dict(sys.modules, {'torch': TORCH, 'torch._utils': UTILS}):
    Pickler(file, protocol).dump(value)
  return file.getvalue(), storages


def zip_content(members, prefix='archive/', compression=zipfile.ZIP_STORED):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', compression) as archive:
    for name, content in members.items():
      archive.writestr(prefix + name, content)
  return file.getvalue()


def torch_zip(pickled, storages):
  data = {f'data/{key}': elements.tobytes() for key, elements in storages.items()}
  return zip_content({'data.pkl': pickled, **data, 'version': b'3\n'})


def torch_legacy(pickled, storages, magic=MAGIC, version=1001, keys=None):
  system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
  head = b''.join(pickle.dumps(value, 2) for value in (magic, version, system))
  keys = sorted(storages) if keys is None else keys
  data = b''.join(
    struct.pack('<q', len(storages[key])) + storages[key].tobytes() for key in sorted(storages) if key in keys
  )
  return head + pickled + pickle.dumps(keys, 2) + data


@pytest.fixture(params=[torch_zip, torch_legacy], ids=['zip', 'legacy'])
def torch_format(request):
  return request.param


@pytest.fixture
def read(tmp_path):
  def read(content):
    path = tmp_path / 'weights.pt'
    path.write_bytes(content)
    return tensors.read(path)

  return read


@pytest.fixture
def fail(read, tmp_path):
  """The message that refuses a content, without the file's name."""

  def fail(content):
    name = f'{tmp_path / "weights.pt"}: '
    with pytest.raises(ValueError, match=f'^{re.escape(name)}') as info:
      read(content)
    assert type(info.value) is ValueError
    assert str(info.value).isprintable()
    return str(info.value).removeprefix(name)

  return fail


def assert_equal(arrays, expected):
  assert list(arrays) == list(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(arrays[name], array, err_msg=name, strict=True)
    assert arrays[name].dtype.isnative
    assert not arrays[name].flags.writeable


# PyTorch's formats.


def test_pickle_of_too_many_instructions(fail, monkeypatch):
  monkeypatch.setattr(torch_files, '_MAX_INSTRUCTIONS', 100)
  assert fail(b'\x80\x02' + b']' * 200 + b'.') == 'refused: a pickle of more than 100 instructions'


@pytest.mark.parametrize('name', ['torch_zip.pt', 'torch_legacy.pt'])
def test_files_of_torch(name):
  arrays = tensors.read(GOLDENS / name)

  with np.load(GOLDENS / 'torch_values.npz') as values:
    assert len(values) == 22
    assert_equal(arrays, dict(values))
  assert arrays['1.num_batches_tracked'].shape == ()
  assert arrays['bfloat16'].dtype == np.float32
  assert arrays['half'][0, 2] == 65504
  np.testing.assert_array_equal(arrays['row'], arrays['transposed'][:, 2])


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind not in ('BFloat16', 'Bool')])
def test_dtypes(read, torch_format, kind):
  dtype = np.dtype(KINDS[kind])
  elements = np.random.default_rng(0).integers(0, 256, 24 * dtype.itemsize, np.uint8).view(dtype)

  arrays = read(torch_format(*dump({'x': whole(elements, '7', kind)})))

  assert arrays['x'].dtype == dtype
  assert arrays['x'].tobytes() == elements.tobytes()


def test_bfloat16(read, torch_format):
  elements = [0x3F80, 0xC000, 0x4049, 0x7F80, 0xFF80, 0x8000, 0x0001, 0x7FC1]

  x = read(torch_format(*dump({'x': whole(elements, '0', 'BFloat16')})))['x']

  assert x.dtype == np.float32
  np.testing.assert_array_equal(x, [1, -2, 3.140625, np.inf, -np.inf, -0.0, 2.0**-133, np.nan])
  assert np.signbit(x[5])


def test_any_byte_but_zero_is_true(read, torch_format):
  pickled, _ = dump({'x': whole([False] * 3, '0', 'Bool')})
  x = read(torch_format(pickled, {'0': np.array([0, 1, 6], np.uint8)}))['x']
  np.testing.assert_array_equal(x.view(np.uint8), [0, 1, 1])


def test_views_of_a_shared_storage(read, torch_format):
  base = Storage('Float', np.arange(12), '0')
  grid = np.arange(12, dtype=np.float32).reshape(3, 4)

  arrays = read(
    torch_format(
      *dump(
        {
          'grid': tensor(base, 0, (3, 4), (4, 1)),
          'transposed': tensor(base, 0, (4, 3), (1, 4)),
          'row': tensor(base, 4, (4,), (1,)),
          'every_second': tensor(base, 5, (2, 2), (4, 2)),
          'windows': tensor(base, 6, (2, 3), (1, 1)),
          'last': tensor(base, 11, (), ()),
          'stride_without_steps': tensor(base, 8, (1, 4), (2**62, 1)),
          'empty': tensor(base, 12, (0, 5), (5, 1)),
        }
      )
    )
  )

  assert_equal(
    arrays,
    {
      'grid': grid,
      'transposed': grid.T,
      'row': grid[1],
      'every_second': grid[1:, 1::2],
      'windows': np.array([[6, 7, 8], [7, 8, 9]], np.float32),
      'last': np.array(11, np.float32),
      'stride_without_steps': grid[2:],
      'empty': np.zeros((0, 5), np.float32),
    },
  )
  assert np.shares_memory(arrays['grid'], arrays['row'])


def test_empty_storage_and_int64_scalar(read, torch_format):
  value = {'empty': whole([], '0'), 'num_batches_tracked': tensor(Storage('Long', [2**40 + 3], '1'), 0, (), ())}
  expected = {'empty': np.zeros(0, np.float32), 'num_batches_tracked': np.array(2**40 + 3)}
  assert_equal(read(torch_format(*dump(value))), expected)


def test_older_and_newer_ways_to_rebuild(read, torch_format):
  storage = Storage('Float', [1, 2], '0')
  arguments = (storage, 1, Call(TORCH.Size, (1,)), (1,))
  parameter = Call(UTILS._rebuild_parameter, tensor(*arguments), True, collections.OrderedDict())
  value = {
    'first': Call(UTILS._rebuild_tensor, *arguments),
    'metadata': Call(UTILS._rebuild_tensor_v2, *arguments, False, collections.OrderedDict(), {}),
    'parameter': parameter,
  }
  assert_equal(read(torch_format(*dump(value))), dict.fromkeys(value, np.array([2], np.float32)))


@pytest.mark.parametrize('protocol', range(2, 6))
@pytest.mark.parametrize('key', [None, 'state_dict', 'model', 'net', 'network', 'model_state_dict', 'anything'])
def test_checkpoint(read, torch_format, key, protocol):
  weight, momentum = whole([1, 2], '0'), whole([3, 4], '1')
  state = collections.OrderedDict({'module.weight': weight, 'module.bias': whole([0.5], '2')})
  state._metadata = collections.OrderedDict({'': {'version': 1}})
  checkpoint = {
    'epoch': 300,
    'state_dict': 'elsewhere',
    'args': {'lr': 0.1, 'layers': -1, 'seed': 2**40, 'auxiliary': True, 'name': None, 3: [1], 'long': 'ä' * 300},
    'device': Call(TORCH.device, 'cuda', 0),
    'optimizer': {'state': {140735: {'momentum_buffer': momentum}}, 'param_groups': [{'params': [140735, 7]}]},
  }

  arrays = read(torch_format(*dump(state if key is None else {**checkpoint, key: state}, protocol)))

  assert_equal(arrays, {'weight': np.array([1, 2], np.float32), 'bias': np.array([0.5], np.float32)})


def test_state_dict_below_several_names(read, torch_format):
  state = {'x': whole([1], '0'), 'y': whole([2], '1'), 'module': 'a name', 'z': None}
  value = {'alphas': whole([3], '2'), 'run': {'best': {'net': {'state_dict': state, 'mean': whole([4], '3')}}}}
  value['run']['again'] = value
  expected = {'x': np.array([1], np.float32), 'y': np.array([2], np.float32)}
  assert_equal(read(torch_format(*dump(value))), expected)


class Config(dict):
  """As programs have them: a dictionary with attributes."""


Config.__module__, Config.__qualname__ = '__main__', 'Config'
HARMLESS = {
  'scalar': np.float64(1),
  'integer': np.int64(3),
  'array': np.arange(3),
  'counter': collections.Counter('abca'),
  'deque': collections.deque([1, 2], 3),
  'default': collections.defaultdict(list, {'a': [1]}),
  'namespace': argparse.Namespace(lr=0.1, layers=[1, 2]),
  'simple': types.SimpleNamespace(lr=1),
  'path': pathlib.PurePosixPath('a/b'),
  'time': datetime.datetime(2020, 1, 2),
  'set': {1, 2},
  'frozen': frozenset('ab'),
  'complex': 1j,
  'bytes': b'ab',
  'config': Config(a=1, b=Config(c=2)),
  'names': {np.int64(0): 'cat'},
}


@pytest.mark.parametrize('protocol', range(2, 6))
def test_objects_beside_the_weights_are_passed_over(read, torch_format, protocol, monkeypatch):
  monkeypatch.setattr(sys.modules['__main__'], 'Config', Config, raising=False)
  value = {'before': HARMLESS, 'state_dict': {'x': whole([1], '0'), 'extra': HARMLESS}, **HARMLESS}
  pickled, storages = dump(value, protocol)

  # Nothing is imported or made of them.
  monkeypatch.delattr(sys.modules['__main__'], 'Config')
  assert_equal(read(torch_format(pickled, storages)), {'x': np.array([1], np.float32)})


def test_file_of_a_program_with_arguments():
  arrays = tensors.read(pathlib.Path(__file__).parents[1] / 'cases' / 'namespace.pth')
  assert len(arrays) == 33
  assert arrays['stem.0.weight'].shape == (6, 3, 3, 3)


def test_state_dict_precedes_model(read, torch_format):
  value = {'model': {'x': whole([1], '0')}, 'state_dict': {'x': whole([2], '1')}}
  assert_equal(read(torch_format(*dump(value))), {'x': np.array([2], np.float32)})


def test_prefix_stays_if_not_all_names_have_it(read, torch_format):
  value = {'module.x': whole([1], '0'), 'modules.x': whole([2], '1')}
  assert list(read(torch_format(*dump(value)))) == ['module.x', 'modules.x']


def test_files_of_python_2(read, torch_format):
  """Python 2 passes an ordered dictionary's items to its constructor and writes byte strings."""
  pairs = [['module.x', whole([1], '0')], ['module.y', whole([2], '1')]]
  pickled, storages = dump(Call(collections.OrderedDict, pairs, state={'_metadata': Call(collections.OrderedDict, [])}))
  for text in [b'module.x', b'module.y', b'storage', b'cuda:0', b'0', b'1']:
    unicode = b'X' + struct.pack('<I', len(text)) + text
    assert unicode in pickled
    pickled = pickled.replace(unicode, b'U' + bytes([len(text)]) + text)

  arrays = read(torch_format(pickled, storages))

  assert_equal(arrays, {'x': np.array([1], np.float32), 'y': np.array([2], np.float32)})


@pytest.mark.parametrize(('name', 'order'), [('little', '<'), ('big', '>')])
def test_byte_order_of_zip(read, name, order):
  value = {'x': whole([1, 258], '0', 'Int'), 'y': whole([0x3F80], '1', 'BFloat16'), 'z': whole([True], '2', 'Bool')}
  pickled, storages = dump(value)
  members = {'data.pkl': pickled, 'byteorder': name.encode()}
  for key, elements in storages.items():
    members[f'data/{key}'] = elements.astype(elements.dtype.newbyteorder(order)).tobytes()

  arrays = read(zip_content(members))

  assert_equal(arrays, {'x': np.array([1, 258], np.int32), 'y': np.array([1], np.float32), 'z': np.array([True])})


# What is no state dict.


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    ([1], 'it holds an object of type list instead of a state dict'),
    (whole([1], '0'), 'it holds an object of type Tensor instead of a state dict'),
    ({}, 'it holds no arrays'),
    ({'epoch': 1, 'state_dict': {}}, 'it holds no arrays'),
    ({'epoch': 3, 'args': {'lr': 1}}, "entry 'epoch' is of type int, not a named tensor"),
    ({'state_dict': {'y': None}, 'x': whole([1], '0')}, "entry 'y' is of type NoneType, not a named tensor"),
    ({'optimizer': {'y': whole([1], '0')}}, "entry 'optimizer' is of type dict, not a named tensor"),
    (collections.Counter('a'), 'it holds an object of type collections.Counter instead of a state dict'),
    (
      {'first': {'x': whole([1], '0')}, 'second': {'y': whole([1], '1')}},
      "as many tensors below 'first' as below 'second'",
    ),
    ({'x': Storage('Float', [1], '0')}, "entry 'x' is of type Storage, not a named tensor"),
    ({5: whole([1], '0')}, 'entry 5 is of type Tensor, not a named tensor'),
  ],
)
def test_no_state_dict(fail, torch_format, value, message):
  assert fail(torch_format(*dump(value))).startswith(message)


# Tensors and storages that do not fit.


@pytest.mark.parametrize(
  ('offset', 'shape', 'strides'),
  [
    (0, (7,), (1,)),
    (1, (6,), (1,)),
    (6, (), ()),
    (2**62, (), ()),
    (0, (2, 3), (4, 1)),
    (0, (2, 2), (2**62, 1)),
    (0, (1000000,), (0,)),
    (0, (2**40, 2**40), (0, 0)),
    (0, (3, 3), (1, 1)),
  ],
)
def test_tensor_past_its_storage(fail, torch_format, offset, shape, strides):
  message = fail(torch_format(*dump({'x': tensor(Storage('Float', range(6), '0'), offset, shape, strides)})))
  assert message == 'tensor x: shape, offset and strides reach past the 6 elements of its storage'


@pytest.mark.parametrize(
  ('offset', 'shape', 'strides'),
  [
    (-1, (2,), (1,)),
    (5, (2,), (-1,)),
    (0, (-2, -3), (1, 1)),
    (0, (2**63,), (0,)),
    (0, (2,), (2**63,)),
    (0, (2, 2), (1,)),
    (0, (True,), (1,)),
    (0, (1.0,), (1,)),
    (0, 2, 1),
    (0, [2], [1]),
    (None, (2,), (1,)),
    (0, (1,) * 65, (1,) * 65),
  ],
)
def test_tensor_with_unfit_sizes(fail, torch_format, offset, shape, strides):
  message = fail(torch_format(*dump({'x': tensor(Storage('Float', range(6), '0'), offset, shape, strides)})))
  assert message.startswith('tensor x: damaged pickle: its ')


@pytest.mark.parametrize(
  'storage', [3, None, 'x', whole([1], '0'), ('storage', TORCH.FloatStorage, '0', 'cpu', 1), TORCH.FloatStorage]
)
def test_tensor_without_storage(fail, torch_format, storage):
  message = fail(torch_format(*dump({'x': tensor(storage, 0, (), ())})))
  assert message == 'tensor x: damaged pickle: it has no storage'


@pytest.mark.parametrize(
  ('storage', 'message'),
  [
    (Storage('Float', [1], 5), 'damaged pickle: no description of a storage'),
    (Storage('Float', [1], '0', num_elements=-1), 'damaged pickle: no description of a storage'),
    (Storage('Float', [1], '0', num_elements=True), 'damaged pickle: no description of a storage'),
    (Storage('Float', [1], '0', num_elements='1'), 'damaged pickle: no description of a storage'),
    (Storage('Float', [1], '0', part=(None, None)), 'damaged pickle: no description of a storage'),
    (Storage('Float', [1], '0', part=(('1', 0, 1),)), 'storage 0 is part of another storage, which is not supported'),
  ],
)
def test_unfit_storage(fail, storage, message):
  assert fail(torch_zip(*dump({'x': tensor(storage, 0, (), ())}))) == message


def test_whole_storage_as_older_versions_describe_it(read, torch_format):
  value = {'x': tensor(Storage('Float', [1, 2], '0', part=(None,)), 1, (), ())}
  assert_equal(read(torch_format(*dump(value))), {'x': np.array(2, np.float32)})


@pytest.mark.parametrize('other', [Storage('Int', [1], '0'), Storage('Float', [1, 2], '0')])
def test_storage_described_in_two_ways(fail, torch_format, other):
  value = {'x': whole([1], '0'), 'y': tensor(other, 0, (), ())}
  assert fail(torch_format(*dump(value))) == 'storage 0 is described in two ways'


@pytest.mark.parametrize('num_elements', [1, 3, 2**40, 2**62])
def test_storage_of_other_size(fail, num_elements):
  pickled, storages = dump({'x': tensor(Storage('Float', [1, 2], '0', num_elements), 0, (), ())})

  message = fail(torch_zip(pickled, storages))
  assert message == f'tensor x: storage 0 has 8 bytes; its tensors need {4 * num_elements}'

  message = fail(torch_legacy(pickled, storages))
  if num_elements == 1:
    assert message == 'storage 0 has 2 elements; its tensors need 1'
  else:
    assert message.startswith('truncated: storage 0 ends at byte ')


def test_missing_storage(fail, torch_format):
  pickled, storages = dump({'x': whole([1], '0'), 'y': whole([1], '1')})
  del storages['1']
  assert fail(torch_format(pickled, storages)) == 'tensor y: storage 1 is missing'


def test_unlisted_storage(fail):
  pickled, storages = dump({'x': whole([1], '0')})
  for keys in [['0', 'more'], ['0', 5], ['0', ['0']], '0', None, {}]:
    content = torch_legacy(pickled, storages, keys=keys) if keys is not None else torch_legacy(b'N.' + pickled, {})
    assert 'damaged pickle' in fail(content)


def test_head_of_legacy_format(fail):
  pickled, storages = dump({'x': whole([1], '0')})
  assert fail(torch_legacy(pickled, storages, magic=MAGIC + 1)) == 'a pickle, but not one of torch.save'
  message = fail(torch_legacy(pickled, storages, version=1002))
  assert message == 'unknown version of the protocol of torch.save; known: 1001'
  assert fail(pickle.dumps({'x': 1}, 2)) == 'a pickle, but not one of torch.save'


def test_unfit_archives(fail):
  pickled, storages = dump({'x': whole([1], '0')})
  members = {'data.pkl': pickled, 'data/0': storages['0'].tobytes()}
  assert fail(zip_content({**members, 'byteorder': b'middle'})) == 'unknown byte order; known: little, big'
  assert fail(zip_content({**members, 'more/data.pkl': pickled})).startswith('2 members named data.pkl')
  assert fail(zip_content(members, compression=zipfile.ZIP_BZIP2)).endswith('data.pkl: unsupported compression')
  assert fail(zip_content({'weights.txt': b'1'})) == "a zip archive, but neither PyTorch's nor NumPy's"


# Hostile pickles.


@pytest.mark.parametrize('protocol', range(2, 6))
@pytest.mark.parametrize(
  ('function', 'name'),
  [
    (os.mkdir, rf'{os.name}\.mkdir'),
    (os.system, rf'{os.name}\.system'),
    (eval, r'(__builtin__|builtins)\.eval'),
    (exec, r'(__builtin__|builtins)\.exec'),
  ],
)
def test_payload_is_refused_and_not_run(tmp_path, fail, torch_format, function, name, protocol):
  victim = tmp_path / 'victim'
  code = f'__import__("os").mkdir({str(victim)!r})'
  payload = Call(function, {os.mkdir: str(victim), os.system: f'mkdir {victim}'}.get(function, code))
  pickled, storages = dump({'state_dict': {'x': payload}}, protocol)

  message = fail(torch_format(pickled, storages))

  assert re.fullmatch(f'refused: it asks for {name}; only tensors, dictionaries and plain values are read', message)
  assert not victim.exists()
  # It would have run its code: the refusal above is of something real.
  pickle.loads(pickled)
  assert victim.exists()


@pytest.mark.parametrize(
  ('value', 'name'),
  [
    (Call(TORCH.load, 'other.pt'), 'torch.load'),
    (Call(UTILS._rebuild_sparse_tensor, 1), 'torch._utils._rebuild_sparse_tensor'),
    (Call(getattr, {}, 'clear'), '__builtin__.getattr'),
    (TORCH.ComplexFloatStorage, 'torch.ComplexFloatStorage'),
    (collections.OrderedDict.fromkeys, '__builtin__.getattr'),
    (subprocess.Popen, 'commands.Popen'),
    (operator.attrgetter('x'), 'operator.attrgetter'),
  ],
)
def test_other_names_are_refused(fail, torch_format, value, name):
  message = fail(torch_format(*dump({'state_dict': {'x': whole([1], '0')}, 'other': value})))
  assert message == f'refused: it asks for {name}; only tensors, dictionaries and plain values are read'


@pytest.mark.parametrize(
  'value',
  [
    Call(UTILS._rebuild_tensor_v2),
    Call(UTILS._rebuild_tensor_v2, *range(9)),
    Call(UTILS._rebuild_tensor, 1, 2, 3),
    Call(UTILS._rebuild_parameter),
    Call(TORCH.Size),
    Call(TORCH.FloatStorage, 3),
    Call(collections.OrderedDict, 5),
    Call(collections.OrderedDict, [1]),
    Call(collections.OrderedDict, ['abc']),
    Call(collections.OrderedDict, [[(), 1]]),
    Call(collections.OrderedDict, (('a', 1),)),
    Call(UTILS._rebuild_parameter, 1, state={'a': 1}),
    Call(UTILS._rebuild_tensor, 1, 2, 3, 4, state={'storage': 1}),
  ],
)
def test_unfit_calls(fail, torch_format, value):
  fail(torch_format(*dump({'state_dict': {'x': whole([1], '0')}, 'other': value})))


@pytest.mark.parametrize(
  'pickled',
  [
    b'',
    b'.',
    b'\x80\x02.',
    b'\x80\x02(.',
    b'\x80\x02t.',
    b'\x80\x02}',
    b'\x80\x02a.',
    b'\x80\x02}K\x01a.',
    b'\x80\x02}(K\x01u.',
    b'\x80\x02]K\x01K\x02s.',
    b'\x80\x02h\x05.',
    b'\x80\x02q\x05.',
    b'\x80\x02}}Rb.',
    b'\x80\x02NNR.',
    b'\x80\x02K\x01}b.',
    b'\x80\x02K\x01Q.',
    b'\x80\x02)Q.',
    b'\x80\x02}2.',  # Duplicates.
    b'I1\n.',
    b'\x80\x04\x8c\x01aK\x01\x93.',
    b'\x80\x04\x8f.',  # An empty set.
    b'\x80\x05\x96\x01\0\0\0\0\0\0\0a.',  # A bytearray.
    b'\x80\x02\x82\x01.',  # A global of the extension registry.
    b'\x80\x02c\xff\nx\n.',
    b'\x80\x02P1\n.',
    b'\x80\x77}.',
  ],
)
def test_malformed_pickles(fail, torch_format, pickled):
  fail(torch_format(pickled, {}))


def test_quoted_names_are_printable_and_short(fail, torch_format):
  name = 'a\n\x1b[31m\u2028' + 1000 * 'b'
  text = b'X' + struct.pack('<I', len(name.encode())) + name.encode()
  message = fail(torch_format(b'\x80\x04' + 2 * text + b'\x93.', {}))
  assert message.startswith('refused: it asks for a [31m bbb')
  assert len(message) < 500


def _nested_tuples(depth):
  """A tuple of 2^depth leaves, which takes as long to hash."""
  return b')' + depth * b'q\0h\0\x86'


def _copies_of_a_dictionary(num_items, num_copies):
  items = b''.join(b'M' + struct.pack('<H', item) + b'N\x86' for item in range(num_items))
  return b'](ccollections\nOrderedDict\nq\0](' + items + b'e\x85q\x01R' + (num_copies - 1) * b'h\0h\x01R' + b'e'


@pytest.mark.parametrize(
  ('instructions', 'message'),
  [
    (b'}r\xff\xff\xff\xff', 'it holds no arrays'),  # An index of the memo.
    (b'X\xff\xff\xff\xffa', 'expected 4294967295 bytes'),
    (b'\x8d' + struct.pack('<Q', 2**62) + b'a', 'expected 4611686018427387904 bytes'),
    (b'\x8e' + struct.pack('<Q', 2**40) + b'a', 'expected 1099511627776 bytes'),
    (b'\x95' + struct.pack('<Q', 2**62) + b'}', 'it holds no arrays'),  # A frame.
    (b'\x8b\xff\xff\xff\x7fa', 'not enough data'),  # An integer.
    (b'}' + _nested_tuples(depth=24) + b'K\x01s', 'damaged pickle: a key of type tuple'),
    (_copies_of_a_dictionary(2000, 2000), 'it holds an object of type list'),
  ],
)
def test_a_small_pickle_takes_little_memory(fail, torch_format, instructions, message):
  content = torch_format(b'\x80\x04' + instructions + b'.', {})
  tracemalloc.start()
  try:
    assert message in fail(content)
    assert tracemalloc.get_traced_memory()[1] < 2**23
  finally:
    tracemalloc.stop()


# NumPy's and Hugging Face's formats.


def npz(arrays, save=np.savez):
  file = io.BytesIO()
  save(file, **arrays)
  return file.getvalue()


def safetensors_content(tensors, data):
  header = json.dumps(tensors).encode()
  return struct.pack('<Q', len(header)) + header + data


NUMBERS = {
  f'{prefix}{dtype}': np.arange(6).reshape(2, 3).astype(dtype)
  for prefix in ('', 'cells.0.')
  for dtype in ['f8', 'f4', 'f2', 'i8', 'i4', 'i2', 'i1', 'u8', 'u4', 'u2', 'u1', '?']
}


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz(read, save):
  arrays = {**NUMBERS, 'scalar': np.array(3), 'empty': np.zeros((0, 2)), 'transposed': np.arange(6.0).reshape(2, 3).T}
  assert_equal(read(npz(arrays, save)), arrays)


def test_npz_of_the_other_byte_order(read):
  arrays = read(npz({'x': np.arange(3, dtype='>f4'), 'y': np.arange(3, dtype='<f4')}))
  assert_equal(arrays, dict.fromkeys('xy', np.arange(3, dtype=np.float32)))


def test_safetensors(read):
  arrays = {**NUMBERS, 'scalar': np.array(3), 'empty': np.zeros((0, 2))}
  loaded = read(safetensors.numpy.save(arrays, metadata={'format': 'np'}))
  assert_equal({name: loaded[name] for name in arrays}, arrays)
  assert loaded.keys() == arrays.keys()


def test_safetensors_of_bfloat16(read):
  header = {'x': {'dtype': 'BF16', 'shape': [2, 1], 'data_offsets': [0, 4]}}
  arrays = read(safetensors_content(header, struct.pack('<HH', 0x3F80, 0xC040)))
  assert_equal(arrays, {'x': np.array([[1], [-3]], np.float32)})


@pytest.mark.parametrize('write', [npz, safetensors.numpy.save])
def test_prefix_in_other_formats(read, write):
  arrays = read(write({'module.x': np.ones(2, np.float32), 'module.module.y': np.zeros(1, np.int64)}))
  np.testing.assert_array_equal(arrays['x'], np.ones(2, np.float32), strict=True)
  assert arrays.keys() == {'x', 'module.y'}


@pytest.mark.parametrize(
  ('array', 'message'),
  [
    (np.array([{}]), 'array x cannot be read: Object arrays are not read, because they are pickled'),
    (np.array(['a']), 'array x: unsupported dtype <U1'),
    (np.zeros(2, 'V2'), 'array x cannot be read: unsupported dtype |V2'),
    (np.zeros(2, 'c8'), 'array x: unsupported dtype complex64'),
  ],
)
def test_npz_of_other_dtypes(fail, array, message):
  assert fail(npz({'x': array})) == message


def test_safetensors_of_other_dtypes(fail):
  header = {'x': {'dtype': 'F8_E4M3', 'shape': [2], 'data_offsets': [0, 2]}}
  assert fail(safetensors_content(header, b'ab')) == 'tensor x: unsupported dtype F8_E4M3'


@pytest.mark.parametrize('shape', [b'(9999999999,)', b'(-1,)', b'(2, 2)', b'(-2, -2)'])
def test_npy_of_another_size_than_it_says(fail, shape):
  file = io.BytesIO()
  np.save(file, np.arange(3.0))
  content = file.getvalue()
  header = content.replace(b'(3,), }' + 12 * b' ', b'%s, }' % shape.ljust(16))
  assert len(header) == len(content)
  tracemalloc.start()
  try:
    assert fail(zip_content({'x.npy': header}, prefix='')).startswith('array x cannot be read: its shape')
    assert tracemalloc.get_traced_memory()[1] < 2**23
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('declared', [True, False])
def test_an_archive_that_unpacks_to_much_more(fail, declared):
  size = 0x8123457
  content = zip_content({'data.pkl': bytes(size)}, compression=zipfile.ZIP_DEFLATED)
  if not declared:
    assert content.count(struct.pack('<I', size)) == 2
    content = content.replace(struct.pack('<I', size), struct.pack('<I', 1000))
  tracemalloc.start()
  try:
    message = fail(content)
    assert tracemalloc.get_traced_memory()[1] < 2**23
  finally:
    tracemalloc.stop()
  assert (f'refused: {len(content)} bytes that unpack to {size}' if declared else 'Bad CRC-32') in message


# Damaged files.

_SMALL = {
  'module.weight': tensor(Storage('Float', range(6), '0'), 0, (3, 2), (1, 3)),
  'module.num_batches_tracked': tensor(Storage('Long', [9], '1'), 0, (), ()),
}
_SMALL_ARRAYS = {
  'weight': np.arange(6, dtype=np.float32).reshape(2, 3).T,
  'num_batches_tracked': np.array(9),
}
SMALL = {
  'zip': torch_zip(*dump({'epoch': 1, 'state_dict': _SMALL})),
  'legacy': torch_legacy(*dump(_SMALL)),
  'npz': npz(_SMALL_ARRAYS),
  'npz_compressed': npz(_SMALL_ARRAYS, np.savez_compressed),
  'safetensors': safetensors.numpy.save({name: array.copy('C') for name, array in _SMALL_ARRAYS.items()}),
}


@pytest.mark.parametrize('name', SMALL)
def test_truncation_anywhere(read, fail, name):
  arrays = read(SMALL[name])
  assert_equal({key: arrays[key] for key in _SMALL_ARRAYS}, _SMALL_ARRAYS)
  for length in range(len(SMALL[name])):
    fail(SMALL[name][:length])
  if name == 'legacy':
    size = len(SMALL[name])
    assert fail(SMALL[name][:-1]) == f'truncated: storage 1 ends at byte {size} of {size - 1}'


@pytest.mark.parametrize('name', SMALL)
def test_flipped_bits(read, name):
  rng = np.random.default_rng(0)
  errors = []
  for _ in range(600):
    content = bytearray(SMALL[name])
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    try:
      arrays = read(content)
    except Exception as error:
      errors.append(error)
      continue
    for key, array in arrays.items():
      assert len(array.tobytes()) == array.nbytes <= len(content)
      if name in ('zip', 'npz', 'npz_compressed'):  # Which have checksums.
        np.testing.assert_array_equal(array, _SMALL_ARRAYS[key], strict=True)
  assert {type(error) for error in errors} == {ValueError}
  assert all(str(error).isprintable() for error in errors)
  assert 100 < len(errors) < 600


# What is no file of weights.


@pytest.mark.parametrize('content', [b'', b'\n', b'some text', b'\x89PNG\r\n\x1a\n', bytes(600), b'\x93NUMPY\x01\0'])
def test_unknown_formats(fail, content):
  assert fail(content) == "no file of weights; known formats: PyTorch's two, .npz, .safetensors"


def test_tar(fail):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w') as tar:
    tar.addfile(tarfile.TarInfo('sys_info'))
  assert fail(file.getvalue()).startswith("a tar archive; if it is one of PyTorch's first versions")


@pytest.mark.parametrize('content', [npz({}), safetensors.numpy.save({})])
def test_no_arrays(fail, content):
  assert fail(content) == 'it holds no arrays'


def test_no_file(tmp_path):
  with pytest.raises(ValueError, match=r'^[^\n]*absent\.pt: cannot be read \(No such file or directory\)$'):
    tensors.read(tmp_path / 'absent.pt')
  with pytest.raises(ValueError, match=f'^{tmp_path}: not a file, but a folder$'):
    tensors.read(str(tmp_path))
  with pytest.raises(ValueError, match=f'^{os.devnull}: not a file, but a device$'):
    tensors.read(os.devnull)


def test_the_extension_does_not_matter(tmp_path):
  for name, content in SMALL.items():
    path = tmp_path / f'{name}.txt'
    path.write_bytes(content)
    assert tensors.read(path).keys() == _SMALL_ARRAYS.keys()
