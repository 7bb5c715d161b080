"""Damaged and hostile files for every reader, and settings out of range, tried in a process with little memory.

`python -m benchmarks.fault_inputs` serves requests of `benchmarks.faults`, one JSON value a line; `Child` is its other
end. Every input is made from a seed and a number alone, so that it can be made again.
"""

import contextlib
import functools
import importlib
import io
import json
import os
import pathlib
import pickle
import pickletools
import queue
import resource
import runpy
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.fault_judge import Ended, Fault, judge_end

_ROOT = pathlib.Path(__file__).parent.parent
_GOLDENS = _ROOT / 'tests' / 'goldens'

#: Bytes that the process may use beyond what it has when everything is imported, and what is too much for a small file.
_MEMORY, _TOO_MUCH = 3 * 2**30, 2**30
#: Seconds after which an input has not ended, and the process has not begun.
_LIMIT, _START_LIMIT = 30.0, 300.0
#: Characters of an error line that a person can still read.
_READABLE = 20_000


class Format(NamedTuple):
  """A kind of file.

  Attributes:
    name: of the file, in a folder of its own.
    seeds: undamaged contents.
    mutate: damages one in a way of its own.
    read: reads it from the folder, by all that read such files.
    is_named: whether errors have to name the file or its folder.
  """

  name: str
  seeds: Callable[[], list[bytes]]
  mutate: Callable[[bytes, np.random.Generator], bytes]
  read: Callable[[pathlib.Path], object]
  is_named: bool = True


def find(*places: str) -> Any:
  """The first of some functions, `module:name`, that there is."""
  for place in places:
    module, _, name = place.partition(':')
    with contextlib.suppress(ImportError, AttributeError):
      return getattr(importlib.import_module(module), name)
  raise ImportError(f'none of {", ".join(places)}')


# Mutations.

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
  """Replaces, removes or renames a value somewhere in one of the lines; or damages the text."""
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
  """A copy with one place changed."""
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
  """Damages text, a printed architecture for one: by other tokens in the place of some."""
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
  """Damages an archive, or makes another one with a member that is hostile, compressed otherwise, missing or twice."""
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
    # Of the directory: encryption, another method, other sizes, another place; or the data of a member.
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
  """Puts instructions that ask for something between those of a pickle, or damages its bytes."""
  if draw.random() < 0.2:
    return mutate_bytes(content, draw)
  places = [0]
  with contextlib.suppress(Exception):  # Behind some pickles there is more.
    places = [place for _, _, place in pickletools.genops(content) if place is not None]
  data = bytearray(content)
  for _ in range(int(draw.integers(1, 3))):
    place = places[draw.integers(len(places))]
    chosen = _OPCODES[draw.integers(len(_OPCODES))]
    end = place + (len(chosen) if draw.random() < 0.5 else 0)
    data[place:end] = chosen
  return bytes(data)


def mutate_image(content: bytes, draw: np.random.Generator) -> bytes:
  """Damages an image, or makes its header claim another size."""
  if draw.random() < 0.8:
    return mutate_bytes(content, draw)
  size = (1, 2**15, 2**31 - 1, 2**32 - 1)[draw.integers(4)]
  if content.startswith(b'\x89PNG'):
    chunk = b'IHDR' + struct.pack('>II', size, (1, size)[draw.integers(2)]) + content[24:29]
    return content[:12] + chunk + struct.pack('>I', zlib.crc32(chunk)) + content[33:]
  if content.startswith(b'P5'):
    return f'P5 {size} {size} {(255, 65535, 0, -1)[draw.integers(4)]}\n'.encode() + content[12:]
  return (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'GIF89a', b'II*\0')[draw.integers(3)] + content


# Seeds, and readers of what becomes of them.

_SETTINGS: dict[str, Any] = {
  'data': {'name': 'digits'},
  'network': {'channels': 2, 'layers': 3, 'nodes': 1, 'operations': ('none', 'skip_connect', 'max_pool_3x3')},
}


