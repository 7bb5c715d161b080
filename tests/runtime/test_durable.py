import os
import pathlib
import stat

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
