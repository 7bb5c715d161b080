"""A found architecture against random ones: who is trained, by what, and what is said of it."""

import json
import pathlib
import re

import pytest

from configs import digits_eval
from darts_jax import report, selection, spaces
from darts_jax.commands import search as command
from darts_jax.runtime import metrics
from darts_jax.selection import versus
from darts_jax.spaces import Darts, Recurrent
from darts_jax.training import loop as training_loop

pytestmark = pytest.mark.usefixtures('undrawn', 'same_programs')

SPACE = Darts(1, ('none', 'skip_connect', 'avg_pool_3x3'))


def config():
  found = digits_eval.get_config()
  found.update(epochs=1, batch_size=256)
  found.network.update(channels=2, layers=3)
  return found


@pytest.fixture(autouse=True)
def shared_cache(monkeypatch):
  """The compilation cache as the tests have set it up."""
  monkeypatch.setattr(training_loop, 'enable_cache', lambda: None)


FOUND = selection.random_genotype(SPACE, 5, 0)


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('versus')
  notes = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training_loop, 'enable_cache', lambda: None)
    return workdir, notes, selection.against_random(config(), FOUND, SPACE, workdir, note=notes.append)


def test_every_row_is_a_training_of_its_own_architecture(compared):
  workdir, notes, found = compared
  assert [row.name for row in found.rows] == ['found', 'random 1', 'random 2']
  assert found.rows[0].genotype == FOUND
  assert len({row.genotype for row in found.rows}) == 3
  assert [note.partition(', ')[0] for note in notes] == [
    f'training {number} of 3: the {row.name} architecture' for number, row in enumerate(found.rows, 1)
  ]
  for row in found.rows:
    folder = workdir / 'comparison' / row.name.replace(' ', '_')
    assert spaces.load(folder / 'genotype.json') == row.genotype
    assert json.loads((folder / 'config.json').read_text())['seed'] == found.seed == 0
    lines = metrics.read(folder)
    assert [line['valid_accuracy'] for line in lines if line['kind'] == 'epoch'] == [row.valid]
    assert [line['accuracy'] for line in lines if line['kind'] == 'test'] == [row.test]


def test_what_is_drawn_is_a_function_of_the_seed_and_not_what_was_found(compared, monkeypatch, tmp_path):
  _, _, found = compared
  others = [row.genotype for row in found.rows[1:]]
  drawn = []
  result = type('Result', (), {'interrupted': False, 'finished': True, 'num_weights': 1})
  result.valid_accuracy = result.test_accuracy = 0.5
  monkeypatch.setattr(versus.training, 'run', lambda config, folder, arch: drawn.append(arch) or result)
  # Were the first of them found, it would not be trained twice.
  again = selection.against_random(config(), others[0], SPACE, tmp_path, num_random=3)
  assert drawn == [row.genotype for row in again.rows]
  assert drawn[:2] == others
  assert len(set(drawn)) == 4
  # A space with two architectures has no more.
  few = selection.against_random(config(), FOUND, Darts(1, ('none', 'skip_connect')), tmp_path, num_random=3)
  assert 2 <= len(few.rows) <= 3


def test_it_goes_on_where_it_was_stopped(compared, make_guard, monkeypatch):
  workdir, _, found = compared
  before = {path: path.read_bytes() for path in workdir.rglob('metrics.jsonl')}
  (workdir / 'comparison.json').unlink()
  again = selection.against_random(config(), FOUND, SPACE, workdir)
  assert again.rows == found.rows
  assert {path: path.read_bytes() for path in before} == before
  monkeypatch.setattr(training_loop, 'InterruptGuard', make_guard(lambda: 'SIGTERM'))
  with pytest.raises(
    selection.Interrupted,
    match=r'^the training in .*/comparison/found was interrupted; the same command goes on with it$',
  ):
    selection.against_random(config(), FOUND, SPACE, workdir, num_random=3)