def _saved(arrays: Mapping[str, Any], save: Callable[..., None] = np.savez) -> bytes:
  stream = io.BytesIO()
  save(stream, **arrays)
  return stream.getvalue()


def _image_arrays() -> list[bytes]:
  images, labels = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1), np.array([0, 1, 2] * 2)
  part = {'x_train': images, 'y_train': labels}
  return [
    _saved(part),
    _saved({**part, 'x_test': images, 'y_test': labels}, np.savez_compressed),
    _saved({'x_train': images.astype(np.float32), 'y_train': labels.astype(np.uint8)}),
  ]


def _alphas() -> list[bytes]:
  series = {'step': np.array([0, 6, 12]), 'epoch': np.array([0, 1, 2])}
  edges = np.array([(0, 2), (1, 2)], np.int32)
  constant = {'operations': np.array(_SETTINGS['network']['operations']), 'edges_normal': edges, 'edges_reduce': edges}
  alphas = np.linspace(-1, 1, 18, dtype=np.float32).reshape(3, 2, 3)
  scores = {f'{score}_{cell}': np.zeros((3, 2)) for score in ('score', 'importance') for cell in ('normal', 'reduce')}
  return [
    _saved({**constant, **series, 'normal': alphas, 'reduce': -alphas}),
    _saved({**constant, **series, **scores, 'normal': alphas, 'reduce': -alphas}),
  ]


def _metrics() -> list[bytes]:
  lines = [
    {'kind': 'event', 'step': 0, 'event': 'compiled', 'message': 'search step compiled in 1.5 s'},
    {'kind': 'step', 'step': 2, 'epoch': 0, 'train_loss': 1.5, 'entropy_normal': 1.0, 'images_per_second': 9.5},
    {'kind': 'epoch', 'step': 4, 'epoch': 0, 'train_loss': 1.25, 'valid_loss': 'nan', 'seconds': 0.5},
    {'kind': 'test', 'step': 4, 'test_loss': 1.0, 'test_accuracy': 0.5},
    {'kind': 'event', 'step': 4, 'event': 'finished', 'message': '1 epochs done'},
  ]
  return [''.join(f'{json.dumps(line)}\n' for line in lines).encode()]


def _architectures() -> list[bytes]:
  names = [name for name in ('DARTS_V2', 'RNN_DARTS_V2') if name in find('darts_jax.genotype:published')()]
  to_dict, published = find('darts_jax.genotype:to_dict'), find('darts_jax.genotype:published')()
  return [json.dumps(to_dict(published[name])).encode() for name in names]


def _printed() -> list[bytes]:
  pairs = "('sep_conv_3x3', 0), ('skip_connect', 1), ('max_pool_3x3', 1), ('dil_conv_5x5', 2)"
  nested = "[('sep_conv_3x3', 0), ('skip_connect', 1)], [('max_pool_3x3', 1), ('dil_conv_5x5', 2)]"
  return [
    f'Genotype(normal=[{pairs}], normal_concat=[2, 3], reduce=[{pairs}], reduce_concat=range(2, 4))\n'.encode(),
    f'genotype = Genotype(normal=[{nested}], normal_concat=range(2, 4), reduce=[{nested}], reduce_concat=[2])'.encode(),
  ]


def _config(kind: str) -> list[bytes]:
  settings = find({'search': 'darts_jax.search.settings:Search', 'training': 'darts_jax.training:Training'}[kind])
  dataclasses = importlib.import_module('dataclasses')
  config = dataclasses.asdict(settings())
  return [json.dumps(config if kind == 'search' else {**config, 'genotype': {}, 'dataset': {}}).encode()]


def _model() -> list[bytes]:
  model = find('darts_jax.training:Model')
  genotype = find('darts_jax.genotype:published')()['DARTS_V2']
  made = model(genotype, 4, 3, 10, 'cifar', False, True, 3, (8, 8, 1), (0.5,), (0.25,))
  return [json.dumps(made.to_dict()).encode()]


def _golden(name: str) -> list[bytes]:
  return [(_GOLDENS / name).read_bytes()]


