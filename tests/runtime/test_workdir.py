import json
import os
import pathlib
import re

import numpy as np
import pytest

from darts_jax.runtime import workdir as workdir_module
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.workdir import as_json, check_free, claim, claim_together

CONFIG = {'seed': 0, 'network': {'channels': 16, 'operations': ('none', 'skip_connect')}}


def test_directory_is_claimed_once(tmp_path):
  workdir = tmp_path / 'a' / 'b'
  claim(workdir, CONFIG, 'search')
  assert json.loads((workdir / 'config.json').read_text()) == json.loads(json.dumps(CONFIG))
  before = (workdir / 'config.json').stat()
  claim(workdir, CONFIG, 'search')
  assert (workdir / 'config.json').stat().st_mtime_ns == before.st_mtime_ns
  assert [path.name for path in workdir.iterdir()] == ['config.json']


def test_other_config_is_refused_by_its_differences(tmp_path):
  claim(tmp_path, CONFIG, 'search')
  other = {'seed': 1, 'network': {'channels': 8, 'operations': ('none', 'skip_connect')}}
  message = (
    f'--workdir: {tmp_path} holds a search with another config (config.seed: 0 → 1; config.network.channels: 16 → 8);'
    ' choose another --workdir or the same config'
  )
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    claim(tmp_path, other, 'search')
  claim(tmp_path, CONFIG, 'search')


@pytest.mark.parametrize('content', [b'{"seed": 0', b'\xff\xfe'])
def test_config_that_cannot_be_read_is_named(tmp_path, content):
  (tmp_path / 'config.json').write_bytes(content)
  with pytest.raises(ValueError, match=f'^{re.escape(str(tmp_path / "config.json"))}: not JSON'):
    claim(tmp_path, CONFIG, 'search')
  assert (tmp_path / 'config.json').read_bytes() == content


def test_a_relative_path_in_a_folder_whose_name_is_not_utf8_is_refused(tmp_path, monkeypatch):
  folder = tmp_path / '\udcff'
  folder.mkdir()
  monkeypatch.chdir(folder)
  for action in (lambda: claim(pathlib.Path('run'), CONFIG, 'search'), lambda: Checkpoints('run')):
    with pytest.raises(ValueError, match=r": '[^\n]*/.udcff/run' is not UTF-8"):
      action()
  assert list(folder.iterdir()) == []


@pytest.mark.parametrize('inside', ['', 'run'])
def test_file_in_the_place_of_the_directory_is_named(tmp_path, inside):
  (tmp_path / 'file').write_text('mine')
  workdir = tmp_path / 'file' / inside
  with pytest.raises(ValueError, match=f'^--workdir: {re.escape(str(workdir))} cannot be written'):
    claim(workdir, CONFIG, 'search')
  assert (tmp_path / 'file').read_text() == 'mine'


def test_a_directory_that_not_all_processes_see_is_refused(tmp_path, monkeypatch):
  claim_together(tmp_path, lambda: claim(tmp_path, CONFIG, 'search'), dict)
  other = tmp_path / 'other'
  monkeypatch.setattr(workdir_module, '_PATIENCE', 0.0)
  with pytest.raises(ValueError, match=f'^--workdir: {re.escape(str(other))} has no config.json, which process 0'):
    claim_together(other, lambda: None, dict)


def test_a_shared_file_system_may_take_its_time(tmp_path, monkeypatch):
  waits = []

  def sleep(seconds):
    waits.append(seconds)
    claim(tmp_path, CONFIG, 'search')

  monkeypatch.setattr(workdir_module.time, 'sleep', sleep)
  claim_together(tmp_path, lambda: None, dict)
  assert len(waits) == 1


def save(workdir, config):
  Checkpoints(workdir / 'checkpoints').save(1, {'weights': np.zeros(2)}, {}, claim=config)


@pytest.mark.parametrize('content', [None, b'', b'{"seed": 0', b'\xff\xfe'])
def test_config_that_is_lost_comes_back_from_the_checkpoint(tmp_path, content):
  claim(tmp_path, CONFIG, 'search')
  save(tmp_path, CONFIG)
  path = tmp_path / 'config.json'
  before = path.read_bytes()
  path.unlink() if content is None else path.write_bytes(content)
  # Nobody else has the checkpoint.
  with pytest.raises(ValueError, match=r'holds a search with another config \(config.seed: 0 → 1\)'):
    claim(tmp_path, CONFIG | {'seed': 1}, 'search')
  with pytest.raises(ValueError, match='holds another run than a training of this kind'):
    claim(tmp_path, CONFIG | {'genotype': {}}, 'training')
  assert not path.exists() if content is None else path.read_bytes() == content
  claim(tmp_path, CONFIG, 'search')
  assert path.read_bytes() == before


def test_config_that_was_changed_is_not_that_of_the_checkpoint(tmp_path):
  claim(tmp_path, CONFIG, 'search')
  save(tmp_path, CONFIG)
  other = CONFIG | {'seed': 1}
  (tmp_path / 'config.json').write_text(json.dumps(other))
  with pytest.raises(ValueError, match=r'\(config.seed: 0 → 1\)'):
    claim(tmp_path, other, 'search')


