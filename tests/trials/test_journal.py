"""The journal's lines, and what becomes of a file that is not whole."""

import dataclasses
import json
import math
import pathlib
import zlib

import numpy as np
import pytest

from darts_jax.runtime.files import UnfitFile
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.strategies.sampled import Outcome, Proposal, failed
from darts_jax.trials import Journal
from darts_jax.trials.journal import FILE, ask_line, describe, outcome_of, read, signed, tell_line

SPACE = NasBench201()
TEXT = '|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|'
PROPOSAL = Proposal(3, SPACE.from_json(TEXT), parent=1)
OUTCOME = Outcome(
  PROPOSAL, 'stopped', 0.75, {'loss': math.inf, 'size': 3.0}, {'accuracy': 0.5}, (0.25, -math.inf), 1.5, 'trials/3'
)
TELL = {
  'event': 'tell',
  'number': 3,
  'status': 'stopped',
  'reward': 0.75,
  'measures': {'loss': 'inf', 'size': 3.0},
  'test': {'accuracy': 0.5},
  'curve': [0.25, '-inf'],
  'seconds': 1.5,
  'artefact': 'trials/3',
  'failure': '',
}


def refuse(constant):
  raise ValueError(constant)


def test_lines_are_strict_json_and_there_as_soon_as_they_are_written(tmp_path):
  with Journal(tmp_path) as journal:
    assert journal.lines == []
    journal.ask(PROPOSAL, SPACE)
    journal.tell(OUTCOME)
    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / FILE).read_text().splitlines()]
  for line in lines:
    # Of the JSON of the fields before it.
    checksum = line.pop('crc32')
    assert checksum == zlib.crc32(json.dumps(line).encode())
  asked = {'event': 'ask', 'number': 3, 'arch': TEXT, 'parent': 1, 'budget': 1.0}
  assert lines == [asked, TELL] == [ask_line(PROPOSAL, SPACE), tell_line(OUTCOME)]
  assert read(tmp_path / FILE) == lines
  with Journal(tmp_path) as journal:
    assert journal.lines == lines


def test_an_outcome_is_on_the_disk_before_anything_follows_from_it(tmp_path, monkeypatch):
  synced = []
  with Journal(tmp_path) as journal:
    monkeypatch.setattr('os.fsync', lambda descriptor: synced.append((tmp_path / FILE).read_bytes()))
    journal.ask(PROPOSAL, SPACE)
    assert not synced
    journal.tell(OUTCOME)
    assert synced == [(tmp_path / FILE).read_bytes()]