def _safetensors() -> list[bytes]:
  from safetensors.numpy import save

  return [save({'stem.0.weight': np.ones((2, 3), np.float32), 'b': np.arange(4)})]


def _cifar() -> list[bytes]:
  batch = {b'data': np.arange(12, dtype=np.uint8).reshape(2, 6), b'labels': [1, 2], b'batch_label': b'x'}
  return [pickle.dumps(batch, protocol) for protocol in (2, 4)]


def _idx() -> list[bytes]:
  return [struct.pack('>HBBI', 0, 8, 1, 10_000) + bytes(range(10)) * 1000]


def _images() -> list[bytes]:
  from PIL import Image

  pixels = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
  contents = []
  for form in ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP'):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    contents.append(stream.getvalue())
  wide = np.arange(144, dtype='>u2').reshape(12, 12).tobytes()
  return [*contents, b'P5 12 12 255\n' + bytes(144), b'P5 12 12 65535\n' + wide]


def _text() -> list[bytes]:
  return [b'the cat sat on <unk>\n the mat\n' * 5, 'ein Bär <unk> im Wald\n'.encode() * 5]


def _page(folder: pathlib.Path) -> None:
  find('darts_jax.report:write')(folder)


def _resume(folder: pathlib.Path) -> None:
  """What a search does with the history of α when it is resumed, and when its next epoch is done."""
  settings = find('darts_jax.search.settings:read')(_SETTINGS)
  strategy = find('darts_jax.search.loop:make_strategy')(settings)
  history = find('darts_jax.search.records:AlphaHistory')(folder, strategy, 12)
  alphas = {cell: np.zeros((2, 3), np.float32) for cell in ('normal', 'reduce')}
  history.append(18, 3, alphas, strategy, strategy.scores(alphas))


def _read_alphas(folder: pathlib.Path) -> None:
  _page(folder)
  _resume(folder)


def _read_metrics(folder: pathlib.Path) -> None:
  _page(folder)
  _each(
    lambda: find('darts_jax.runtime.metrics:read')(folder),
    lambda: _open_log(folder),
  )


def _open_log(folder: pathlib.Path) -> None:
  with find('darts_jax.runtime.metrics:MetricsLog')(folder, resume_step=4) as log:
    log.write('step', 6, {'train_loss': 1.0})


def _each(*reads: Callable[[], object]) -> None:
  """Calls all readers, also where the first refuses; a refusal is passed on in the end."""
  refusal = None
  for read in reads:
    try:
      read()
    except ValueError as error:
      refusal = error if refusal is None or _asks_for_memory(error) else refusal
  if refusal is not None:
    raise refusal


def _read_config(folder: pathlib.Path) -> None:
  _page(folder)
  kind = find('darts_jax.training:Training')
  claim = find('darts_jax.runtime.workdir:claim')
  reads: list[Callable[[], object]] = [lambda: claim(folder, {'seed': 1}, 'search')]
  with contextlib.suppress(ImportError):
    read_settings = find('darts_jax.training.workdir:read_settings')
    reads.append(lambda: read_settings(kind, folder))
  _each(*reads)


def _read_genotype(folder: pathlib.Path) -> None:
  """By itself, and by the command that describes it."""
  path = folder / 'genotype.json'
  found = find('darts_jax.genotype:resolve')(str(path))
  sizes = ['--width=4', '--vocabulary=5'] if hasattr(found, 'recurrent') else ['--channels=4', '--layers=3']
  if len(str(found)) % 8 == 0:  # It takes a second.
    _describe(path, *sizes)


def _describe(path: pathlib.Path, *more: str) -> None:
  """Raises an AssertionError unless the command ends as it should."""
  describe = importlib.import_module('experiments.describe')
  launch = find('experiments.entry:launch_flags')
  fault = _command(lambda: launch(describe.run, describe.USAGE, describe.FLAGS), [f'--genotype={path}', *more])
  if fault is not None:
    raise AssertionError(f'experiments.describe: {fault.what}')


