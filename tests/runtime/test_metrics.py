import json
import math
import pathlib
import resource
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from darts_jax.runtime import metrics
from darts_jax.runtime.metrics import MetricsLog


def strict(line):
  """Parses JSON as RFC 8259 has it, without the NaN and Infinity that Python accepts."""

  def refuse(constant):
    raise ValueError(constant)

  return json.loads(line, parse_constant=refuse)


def tensorboard_events(workdir):
  """Events of all files, in the order in which TensorBoard reads them (TFRecord: length, CRC, data, CRC)."""
  events = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    content = path.read_bytes()
    while content:
      (length,) = struct.unpack('<Q', content[:8])
      for start, end in ((0, 8), (12, 12 + length)):
        assert struct.unpack('<I', content[end : end + 4]) == (masked_crc32c(content[start:end]),)
      events.append(Event.FromString(content[12 : 12 + length]))
      content = content[16 + length :]
  return events


def tensorboard_scalars(workdir):
  return [
    (value.tag, event.step, value.simple_value)
    for event in tensorboard_events(workdir)
    for value in event.summary.value
  ]


def test_line_is_there_as_soon_as_it_is_written(tmp_path):
  with MetricsLog(tmp_path, resume_step=None) as log:
    log.write('train', 3, {'loss': 2.5, 'examples': 96, 'phase': 'warm-up α'})
    assert (tmp_path / 'metrics.jsonl').read_bytes() == (
      b'{"kind": "train", "step": 3, "loss": 2.5, "examples": 96, "phase": "warm-up \\u03b1"}\n'
    )
    assert metrics.read(tmp_path) == [{'kind': 'train', 'step': 3, 'loss': 2.5, 'examples': 96, 'phase': 'warm-up α'}]


def test_values_that_are_not_finite_survive_strict_json(tmp_path):
  values = {'a': math.nan, 'b': math.inf, 'c': np.float32(-math.inf), 'd': 1e308, 'e': jnp.float32(0.1)}
  with MetricsLog(tmp_path, resume_step=None) as log:
    log.write('valid', np.int64(1), values)
  (line,) = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert strict(line) == {
    'kind': 'valid', 'step': 1, 'a': 'nan', 'b': 'inf', 'c': '-inf', 'd': 1e308, 'e': float(np.float32(0.1))
  }  # fmt: skip
  (read,) = metrics.read(tmp_path)
  assert math.isnan(read['a'])
  assert (read['b'], read['c'], read['d']) == (math.inf, -math.inf, 1e308)


def test_numbers_become_tensorboard_scalars(tmp_path):
  with MetricsLog(tmp_path, resume_step=None) as log:
    log.write('train', 5, {'loss': 0.5, 'epoch': 2, 'phase': 'search'})
    log.write('valid', 6, {'loss': math.inf})
    log.write('größe', 2**40 + 7, {'α' * 100: -0.1, 'huge': 1e300, 'negative': -3})
  assert tensorboard_scalars(tmp_path) == [
    ('train/loss', 5, 0.5),
    ('train/epoch', 5, 2.0),
    ('valid/loss', 6, math.inf),
    (f'größe/{"α" * 100}', 2**40 + 7, float(np.float32(-0.1))),
    ('größe/huge', 2**40 + 7, math.inf),
    ('größe/negative', 2**40 + 7, -3.0),
  ]
  events = tensorboard_events(tmp_path)
  assert [event.file_version for event in events] == ['brain.Event:2', '', '', '', '']
  assert all(abs(event.wall_time - (tmp_path / 'metrics.jsonl').stat().st_mtime) < 3600 for event in events)


