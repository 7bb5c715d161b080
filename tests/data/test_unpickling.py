import collections
import os
import pathlib
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from darts_jax.data import images, unpickling

DATA = np.random.default_rng(0).integers(0, 256, (3, 300), np.uint8)


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
  """The opcodes of the official batches, which Python 2 wrote: byte strings, and NumPy's names of that time."""

  def text(content: bytes) -> bytes:
    return b'U' + bytes([len(content)]) + content

  dtype = (
    b'cnumpy\ndtype\n'
    + text(b'u1')
    + b'K\x00K\x01\x87R(K\x03'
    + text(b'|')
    + b'NNN'
    + 2 * b'J\xff\xff\xff\xff'
    + b'K\x00tb'
  )
  array = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85' + text(b'b') + b'\x87R'
  rows, columns = (b'M' + struct.pack('<H', size) for size in data.shape)
  state = (
    b'(K\x01' + rows + columns + b'\x86' + dtype + b'\x89T' + struct.pack('<I', data.nbytes) + data.tobytes() + b'tb'
  )
  numbers = b''.join(b'K' + bytes([label]) for label in labels)
  return b'\x80\x02}(' + text(b'labels') + b'](' + numbers + b'e' + text(b'data') + array + state + b'u.'


def test_pickle_of_python_2():
  content = python2_pickle(DATA, [4, 0, 9])

  batch = unpickling.loads(content, 'batch')

  assert batch.keys() == {'labels', 'data'}
  assert batch['labels'] == [4, 0, 9]
  assert batch['data'].dtype == np.uint8
  np.testing.assert_array_equal(batch['data'], DATA)


@pytest.mark.parametrize('protocol', range(2, 5))
@pytest.mark.parametrize('order', ['C', 'F'])
def test_pickle_of_python_3(protocol, order):
  content = pickle.dumps({b'data': np.array(DATA, order=order), 'labels': [4, 0, 9], b'name': b'\xff'}, protocol)

  batch = unpickling.loads(content, 'batch')

  np.testing.assert_array_equal(batch['data'], DATA)
  assert batch['labels'] == [4, 0, 9]
  assert batch['name'] == b'\xff'


class Payload:
  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize(
  ('function', 'name'),
  [(os.mkdir, f'{os.name}.mkdir'), (pathlib.Path.mkdir, 'getattr'), (exec, 'exec'), (eval, 'eval')],
)
def test_payload_is_refused_and_not_run(tmp_path, cifar10, function, name, protocol):
  victim = tmp_path / 'victim'
  code = f'__import__("os").mkdir({str(victim)!r})'
  argument = {os.mkdir: str(victim), pathlib.Path.mkdir: victim}.get(function, code)
  file = cifar10.write_cifar_folder(tmp_path, 'python') / 'data_batch_3'
  file.write_bytes(pickle.dumps({b'labels': [0], b'data': Payload(function, argument)}, protocol))

  with pytest.raises(ValueError, match=r'data_batch_3: refused or damaged pickle: it asks for '):
    images.load('cifar10', directory=str(tmp_path))

  assert not victim.exists()
  pickle.loads(file.read_bytes())
  assert victim.exists()


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    (collections.OrderedDict(), 'it asks for collections.OrderedDict'),
    (np.float64(1), 'it asks for numpy._core.multiarray.scalar'),
    (np.zeros(3), "array of dtype 'f8' instead of unsigned bytes"),
    (np.array([{}]), "array of dtype 'O8' instead of unsigned bytes"),
  ],
)
def test_other_values_are_refused(value, message):
  with pytest.raises(ValueError, match=f'^batch: refused or damaged pickle: {message}'):
    unpickling.loads(pickle.dumps({b'data': value}, protocol=2), 'batch')


def test_array_shorter_than_its_shape():
  content = python2_pickle(DATA, [4, 0, 9]).replace(struct.pack('<H', 300), struct.pack('<H', 30000))
  with pytest.raises(ValueError, match='batch: refused or damaged pickle: cannot reshape'):
    unpickling.loads(content, 'batch')


def test_other_encodings_are_refused():
  with pytest.raises(ValueError, match="it asks for the encoding 'rot13'"):
    unpickling.loads(b'\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.', 'batch')


def test_no_dictionary():
  with pytest.raises(ValueError, match='batch: refused or damaged pickle: it holds a list instead of a dictionary'):
    unpickling.loads(pickle.dumps([1]), 'batch')


@pytest.mark.parametrize('length', [0, 1, 20, 500, -1])
def test_truncated_pickle(length):
  with pytest.raises(ValueError, match='batch: refused or damaged pickle'):
    unpickling.loads(python2_pickle(DATA, [4, 0, 9])[:length], 'batch')


TUPLES = b'K\x01' + b'q\x00h\x00\x86' * 40


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    # The memo of Python's unpickler would have 2³² places.
    (b'\x80\x02}r\xff\xff\xff\x7f.', None),
    # So many bytes are not there.
    (b'\x80\x04\x8e' + struct.pack('<Q', 2**40) + b'.', 'expected 1099511627776 bytes'),
    (b'\x80\x04B' + struct.pack('<I', 2**32 - 1) + b'.', 'expected 4294967295 bytes'),
    (b'\x80\x04\x8f.', 'the instruction EMPTY_SET'),
    # A key whose hash takes 2⁴⁰ steps.
    (b'\x80\x02}K\x01' + b'q\x00h\x00\x86' * 40 + b'K\x01s.', 'a key of type tuple'),
    (pickle.dumps({'data': [1, 2, 3]}, 2).replace(b']', b'}'), 'items without a list'),
    (b'\x80\x02c_codecs\nencode\nK\x01X\x06\x00\x00\x00latin1\x86R.', 'encoding of something else'),
    # What takes 2⁴⁰ characters to print.
    (b'\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00a' + TUPLES + b'\x86R.', 'it asks for the encoding of type tuple'),
    (
      b'\x80\x02}U\x04datacnumpy\nndarray\n)R(K\x01K\x03\x85cnumpy\ndtype\n' + TUPLES + b'\x85R\x89U\x03abctbs.',
      'array of dtype of type tuple',
    ),
    (b'\x80\x02}}R.', 'a call that no array needs'),
    (b'\x80\x02}}b.', 'a state that no array has'),
    (b'\x80\x02}U\x04datacnumpy\nndarray\n)Rs.', 'an array without its state'),
  ],
  ids=range(12),
)
def test_pickle_that_asks_for_too_much(content, message):
  tracemalloc.start()
  try:
    if message is None:
      assert unpickling.loads(content, 'batch') == {}
    else:
      with pytest.raises(ValueError, match=f'^batch: refused or damaged pickle: [^\n]*({message})'):
        unpickling.loads(content, 'batch')
    assert tracemalloc.get_traced_memory()[1] < 2**20
  finally:
    tracemalloc.stop()


def test_pickle_of_too_many_instructions(monkeypatch):
  monkeypatch.setattr(unpickling, '_MAX_INSTRUCTIONS', 100)
  with pytest.raises(ValueError, match='batch: refused or damaged pickle: more than 100 instructions'):
    unpickling.loads(b'\x80\x02' + b']' * 100 + b'.', 'batch')


def test_mutants_are_read_or_refused(tmp_path, complaints):
  path = tmp_path / 'data_batch_1'
  path.write_bytes(python2_pickle(DATA[:, :9], [4, 0, 9]))
  assert 100 < len(complaints(lambda path: unpickling.loads(path.read_bytes(), str(path)), path)) < 400