def _command(run: Callable[[], object], arguments: list[str]) -> Fault | None:
  """What is wrong with how a command ends that reads `sys.argv`."""
  out, err, before = io.StringIO(), io.StringIO(), sys.argv
  sys.argv = ['faults', *arguments]
  code = 0
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      run()
  except SystemExit as error:
    code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
  finally:
    sys.argv = before
  return judge_end(Ended(code, out.getvalue(), err.getvalue()), (0, 2))


class _Enough(Exception):
  """A selection has begun: what it reads at its start, it has read."""


def _selection_results() -> list[bytes]:
  method = {
    'name': 'darts',
    'candidates': [{'name': 'seed_0', 'genotype': {}, 'valid_accuracy': 0.5}],
    'pick': 'seed_0',
    'genotype': json.loads(_architectures()[0]),
    'parameters': 100,
    'test_accuracies': [0.5],
    'seconds': {'search': 1.0, 'selection': 1.0, 'evaluation': 1.0},
  }
  return [json.dumps({'settings': {'searches': 1}, 'methods': [method]}).encode()]


def _read_results(folder: pathlib.Path) -> None:
  def begin(message: str) -> None:
    raise _Enough(message)

  training = {'data': {'name': 'digits', 'validation_fraction': 0.1}, 'epochs': 1}
  training |= {'network': {'channels': 2, 'layers': 3, 'auxiliary': False}}
  config = {'searches': 1, 'selection_epochs': 1, 'search': _SETTINGS, 'training': training}
  with contextlib.suppress(_Enough):
    find('darts_jax.selection:run')(config, folder, begin)


def _random_search(folder: pathlib.Path) -> None:
  (folder / 'config.json').write_text('{"strategy": "random"}')
  _page(folder)


def _random_architectures() -> list[bytes]:
  trial = {'number': 0, 'genotype': json.loads(_architectures()[0]), 'parameters': 9}
  return [json.dumps([{**trial, 'valid_accuracy': 0.5, 'seconds': 1.0, 'diverged': False}]).encode()]


def _read_weights(folder: pathlib.Path) -> None:
  find('darts_jax.interop.tensors:read')(folder / 'weights')


def _read_cifar(folder: pathlib.Path) -> None:
  path = folder / 'data_batch_1'
  find('darts_jax.data.unpickling:loads')(path.read_bytes(), str(path))


def _read_idx(folder: pathlib.Path) -> None:
  """The labels of the test set of MNIST, beside files that are whole."""
  names, counts = find('darts_jax.data.mnist:FILES'), (60_000, 60_000, 10_000)
  for name, count in zip(names[:3], counts, strict=True):
    shape = (count, 28, 28) if 'images' in name else (count,)
    with (folder / name).open('wb') as file:
      file.write(struct.pack(f'>HBB{len(shape)}I', 0, 8, len(shape), *shape))
      file.write(bytes(range(10)))
      file.truncate(4 + 4 * len(shape) + int(np.prod(shape)))
  find('darts_jax.data.images:load')('mnist', directory=str(folder))


def _read_image(folder: pathlib.Path) -> None:
  decode, box = find('darts_jax.data.stream:decode'), find('darts_jax.data.stream:centre_box')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    found = decode((folder / 'image').read_bytes(), 8, lambda width, height: box(width, height, 8))
  assert found is None or found.shape == (8, 8, 3), found.shape


def _read_text(folder: pathlib.Path) -> None:
  for name in ('valid', 'test'):
    (folder / f'{name}.txt').write_bytes(_text()[0])
  find('darts_jax.data.text:load')('files', str(folder))


def _read_images(folder: pathlib.Path) -> None:
  find('darts_jax.data.images:load')('npz', path=str(folder / 'data.npz'))


def _read_model(folder: pathlib.Path) -> None:
  find('darts_jax.training:Model').read(folder)


def _mutate_weights(content: bytes, draw: np.random.Generator) -> bytes:
  def inner(old: bytes, draw: np.random.Generator) -> bytes:
    return mutate_pickle(old, draw) if old.startswith(b'\x80') else mutate_bytes(old, draw)

  return mutate_zip(content, draw, inner)