def test_resumed_log_continues_where_the_checkpoint_was(tmp_path):
  with MetricsLog(tmp_path, resume_step=None) as log:
    for step in range(1, 6):
      log.write('train', step, {'loss': math.nan if step == 2 else step})
  with MetricsLog(tmp_path, resume_step=3) as log:
    assert [line['step'] for line in metrics.read(tmp_path)] == [1, 2, 3]
    log.write('train', 4, {'loss': -4})
  lines = [strict(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [(line['step'], line['loss']) for line in lines] == [(1, 1), (2, 'nan'), (3, 3), (4, -4)]
  assert sorted(path.name for path in tmp_path.iterdir()) == ['metrics.jsonl', 'tensorboard']
  # TensorBoard drops what it has from the step of a START event on.
  starts = [event.step for event in tensorboard_events(tmp_path) if event.session_log.status == SessionLog.START]
  assert starts == [0, 4]
  assert tensorboard_scalars(tmp_path)[-1] == ('train/loss', 4, -4.0)


def test_run_from_the_start_drops_what_is_there(tmp_path):
  for value in (1, 2):
    with MetricsLog(tmp_path, resume_step=None) as log:
      log.write('train', 1, {'loss': value})
  assert metrics.read(tmp_path) == [{'kind': 'train', 'step': 1, 'loss': 2}]
  assert [event.step for event in tensorboard_events(tmp_path) if event.session_log.status == SessionLog.START] == [
    0,
    0,
  ]


@pytest.mark.parametrize('length', range(1, 48))
def test_line_cut_off_by_a_kill_is_left_out(tmp_path, length):
  path = tmp_path / 'metrics.jsonl'
  complete = b'{"kind": "train", "step": 1, "loss": 1.0}\n'
  cut = '{"kind": "train", "step": 2, "phase": "größer"}'.encode()[:length]
  path.write_bytes(complete + cut)
  assert metrics.read(tmp_path) == [{'kind': 'train', 'step': 1, 'loss': 1.0}]
  with MetricsLog(tmp_path, resume_step=2) as log:
    assert path.read_bytes() == complete
    log.write('train', 2, {'loss': 2.0})
  assert metrics.read(tmp_path)[1:] == [{'kind': 'train', 'step': 2, 'loss': 2.0}]


def test_damaged_line_in_the_middle_is_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"kind": "train", "step": 1}\n{"kind": "tr\n{"kind": "train", "step": 3}\n')
  content = path.read_bytes()
  with pytest.raises(ValueError, match=r'metrics\.jsonl: line 2 is damaged'):
    metrics.read(tmp_path)
  with pytest.raises(ValueError, match=r'metrics\.jsonl: line 2 is damaged'):
    MetricsLog(tmp_path, resume_step=5)
  assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [(path, content)]


def test_folder_without_a_log_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'metrics\.jsonl: no such file'):
    metrics.read(tmp_path)


def test_text_that_is_not_unicode_can_be_read_again(tmp_path):
  with MetricsLog(tmp_path, resume_step=None) as log:
    log.write('event', 1, {'event': 'damaged_image', 'message': 'a/\udcff.png: größer'})
    log.write('event', 2, {'event': 'finished', 'message': ''})
  found = metrics.read(tmp_path)
  assert [line.get('message') for line in found] == ['a/\\udcff.png: größer', '']
  MetricsLog(tmp_path, resume_step=2).close()
  assert metrics.read(tmp_path) == found


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'step': 1}, "metric 'step': this name is taken"),
    ({'kind': 'x'}, "metric 'kind': this name is taken"),
    ({'loss': [1.0]}, r"metric 'loss': \[1\.0\] is neither a number nor text"),
    ({'loss': np.zeros(2)}, "metric 'loss': .* is neither a number nor text"),
    ({'epoch': 0.5}, "metrics of kind 'train' at step 1: .* could not be read again"),
  ],
)
def test_values_without_a_place_are_refused(tmp_path, values, message):
  with MetricsLog(tmp_path, resume_step=None) as log:
    with pytest.raises(ValueError, match=message):
      log.write('train', 1, {'good': 1.0, **values})
    assert metrics.read(tmp_path) == []


def test_unwritable_folder_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='metrics cannot be written: Not a directory') as caught:
    MetricsLog(tmp_path / 'file', resume_step=None)
  assert str(caught.value).startswith(f'{tmp_path / "file"}: ')