def test_text_and_page_say_the_same_numbers(compared, parse_page):
  workdir, _, found = compared
  lines = found.lines()
  assert lines[:2] == [
    'trained from scratch, 1 epochs each, with seed 0:',
    '          parameters  validation accuracy  test accuracy',
  ]
  for row, line in zip(found.rows, lines[2:], strict=True):
    words = [row.name, f'{row.parameters:,}', f'{100 * row.valid:.2f} %', f'{100 * row.test:.2f} %']
    assert re.split(r' {2,}', line) == words
    page = parse_page(report.write(workdir).read_text())
    assert ' '.join(words) in page.text
  saved = json.loads((workdir / 'comparison.json').read_text())
  assert [(row['name'], row['valid'], row['test']) for row in saved['rows']] == [
    (row.name, row.valid, row.test) for row in found.rows
  ]
  for content, said in (
    ('{', 'comparison.json cannot be read'),
    ('{"rows": [1]}', 'rows: not a list of architectures'),
  ):
    (workdir / 'comparison.json').write_text(content)
    assert said in parse_page(report.write(workdir).read_text()).text
  (workdir / 'comparison.json').unlink()
  assert 'Against random' not in report.write(workdir).read_text()


def test_without_held_out_or_test_data_there_is_no_column(compared):
  _, _, found = compared
  rows = [row._replace(valid=float('nan')) for row in found.rows]
  assert 'validation' not in versus.Versus('accuracy', 1, 0, rows).lines()[1]
  assert '"valid": null' in versus.Versus('accuracy', 1, 0, rows).to_json()


@pytest.mark.parametrize(
  ('space', 'compare', 'random', 'message'),
  [
    ('darts', 'nowhere.py', 2, '--compare: nowhere.py: no such file'),
    (
      'darts',
      'digit_eval',
      2,
      '--compare: digit_eval is no file and no config of the package (did you mean digits_eval?)',
    ),
    ('darts', 'cifar_eval', 2, "--compare: cifar_eval: config.data.dir 'data' holds no cifar10"),
    ('darts', 'digits_eval', 0, '--random: 0 is not allowed; it has to be ≥ 1'),
    (
      'recurrent',
      'digits_eval',
      2,
      '--compare: digits_eval: what is searched is a recurrent architecture, whose',
    ),
    ('darts', 'digits', 2, '--compare: digits: config.space: it is called config.task now'),
  ],
)
def test_what_cannot_be_compared_is_one_line_before_the_search(tmp_path, space, compare, random, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
    command.run({'space': space}, tmp_path / 'run', compare, random)
  assert not (tmp_path / 'run').exists()


def test_a_recurrent_architecture_is_compared_by_perplexity():
  row = versus.Row('found', selection.random_genotype(Recurrent(), 0, 0), 10, 70.25, 71.5)
  assert versus.Versus('perplexity', 3, 1, [row]).lines()[1:] == [
    '       parameters  validation perplexity  test perplexity',
    'found          10                  70.25            71.50',
  ]


def test_the_search_command_prints_it(monkeypatch, tmp_path, capsys):
  result = type('Result', (), {'finished': True, 'genotype': FOUND, 'warning': None, 'history': ()})
  result.valid_accuracy, result.valid_loss, result.report = 0.5, 1.0, tmp_path / 'report.html'
  monkeypatch.setattr(command.searches, 'run', lambda *_: [result])
  asked = []

  def against_random(config, genotype, space, folder, **others):
    asked.append((genotype, space, folder, others['num_random']))
    return versus.Versus('accuracy', 1, 0, [versus.Row('found', genotype, 10, 0.25, 0.5)])

  monkeypatch.setattr(command.selection, 'against_random', against_random)
  pathlib.Path(tmp_path / 'mine.py').write_text(
    'from darts_jax.configs import digits_eval\ndef get_config():\n  return digits_eval.get_config()\n'
  )
  search = {'space': {'name': 'darts', 'nodes': 1}}
  assert command.run(search, tmp_path, str(tmp_path / 'mine.py'), 5) == 0
  assert asked == [(FOUND, Darts(1), tmp_path, 5)]
  assert capsys.readouterr().out.splitlines()[-1].split() == ['found', '10', '25.00', '%', '50.00', '%']
