"""A short campaign finds nothing; and the judge of campaigns takes for a finding what is one, and nothing else."""

import contextlib
import json

import numpy as np
import pytest

from benchmarks import fault_formats, fault_inputs, fault_judge, fault_runs, fault_settings, faults
from benchmarks.fault_judge import Ended, Fault, compare, judge_end, read_results

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\n'
# Of every kind of input, and of all configs.
INPUTS, SETTINGS = 12, 250

LINES = [
  {'kind': 'event', 'step': 0, 'event': 'compiled', 'message': 'in 1.5 s'},
  {'kind': 'step', 'step': 2, 'train_loss': 1.5, 'images_per_second': 9.5},
  {'kind': 'epoch', 'step': 4, 'train_loss': 1.25, 'seconds': 0.5},
  {'kind': 'event', 'step': 4, 'event': 'finished', 'message': '1 epochs done'},
]


def write(folder, lines=LINES, alphas=2, genotype='skip_connect', seconds=1.0):
  """A working directory with so many snapshots of α; returns what the judge reads."""
  folder.mkdir(parents=True, exist_ok=True)
  timed = [{**line, 'seconds': seconds} if line['kind'] == 'epoch' else line for line in lines]
  (folder / 'metrics.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in timed))
  (folder / 'genotype.json').write_text(json.dumps({'normal': [[genotype, 0]]}))
  steps = np.array([0, 4])[-alphas:]
  np.savez(folder / 'alphas.npz', step=steps, normal=np.arange(12.0).reshape(2, 2, 3)[-alphas:])
  return read_results(folder)


@pytest.fixture
def reference(tmp_path):
  return write(tmp_path / 'reference')


# The judge.


@pytest.mark.parametrize(
  ('ended', 'kind'),
  [
    (Ended(0, '', ''), None),
    (Ended(2, '', 'error: config.epochs: -1 is not allowed\n'), None),
    (Ended(2, '', 'compiling ...\nerror: no\n'), None),
    (Ended(None, '', ''), 'hang'),
    (Ended(1, '', f'{TRACEBACK}KeyError: 3\n'), 'traceback'),
    # A traceback is one whatever the exit code, as that of a thread.
    (Ended(0, '', f'{TRACEBACK}OSError\n'), 'traceback'),
    (Ended(2, '', ''), 'traceback'),
    (Ended(2, '', 'error: a\nerror: b\n'), 'traceback'),
    (Ended(1, '', 'error: diverged\n'), 'traceback'),
    (Ended(-11, '', ''), 'traceback'),
  ],
)
def test_an_ending_is_a_result_or_one_line(ended, kind):
  fault = judge_end(ended, (0, 2))
  assert (fault and fault.kind) == kind


def test_success_where_a_refusal_is_due_is_silent():
  assert judge_end(Ended(0, '', ''), (2,)).kind == 'silent'


def test_only_a_signal_excuses_the_traceback_of_an_interrupt():
  ended = Ended(-2, '', f'{TRACEBACK}KeyboardInterrupt\n')
  assert judge_end(ended, (-2,), interrupted=True) is None
  assert judge_end(ended, (-2,)).kind == 'traceback'
  # Nor if the command saw the signal, and has ended by itself.
  assert judge_end(ended._replace(code=130), (130,), interrupted=True).kind == 'traceback'
  other = ended._replace(errors=f'{TRACEBACK}KeyError: 3\n')
  assert judge_end(other, (-2,), interrupted=True).kind == 'traceback'


def test_clocks_and_incidental_events_are_no_results(reference, tmp_path):
  resumed = {'kind': 'event', 'step': 2, 'event': 'resumed', 'message': 'resumed at step 2 of 4'}
  found = write(tmp_path / 'found', [LINES[0], LINES[1], resumed, *LINES[2:]], seconds=7.0)
  assert compare(reference, found, may_tell=False) == []


def kinds(faults):
  return [fault.kind for fault in faults]


def test_another_genotype_is_lost(reference, tmp_path):
  assert kinds(compare(reference, write(tmp_path, genotype='none'), may_tell=True)) == ['lost']


def test_a_file_that_is_missing_or_damaged_is_lost(reference, tmp_path):
  write(tmp_path)
  (tmp_path / 'genotype.json').write_text('{')
  (tmp_path / 'alphas.npz').unlink()
  assert kinds(compare(reference, read_results(tmp_path), may_tell=True)) == ['lost', 'lost']


def test_another_value_in_a_log_is_lost(reference, tmp_path):
  changed = [{**line, 'train_loss': 1.5000001} if line['kind'] == 'step' else line for line in LINES]
  [fault] = compare(reference, write(tmp_path, changed), may_tell=True)
  assert fault == Fault('lost', 'metrics.jsonl has other values or lines (train_loss)')


def test_a_line_that_stands_twice_is_lost(reference, tmp_path):
  assert kinds(compare(reference, write(tmp_path, [*LINES[:2], *LINES[1:]]), may_tell=True)) == ['lost']


def test_a_missing_line_is_silent_unless_an_event_tells_of_it(reference, tmp_path):
  short = [LINES[0], *LINES[2:]]
  assert kinds(compare(reference, write(tmp_path / 'a', short), may_tell=True)) == ['silent']
  told = [{'kind': 'event', 'step': 4, 'event': 'incomplete_log', 'message': 'lines are lost'}, *short]
  assert compare(reference, write(tmp_path / 'b', told), may_tell=True) == []
  # No kill excuses it.
  assert kinds(compare(reference, write(tmp_path / 'b', told), may_tell=False)) == ['lost']


def test_a_short_history_of_alphas_is_silent_unless_an_event_tells_of_it(reference, tmp_path):
  assert kinds(compare(reference, write(tmp_path / 'a', alphas=1), may_tell=True)) == ['silent']
  told = [*LINES, {'kind': 'event', 'step': 4, 'event': 'incomplete_log', 'message': 'α are lost'}]
  assert compare(reference, write(tmp_path / 'b', told, alphas=1), may_tell=True) == []


def test_other_alphas_are_lost_whatever_is_told(reference, tmp_path):
  found = write(tmp_path, [*LINES, {'kind': 'event', 'step': 4, 'event': 'incomplete_log', 'message': ''}])
  found['alphas.npz']['normal'] = found['alphas.npz']['normal'] + 1e-9
  assert kinds(compare(reference, found, may_tell=True)) == ['lost']


# Readers.


def refuse(message, cause=None):
  def read():
    raise ValueError(message) from cause

  return read


def test_a_refusal_names_the_file():
  assert fault_judge.judge_read(lambda: None, ('/x/a.npz',)) is None
  assert fault_judge.judge_read(refuse('/x/a.npz: damaged'), ('/x/a.npz',)) is None
  assert fault_judge.judge_read(refuse('damaged'), ('/x/a.npz',)).kind == 'traceback'
  assert fault_judge.judge_read(refuse('/x/a.npz: ' + 'x' * 10**5), ('/x/a.npz',)).kind == 'traceback'


def test_any_other_exception_is_a_traceback():
  fault = fault_judge.judge_read(lambda: {}['step'], ())
  assert fault.kind == 'traceback'
  assert fault.what.startswith('KeyError in ')


def test_a_request_for_too_much_memory_is_one_also_where_it_is_refused():
  assert fault_judge.judge_read(refuse('damaged', MemoryError()), ()).kind == 'hang'


@pytest.mark.parametrize('value', [2**31, 10**12])
def test_a_number_without_a_limit_is_a_finding(value):
  class Group:
    epochs = value

  class Settings:
    search = Group

  assert fault_settings.judge_settings(Settings, 'search.epochs').kind == 'silent'
  Group.epochs = 100
  assert fault_settings.judge_settings(Settings, 'search.epochs') is None


def test_a_number_beyond_float32_is_a_finding():
  class Settings:
    rate = 1e39

  assert fault_settings.judge_settings(Settings, 'rate').kind == 'silent'


def test_inputs_are_made_again_from_their_number():
  for kind, form in fault_formats.FORMATS.items():
    content = form.seeds()[0]
    made = {form.mutate(content, np.random.default_rng([3, number])) for number in (0, 1, 2, 3, 0, 1, 2, 3)}
    assert 2 <= len(made) <= 4, kind


# Configs of another run are refused, and not every reader of architectures reads printed ones.
@pytest.mark.parametrize('kind', sorted({*fault_formats.FORMATS} - {'search_config', 'training_config', 'printed'}))
def test_undamaged_inputs_are_read(kind, tmp_path):
  form = fault_formats.FORMATS[kind]
  for number, content in enumerate(form.seeds()):
    folder = tmp_path / str(number)
    folder.mkdir()
    (folder / form.name).write_bytes(content)
    form.read(folder)


# Damage.


@pytest.mark.parametrize('mode', fault_runs.MODES)
def test_a_damaged_file_is_another_one(mode, tmp_path):
  path = tmp_path / 'genotype.json'
  path.write_text('{"normal": [["skip_connect", 0]]}')
  before = path.read_bytes()
  fault_runs.damage(path, mode, np.random.default_rng(0))
  assert not path.exists() or path.read_bytes() != before


def test_changed_data_are_others_of_the_same_kind(tmp_path):
  contents = []
  for change in ('', *fault_runs.CHANGES):
    folder = tmp_path / f'data_{change}'
    folder.mkdir()
    fault_runs.write_data(folder, change)
    with np.load(folder / 'images.npz') as arrays:
      contents.append({name: arrays[name] for name in arrays.files})
  first = contents[0]
  for other in contents[1:]:
    assert other.keys() == first.keys()
    assert any(other[name].tobytes() != first[name].tobytes() for name in first)


# Inputs.


def test_readers_are_tried_on_contents_that_are_damaged(monkeypatch):
  """In the way of the format, and in the way of any file."""
  found = []

  def read(folder):
    found.append((folder / 'file').read_bytes())
    if found[-1] != whole:
      raise KeyError

  whole = bytes(range(100))
  form = fault_formats.Format('file', lambda: [whole], lambda content, draw: content + b'in its own way', read)
  monkeypatch.setitem(fault_inputs.FORMATS, 'strict', form)
  faults = [fault_inputs.try_input('strict', 0, number) for number in range(50)]
  assert [fault is not None and fault.kind == 'traceback' for fault in faults] == [
    content != whole for content in found
  ]
  own = found.count(whole + b'in its own way')
  # Nine in ten; what damages any file may also leave one as it is.
  assert 35 < own < 50
  assert 50 - found.count(whole) > own


# Campaigns.


def test_table_and_findings(capsys):
  tally = faults.Tally()
  tally.add('kill:images:0', 3, [])
  tally.add('kill:images:1', 2, [Fault('lost', 'genotype.json differs')])
  tally.add('kill:images:2', 2, [Fault('lost', 'genotype.json differs')])
  tally.add('setting:17', 1, [Fault('hang', 'no end')])
  assert not tally.is_clean
  faults.show(tally)
  shown = capsys.readouterr().out
  assert '| kill images | 7 | 2 | 0 | 0 | 0 |\n| setting | 1 | 0 | 0 | 0 | 1 |\n| all | 8 | 2 | 0 | 0 | 1 |' in shown
  assert 'lost: genotype.json differs\n  2 times; --only=kill:images:1' in shown
  assert faults.to_dict(tally)['rows']['all'] == {'tried': 8, 'lost': 2, 'traceback': 0, 'silent': 0, 'hang': 1}


def test_no_such_case_is_one_line(monkeypatch, capsys):
  monkeypatch.setattr(faults.Campaign, 'run', None)
  for case in ('kill', 'kill:nothing:0', 'input:nothing:0', 'setting:x'):
    with pytest.raises(ValueError, match='^--only: '):
      faults.run(0, 0, 1, case, lambda tally: None)


def test_a_process_that_an_input_ends_is_a_finding_and_started_again():
  with contextlib.closing(fault_inputs.Child()) as child:
    # No such kind: an error outside of all readers, which is told.
    assert child.ask(['nothing', 0, 0]).what.startswith('outside of a reader: KeyError')
    child._process.kill()
    assert child.ask(['text', 0, 0]).kind == 'traceback'
    assert child.ask(['text', 0, 0]) is None


def test_a_short_campaign_finds_nothing(tmp_path):
  """Damaged and hostile inputs, and settings out of range; campaigns of minutes disturb real runs as well."""
  tally = faults.Tally()
  with contextlib.closing(fault_inputs.Child()) as child:

    def ask(case, request):
      fault = child.ask(request)
      tally.add(case, 1, [] if fault is None else [fault])

    for number in range(INPUTS):
      for kind in fault_inputs.KINDS_OF_INPUTS:
        ask(f'input:{kind}:{number}', [kind, 0, number])
    for number in range(SETTINGS):
      ask(f'setting:{number}', ['setting', 0, number])
    for name in workdir_files():
      for mode in fault_runs.MODES:
        folder = tmp_path / f'{name}_{mode}'
        folder.mkdir()
        for other, whole in workdir_files().items():
          (folder / other).write_bytes(whole)
        fault_runs.damage(folder / name, mode, np.random.default_rng(0))
        ask(f'damage:{name}:{mode}', str(folder))
  assert tally.rows()[-1][1][0] >= INPUTS * len(fault_inputs.KINDS_OF_INPUTS) + SETTINGS + 20
  # What the fault is, and the case that shows it.
  assert not tally.findings(), '\n'.join(f'{found.fault}, {found.case}' for found, _ in tally.findings())


def workdir_files():
  """A working directory of a search, without checkpoints."""
  forms = [fault_formats.FORMATS[kind] for kind in ('search_config', 'metrics', 'alphas', 'genotype')]
  return {form.name: form.seeds()[0] for form in forms}
