"""A found architecture against random ones: who is trained, by what, and what is said of it."""

import json
import re

import pytest

from configs import digits_eval, text_eval
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
  drawn = dict.fromkeys(selection.random_genotype(SPACE, 0, number) for number in range(50))
  assert [row.genotype for row in found.rows[1:]] == [each for each in drawn if each != FOUND][:2]
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
  # A space with one architecture has no other.
  one, notes = Darts(1, ('none', 'skip_connect')), []
  few = selection.against_random(
    config(), selection.random_genotype(one, 0, 0), one, tmp_path, num_random=3, note=notes.append
  )
  assert (len(few.rows), notes[0]) == (1, 'the space has only 0 other architectures')


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
  (workdir / 'comparison.json').write_text(found.to_json())
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
  assert [(row['name'], row['genotype'], row['valid'], row['test']) for row in saved['rows']] == [
    (row.name, spaces.to_json(row.genotype), row.valid, row.test) for row in found.rows
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
    ('darts', 'nowhere.py', None, '--compare: nowhere.py: no such file'),
    (
      'darts',
      'digit_eval',
      None,
      '--compare: digit_eval is no file and no config of the package (did you mean digits_eval?)',
    ),
    ('darts', 'cifar_eval', None, "--compare: cifar_eval: config.data.dir 'data' holds no cifar10"),
    ('darts', 'digits_eval', '0', '--random: 0 is not allowed; it has to be a whole number ≥ 1'),
    ('darts', None, '5', '--random: 5 is given without --compare'),
    (
      'recurrent',
      'digits_eval',
      None,
      '--compare: digits_eval: what is searched is a recurrent architecture, whose',
    ),
    ('darts', 'digits', None, '--compare: digits: config.space: it is called config.task now'),
  ],
)
def test_what_cannot_be_compared_is_one_line_before_the_search(tmp_path, space, compare, random, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
    command.run({'space': space}, tmp_path / 'run', compare, random)
  assert not (tmp_path / 'run').exists()


def test_another_training_says_which_folder_to_remove(compared):
  workdir, _, _ = compared
  changed = config()
  changed.epochs = 2
  with pytest.raises(ValueError, match=rf'^--compare: .* another config .*; or remove {workdir}/comparison$'):
    selection.against_random(changed, FOUND, SPACE, workdir)


def test_a_space_without_cells_cannot_be_compared():
  with pytest.raises(ValueError, match='^architectures of the space mine are not trained from scratch by a config$'):
    versus.check(config(), type('Mine', (), {'name': 'mine'})())


def test_a_recurrent_architecture_is_compared_by_perplexity(monkeypatch, tmp_path, parse_page):
  found = selection.random_genotype(Recurrent(), 9, 0)
  result = type('Result', (), {'interrupted': False, 'finished': True, 'num_weights': 10})
  result.valid_perplexity, result.test_perplexity = 70.25, 71.5
  monkeypatch.setattr(versus.training, 'run', lambda *_: result)
  compared = selection.against_random(text_eval.get_config(), found, Recurrent(), tmp_path, num_random=1)
  assert compared.lines()[1:3] == [
    '          parameters  validation perplexity  test perplexity',
    'found             10                  70.25            71.50',
  ]
  (tmp_path / 'metrics.jsonl').write_text('')
  assert 'found 10 70.25 71.50' in parse_page(report.write(tmp_path).read_text()).text
  # An earlier comparison is not shown while another one goes on.
  result.finished = False
  with pytest.raises(selection.Interrupted):
    selection.against_random(text_eval.get_config(), found, Recurrent(), tmp_path)
  assert not (tmp_path / 'comparison.json').exists()


@pytest.fixture
def searched(monkeypatch, tmp_path):
  """A command whose two searches have ended, and what it compares."""
  results = []
  for seed in (0, 1):
    folder = tmp_path / f'seed_{seed}'
    folder.mkdir()
    result = type('Result', (), {'finished': True, 'genotype': FOUND, 'warning': None, 'history': ()})
    result.valid_accuracy, result.valid_loss, result.report = 0.5, 1.0, folder / 'report.html'
    results.append(result)
  asked = []

  def against_random(config, genotype, space, folder, **others):
    asked.append((genotype, space, folder, others['num_random']))
    return versus.Versus('accuracy', 1, 0, [versus.Row('found', genotype, 10, 0.25, 0.5)])

  monkeypatch.setattr(command.searches, 'run', lambda *_: results)
  monkeypatch.setattr(command.selection, 'against_random', against_random)
  return results, asked


SEARCH = {'space': {'name': 'darts', 'nodes': 1}}


def test_the_search_command_compares_every_search_in_its_own_folder(searched, tmp_path, capsys):
  _, asked = searched
  assert command.run(SEARCH, tmp_path, 'digits_eval', '5') == 0
  assert asked == [(FOUND, Darts(1), tmp_path / f'seed_{seed}', 5) for seed in (0, 1)]
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert lines.count(['found', '10', '25.00', '%', '50.00', '%']) == 2
  # The page has the comparison.
  assert all((folder / 'report.html').exists() for _, _, folder, _ in asked)
  assert command.run(SEARCH, tmp_path) == 0
  assert len(asked) == 2


def test_a_stopped_search_is_not_compared_and_a_stopped_comparison_is_no_end(searched, monkeypatch, tmp_path, capsys):
  results, asked = searched
  results[0].finished = False
  assert (command.run(SEARCH, tmp_path, 'digits_eval'), asked) == (130, [])
  results[0].finished = True

  def stopped(*_, **__):
    raise selection.Interrupted('the training in it was interrupted')

  monkeypatch.setattr(command.selection, 'against_random', stopped)
  assert command.run(SEARCH, tmp_path, 'digits_eval') == 130
  assert capsys.readouterr().err.endswith('the training in it was interrupted\n')
