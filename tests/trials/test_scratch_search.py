"""Searches whose trials are trainings: what is drawn, who reads which images, and that they go on after any end."""

import json
import re
import shutil
import types

import jax
import numpy as np
import pytest

from configs import digits_eval, digits_random
from darts_jax import report, searches, spaces, training
from darts_jax.runtime import loop as loops
from darts_jax.runtime import metrics
from darts_jax.runtime.progress import Progress
from darts_jax.settings import build
from darts_jax.strategies.random_search import RandomSearch
from darts_jax.training import comparison
from darts_jax.training import loop as training_loop
from darts_jax.trials import Failed, TrialSearch, journal, search
from darts_jax.trials.journal import FILE, Journal
from darts_jax.trials.loop import Draw, key_of

pytestmark = pytest.mark.usefixtures('same_programs')

# 64 images are trained on, 4 steps an epoch.
STEPS = 4


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Four classes, told apart by brightness."""
  path = tmp_path_factory.mktemp('images') / 'images.npz'
  labels = np.arange(128) % 4
  noise = np.random.default_rng(0).normal(0, 20, (128, 8, 8, 1))
  pixels = (60 * labels[:, None, None, None] + noise).clip(0, 255).astype(np.uint8)
  np.savez(path, x_train=pixels[:96], y_train=labels[:96], x_test=pixels[96:], y_test=labels[96:])
  return path


@pytest.fixture(scope='module')
def config(images):
  """Makes the config of a search for one node with an operation that has no weights, two epochs each."""

  def make(**changes):
    found = digits_random.get_config()
    found.update(seed=2, trials=2)
    found.space.update(nodes=1, operations=('none', 'skip_connect', 'max_pool_3x3', 'avg_pool_3x3'))
    found.evaluator.update(epochs=2, batch_size=16, log_every=1)
    found.evaluator.data.update(name='npz', path=str(images), validation_fraction=1 / 3)
    found.evaluator.augment.update(crop_padding=0, cutout=0)
    found.evaluator.network.update(channels=2, layers=3, drop_path=0.0)
    found.update_from_flattened_dict(changes)
    return found

  return make


@pytest.fixture(autouse=True)
def shared_cache(monkeypatch):
  """The compilation cache as the tests have set it up."""
  monkeypatch.setattr(training_loop, 'enable_cache', lambda: None)


@pytest.fixture(scope='module')
def finished(tmp_path_factory, config):
  workdir = tmp_path_factory.mktemp('random') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training_loop, 'enable_cache', lambda: None)
    return workdir, search.run(config(), workdir)


@pytest.fixture
def scripted(monkeypatch):
  """Makes trainings end at once with these validation accuracies, None for one that diverges; lists what is trained."""

  def script(*accuracies):
    calls = []

    def run(settings, folder, genotype):
      calls.append((folder, settings, genotype))
      folder.mkdir(parents=True, exist_ok=True)
      number = 0 if folder.name == 'pick' else int(folder.name)
      (folder / 'config.json').write_text(json.dumps({'genotype': spaces.to_json(genotype)}))
      (folder / 'metrics.jsonl').write_text(
        json.dumps({'kind': 'epoch', 'step': 1, 'epoch': 0, 'seconds': 2.5, 'valid_accuracy': 0.25}) + '\n'
      )
      accuracy = 0.95 if folder.name == 'pick' else accuracies[number]
      if accuracy is None:
        raise training.Diverged('step 3: a loss or gradient is not finite')
      tested = settings['data']['test']
      values = (0.4321, 1.5) if tested else (float('nan'),) * 2
      return training.Result(*values, accuracy, 1.0, 100 + number, True, False, folder / 'report.html')

    monkeypatch.setattr(comparison.loop, 'run', run)
    return calls

  return script


def told(workdir):
  """What is the same however often a search was stopped."""
  found = [
    {name: value for name, value in line.items() if name not in ('seconds', 'artefact')}
    for line in journal.read(workdir / FILE)
  ]
  lines = [line for line in metrics.read(workdir) if line['kind'] != 'event']
  return found, [{k: v for k, v in line.items() if k != 'seconds'} for line in lines]


def events(workdir):
  return [line['event'] for line in metrics.read(workdir) if line['kind'] == 'event']


def test_an_architecture_is_a_function_of_seed_and_number(finished, config, scripted, tmp_path):
  _, result = finished
  space = spaces.Darts(nodes=1, operations=('none', 'skip_connect', 'max_pool_3x3', 'avg_pool_3x3'))
  drawn = [outcome.proposal.arch for outcome in result.outcomes]
  state = RandomSearch().init(space, key_of(2, Draw.INIT))
  assert drawn == [RandomSearch().sample(state, key_of(2, Draw.PROPOSAL, number)) for number in range(2)]
  calls = scripted(*[0.5] * 6)
  # Neither how many are drawn nor how they are trained matters.
  changes = {'evaluator.epochs': 5, 'evaluator.weights.learning_rate': 0.3}
  search.run(config(trials=6, **changes), tmp_path / 'more')
  assert [genotype for _, _, genotype in calls[:2]] == drawn
  # The seed of the search is that of its trainings.
  assert {settings['seed'] for _, settings, _ in calls} == {2}


def test_trainings_may_have_a_seed_of_their_own(config):
  assert build(TrialSearch, config()).evaluator.seed == 2
  assert build(TrialSearch, config(**{'evaluator.seed': 5})).evaluator.seed == 5
  assert build(TrialSearch, {'seed': 3}).evaluator.seed == 3
  with pytest.raises(ValueError, match='^config.seed: -1 is not allowed; it has to be ≥ 0$'):
    build(TrialSearch, {'seed': -1})


def test_a_strategy_decides_by_what_a_config_is_run(finished, config):
  workdir, result = finished
  assert searches.run(config(), workdir) == result


def test_what_is_written_is_what_the_trainings_came_to(finished):
  workdir, result = finished
  assert [outcome.proposal.number for outcome in result.outcomes] == [0, 1]
  for outcome in result.outcomes:
    folder = workdir / 'trials' / str(outcome.proposal.number)
    lines = [line for line in metrics.read(folder) if line['kind'] == 'epoch']
    assert outcome.reward == lines[-1]['valid_accuracy']
    assert outcome.curve == tuple(line['valid_accuracy'] for line in lines)
    assert outcome.seconds == pytest.approx(sum(line['seconds'] for line in lines))
    assert outcome.measures == {'parameters': training.Model.read(folder).num_weights}
    assert spaces.load(folder / 'genotype.json') == outcome.proposal.arch
    assert outcome.status == 'done'
  best = max(result.outcomes, key=lambda outcome: outcome.reward)
  assert spaces.load(workdir / 'genotype.json') == result.genotype == best.proposal.arch
  assert result.reward == best.reward
  assert {path.name for path in workdir.iterdir()} == {
    'config.json',
    'genotype.json',
    'metrics.jsonl',
    'pick',
    'report.html',
    'tensorboard',
    'trials',
    'trials.jsonl',
  }
  assert events(workdir) == ['finished']
  assert result.lines[0] == f'validation accuracy of the best architecture: {best.reward:.2%}'
  assert result.lines[2] == f'test accuracy: {result.test["test_accuracy"]:.2%}'


def test_only_the_pick_reads_the_test_images(finished):
  workdir, result = finished
  for path in sorted((workdir / 'trials').iterdir()):
    assert all(line['kind'] != 'test' for line in metrics.read(path))
  (test,) = [line for line in metrics.read(workdir / 'pick') if line['kind'] == 'test']
  assert result.test == {'test_accuracy': test['accuracy'], 'test_loss': test['loss']}
  # They are the weights that it was chosen for.
  best = max(result.outcomes, key=lambda outcome: outcome.reward)
  folders = workdir / 'pick', workdir / 'trials' / str(best.proposal.number)
  jax.tree.map(np.testing.assert_array_equal, *(training.load(folder).variables for folder in folders))


def test_the_best_by_validation_is_kept_after_every_training(config, scripted, tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  calls = scripted(None, 0.0, 0.7, 0.9, None, 0.9, 0.8)
  kept = []
  tell = Journal.tell

  def spied(self, outcome):
    path = workdir / 'genotype.json'
    kept.append(spaces.load(path) if path.exists() else None)
    tell(self, outcome)

  monkeypatch.setattr(Journal, 'tell', spied)
  notes, written = [], []
  writer = types.SimpleNamespace(write=lambda step, values: written.append((step, dict(values))))
  result = search.run(config(trials=7), workdir, notes.append, [writer])
  drawn = [genotype for _, _, genotype in calls]
  # One that diverged does not win even against an accuracy of 0; the first of equals stays.
  assert kept == [None, None, drawn[1], drawn[2], *[drawn[3]] * 3]
  assert (result.genotype, result.reward, result.test) == (drawn[3], 0.9, {'test_loss': 1.5, 'test_accuracy': 0.4321})
  assert [(folder, settings['data']['test']) for folder, settings, _ in calls] == [
    *((workdir / 'trials' / str(number), False) for number in range(7)),
    (workdir / 'pick', True),
  ]
  assert drawn[7] == drawn[3]
  steps = [line for line in metrics.read(workdir) if line['kind'] == 'step']
  assert [line['step'] for line in steps] == list(range(1, 8))
  assert [line.get('valid_accuracy') for line in steps] == [None, 0.0, 0.7, 0.9, None, 0.9, 0.8]
  assert [line.get('best_valid_accuracy') for line in steps] == [None, 0.0, 0.7, 0.9, 0.9, 0.9, 0.9]
  assert events(workdir) == ['trial_failed', 'trial_failed', 'finished']
  assert [step for step, _ in written] == [*range(1, 8), 7]
  assert written[3][1]['step/best_valid_accuracy'] == 0.9
  assert written[7][1] == {'test/loss': 1.5, 'test/accuracy': 0.4321}
  # A line a trial, and one at the end.
  assert notes[0] == 'trial 0, 1 of 7: failed (step 3: a loss or gradient is not finite)'
  assert notes[6] == 'trial 6, 7 of 7: validation accuracy 80.00%, best 90.00% (trial 3)'
  assert notes[7:] == ['7 evaluations; the best is trial 3']


def test_test_images_may_be_left_alone(config, scripted, tmp_path):
  calls = scripted(0.5, 0.6)
  result = search.run(config(**{'evaluator.data.test': False}), tmp_path / 'run')
  assert result.test == {}
  assert [settings['data']['test'] for _, settings, _ in calls] == [False, False]


def test_nothing_wins_if_everything_diverges(config, scripted, tmp_path):
  workdir = tmp_path / 'run'
  calls = scripted(None, None)
  for _ in range(2):
    with pytest.raises(Failed, match='^all 2 evaluations failed; the last one: step 3: a loss or gradient is not fin'):
      search.run(config(), workdir)
  assert len(calls) == 2
  assert not (workdir / 'genotype.json').exists()
  assert events(workdir) == ['trial_failed', 'trial_failed', 'failed']
  assert 'Stopped before its end' in (workdir / 'report.html').read_text()


class Killed(BaseException):
  """What no part of the loop knows of."""


def test_a_search_killed_and_stopped_goes_on_to_the_same_result(finished, config, make_guard, monkeypatch, tmp_path):
  whole, result = finished
  workdir = tmp_path / 'run'

  def killed(*arguments):
    raise Killed

  with monkeypatch.context() as patch:
    # Inside a training, after its first epoch.
    update = Progress.update
    patch.setattr(loops, '_SECONDS_A_CALL', 0.0)
    patch.setattr(
      Progress, 'update', lambda self, step, values: killed() if step == STEPS + 1 else update(self, step, values)
    )
    with pytest.raises(Killed):
      search.run(config(), workdir)
  with monkeypatch.context() as patch:
    # After a training, before it is recorded.
    patch.setattr(Journal, 'tell', killed)
    with pytest.raises(Killed):
      search.run(config(), workdir)
  assert [line['event'] for line in journal.read(workdir / FILE)] == ['ask']
  with monkeypatch.context() as patch:
    # After it is recorded, before anything else is written.
    patch.setattr(search._Run, '_line', killed)
    with pytest.raises(Killed):
      search.run(config(), workdir)
  with monkeypatch.context() as patch:
    saved = workdir / 'trials' / '1' / 'checkpoints' / str(STEPS)
    patch.setattr(training_loop, 'InterruptGuard', make_guard(lambda: 'SIGTERM' if saved.exists() else None))
    stopped = search.run(config(), workdir)
  assert (stopped.finished, stopped.genotype) == (False, result.outcomes[0].proposal.arch)
  assert len(stopped.outcomes) == 1
  resumed = search.run(config(), workdir)
  assert events(workdir) == [*['resumed'] * 3, 'interrupted', 'resumed', 'finished']
  assert told(workdir) == told(whole)
  assert (resumed.genotype, resumed.test) == (result.genotype, result.test)
  jax.tree.map(np.testing.assert_array_equal, *(training.load(f / 'pick').variables for f in (whole, workdir)))


def test_a_signal_between_trainings_is_heard(config, scripted, make_guard, monkeypatch, tmp_path):
  workdir = tmp_path / 'run'
  calls = scripted(0.5, 0.6)
  with monkeypatch.context() as patch:
    patch.setattr(search, 'InterruptGuard', make_guard(lambda: 'SIGINT' if calls else None))
    result = search.run(config(), workdir)
  assert (len(calls), result.finished, result.reward) == (1, False, 0.5)
  assert metrics.read(workdir)[-1]['message'].startswith('SIGINT between two evaluations')
  result = search.run(config(), workdir)
  assert (len(calls), result.finished, result.reward) == (3, True, 0.6)


@pytest.mark.parametrize('lost', ['the end', 'the journal', 'nothing'])
def test_what_is_lost_of_a_finished_search_is_found_again_without_training(
  finished, config, monkeypatch, tmp_path, lost
):
  whole, result = finished
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  expected = ['finished']
  if lost == 'the end':
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    (workdir / 'metrics.jsonl').write_text('\n'.join(lines[:-1]) + '\n')
    expected = ['resumed', 'finished']
  elif lost == 'the journal':
    (workdir / FILE).unlink()
    expected = ['resumed', 'finished']

  def compiled(*arguments):
    raise AssertionError('it trains')

  monkeypatch.setattr(loops, 'compile_with_report', compiled)
  again = search.run(config(), workdir)
  assert told(workdir) == told(whole)
  assert events(workdir) == expected
  assert (again.genotype, again.reward, again.test, again.finished) == (
    result.genotype,
    result.reward,
    result.test,
    True,
  )


def test_what_follows_from_the_journal_is_written_again(config, scripted, tmp_path):
  scripted(0.5, None, 0.75)
  workdir = tmp_path / 'run'
  result = search.run(config(trials=3), workdir)
  before = told(workdir)
  (workdir / 'metrics.jsonl').unlink()
  (workdir / 'genotype.json').write_text('{')
  assert search.run(config(trials=3), workdir) == result
  assert told(workdir) == before
  assert spaces.load(workdir / 'genotype.json') == result.genotype
  assert (events(workdir).count('brought_back'), events(workdir).count('trial_failed')) == (1, 1)


@pytest.mark.parametrize(('accuracies', 'picks'), [((0.5, 0.75, 0.25, 0.9), 2), ((0.5, 0.75, 0.25, 0.5), 1)])
def test_a_search_that_has_ended_goes_on_to_more_trials(config, scripted, tmp_path, parse_page, accuracies, picks):
  calls = scripted(*accuracies)
  whole, grown = tmp_path / 'whole', tmp_path / 'grown'
  expected = search.run(config(trials=4), whole)
  before = search.run(config(trials=2), grown)
  del calls[:]
  # Until it has ended, the test is that of fewer trials, and of no interest.
  assert 'Its test accuracy' in parse_page((grown / 'report.html').read_text()).text
  (grown / 'config.json').write_bytes((whole / 'config.json').read_bytes())
  lines = (whole / FILE).read_bytes().splitlines(keepends=True)
  (grown / FILE).write_bytes(b''.join(lines[:-1]))
  assert 'Its test accuracy' not in parse_page(report.write(grown).read_text()).text
  (grown / FILE).write_bytes(b''.join(lines[:5]))
  found = search.run(config(trials=4), grown)
  assert [folder.name for folder, _, _ in calls] == ['2', '3', 'pick']
  assert (found.genotype, found.reward, found.test) == (expected.genotype, expected.reward, expected.test)
  lines, logged = told(grown)
  assert lines == told(whole)[0]
  assert [line for line in logged if (line['kind'], line['step']) != ('test', 2)] == told(whole)[1]
  assert events(grown) == ['finished', 'resumed', 'finished']
  # The training that was tested before is still there.
  assert sorted(path.name for path in grown.glob('pick*')) == ['pick', 'pick_1'][:picks]
  if picks > 1:
    assert json.loads((grown / 'pick_1' / 'config.json').read_text())['genotype'] == spaces.to_json(before.genotype)
  page = parse_page((grown / 'report.html').read_text())
  assert 'Trials 4 of 4' in page.text
  assert 'Its test accuracy 43.21 %' in page.text
  # As of any search.
  row = {'name': 'found', 'parameters': 1234, 'valid': 0.5, 'test': None}
  (grown / 'comparison.json').write_text(json.dumps({'measure': 'accuracy', 'epochs': 3, 'seed': 0, 'rows': [row]}))
  assert 'found 1,234 50.00 % –' in parse_page(report.write(grown).read_text()).text
  (grown / 'comparison.json').unlink()
  assert json.loads((grown / 'config.json').read_text())['trials'] == 4
  message = f'config.trials: 3 is not allowed; {grown} holds a search by proposals of 4, which can only become more'
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    search.run(config(trials=3), grown)
  # It is no other search for having more trials.
  with pytest.raises(ValueError, match=r'another config \(config.seed: 2 → 4; config.evaluator.seed: 2 → 4\)'):
    search.run(config(trials=5, seed=4), grown)


def test_the_page_has_the_trainings(config, scripted, tmp_path, parse_page):
  scripted(0.7, None, 0.9, 0.8)
  result = search.run(config(trials=4), tmp_path / 'run')
  page = tmp_path / 'run' / 'trials' / '2' / 'report.html'
  page.write_text('')
  text = report.write(tmp_path / 'run').read_text()
  found = parse_page(text)
  assert 'Best validation accuracy 90.00 % trial 2' in found.text
  assert 'Its test accuracy 43.21 %' in found.text
  assert 'Trials 4 of 4 Time of evaluations 10.0 s' in found.text
  assert '1 of 4 evaluations failed (trials 1); the table below says why.' in found.text
  assert (
    '0 done 70.00 % 100 2.5 1 failed: step 3: a loss or gradient is not finite – – 2.5 2 done 90.00 %' in found.text
  )
  assert ('href', 'trials/2/report.html') in found.attributes
  assert ('href', 'trials/3/report.html') not in found.attributes
  # The best alone stands out.
  assert text.count('%</b>') == text.count('<b>90.00 %</b>') == 1
  assert f'--genotype={tmp_path / "run" / "genotype.json"}' in found.text
  # Two cells, and the chart over trials and over seconds.
  assert found.tags.count('svg') == 4
  assert result.report == tmp_path / 'run' / 'report.html'


@pytest.mark.parametrize(
  ('lost', 'said'),
  [
    ('trials.jsonl', 'trials.jsonl is not there (yet).'),
    ('genotype.json', 'genotype.json is not there (yet).'),
    ('metrics.jsonl', 'metrics.jsonl is not there (yet).'),
  ],
)
def test_the_page_is_there_whatever_is_missing(finished, tmp_path, parse_page, lost, said):
  whole, _ = finished
  for path in whole.iterdir():
    if path.is_file() and path.name != lost:
      shutil.copy(path, tmp_path)
  assert said in parse_page(report.write(tmp_path).read_text()).text
  if lost == 'trials.jsonl':
    lines = (whole / lost).read_text().splitlines()
    (tmp_path / lost).write_text('\n'.join([*lines[:2], '[{"number": 0}]', *lines[2:]]) + '\n')
    text = parse_page(report.write(tmp_path).read_text()).text
    assert '1 broken lines of trials.jsonl are left out.' in text
    assert '2 done.' in text


def test_what_is_found_can_be_trained(finished):
  workdir, result = finished
  found = spaces.resolve(str(workdir / 'genotype.json'))
  training.check_genotype(digits_eval.get_config(), found)
  assert found == result.genotype


def test_the_config_is_the_search_space_and_a_shorter_evaluation():
  settings = build(TrialSearch, digits_random.get_config())
  assert settings.space == spaces.Darts()
  evaluation = build(training.Training, digits_eval.get_config())
  assert settings.evaluator.weights == evaluation.weights
  assert settings.evaluator.augment == evaluation.augment
  assert settings.evaluator.epochs < evaluation.epochs


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'trials': 0}, 'config.trials: 0 is not allowed; it has to be ≥ 1'),
    ({'workers': 0}, 'config.workers: 0 is not allowed; it has to be ≥ 1'),
    ({'seed': -1}, 'config.seed: -1 is not allowed; it has to be ≥ 0'),
    ({'strategy': 'random'}, "config.strategy: 'random' is called 'random_search' now"),
    ({'strategy': {'name': 'random'}}, "config.strategy: 'random' is called 'random_search' now"),
    ({'strategy': 'randm_search'}, "config.strategy.name: 'randm_search' is not known; did you mean 'random_search'?"),
    ({'strategy.population': 3}, 'config.strategy.population: unknown field of random_search; it is one of regul'),
    ({'strategy': 'darts'}, 'config.evaluator: unknown field of darts; it is one of random_search, regularized_evol'),
    ({'architectures': 3}, 'config.architectures: it is called config.trials now'),
    ({'training': {'epochs': 3}}, 'config.training: it is called config.evaluator now'),
    ({'hypergradient': 'exact'}, 'config.hypergradient: unknown field of random_search; it is one of darts, sgas'),
    (
      {'epochs': 3},
      'config.epochs: unknown field of random_search; it is one of darts, sgas.*; trainings of the evaluator scratch'
      ' have config.evaluator.epochs$',
    ),
    (
      {'space': {'name': 'recurrent'}},
      'config.evaluator.name: its trainings are on images; architectures of the space recurrent are for text',
    ),
    ({'trial': 3}, 'config.trial: unknown field; did you mean config.trials?'),
    ({'space.nodes': 0}, 'config.space.nodes: 0 is not allowed; it has to be ≥ 1'),
    ({'space.operations': ('none',)}, r"config.space.operations: \('none',\) has nothing to choose"),
    ({'evaluator': {'name': 'tabel'}}, "config.evaluator.name: 'tabel' is not known; did you mean 'table'?"),
    ({'evaluator.path': 'DIR'}, 'config.evaluator.path: unknown field of scratch; it is one of table'),
    (
      {'evaluator.data.validation_fraction': 0.0},
      'config.evaluator.data.validation_fraction: 0.0 is not allowed; arch',
    ),
    (
      {'evaluator.weights.warmup_epochs': 3.0},
      'config.evaluator.weights.warmup_epochs: 3.0 is not allowed; there are 2',
    ),
    ({'evaluator.epoch': 3}, 'config.evaluator.epoch: unknown field; did you mean config.evaluator.epochs?'),
    (
      {'evaluator.batch_size': 72},
      'config.evaluator.batch_size: 72 is larger than the training part of npz, which has',
    ),
    ({'evaluator.network.auxiliary': True}, 'config.evaluator.data.name: npz: image_size: 8×8 is too small for an aux'),
    (
      {'space': {'name': 'nasbench201'}, 'evaluator.network.auxiliary': True},
      'config.evaluator.network.auxiliary: True is not allowed; networks of nasbench201 have no such head',
    ),
  ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(tmp_path, config, changes, said):
  found = config().to_dict()
  for path, value in changes.items():
    *groups, last = path.split('.')
    group = found
    for name in groups:
      group = group[name]
    group[last] = value
  with pytest.raises(ValueError, match=f'^{said}') as error:
    searches.run(found, tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert list(tmp_path.iterdir()) == []


def test_the_directory_of_another_run_is_refused(finished, config, tmp_path):
  workdir, _ = finished
  with pytest.raises(ValueError, match=r'another config \(config.seed: 2 → 4; config.evaluator.seed: 2 → 4\)'):
    search.run(config(seed=4), workdir)
  training_config = json.loads((workdir / 'trials' / '0' / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(training_config))
  with pytest.raises(ValueError, match='holds another run than a search by proposals of this kind; choose another'):
    search.run(config(), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_other_images_are_refused(config, images, scripted, tmp_path):
  scripted(0.5, 0.75)
  path = tmp_path / 'images.npz'
  with np.load(images) as file:
    arrays = dict(file)
  for labels in (arrays['y_train'], arrays['y_train'][::-1]):
    np.savez(path, **arrays | {'y_train': labels})
    if labels is arrays['y_train']:
      search.run(config(**{'evaluator.data.path': str(path)}), tmp_path / 'run')
  message = f'the data of npz {path} are not those of before; choose another --workdir or the same data'
  with pytest.raises(ValueError, match=rf'\(config.dataset.train.labels: .* → .*\): {re.escape(message)}$'):
    search.run(config(**{'evaluator.data.path': str(path)}), tmp_path / 'run')