def test_a_large_value_is_not_printed_as_a_whole(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({**CONFIG, 'seed': 'a' * 10**6, 'network': {'b' * 10**6: 1}}))
  with pytest.raises(ValueError, match='holds a search with another config') as raised:
    claim(tmp_path, CONFIG, 'search')
  assert len(str(raised.value)) < 3000


def test_damaged_checkpoint_says_nothing_of_the_config(tmp_path):
  save(tmp_path, CONFIG)
  path = tmp_path / 'checkpoints' / '1' / 'manifest.json'
  path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
  claim(tmp_path, CONFIG, 'search')


def test_other_data_are_named_with_what_differs(tmp_path):
  config = CONFIG | {
    'data': {'name': 'npz', 'path': 'mine.npz', 'dir': 'data'},
    'dataset': {'images': 3, 'labels': 'a'},
  }
  claim(tmp_path, config, 'search')
  message = (
    f"--workdir: {tmp_path} holds a search with another config (config.dataset.labels: 'a' → 'b'):"
    ' the data of npz mine.npz are not those of before; choose another --workdir or the same data'
  )
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    claim(tmp_path, config | {'dataset': {'images': 3, 'labels': 'b'}}, 'search')


def test_places_of_the_same_data_and_the_number_of_readers_may_change(tmp_path):
  data = {'name': 'image_folder', 'dir': 'data', 'num_threads': 8, 'num_workers': 0}
  config = CONFIG | {'data': data, 'dataset': {'images': 3}}
  claim(tmp_path, config, 'search')
  moved = config | {'data': data | {'dir': 'elsewhere', 'num_threads': 1, 'num_workers': 2}}
  claim(tmp_path, moved, 'search')
  assert json.loads((tmp_path / 'config.json').read_text()) == as_json(moved)
  # Without a fingerprint the place is all that tells data from others.
  unknown = tmp_path / 'unknown'
  claim(unknown, CONFIG | {'data': data}, 'search')
  with pytest.raises(ValueError, match="config.data.dir: 'data' → 'elsewhere'"):
    claim(unknown, CONFIG | {'data': data | {'dir': 'elsewhere'}}, 'search')


def test_leftovers_of_kills_go_and_other_files_stay(tmp_path):
  names = ('metrics.jsonl.tmp', 'config.json.partial', 'alphas.partial.npz', 'report.html.0a1b2c3d.partial')
  for name in (*names, 'notes.txt'):
    (tmp_path / name).write_text('half')
  # A folder that is no run's yet is left as it is, but for what is written now.
  claim(tmp_path, CONFIG, 'search')
  assert (tmp_path / 'metrics.jsonl.tmp').exists()
  claim(tmp_path, CONFIG, 'search')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['config.json', 'notes.txt']


def test_leftover_that_its_writer_removes_at_the_same_time_is_no_error(tmp_path, monkeypatch):
  claim(tmp_path, CONFIG, 'search')
  partial = tmp_path / 'report.html.0a1b2c3d.partial'
  partial.touch()
  is_file = pathlib.Path.is_file

  def removed(path):
    found = is_file(path)
    if path == partial:
      path.unlink()
    return found

  monkeypatch.setattr(pathlib.Path, 'is_file', removed)
  claim(tmp_path, CONFIG, 'search')
  assert not partial.exists()


@pytest.mark.parametrize(
  'name',
  ['model.json', 'config.json', 'run.lock', 'weights.safetensors', 'checkpoints', 'checkpoints/30/manifest.json'],
)
def test_what_a_run_writes_is_nothing_else(tmp_path, name):
  check_free(tmp_path / 'run' / name)
  claim(tmp_path / 'run', CONFIG, 'search')
  (tmp_path / 'link').symlink_to(tmp_path / 'run' / name)
  for path in (tmp_path / 'run' / name, tmp_path / 'link'):
    with pytest.raises(ValueError, match=f'^{re.escape(str(path))}: .* is written by a run; choose another'):
      check_free(path)
  check_free(tmp_path / 'run' / 'net.onnx')
  check_free(tmp_path / 'model.json')


@pytest.mark.parametrize(('name', 'kind'), [('checkpoints', 'search'), ('best', 'training'), ('final', 'selection')])
def test_file_in_the_place_of_a_folder_is_noticed_at_once(tmp_path, name, kind):
  (tmp_path / name).write_text('mine')
  message = f'--workdir: {tmp_path / name} is a file, in the place of a folder; remove it or choose another'
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    claim(tmp_path, CONFIG, kind)
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_folder_in_the_place_of_a_file_is_noticed_at_once(tmp_path):
  (tmp_path / 'metrics.jsonl').mkdir()
  with pytest.raises(ValueError, match='metrics.jsonl is a folder, in the place of a file; remove it'):
    claim(tmp_path, CONFIG, 'search')


def test_pipe_in_the_place_of_a_file_is_noticed_at_once(tmp_path):
  claim(tmp_path, CONFIG, 'search')
  save(tmp_path, CONFIG)
  (tmp_path / 'config.json').unlink()
  os.mkfifo(tmp_path / 'config.json')
  with pytest.raises(ValueError, match='config.json is a pipe, in the place of a file; remove it or choose another$'):
    claim(tmp_path, CONFIG, 'search')
