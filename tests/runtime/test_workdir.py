import json
import re

import pytest

from darts_jax.runtime import workdir as workdir_module
from darts_jax.runtime.workdir import claim, claim_together

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
