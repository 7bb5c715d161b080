"""Searches by proposals, by the command a user gives."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest

from darts_jax import report, spaces
from darts_jax.runtime import modules
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.strategies import STRATEGIES
from darts_jax.trials import EVALUATORS
from darts_jax.trials.journal import FILE, read

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
SPACE = NasBench201()


@pytest.fixture(scope='module')
def table(tmp_path_factory, write_table):
  """By place in the space: 12 epochs count up to 90, and 200 epochs down from 80."""
  folder = tmp_path_factory.mktemp('table')
  rising = np.linspace(0, 90, SPACE.size).round(3)
  write_table(folder, rising, rising / 2, 80 - rising / 2)
  return folder


@pytest.fixture
def evolve(ask, table):
  def evolve(*arguments):
    return ask(f'--config={CONFIGS / "nasbench201_evolution.py"}', f'--config.evaluator.path={table}', *arguments)

  return evolve


@pytest.fixture(autouse=True)
def registries(monkeypatch):
  """What a config file adds is gone afterwards."""
  for registry, name in ((STRATEGIES, 'hill_climbing'), (EVALUATORS, 'count')):
    monkeypatch.setitem(registry, name, None)
    monkeypatch.delitem(registry, name)


def test_the_best_of_the_table_is_printed_and_drawn(evolve, parse_page):
  answer = evolve('--config.trials=40', '--config.seed=3')
  assert answer.code == 0, answer.errors
  workdir = pathlib.Path('runs/nasbench201_evolution')
  lines = read(workdir / FILE)
  rewards = {line['number']: line['reward'] for line in lines if line['event'] == 'tell'}
  archs = {line['number']: line['arch'] for line in lines if line['event'] == 'ask'}
  assert len(rewards) == len(archs) == 40
  best = max(rewards, key=lambda number: (rewards[number], -number))
  place = SPACE.index(SPACE.from_json(archs[best]))
  assert rewards[best] == round(90 * place / (SPACE.size - 1), 3) / 100
  assert answer.output.splitlines() == [
    f'genotype: {archs[best]}',
    f'validation accuracy of the best architecture: {rewards[best]:.2%}',
    f'test accuracy after 12 epochs: {rewards[best] / 2:.2%}',
    f'test accuracy after 200 epochs: {0.8 - rewards[best] / 2:.2%}',
    f'report: {workdir / "report.html"}',
  ]
  # A line a trial, and one at the end.
  said = answer.errors.splitlines()
  assert len(said) == 41
  assert said[0] == f'== trial 0, 1 of 40: validation accuracy {rewards[0]:.2%}, best {rewards[0]:.2%} (trial 0)'
  assert spaces.to_json(spaces.load(workdir / 'genotype.json')) == archs[best]
  page = parse_page((workdir / 'report.html').read_text())
  assert f'Best validation accuracy {100 * rewards[best]:.2f} % trial {best}, the optimum is 90.00 %' in page.text
  assert f'Its test accuracy after 200 epochs {80 - 50 * rewards[best]:.2f} % at most 80.00 %' in page.text
  assert 'Trials 40 of 40' in page.text
  assert all(arch in page.text for arch in archs.values())
  assert 'Evaluations took no time' in page.text
  # The cell, and the chart over trials.
  assert page.tags.count('svg') == 2


def test_a_search_that_was_cut_off_anywhere_goes_on_to_the_same_result(evolve):
  whole = evolve('--config.trials=30')
  workdir = pathlib.Path('runs/nasbench201_evolution')
  content = {name: (workdir / name).read_bytes() for name in (FILE, 'metrics.jsonl', 'genotype.json')}
  lines = content[FILE].splitlines(keepends=True)
  for kept in (0, 1, 2, 25, len(lines) - 1):
    (workdir / FILE).write_bytes(b''.join(lines[:kept]) + b'{"ev')
    answer = evolve('--config.trials=30')
    assert (answer.code, answer.output) == (0, whole.output)
    assert (workdir / FILE).read_bytes() == content[FILE]
    assert (workdir / 'genotype.json').read_bytes() == content['genotype.json']
    assert steps(workdir) == [
      line for line in map(json.loads, content['metrics.jsonl'].splitlines()) if 'event' not in line
    ]
  # A run that has ended says it again.
  assert evolve('--config.trials=30') == (0, whole.output, '')


def test_a_search_that_has_ended_goes_on_with_more_trials(evolve):
  arguments = '--config.tell=in_order', '--config.strategy.population=4', '--config.strategy.sample_size=2'
  whole = evolve('--config.trials=30', '--workdir=whole', *arguments)
  assert evolve('--config.trials=12', '--workdir=grown', *arguments).code == 0
  answer = evolve('--config.trials=30', '--workdir=grown', *arguments)
  assert answer.output.splitlines()[:-1] == whole.output.splitlines()[:-1]
  assert answer.errors.splitlines()[0] == '== resumed after 12 of 30 evaluations'
  for name in (FILE, 'genotype.json', 'config.json'):
    assert (pathlib.Path('grown') / name).read_bytes() == (pathlib.Path('whole') / name).read_bytes()
  assert steps(pathlib.Path('grown')) == steps(pathlib.Path('whole'))
  answer = evolve('--config.trials=12', '--workdir=grown', *arguments)
  assert (answer.code, answer.output, answer.errors) == (
    2,
    '',
    'error: config.trials: 12 is not allowed; grown holds a search by proposals of 30, which can only become more\n',
  )


def steps(workdir):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [line for line in lines if 'event' not in line]


def test_the_best_so_far_is_judged_by_the_table_that_the_space_names(evolve, table, parse_page):
  assert evolve('--config.trials=5', '--config.strategy=random_search', f'--config.space.table={table}').code == 0
  workdir = pathlib.Path('runs/nasbench201_evolution')
  logged = steps(workdir)[1:]
  assert len(logged) == 5
  for line in logged:
    assert line['true_accuracy'] == pytest.approx(0.8 - line['best_valid_accuracy'] / 2, abs=1e-4)
    assert line['true_optimum'] == 0.8
  assert 'In the benchmark' in parse_page((workdir / 'report.html').read_text()).text
  answer = evolve('--workdir=other', '--config.space.table=nowhere')
  assert (answer.code, answer.errors.startswith('error: config.space.table: nowhere is not there')) == (2, True)
  assert not pathlib.Path('other').exists()


def test_pending_trials_are_in_the_report(evolve, parse_page):
  """Of a run that was killed in its third evaluation."""
  evolve('--config.trials=3')
  workdir = pathlib.Path('runs/nasbench201_evolution')
  lines = (workdir / FILE).read_bytes().splitlines(keepends=True)
  (workdir / FILE).write_bytes(b''.join(lines[:-1]))
  page = parse_page(report.write(workdir).read_text())
  assert '2 done, 1 pending.' in page.text
  arch = json.loads(lines[-2])['arch']
  assert f'2 pending – – {arch}' in page.text
  assert 'Trials 2 of 3' in page.text


def own():
  """The example of docs/trials.md."""
  text = (ROOT / 'docs' / 'trials.md').read_text(encoding='utf-8')
  [example] = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  pathlib.Path('mine.py').write_text(example)
  return '--config=mine.py'


@pytest.mark.parametrize(
  ('space', 'operation'), [('darts', 'skip_connect'), ('recurrent', 'identity'), ('nasbench201', 'none')]
)
def test_a_strategy_and_an_evaluator_of_ones_own_on_every_space(ask, space, operation, parse_page):
  arguments = own(), f'--config.space={space}', f'--config.evaluator.operation={operation}'
  answer = ask(*arguments, '--config.trials=8')
  assert answer.code == 0, answer.errors
  workdir = pathlib.Path('runs/mine')
  lines = read(workdir / FILE)
  archs = [spaces.from_json(line['arch']) for line in lines if line['event'] == 'ask']
  counts = [sum(pair[0] == operation for _, cell in arch.cells for pair in cell.pairs) for arch in archs]
  assert [line['reward'] for line in lines if line['event'] == 'tell'] == counts
  # After five random ones there are neighbours of the best.
  parents = [line['parent'] for line in lines if line['event'] == 'ask']
  assert parents[:5] == [None] * 5
  for number, parent in enumerate(parents[5:], 5):
    assert parent == counts[:number].index(max(counts[:number]))
    assert archs[number] in [*spaces.SPACES[space]().neighbours(archs[parent])]
  best = counts.index(max(counts))
  assert spaces.load(workdir / 'genotype.json') == archs[best]
  assert answer.output.splitlines()[1:] == [
    f'reward of the best architecture: {counts[best]}',
    'report: runs/mine/report.html',
  ]
  page = parse_page((workdir / 'report.html').read_text())
  assert f'Best reward {counts[best]} trial {best}' in page.text
  # The chart over trials, and the cells.
  assert page.tags.count('svg') == 1 + len(archs[0].cells)
  assert ask(*arguments, '--config.strategy.random=0').errors.startswith('error: config.strategy.random: 0 is not all')


def test_worker_processes_need_a_module(ask):
  answer = ask(own(), '--config.workers=2')
  assert answer.code == 2
  assert answer.errors.startswith('error: config.workers: 2 is not allowed; processes cannot be given the evaluator')
  assert answer.errors.count('\n') == 1
  assert not pathlib.Path('runs').exists()


def test_worker_processes_import_what_the_command_imports(ask, monkeypatch):
  own()
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.setattr(modules, '_imported', [])
  pathlib.Path('mine.py').rename('counting.py')
  pathlib.Path('other.py').write_text('import counting\nget_config = counting.get_config\n')
  answer = ask('--config=other.py', '--import=counting', '--config.trials=3', '--config.workers=2')
  del sys.modules['counting']
  assert answer.code == 0, answer.errors
  assert answer.output.splitlines()[1].startswith('reward of the best architecture: ')


def test_worker_processes_come_to_the_same(evolve):
  alone = evolve('--config.trials=6', '--config.tell=in_order', '--config.strategy.population=8', '--workdir=one')
  answer = evolve(
    *('--config.trials=6', '--config.tell=in_order', '--config.strategy.population=8', '--workdir=two'),
    '--config.workers=2',
  )
  assert answer.code == 0, answer.errors
  # As long as all are random.
  assert answer.output.splitlines()[:-1] == alone.output.splitlines()[:-1]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config.evaluator.path='], 'config.evaluator.path: is not set; it is the folder with the table, see docs/nasb'),
    (['--config.evaluator.path=nowhere'], 'config.evaluator.path: nowhere is not there; wanted is a folder with'),
    (['--config.space=darts'], 'config.evaluator.name: table has no architectures of the space darts'),
    (['--config.evaluator.dataset=svhn'], "config.evaluator.dataset: 'svhn' is not known"),
    (
      ['--config.evaluator.epochs=3'],
      'config.evaluator.epochs: unknown field of table; it is one of scratch, scratch_text',
    ),
    (['--config.tell=late'], "config.tell: 'late' is not known; allowed are as_completed, in_order"),
    (['--config.strategy.sample_size=30'], 'config.strategy.sample_size: 30 is not allowed; it has to be ≤ config.str'),
    (['--config.hypergradient=exact'], 'config.hypergradient: unknown field of regularized_evolution; it is one of'),
    (['--config.strategy=random'], "config.strategy: 'random' is called 'random_search' now"),
    (['--config.strategy=darts'], 'config.evaluator: unknown field of darts; it is one of random_search, regularized'),
  ],
)
def test_wrong_settings_are_one_line_and_leave_nothing(evolve, arguments, message):
  answer = evolve(*arguments)
  assert (answer.code, answer.output) == (2, '')
  assert answer.errors.startswith(f'error: {message}')
  assert answer.errors.count('\n') == 1
  assert not pathlib.Path('runs').exists()


def test_another_table_is_refused(evolve, write_table, tmp_path):
  assert evolve('--config.trials=2').code == 0
  other = tmp_path / 'other'
  other.mkdir()
  write_table(other, *[np.full(SPACE.size, 50.0)] * 3)
  answer = evolve('--config.trials=2', f'--config.evaluator.path={other}')
  assert answer.code == 2
  assert 'config.dataset.table_sha256: ' in answer.errors
