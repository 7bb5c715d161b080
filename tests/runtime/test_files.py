import io
import itertools
import json
import os
import struct
import zipfile

import numpy as np
import pytest

from darts_jax.runtime import files


def npz(save=np.savez, **arrays):
  file = io.BytesIO()
  save(file, **arrays)
  return file.getvalue()


ARRAYS = {
  'step': np.arange(3),
  'operations': np.array(['none', 'skip_connect']),
  'normal': np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32),
}


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz_is_read_or_refused(tmp_path, save, complaints):
  path = tmp_path / 'a.npz'
  path.write_bytes(npz(save, **ARRAYS))
  found = files.read_npz(path)
  assert list(found) == list(ARRAYS)
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == array.dtype

  # Some bytes mean nothing, such as the times of members.
  assert 350 < len(complaints(files.read_npz, path)) < 400


def with_member(content, name='x.npy', method=zipfile.ZIP_STORED):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', method) as archive:
    archive.writestr(name, content)
  return file.getvalue()


def member(header, content=b'', version=b'\1\0'):
  return b'\x93NUMPY' + version + struct.pack('<H', len(header)) + header + content


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (with_member(member(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}\n")), 'do not fit'),
    (with_member(member(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 0)}\n")), 'do not fit'),
    (with_member(member(b"{'descr': '|V0', 'fortran_order': False, 'shape': (10,)}\n")), 'unsupported dtype'),
    (with_member(member(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", b'N.')), 'Object arrays'),
    (with_member(member(b"{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}\n", b'\xff' * 4)), 'not Unicode'),
    (with_member(member(b'(' * 1500 + b'\n')), 'its header is nested too deeply'),
    (with_member(member(b'-' * 9000 + b'\n')), 'its header has 9,001 bytes'),
    (
      with_member(member(b"{'descr': '<U1', 'fortran_order': False, 'shape': (2,)}\n", b'a\0\0\0\0\0\x11\0')),
      'array x cannot be read: it has a character that is not Unicode',
    ),
    (with_member(member(b'a\n  b\n c', version=b'\2\0')), 'array x cannot be read'),
    (with_member(bytes(2**27), method=zipfile.ZIP_DEFLATED), 'refused: [0-9]+ bytes that unpack to 134217728'),
    (with_member(b'', method=zipfile.ZIP_LZMA), 'unsupported compression'),
    (with_member(b'', name='x'), 'array x cannot be read'),
    (b'\x93NUMPY\1\0', 'a single array'),
    (b'', 'not a whole npz file'),
  ],
  ids=itertools.count(),
)
def test_npz_that_asks_for_too_much(tmp_path, content, message):
  path = tmp_path / 'a.npz'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f'^[^\n]*a.npz: [^\n]*{message}[^\n]*$'):
    files.read_npz(path)


def test_json_is_read_or_refused(tmp_path, complaints):
  path = tmp_path / 'a.json'
  values = {'name': 'é', 'cells': [['skip_connect', 0], ['none', 1]], 'rate': 1e-3, 'flag': None}
  path.write_text('\ufeff' + json.dumps(values, ensure_ascii=False), encoding='utf-8')
  assert files.read_json(path) == values

  assert 200 < len(complaints(files.read_object, path)) < 400


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'[' * 100_000, 'nested too deeply'),
    (b'{"a":' * 100 + b'1' + b'}' * 100, 'nested too deeply'),
    (b'{"a": "\\ud800"}', 'not JSON .*surrogates'),
    (b'[{"a": 1, "b": {}, "a": 2}]', 'a stands twice in an object'),
    (b'{"a": "\xed\xa0\x80"}', 'not JSON .*utf-8'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'not JSON .*digits'),
    (b'', 'not JSON'),
    (b'[]', 'not an object of JSON, but a value of type list'),
  ],
)
def test_json_that_asks_for_too_much(tmp_path, content, message):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f'^[^\n]*a.json: [^\n]*{message}[^\n]*$'):
    files.read_object(path)


def test_lines_of_json(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"a": 1}\n' + b'[' * 5000 + b'\n\n\xff\n"' + '\u2028'.encode() + b'"\n{"a"')
  found = files.read_json_lines(path)
  assert [value for value in found if not isinstance(value, files.UnfitFile)] == [{'a': 1}, '\u2028']
  assert len(found) == 6


@pytest.mark.parametrize('read', [files.read_bytes, files.read_json, files.read_json_lines, files.read_npz])
def test_what_is_no_file_is_not_opened(tmp_path, read):
  os.mkfifo(tmp_path / 'pipe')
  for path, message in (
    ('/dev/zero', 'not a file, but a device'),
    (tmp_path / 'pipe', 'not a file, but a pipe'),
    (tmp_path, 'not a file, but a folder'),
    (tmp_path / 'absent', 'cannot be read .No such file or directory.'),
  ):
    with pytest.raises(ValueError, match=f'^{path}: {message}'):
      read(files.user_path(path, 'path'))


def test_large_files_are_not_read(tmp_path):
  for name, read, limit in (('a.json', files.read_json, files.MAX_JSON), ('a.jsonl', files.read_json_lines, 2**30)):
    with (tmp_path / name).open('wb') as file:
      file.truncate(limit + 1)  # Takes no room on the disk.
    with pytest.raises(ValueError, match=rf'{name}: {limit + 1:,} bytes; at most {limit:,} are read'):
      read(tmp_path / name)


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('~nosuchuser/runs', '~nosuchuser/runs: no home folder is known of that user'),
    ('runs/a\0b', 'has a zero byte'),
    ('runs/\udcff', r"'runs/.udcff' is not UTF-8"),
    ('gs://bucket/runs', 'gs://bucket/runs is a URL'),
    ('x' * 5000, 'is no usable path .File name too long.'),
  ],
)
def test_paths_of_users(path, message):
  with pytest.raises(ValueError, match=f'^--workdir: [^\n]*{message}[^\n]*$'):
    files.user_path(path, '--workdir')


def test_paths_of_users_that_need_not_exist(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert files.user_path('~/runs/digits', '--workdir') == tmp_path / 'runs/digits'
  assert files.user_path(tmp_path / 'x', '--workdir') == tmp_path / 'x'