def test_full_disk_is_one_clear_error(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  log = MetricsLog(tmp_path, resume_step=None)
  log.write('train', 1, {'loss': 1.0})
  # The system enforces a limit to the size of a file where it would enforce a quota or the end of the disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    with pytest.raises(ValueError, match='metrics cannot be written: File too large') as caught:
      log.write('train', 2, {'note': 'x' * 2000})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.close()
  assert str(caught.value).startswith(f'{tmp_path}: ')
  assert metrics.read(tmp_path)[0] == {'kind': 'train', 'step': 1, 'loss': 1.0}


def test_no_command_imports_pytorch(tmp_path):
  """A stand-in that cannot be imported lies where PyTorch would lie."""
  (tmp_path / 'torch').mkdir()
  (tmp_path / 'torch' / '__init__.py').write_text('raise RuntimeError("torch was imported")')
  program = f"""
import importlib, pathlib, pkgutil, sys
sys.path.insert(0, {str(tmp_path)!r})
import darts_jax, experiments
from darts_jax.runtime.metrics import MetricsLog
for package in (darts_jax, experiments):
  for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
    importlib.import_module(module.name)
with MetricsLog(pathlib.Path({str(tmp_path)!r}) / 'run', resume_step=None) as log:
  log.write('train', 1, {{'loss': 0.5}})
assert not [name for name in sys.modules if name.partition('.')[0] in ('torch', 'tensorboardX')]
"""
  root = pathlib.Path(metrics.__file__).parents[2]
  done = subprocess.run([sys.executable, '-c', program], cwd=root, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr) == (0, '')
  assert tensorboard_scalars(tmp_path / 'run') == [('train/loss', 1, 0.5)]


def test_damaged_logs_are_read_or_refused(tmp_path, complaints):
  with MetricsLog(tmp_path, resume_step=None) as log:
    for step in range(8):
      log.write('step', step, {'loss': math.nan if step == 3 else 1 / (1 + step), 'said': step})
  assert 100 < len(complaints(lambda path: metrics.read(path.parent), tmp_path / 'metrics.jsonl')) < 400


@pytest.mark.parametrize(
  'line',
  [
    {'kind': 'epoch', 'step': 0, 'epoch': [1]},
    {'kind': 'epoch', 'step': 0, 'epoch': {'a': 1}},
    {'kind': 'epoch', 'step': 0, 'epoch': 0.5},
    {'kind': 'epoch', 'step': 0},
    {'kind': 'test', 'step': 1, 'loss': 1, 'accuracy': 'x'},
    {'kind': 'test', 'step': 1, 'loss': 1, 'accuracy': None},
    {'kind': 'test', 'step': 1, 'loss': 1, 'accuracy': [1]},
    {'kind': 'test', 'step': 1, 'loss': 1, 'accuracy': True},
    {'kind': 'test', 'step': 1, 'loss': 10**400},
    {'kind': 'test', 'step': 1},
    {'kind': 'event', 'step': 1, 'event': ['finished']},
    {'kind': 'event', 'step': 1, 'event': 'finished', 'message': 3},
    {'kind': 'event', 'step': 1, 'event': 'finished', 'x': [math.nan]},
    {'kind': 'event', 'step': 1, 'message': 'finished'},
    {'kind': 'step', 'step': -5},
    {'kind': 'step', 'step': True},
    {'kind': 'step', 'step': 10**400},
    {'kind': 'step', 'step': 1, 'seconds': {}},
  ],
  ids=str,
)
def test_lines_of_another_shape_are_damaged(tmp_path, line):
  path = tmp_path / 'metrics.jsonl'
  good = {'kind': 'test', 'step': 2, 'loss': 1, 'accuracy': 'nan'}
  path.write_text(f'{json.dumps(line)}\n{json.dumps(good)}\n')
  with pytest.raises(ValueError, match=r'metrics.jsonl: line 1 is damaged: not a JSON object of finite numbers and'):
    metrics.read(tmp_path)
  MetricsLog(tmp_path, resume_step=2, saved=b'').close()
  assert [line['step'] for line in metrics.read(tmp_path)] == [2]


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'[\n\xff\n' * 9,
    b'{"kind": "epoch", "step": 1, "loss": NaN}\n',
    b'[' * 100_000,
    b'{"step": 1}\n{"kind": 1}\n',
  ],
  ids=['empty', 'no JSON', 'not a number', 'deep', 'no kind'],
)
def test_lines_that_were_lost_are_those_of_the_copy(tmp_path, content):
  path = tmp_path / 'metrics.jsonl'
  with MetricsLog(tmp_path, resume_step=None) as log:
    for step in (1, 2):
      log.write('epoch', step, {'epoch': step - 1})
    saved = path.read_bytes()
    log.write('event', 2, {'event': 'finished'})
  end = path.read_bytes()[len(saved) :]
  path.write_bytes(content + b'\n' + end + b'{"kind": "epoch", "step": 3, "epoch": 2}\n')
  with MetricsLog(tmp_path, resume_step=2, saved=saved) as log:
    assert log.opened.brought_back == 2
    assert path.read_bytes() == saved + end
    assert log.opened.lines == metrics.read(tmp_path)
  with MetricsLog(tmp_path, resume_step=2, saved=saved) as log:
    assert log.opened.brought_back == 0


def test_lines_that_a_run_went_back_behind_stay(tmp_path):
  """A checkpoint of step 2 holds lines of step 4, which the run had reached before."""
  with MetricsLog(tmp_path, resume_step=None) as log:
    for step in (1, 2, 3, 4):
      log.write('step', step, {'loss': 1.0})
    log.go_back(2)
  starts = [event.step for event in tensorboard_events(tmp_path) if event.session_log.status == SessionLog.START]
  assert starts == [0, 3]
  saved = (tmp_path / 'metrics.jsonl').read_bytes()
  with MetricsLog(tmp_path, resume_step=2, saved=saved) as log:
    log.write('step', 3, {'loss': 0.5})
  # Of what follows the copy, lines of later steps are dropped.
  with MetricsLog(tmp_path, resume_step=2, saved=saved) as log:
    assert log.opened.brought_back == 0
    assert [line['step'] for line in log.opened.lines] == [1, 2, 3, 4]
  # Lines that are lost come back in their order.
  lines = saved.splitlines(keepends=True)
  (tmp_path / 'metrics.jsonl').write_bytes(lines[0] + lines[3])
  with MetricsLog(tmp_path, resume_step=2, saved=saved) as log:
    assert log.opened.brought_back == 2
    assert [line['step'] for line in log.opened.lines] == [1, 2, 3, 4]
