"""Evaluators: what rewards are made of, and which errors are failures of an architecture."""

import dataclasses
import json
import math
import shutil
import types

import jax
import numpy as np
import pytest

from darts_jax import training
from darts_jax.settings import build, differences
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.strategies.random_search import RandomSearch
from darts_jax.strategies.regularized_evolution import RegularizedEvolution
from darts_jax.strategies.sampled import Outcome, Proposal
from darts_jax.training.settings import Training
from darts_jax.trials import Evaluator, InProcess, Journal, Processes, Trials, run
from darts_jax.trials.evaluators import scratch
from darts_jax.trials.evaluators.base import evaluate
from darts_jax.trials.evaluators.scratch import Scratch
from darts_jax.trials.evaluators.table import TableEvaluator
from darts_jax.trials.journal import tell_line

SPACE = NasBench201()
ARCH = SPACE.from_json('|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|')


@pytest.fixture(scope='module')
def folder(tmp_path_factory, write_table):
  folder = tmp_path_factory.mktemp('table')
  rng = np.random.default_rng(0)
  write_table(folder, *rng.uniform(0, 100, (3, SPACE.size)).round(2))
  return folder


@pytest.fixture(scope='module')
def table(folder):
  return TableEvaluator(str(folder))


def test_the_reward_is_the_validation_accuracy_of_the_table(table, folder):
  table.check(SPACE)
  # skip_connect is the second operation, and its edge the last, so that this is the second architecture.
  names = ('mini_nb201_12ep_acc.csv', 'nats_tss_200ep_test_acc.csv')
  early, late = ((folder / name).read_text().splitlines()[2].split(',') for name in names)
  outcome = table(Proposal(4, ARCH))
  assert outcome.status == 'done'
  assert outcome.reward == float(early[2]) / 100
  assert outcome.test == {'test_accuracy_12': float(early[1]) / 100, 'test_accuracy_200': float(late[0]) / 100}
  assert outcome.measures == {}
  outcome = dataclasses.replace(table, dataset='imagenet16')(Proposal(4, ARCH))
  assert (outcome.reward, outcome.test) == (0.215, {'test_accuracy_12': 0.205, 'test_accuracy_200': 0.305})


def test_what_the_table_says_of_all_architectures(table, folder):
  early, late = (
    np.genfromtxt(folder / name, delimiter=',', skip_header=1, usecols=column) / 100
    for name, column in (('mini_nb201_12ep_acc.csv', 2), ('nats_tss_200ep_test_acc.csv', 0))
  )
  expected = {'optimum': early.max(), 'mean': early.mean()}
  expected |= {'optimum_test_accuracy_200': late.max(), 'mean_test_accuracy_200': late.mean()}
  assert table.known() == pytest.approx(expected, rel=1e-12)


def test_a_table_is_of_one_space_and_has_to_be_there(table, tmp_path):
  other = types.SimpleNamespace(name='darts')
  with pytest.raises(ValueError, match='^config.evaluator.name: table has no architectures of the space darts$'):
    table.check(other)
  with pytest.raises(ValueError, match=f'^config.evaluator.path: {tmp_path} is empty; wanted is a folder with'):
    TableEvaluator(str(tmp_path)).check(SPACE)
  with pytest.raises(ValueError, match="^config.evaluator.dataset: 'svhn' is not known"):
    build(TableEvaluator, {'dataset': 'svhn'}, 'config.evaluator')
  message = "^config.dataset: 'imagenet' is not known; .*allowed are cifar10, cifar100, imagenet16$"
  with pytest.raises(ValueError, match=message):
    TableEvaluator('DIR', dataset='imagenet')
  with pytest.raises(ValueError, match='^config.path: 3 is not of type str$'):
    TableEvaluator(3)
  assert TableEvaluator(tmp_path) == TableEvaluator(str(tmp_path))


def test_a_table_is_identified_by_what_it_holds(table, folder, tmp_path, write_table):
  moved = shutil.copytree(folder, tmp_path / 'moved')
  assert TableEvaluator(moved).identity() == table.identity()
  write_table(tmp_path, *np.full((3, SPACE.size), 50.0))
  assert TableEvaluator(tmp_path).identity()['table_sha256'] != table.identity()['table_sha256']


def test_a_journal_has_no_rewards_of_another_data_set(table, tmp_path):
  settings = Trials(trials=3)
  with Journal(tmp_path) as journal:
    run(RandomSearch(), SPACE, table, settings, InProcess(), journal=journal)
  other = dataclasses.replace(table, dataset='cifar100')
  message = "of another run: config.evaluator.dataset: 'cifar10' → 'cifar100'; give another folder$"
  with Journal(tmp_path) as journal, pytest.raises(ValueError, match=message):
    run(RandomSearch(), SPACE, other, settings, InProcess(), journal=journal)