def test_a_folder_may_be_a_text_and_is_made(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  for path in ('~/some/run', str(tmp_path / 'some' / 'run'), tmp_path / 'some' / 'run'):
    with Journal(path) as journal:
      assert journal.path == tmp_path / 'some' / 'run' / FILE
      journal.ask(PROPOSAL, SPACE)
  assert len(read(journal.path)) == 3


@dataclasses.dataclass(frozen=True)
class Some:
  folder: pathlib.Path = pathlib.Path('a/b')
  rate: float = math.inf
  sizes: tuple[int, ...] = (1, 2)
  table: dict = dataclasses.field(default_factory=lambda: {1: np.zeros(3), 'none': None})


def test_whatever_has_settings_is_described_by_json_values(tmp_path):
  found = describe(Some())
  assert found == {
    'class': 'Some',
    'folder': 'a/b',
    'rate': 'inf',
    'sizes': [1, 2],
    'table': {'1': 'ndarray', 'none': None},
  }
  assert describe(object()) == {'class': 'object'}
  with Journal(tmp_path) as journal:
    journal.begin(found)
  with Journal(tmp_path) as journal:
    assert (journal.config, journal.lines) == (found, [])
    journal.begin(found)


def test_outcomes_survive_their_lines():
  for outcome in (OUTCOME, failed(PROPOSAL, 'why', 2.0), Outcome(PROPOSAL, 'done', 1e-300)):
    assert outcome_of(json.loads(json.dumps(tell_line(outcome), allow_nan=False)), PROPOSAL) == outcome
  found = outcome_of(json.loads(json.dumps(tell_line(Outcome(PROPOSAL, 'done', 1.0, {'x': math.nan})))), PROPOSAL)
  assert math.isnan(found.measures['x'])
  # Scalars of NumPy are numbers, too.
  found = tell_line(Outcome(PROPOSAL, 'done', np.float32(0.5), {'x': np.int64(3)}, curve=(np.float64('nan'),)))
  assert (found['reward'], found['measures'], found['curve']) == (0.5, {'x': 3.0}, ['nan'])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'status': 'lost'}, "status: 'lost' is not known; allowed are done, failed, stopped"),
    ({'status': None}, 'status: None is not known'),
    ({'reward': 'high'}, "'high' is not a number"),
    ({'reward': True}, 'True is not a number'),
    ({'reward': 'nan'}, 'reward: nan is not a finite number'),
    ({'reward': '-inf'}, 'reward: -inf is not a finite number'),
    ({'measures': [1]}, 'not the outcome of an evaluation'),
    ({'measures': {'x': None}}, 'None is not a number'),
    ({'curve': 3}, 'not the outcome of an evaluation'),
    ({'curve': [[]]}, 'not the outcome of an evaluation'),
    ({'seconds': 'long'}, "'long' is not a number"),
    ({'artefact': 3}, 'not the outcome of an evaluation'),
    ({'failure': None}, 'not the outcome of an evaluation'),
  ],
)
def test_other_outcomes_are_refused(change, message):
  with pytest.raises(UnfitFile, match=f'^{message}'):
    outcome_of({**TELL, **change}, PROPOSAL)
  with pytest.raises(UnfitFile, match='not the outcome of an evaluation$'):
    outcome_of({name: value for name, value in TELL.items() if name != 'curve'}, PROPOSAL)


def written(tmp_path, content):
  (tmp_path / FILE).write_bytes(content)
  return tmp_path / FILE


GOOD = signed({'event': 'ask', 'number': 0})


@pytest.mark.parametrize('rest', [b'{"eve', b'{"event": "ask", "number": 1}', b'\0\0\0\n', b'{"event": "ask"}\n'])
def test_a_last_line_that_is_not_whole_is_removed(tmp_path, rest):
  path = written(tmp_path, GOOD + rest)
  assert read(path) == [{'event': 'ask', 'number': 0}]
  # Another process may be about to write the rest.
  assert path.read_bytes() == GOOD + rest
  with Journal(tmp_path) as journal:
    assert len(journal.lines) == 1
    assert path.read_bytes() == GOOD
    journal.ask(PROPOSAL, SPACE)
  assert len(read(path)) == 2


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    (b'', 'not JSON'),
    (b'\xff\xfe', 'not JSON'),
    (b'[]', 'neither a proposal nor an outcome'),
    (signed({'event': 'stop', 'number': 1})[:-1], 'neither a proposal nor an outcome'),
    (signed({'event': 'ask', 'number': True})[:-1], 'neither a proposal nor an outcome'),
    (b'{"event": "ask", "number": 1}', 'its checksum is of another line'),
    (signed({'event': 'ask', 'number': 1})[:-1].replace(b'1', b'2', 1), 'its checksum is of another line'),
  ],
)
def test_damage_is_named(tmp_path, line, message):
  path = written(tmp_path, GOOD + line + b'\n' + GOOD)
  for reader in (read, lambda path: Journal(path.parent)):
    with pytest.raises(ValueError, match=rf'^{path}: line 2 is damaged: {message}'):
      reader(path)
  assert path.read_bytes() == GOOD + line + b'\n' + GOOD


def test_what_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match=rf'^{tmp_path}/file/none/{FILE}: cannot be written \(Not a directory\)$'):
    Journal(tmp_path / 'file' / 'none')
  with pytest.raises(ValueError, match='^journal: https://example.org/ is a URL'):
    Journal('https://example.org/')
  (tmp_path / FILE).mkdir()
  with pytest.raises(ValueError, match=rf'^{tmp_path}/{FILE}: not a file, but a folder$'):
    Journal(tmp_path)