#: By name.
FORMATS: dict[str, Format] = {
  'images_npz': Format('data.npz', _image_arrays, mutate_zip, _read_images),
  'alphas': Format('alphas.npz', _alphas, mutate_zip, _read_alphas),
  'metrics': Format('metrics.jsonl', _metrics, mutate_json, _read_metrics),
  'genotype': Format('genotype.json', _architectures, mutate_json, _read_genotype),
  'printed': Format('genotype.json', _printed, mutate_text, _read_genotype),
  'search_config': Format('config.json', lambda: _config('search'), mutate_json, _read_config),
  'training_config': Format('config.json', lambda: _config('training'), mutate_json, _read_config),
  'model': Format('model.json', _model, mutate_json, _read_model),
  'results': Format('results.json', _selection_results, mutate_json, _read_results),
  'random_search': Format('architectures.json', _random_architectures, mutate_json, _random_search),
  'torch_zip': Format('weights', lambda: _golden('torch_zip.pt'), _mutate_weights, _read_weights),
  'torch_legacy': Format('weights', lambda: _golden('torch_legacy.pt'), mutate_pickle, _read_weights),
  'weights_npz': Format(
    'weights', lambda: [_saved({'w': np.ones((2, 3)), 'b': np.arange(4)})], mutate_zip, _read_weights
  ),
  'safetensors': Format('weights', _safetensors, mutate_bytes, _read_weights),
  'cifar_pickle': Format('data_batch_1', _cifar, mutate_pickle, _read_cifar),
  'idx': Format('t10k-labels-idx1-ubyte', _idx, mutate_bytes, _read_idx),
  'image': Format('image', _images, mutate_image, _read_image),
  'text': Format('train.txt', _text, mutate_text, _read_text),
}


def _try_format(form: Format, folder: pathlib.Path, draw: np.random.Generator) -> Fault | None:
  seeds = form.seeds()
  content = seeds[draw.integers(len(seeds))]
  mutate = form.mutate if draw.random() < 0.9 else mutate_bytes
  (folder / form.name).write_bytes(mutate(content, draw))
  return judge_read(lambda: form.read(folder), (str(folder), form.name) if form.is_named else ())


def _try_checkpoint(folder: pathlib.Path, draw: np.random.Generator) -> Fault | None:
  """A checkpoint with a damaged file is refused, or gives what was saved."""
  make = find('darts_jax.runtime.checkpoint:Checkpoints')
  state = {'w': np.arange(6, dtype=np.float32).reshape(2, 3), 'n': np.array([3])}
  make(folder / 'checkpoints').save(3, state, {'epoch': 1, 'sums': {'loss': 0.5}})
  paths = sorted(path for path in (folder / 'checkpoints').rglob('*') if path.is_file())
  path = paths[draw.integers(len(paths))]
  mutate = mutate_json if path.suffix == '.json' and draw.random() < 0.7 else mutate_bytes
  damaged = mutate(path.read_bytes(), draw)
  if damaged == path.read_bytes():
    return None
  path.write_bytes(damaged)
  faults = []

  def restore() -> None:
    found = make(folder / 'checkpoints').restore(state)
    if found is not None and any((found.state[name] != value).any() for name, value in state.items()):
      faults.append(Fault('silent', f'{path.name}: another state than was saved'))
    if found is not None and found.metadata != {'epoch': 1, 'sums': {'loss': 0.5}}:
      faults.append(Fault('silent', f'{path.name}: other metadata than were saved'))

  return judge_read(restore, (str(folder),)) or next(iter(faults), None)


# What users give, or are given, in the place of a file or folder: some made for that, and others.
_MADE = ('pipe', 'loop', 'deep.json', '.', 'missing/file', 'x' * 300, 'zero\0byte', '\udcff')
_GIVEN = ('/dev/zero', '/dev/full', '~nosuchuser/x', 'gs://bucket/x', '', '/proc/self/mem', '/' * 5000)