def test_trainings_are_identified_by_their_settings_wherever_they_lie(tmp_path):
  identity = Scratch(Training(epochs=5), tmp_path).identity()
  moved = build(Training, {'epochs': 5, 'data': {'dir': str(tmp_path), 'path': 'images.npz'}})
  assert Scratch(moved, tmp_path / 'moved').identity() == identity
  assert differences(identity, Scratch(Training(epochs=6), tmp_path).identity()) == ['config.training.epochs: 5 → 6']
  assert json.loads(json.dumps(identity, allow_nan=False)) == identity


def test_processes_come_to_what_one_process_comes_to(table):
  strategy, settings = RegularizedEvolution(population=3, sample_size=2), Trials(trials=8, workers=2, tell='in_order')
  expected = run(strategy, SPACE, table, settings, InProcess())
  with Processes(2) as executor:
    found = run(strategy, SPACE, table, settings, executor)
  assert found == expected
  assert len(found.outcomes) == 8


@dataclasses.dataclass(frozen=True)
class Raises(Evaluator):
  error: Exception

  def __call__(self, proposal):
    raise self.error


@pytest.mark.parametrize(
  'error', [MemoryError('no\nmore'), jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: no\nmore')], ids=['host', 'device']
)
def test_running_out_of_memory_is_a_failure(error, monkeypatch):
  clock = iter([3.0, 5.5])
  monkeypatch.setattr('time.monotonic', lambda: next(clock))
  outcome = evaluate(Raises(error), Proposal(0, ARCH))
  monkeypatch.undo()
  assert (outcome.status, outcome.reward) == ('failed', -math.inf)
  assert outcome.failure == f'out of memory: {str(error).replace(chr(10), " ")}'
  assert outcome.seconds == 2.5
  assert tell_line(outcome)['reward'] == '-inf'


@pytest.mark.parametrize(
  'error', [ValueError('no data'), jax.errors.JaxRuntimeError('INTERNAL: bug'), RuntimeError('RESOURCE_EXHAUSTED')]
)
def test_other_errors_are_raised(error):
  with pytest.raises(type(error), match=str(error)):
    evaluate(Raises(error), Proposal(0, ARCH))


@pytest.mark.parametrize('status', ['done', 'stopped'])
@pytest.mark.parametrize('reward', [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_a_failure(status, reward):
  class Rewards(Evaluator):
    def __call__(self, proposal):
      return Outcome(proposal, status, reward, {'x': 1.0}, seconds=3.0)

  outcome = evaluate(Rewards(), Proposal(0, ARCH))
  assert (outcome.status, outcome.reward, outcome.failure) == ('failed', -math.inf, f'the reward is {reward}')
  assert (outcome.measures, outcome.seconds) == ({'x': 1.0}, 3.0)


@pytest.fixture
def trained(monkeypatch):
  """Trainings that do nothing but say with what they were called."""
  calls = []

  def train(settings, genotype, folder):
    calls.append((settings, genotype, folder))
    folder.mkdir(parents=True)
    lines = [
      {'kind': 'epoch', 'step': i, 'epoch': i - 1, 'valid_accuracy': i / 10, 'seconds': 1.5} for i in range(1, 4)
    ]
    lines.insert(1, {'kind': 'train', 'step': 2})
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    if calls[1:]:
      raise training.Diverged('the loss of step 7\nis nan')
    return types.SimpleNamespace(valid_accuracy=0.3, num_weights=9)

  monkeypatch.setattr(scratch.comparison, 'train', train)
  return calls


def test_a_training_from_scratch_is_judged_by_images_held_out(trained, tmp_path):
  evaluator = Scratch(Training(epochs=5), tmp_path / 'trials')
  evaluator.check(SPACE)
  outcome = evaluate(evaluator, Proposal(2, ARCH, budget=0.5))
  [(settings, genotype, folder)] = trained
  assert (genotype, folder) == (ARCH, tmp_path / 'trials' / '2')
  assert settings.data.test is False
  assert settings.epochs == 3
  assert (outcome.status, outcome.reward, outcome.curve) == ('done', 0.3, (0.1, 0.2, 0.3))
  assert (outcome.seconds, outcome.artefact, outcome.test) == (4.5, str(folder), {})

  outcome = evaluate(evaluator, Proposal(3, ARCH))
  assert trained[1][0].epochs == 5
  assert (outcome.status, outcome.failure, outcome.seconds) == ('failed', 'the loss of step 7 is nan', 4.5)


def test_images_have_to_be_held_out(tmp_path):
  settings = Training()
  settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, validation_fraction=0.0))
  message = '^config.evaluator.data.validation_fraction: 0.0 is not allowed'
  with pytest.raises(ValueError, match=message):
    Scratch(settings, tmp_path).check(SPACE)
