"""Trials read from a journal, and the charts of their rewards."""

import dataclasses
import json
import math

import numpy as np

from darts_jax import report, spaces
from darts_jax.report import outcomes
from darts_jax.report.outcomes import Trial

REWARDS = (0.5, 0.4, None, 0.8, 0.6, None)
TRIALS = [
  Trial(i, 'arch', None, 'failed' if each is None else 'done', math.nan if each is None else each, 2.0)
  for i, each in enumerate(REWARDS)
]


def lines(figure):
  return [line.get_xydata().tolist() for line in figure.axes[0].lines]


def test_the_chart_has_every_reward_and_the_best_so_far():
  best, points, stopped, crosses = lines(outcomes.over_trials(TRIALS, 8, None, percent=True))
  assert best == [[1, 0.5], [4, 0.8], [6, 0.8]]
  assert points == [[1, 0.5], [2, 0.4], [4, 0.8], [5, 0.6]]
  assert stopped == []
  assert [x for x, _ in crosses] == [3, 6]
  # There is room for those to come.
  assert outcomes.over_trials(TRIALS, 8, None, percent=True).axes[0].get_xlim()[1] > 8
  # Without any success there are crosses alone.
  assert len(lines(outcomes.over_trials(TRIALS[2:3], 8, None, percent=True))) == 1


def test_seconds_are_those_of_all_evaluations_before_and_estimates_are_hollow():
  trials = [*TRIALS[:2], dataclasses.replace(TRIALS[3], status='stopped', seconds=0.5)]
  best, points, stopped, optimum, crosses = lines(outcomes.over_seconds(trials, 0.9, percent=False))
  assert best == [[2, 0.5], [4.5, 0.8]]
  assert (points, stopped) == ([[2, 0.5], [4, 0.4]], [[4.5, 0.8]])
  assert [y for _, y in optimum] == [0.9, 0.9]
  assert crosses == []


def test_charts_of_many_trials_have_some_of_them_and_all_of_the_best():
  rewards = np.random.default_rng(0).uniform(size=100_000)
  trials = [Trial(i, 'arch', None, 'done', reward) for i, reward in enumerate(rewards)]
  best, points, *_ = lines(outcomes.over_trials(trials, len(trials), None, percent=True))
  assert 1000 < len(points) <= 2000
  highest = np.maximum.accumulate(rewards)
  assert [y for _, y in best[:-1]] == list(np.unique(highest))
  assert outcomes.best(trials).reward == highest[-1]


def journal(*events):
  return ''.join(f'{json.dumps(event)}\n' for event in ({'event': 'run', 'config': {}}, *events))


def ask(number, **fields):
  return {'event': 'ask', 'number': number, 'arch': f'a{number}', 'parent': None, **fields}


def tell(number, **fields):
  return {'event': 'tell', 'number': number, 'status': 'done', 'reward': 0.5, 'seconds': 1.0, **fields}


def test_trials_stand_in_the_order_of_their_outcomes(tmp_path):
  (tmp_path / outcomes.FILE).write_text(
    journal(
      *(ask(0), ask(1, parent=0), ask(2)),
      tell(1, measures={'parameters': 9.0}, test={'accuracy': 0.25}),
      tell(0, status='failed', reward='-inf', failure='why'),
      ask(3),
    )
  )
  trials, problem = outcomes.read(tmp_path)
  assert problem == ''
  assert [(trial.number, trial.status, trial.parent) for trial in trials] == [
    (1, 'done', 0),
    (0, 'failed', None),
    (2, 'pending', None),
    (3, 'pending', None),
  ]
  assert (trials[0].reward, trials[0].measures, trials[0].test) == (0.5, {'parameters': 9.0}, {'accuracy': 0.25})
  assert math.isnan(trials[1].reward)
  assert trials[1].failure == 'why'
  assert outcomes.best(trials) == trials[0]
  assert outcomes.best(trials[1:]) is None


def test_what_is_damaged_is_left_out_and_told(tmp_path):
  path = tmp_path / outcomes.FILE
  path.write_text(journal(ask(0), [], tell(0, reward='high', seconds='long', measures=[3], test=None), tell(5), ask(1)))
  trials, problem = outcomes.read(tmp_path)
  assert problem == '2 broken lines of trials.jsonl are left out.'
  assert [(trial.number, trial.status, trial.seconds, trial.measures) for trial in trials] == [
    (0, 'done', 0.0, {}),
    (1, 'pending', 0.0, {}),
  ]
  # A kill cuts the last line.
  path.write_text(journal(ask(0)) + '{"event": "te')
  assert outcomes.read(tmp_path)[1] == ''
  path.unlink()
  assert outcomes.read(tmp_path) == ([], 'trials.jsonl is not there (yet).')
  path.mkdir()
  assert outcomes.read(tmp_path)[1].startswith('trials.jsonl cannot be read: ')


def test_the_page_is_there_whatever_the_journal_holds(tmp_path, parse_page, complaints):
  (tmp_path / 'config.json').write_text('{"evaluator": {"name": "scratch"}, "trials": "many"}')
  spaces.save(spaces.published()['DARTS_V2'], tmp_path / 'genotype.json')
  path = tmp_path / outcomes.FILE
  path.write_text(
    journal(ask(0), tell(0, measures={'parameters': 'inf'}, failure='<b>'), ask(1, arch='<script>'), tell(1))
  )
  text = report.write(tmp_path).read_text()
  page = parse_page(text)
  assert '<script>' not in text
  assert '2 done.' in page.text
  assert complaints(lambda path: report.write(path.parent), path, 20) == []
