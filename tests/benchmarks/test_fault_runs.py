"""What is done to real runs, tried on a small program that stands for one: a fault of its own has to be found."""

import contextlib

import pytest

from benchmarks import fault_runs
from benchmarks.fault_runs import Command, Workshop

# It writes forty lines, goes on after the last one, and keeps its data, its lock and its log as a run does, but for a
# flaw that it is told.
STUB = """
import fcntl, hashlib, json, os, pathlib, sys, time
flaw, data, workdir = os.environ['FLAW'], pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2].partition('=')[2])

def refuse(reason):
  print(f'error: {reason}', file=sys.stderr)
  sys.exit(2)

workdir.mkdir(exist_ok=True)
lock = (workdir / 'run.lock').open('a')
try:
  fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
  if flaw != 'writers':
    refuse('in use')
config = {'data': hashlib.sha256(data.read_bytes()).hexdigest()}
path, log, checkpoints = workdir / 'config.json', workdir / 'metrics.jsonl', workdir / 'checkpoints'
if path.exists():
  try:
    same = json.loads(path.read_text()) == config
  except ValueError:
    refuse('config.json is damaged')
  if not same and flaw != 'data':
    refuse('other data')
path.write_text(json.dumps(config))
done = int((checkpoints / 'step').read_text()) if (checkpoints / 'step').exists() else 0
lines = log.read_bytes().splitlines() if log.exists() else []
if len(lines) < done and flaw != 'damage':
  refuse('metrics.jsonl is damaged')
if flaw == 'kill' and done:
  lines[done - 1 : done] = []
log.write_bytes(b''.join(line + b'\\n' for line in lines[:done]))
checkpoints.mkdir(exist_ok=True)
for step in range(done + 1, 41):
  time.sleep(0.005)
  with log.open('a') as file:
    file.write(json.dumps({'kind': 'epoch', 'step': step, 'epoch': step - 1, 'train_loss': 1 / step}) + '\\n')
  (checkpoints / 'partial').write_text(str(step))
  (checkpoints / 'partial').replace(checkpoints / 'step')
time.sleep(0.1)
other = flaw == 'result' and done
(workdir / 'genotype.json').write_text(json.dumps({'normal': [['none' if other else 'skip_connect', 0]]}))
"""


@pytest.fixture
def workshop(tmp_path, monkeypatch):
  """Makes the folder of a campaign whose runs of images are the program with a flaw."""
  (tmp_path / 'stub_of_a_run.py').write_text(STUB)

  @contextlib.contextmanager
  def make(flaw):
    def command(arguments, folder, environment):
      more = {'FLAW': flaw, 'PYTHONPATH': str(tmp_path)}
      return Command(['stub_of_a_run', *arguments[1:]], folder, environment | more)

    monkeypatch.setattr(fault_runs, 'RUNS', {'images': ('stub', '{data}/images.npz')})
    monkeypatch.setattr(fault_runs, 'Command', command)
    (tmp_path / 'campaign').mkdir()
    made = Workshop(tmp_path / 'campaign', 0, lambda workdir: None)
    try:
      yield made
    finally:
      made.close()

  return make


def tries(workshop, case):
  """A case again and again: on a busy machine a program may have ended before a signal comes."""
  name, is_kill, number = case.rpartition(':') if case.startswith('kill') else (case, '', '0')
  for more in range(10 if is_kill else 1):
    yield workshop.try_case(f'{name}:{int(number) + more}' if is_kill else name)


@pytest.mark.parametrize(
  ('flaw', 'case'),
  [
    ('kill', 'kill:images:0'),
    ('result', 'kill:images:0'),
    ('damage', 'damage:images:half-way:metrics.jsonl:emptied'),
    ('data', 'data:images:labels'),
    ('writers', 'writers:images'),
  ],
)
def test_a_flaw_of_a_run_is_found(workshop, flaw, case):
  with workshop(flaw) as made:
    assert any(found for _, found in tries(made, case))


@pytest.mark.parametrize(
  'case', ['kill:images:0', 'damage:images:half-way:metrics.jsonl:emptied', 'data:images:labels', 'writers:images']
)
def test_nothing_is_found_in_a_sound_run(workshop, case):
  with workshop('') as made:
    tried, found = next(each for each in tries(made, case) if each[0])
  assert tried
  assert found == []
