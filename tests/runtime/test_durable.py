import os
import pathlib
import stat

import pytest

from darts_jax import spaces
from darts_jax.runtime.durable import write_whole


def record(monkeypatch):
  """What is asked of the disk, in its order."""
  calls = []
  fsync, replace = os.fsync, os.replace

  def synced(number):
    calls.append('folder' if stat.S_ISDIR(os.fstat(number).st_mode) else 'content')
    fsync(number)

  def replaced(source, target):
    calls.append(pathlib.Path(target).name)
    replace(source, target)

  monkeypatch.setattr(os, 'fsync', synced)
  monkeypatch.setattr(os, 'replace', replaced)
  return calls


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  calls = record(monkeypatch)
  folder = tmp_path / 'run'
  folder.mkdir()
  write_whole(folder / 'config.json', b'{}')
  assert calls == ['content', 'config.json', 'folder']
  # One that says the same already costs nothing.
  write_whole(folder / 'config.json', b'{}')
  assert len(calls) == 3
  write_whole(folder / 'report.html', b'<p>', sync=False)
  assert calls[3:] == ['report.html']
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == {'config.json': b'{}', 'report.html': b'<p>'}


def test_architectures_are_written_likewise(tmp_path, monkeypatch):
  calls = record(monkeypatch)
  spaces.save(spaces.published()['DARTS_V2'], tmp_path / 'genotype.json')
  assert calls == ['content', 'genotype.json', 'folder']
  assert spaces.load(tmp_path / 'genotype.json') == spaces.published()['DARTS_V2']


def at_replacement(monkeypatch, action):
  """Calls `action` with the file that is about to get its name, for the first of them."""
  replace, called = pathlib.Path.replace, []

  def replaced(source, target):
    if not called:
      called.append(source)
      action(source)
    return replace(source, target)

  monkeypatch.setattr(pathlib.Path, 'replace', replaced)


@pytest.mark.parametrize('other', [lambda path: write_whole(path, b'other'), None])
def test_writers_do_not_disturb_each_other(tmp_path, monkeypatch, other):
  path = tmp_path / 'report.html'
  # The other one writes the same file, or begins a run and removes what it takes for the leftovers of a kill.
  at_replacement(monkeypatch, pathlib.Path.unlink if other is None else lambda partial: other(path))
  write_whole(path, b'mine')
  assert path.read_bytes() == b'mine'
  assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
  path = tmp_path / 'report.html'
  write_whole(path, b'before')

  def fail(partial):
    raise OSError('no space left')

  at_replacement(monkeypatch, fail)
  with pytest.raises(OSError, match='no space left'):
    write_whole(path, b'after')
  assert path.read_bytes() == b'before'
  assert list(tmp_path.iterdir()) == [path]


def test_what_a_link_leads_to_is_written(tmp_path):
  folder = tmp_path / 'elsewhere'
  folder.mkdir()
  for name in ('there', 'absent'):
    link = tmp_path / name
    link.symlink_to(folder / name)
    if name == 'there':
      (folder / name).write_text('before')
    write_whole(link, b'after')
    assert link.is_symlink()
    assert (folder / name).read_bytes() == b'after'
  assert len(list(folder.iterdir())) == 2


def test_what_is_no_file_is_left_as_it_is(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'pipe')
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  for name, said in (
    ('pipe', 'not a file, but a pipe'),
    ('folder', 'not a file, but a folder'),
    ('link', 'not a file, but a pipe'),
    ('loop', 'symbolic links'),
  ):
    for content in (b'content', b''):
      with pytest.raises(OSError, match=said):
        write_whole(tmp_path / name, content)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['folder', 'link', 'loop', 'pipe']
  assert stat.S_ISFIFO((tmp_path / 'pipe').stat().st_mode)
  assert (tmp_path / 'link').is_symlink()