def _paths(folder: pathlib.Path) -> list[str]:
  os.mkfifo(folder / 'pipe')
  (folder / 'loop').symlink_to(folder / 'loop')
  (folder / 'deep.json').write_bytes(b'[' * 10**6)
  return [*(f'{folder}/{name}' for name in _MADE), *_GIVEN]


def _call(place: str, *args: object) -> object:
  """Calls the function at a place, which is not imported before."""
  return find(place)(*args)


_PATH_READERS: dict[str, Callable[[str], object]] = {
  'genotype': functools.partial(_call, 'darts_jax.genotype:resolve'),
  'weights': functools.partial(_call, 'darts_jax.interop.tensors:read'),
  'npz': lambda path: find('darts_jax.data.images:load')('npz', path=path),
  'mnist': lambda path: find('darts_jax.data.images:load')('mnist', directory=path),
  'text': lambda path: find('darts_jax.data.text:load')('files', path),
  'image_folder': functools.partial(_call, 'darts_jax.data.records:image_folder'),
  'network': functools.partial(_call, 'darts_jax:load'),
  'describe': lambda path: _describe(pathlib.Path(path)),
}


#: Inputs of kind `path`; from there on they are the same again.
NUM_PATHS = len((*_MADE, *_GIVEN)) * len(_PATH_READERS)


def _try_path(folder: pathlib.Path, number: int) -> Fault | None:
  """A hostile path in the place of a kind of file."""
  paths = _paths(folder)
  path = paths[number % len(paths)]
  reader = list(_PATH_READERS)[number // len(paths) % len(_PATH_READERS)]
  fault = judge_read(lambda: _PATH_READERS[reader](path), ())
  shown = path.removeprefix(f'{folder}/').replace('\0', '\\0')[:20]
  return fault and fault._replace(what=f'{reader} of {shown!r}: {fault.what}')


# Settings.

#: Numbers that no setting can have; those that one can have are judged by what becomes of them.
NUMBERS = (-1, 0, 2**31, 10**12, 1e39, float('nan'), float('inf'), -float('inf'), 10**400)
_OTHERS: tuple[Any, ...] = (
  (),
  [],
  {},
  '',
  'x' * 10**5,
  None,
  True,
  b'x',
  [1] * 10**5,
  ('none',) * 10**5,
  (10**12,) * 3,
  object,
)
_LARGEST, _LARGEST_SEED = 2**31 - 1, 2**32 - 1
#: Items that a setting can have; no config of the project lists a tenth of them.
_MOST_ITEMS = 10_000


def _leaves(config: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    here = f'{path}.{name}' if path else name
    if hasattr(value, 'items'):
      yield here, value
      yield from _leaves(value, here)
    else:
      yield here, value


def configs() -> dict[str, Any]:
  """The configs of the project by the name of their file."""
  found = {}
  for path in sorted((_ROOT / 'configs').glob('*.py')):
    get_config = runpy.run_path(str(path)).get('get_config')
    if get_config:
      found[path.stem] = get_config()
  return found


def read_settings(config: Any) -> Any:
  """What the command that a config is for makes of it."""
  build = find('darts_jax.settings:build')
  if 'searches' in config:
    return build(find('darts_jax.selection.settings:Selection'), config)
  if 'problems' in config:
    return build(find('darts_jax.laboratory.settings:Laboratory'), config)
  if config.get('strategy') == 'random':
    return find('darts_jax.selection.settings:RandomSearch').read(config)
  if 'hypergradient' in config:
    return find('darts_jax.search.settings:read')(config)
  language = config.get('space') == 'recurrent'
  return build(find('darts_jax.training:LanguageTraining' if language else 'darts_jax.training:Training'), config)


def judge_settings(settings: Any, field: str) -> Fault | None:
  """What is wrong with a value that has been accepted."""
  value = settings
  for name in field.split('.'):
    value = getattr(value, name)
  last = field.rpartition('.')[2]
  items = value if isinstance(value, list | tuple) else [value]
  if len(items) > _MOST_ITEMS:
    return Fault('silent', f'a setting with {len(items)} items is accepted')
  for item in items:
    if isinstance(item, float):
      with np.errstate(over='ignore'):
        if not np.isfinite(np.float32(item)):
          return Fault('silent', f'{last}: {item} is accepted, which is not finite in float32')
    elif isinstance(item, int) and item > (_LARGEST_SEED if last == 'seed' else _LARGEST):
      return Fault('silent', f'{last}: numbers without a limit are accepted')
  return None


_configs: dict[str, Any] = {}


def _try_setting(seed: int, number: int) -> Fault | None:
  """Sets a field of a config to a value that it should not have, by the program or by the command line."""
  if not _configs:
    _configs.update(configs())
  draw = np.random.default_rng([seed, zlib.crc32(b'settings'), number])
  name = list(_configs)[draw.integers(len(_configs))]
  config = _configs[name].copy_and_resolve_references().to_dict()
  leaves = list(_leaves(config))
  field, old = leaves[draw.integers(len(leaves))]
  is_number = isinstance(old, int | float) and not isinstance(old, bool)
  values = NUMBERS if is_number and draw.random() < 0.9 else (*NUMBERS, *_OTHERS)
  value = values[draw.integers(len(values))]
  shown = str(value)[:20]
  if is_number and draw.random() < 0.3:
    fault = _set_by_flag(name, field, value)
  else:
    group = config
    *above, last = field.split('.')
    for each in above:
      group = group[each]
    group[last] = value
    found: list[Fault | None] = []
    fault = judge_read(lambda: found.append(judge_settings(read_settings(config), field)), ())
    fault = fault or next(iter(found), None)
  return fault if fault is None or fault.kind == 'silent' else fault._replace(what=f'{shown}: {fault.what}')


def _set_by_flag(name: str, field: str, value: object) -> Fault | None:
  launch = find('experiments.entry:launch')
  found: list[Fault | None] = []

  def run(config: Mapping[str, Any], workdir: pathlib.Path) -> int:
    del workdir
    found.append(judge_settings(read_settings(config), field))
    return 0

  arguments = [f'--config={_ROOT / "configs" / name}.py', f'--config.{field}={value}', '--workdir=unused']
  return _command(lambda: launch(run, 'usage'), arguments) or next(iter(found), None)


# The process.


def judge_read(read: Callable[[], object], names: tuple[str, ...]) -> Fault | None:
  """What is wrong with how a reader takes its input: it has to return, or to raise a ValueError that names the file.

  Args:
    read: the reader.
    names: of the file or its folder; an error has to have one of them, if there are any.
  """
  before = _peak()
  try:
    read()
  except ValueError as error:
    if _asks_for_memory(error):
      return Fault('hang', 'asks for more memory than there is')
    if names and not any(name in str(error) for name in names):
      return Fault('traceback', f'no word on the file: {_where(error)}')
    if names and len(str(error)) > _READABLE:
      return Fault('traceback', f'an error of more than {_READABLE} characters: {_where(error)}')
  except MemoryError:
    return Fault('hang', 'asks for more memory than there is')
  except Exception as error:  # That is what is looked for.
    return Fault('traceback', _where(error))
  grown = _peak() - before
  return Fault('hang', f'takes {_TOO_MUCH >> 30} GiB of memory or more') if grown > _TOO_MUCH else None


def _asks_for_memory(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, MemoryError):
      return True
    error = error.__cause__ or error.__context__
  return False


def _where(error: BaseException) -> str:
  """The kind of an exception, and the place in the project that it comes from."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = [frame for frame in frames if '/darts_jax/' in frame.filename or '/experiments/' in frame.filename]
  frame = (ours or frames)[-1]
  said = str(error) if isinstance(error, AssertionError) else ''
  return f'{type(error).__name__} in {pathlib.Path(frame.filename).name}, {frame.name} {said}'.strip()


def _limit_memory() -> None:
  """Bounds what is taken from here on; only Linux says what there is already."""
  status = pathlib.Path('/proc/self/status')
  if status.exists():
    [size] = [int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith('VmSize:')]
    limit = 1024 * size + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _peak() -> int:
  """The most bytes that the process has had so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def try_input(kind: str, seed: int, number: int) -> Fault | None:
  """Tries one input.

  Args:
    kind: a key of `FORMATS`, or `checkpoint`, `path` or `setting`.
    seed: of the campaign.
    number: of the input.
  """
  draw = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if kind == 'setting':
      return _try_setting(seed, number)
    if kind == 'path':
      return _try_path(folder, number)
    return _try_checkpoint(folder, draw) if kind == 'checkpoint' else _try_format(FORMATS[kind], folder, draw)


#: All kinds of inputs but settings.
KINDS_OF_INPUTS = (*FORMATS, 'checkpoint', 'path')


def look(folder: pathlib.Path) -> Fault | None:
  """Makes the report of a working directory, and describes what it has found; returns what is wrong with that."""
  fault = judge_read(lambda: _page(folder), ())
  path = folder / 'genotype.json'
  if fault is None and path.exists():
    fault = judge_read(lambda: find('darts_jax.genotype:resolve')(str(path)), (str(path),))
  return fault


def serve() -> None:
  """Answers requests, one JSON value a line each: `[kind, seed, number]`, or the path of a working directory."""
  # What a library prints must not come between the answers.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  for module in ('darts_jax', 'darts_jax.report', 'darts_jax.selection', 'experiments.describe', 'PIL.Image'):
    importlib.import_module(module)
  importlib.import_module('jax').devices()
  warnings.simplefilter('ignore')
  _limit_memory()
  print(file=answers, flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    try:
      fault = look(pathlib.Path(request)) if isinstance(request, str) else try_input(*request)
    except Exception as error:  # Of what surrounds the reader, which has to be known, too.
      fault = Fault('traceback', f'outside of a reader: {_where(error)}')
    print(json.dumps(fault), file=answers, flush=True)


class Child:
  """The other end of `serve`: a process that is started again whenever an input has ended it."""

  def __init__(self) -> None:
    """Starts nothing yet."""
    self._process: subprocess.Popen[str] | None = None
    self._answers: queue.Queue[str | None] = queue.Queue()

  def ask(self, request: object) -> Fault | None:
    """What is wrong with how a request is answered."""
    process = self._process or self._start()
    assert process.stdin is not None
    try:
      process.stdin.write(json.dumps(request) + '\n')
      process.stdin.flush()
      answer = self._answers.get(timeout=_LIMIT)
    except queue.Empty:
      self.close()
      return Fault('hang', f'no end within {_LIMIT:g} s')
    except OSError:
      answer = None
    if answer is None:
      code = process.wait()
      self.close()
      name = signal.Signals(-code).name if code < 0 else f'exit code {code}'
      return Fault('traceback', f'ends the process ({name})')
    fault = json.loads(answer)
    return None if fault is None else Fault(*fault)

  def _start(self) -> 'subprocess.Popen[str]':
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(_ROOT)}
    process = subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.fault_inputs'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      cwd=_ROOT,
      env=environment,
      start_new_session=True,
    )
    answers: queue.Queue[str | None] = queue.Queue()
    self._answers = answers

    def read() -> None:
      assert process.stdout is not None
      for line in process.stdout:
        answers.put(line)
      answers.put(None)

    self._reader = threading.Thread(target=read, daemon=True)
    self._reader.start()
    self._process = process
    try:
      begun = answers.get(timeout=_START_LIMIT)
    except queue.Empty:
      begun = None
    if begun is None:
      self.close()
      raise ValueError('benchmarks.fault_inputs did not start')
    return process

  def close(self) -> None:
    """Ends the process."""
    process, self._process = self._process, None
    if process is not None:
      process.kill()
      with process, contextlib.suppress(BrokenPipeError):  # What it was asked last may not have been read.
        self._reader.join()


if __name__ == '__main__':
  serve()
