"""Random search: what is drawn, who wins, who reads which images, and that it goes on after any end."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from configs import digits_eval, digits_random
from darts_jax import report, search, selection, spaces, training
from darts_jax.report import architectures
from darts_jax.report import random_search as page
from darts_jax.report.architectures import Architecture
from darts_jax.runtime import loop as loops
from darts_jax.runtime import metrics
from darts_jax.runtime.progress import Progress
from darts_jax.selection import RandomSearch, random_search, trials
from darts_jax.settings import build
from darts_jax.training import loop as training_loop

pytestmark = pytest.mark.usefixtures('undrawn')

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
    found.update(seed=2, architectures=2)
    found.space.update(nodes=1, operations=('none', 'skip_connect', 'max_pool_3x3', 'avg_pool_3x3'))
    found.training.update(epochs=2, batch_size=16, log_every=1)
    found.training.data.update(name='npz', path=str(images), validation_fraction=1 / 3)
    found.training.augment.update(crop_padding=0, cutout=0)
    found.training.network.update(channels=2, layers=3, drop_path=0.0)
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
    return workdir, random_search.run(config(), workdir)


@pytest.fixture
def scripted(monkeypatch):
  """Makes trainings end at once with these validation accuracies, None for one that diverges; lists what is trained."""

  def script(*accuracies):
    calls = []

    def run(settings, folder, genotype):
      calls.append((folder, settings, genotype))
      folder.mkdir(parents=True, exist_ok=True)
      number = 0 if folder.name == 'pick' else int(folder.name)
      shape, ones = (8, 8, 1), (1.0,)
      model = training.Model(genotype, 2 + 2 * number, 3, 10, 'cifar', False, True, 3, shape, ones, ones)
      model.write(folder)
      (folder / 'metrics.jsonl').write_text(json.dumps({'kind': 'epoch', 'step': 1, 'epoch': 0, 'seconds': 2.5}) + '\n')
      accuracy = 0.95 if folder.name == 'pick' else accuracies[number]
      if accuracy is None:
        raise training.Diverged('step 3: a loss or gradient is not finite')
      tested = settings['data']['test']
      values = (0.4321, 1.5) if tested else (float('nan'),) * 2
      return training.Result(*values, accuracy, 1.0, model.num_weights, True, False, folder / 'report.html')

    monkeypatch.setattr(trials.loop, 'run', run)
    return calls

  return script


def recorded(workdir):
  """What is the same however often a search was stopped."""
  lines = [line for line in metrics.read(workdir) if line['kind'] != 'event']
  found = [(each.number, each.genotype, each.parameters, each.valid_accuracy) for each in architectures.read(workdir)]
  return [{k: v for k, v in line.items() if k != 'seconds'} for line in lines], found


def events(workdir):
  return [line['event'] for line in metrics.read(workdir) if line['kind'] == 'event']


def test_an_architecture_is_a_function_of_seed_and_number(finished, config, scripted, tmp_path):
  workdir, _ = finished
  space = spaces.Darts(nodes=1, operations=('none', 'skip_connect', 'max_pool_3x3', 'avg_pool_3x3'))
  drawn = [each.genotype for each in architectures.read(workdir)]
  assert drawn == [selection.random_genotype(space, 2, number) for number in range(2)]
  calls = scripted(*[0.5] * 6)
  # Neither how many are drawn nor how they are trained matters.
  changes = {'training.epochs': 5, 'training.weights.learning_rate': 0.3}
  random_search.run(config(architectures=6, **changes), tmp_path / 'more')
  assert [genotype for _, _, genotype in calls[:2]] == drawn
  more = [genotype for _, _, genotype in calls[:6]]
  del calls[:]
  random_search.run(config(architectures=6, seed=3), tmp_path / 'other')
  assert [genotype for _, _, genotype in calls[:6]] != more
  # The seed of the search is that of its trainings.
  assert {settings['seed'] for _, settings, _ in calls} == {3}


def test_it_is_a_strategy_of_searches(finished, config):
  workdir, result = finished
  assert search.run(config(), workdir) == result


def test_what_is_written_is_what_the_trainings_came_to(finished):
  workdir, result = finished
  found = architectures.read(workdir)
  assert [each.number for each in found] == [0, 1]
  for each in found:
    folder = workdir / 'architectures' / str(each.number)
    lines = [line for line in metrics.read(folder) if line['kind'] == 'epoch']
    assert each.valid_accuracy == lines[-1]['valid_accuracy']
    assert each.seconds == pytest.approx(sum(line['seconds'] for line in lines))
    assert each.parameters == training.Model.read(folder).num_weights
    assert spaces.load(folder / 'genotype.json') == each.genotype
    assert not each.diverged
  assert found[0].genotype != found[1].genotype
  best = max(found, key=lambda each: each.valid_accuracy)
  assert spaces.load(workdir / 'genotype.json') == result.genotype == best.genotype
  assert result.valid_accuracy == best.valid_accuracy
  assert {path.name for path in workdir.iterdir()} == {
    'architectures',
    'architectures.json',
    'config.json',
    'genotype.json',
    'metrics.jsonl',
    'pick',
    'report.html',
    'tensorboard',
  }
  assert events(workdir) == ['finished']


def test_only_the_pick_reads_the_test_images(finished):
  workdir, result = finished
  for path in sorted((workdir / 'architectures').iterdir()):
    assert all(line['kind'] != 'test' for line in metrics.read(path))
  (test,) = [line for line in metrics.read(workdir / 'pick') if line['kind'] == 'test']
  assert result.test_accuracy == test['accuracy']
  # They are the weights that it was chosen for.
  best = architectures.best(architectures.read(workdir))
  folders = workdir / 'pick', workdir / 'architectures' / str(best.number)
  jax.tree.map(np.testing.assert_array_equal, *(training.load(folder).variables for folder in folders))


def test_the_best_by_validation_is_kept_after_every_training(config, scripted, tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  calls = scripted(None, 0.0, 0.7, 0.9, None, 0.9, 0.8)
  kept = []
  write = architectures.write

  def spied(found, folder):
    path = workdir / 'genotype.json'
    kept.append(spaces.load(path) if path.exists() else None)
    write(found, folder)

  monkeypatch.setattr(architectures, 'write', spied)
  result = random_search.run(config(architectures=7), workdir)
  drawn = [genotype for _, _, genotype in calls]
  # One that diverged does not win even against an accuracy of 0; the first of equals stays.
  assert kept == [None, drawn[1], drawn[2], *[drawn[3]] * 4]
  assert (result.genotype, result.valid_accuracy, result.test_accuracy) == (drawn[3], 0.9, 0.4321)
  assert [(folder, settings['data']['test']) for folder, settings, _ in calls] == [
    *((workdir / 'architectures' / str(number), False) for number in range(7)),
    (workdir / 'pick', True),
  ]
  assert drawn[7] == drawn[3]
  steps = [line for line in metrics.read(workdir) if line['kind'] == 'step']
  assert [line['step'] for line in steps] == list(range(1, 8))
  assert [line.get('valid_accuracy') for line in steps] == [None, 0.0, 0.7, 0.9, None, 0.9, 0.8]
  assert [line.get('best_valid_accuracy') for line in steps] == [None, 0.0, 0.7, 0.9, 0.9, 0.9, 0.9]
  assert events(workdir) == ['diverged', 'diverged', 'finished']


def test_test_images_may_be_left_alone(config, scripted, tmp_path):
  calls = scripted(0.5, 0.6)
  result = random_search.run(config(**{'training.data.test': False}), tmp_path / 'run')
  assert np.isnan(result.test_accuracy)
  assert [settings['data']['test'] for _, settings, _ in calls] == [False, False]
  assert 'The test images have not been read.' in result.report.read_text()


def test_nothing_wins_if_everything_diverges(config, scripted, tmp_path):
  workdir = tmp_path / 'run'
  calls = scripted(None, None)
  for _ in range(2):
    with pytest.raises(selection.Diverged, match='all 2 trainings diverged; the last one is in .*architectures/1'):
      random_search.run(config(), workdir)
  assert len(calls) == 2
  assert not (workdir / 'genotype.json').exists()
  assert events(workdir) == ['diverged', 'diverged', 'non_finite']
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
      random_search.run(config(), workdir)
  assert not (workdir / 'architectures.json').exists()
  with monkeypatch.context() as patch:
    # After a training, before it is recorded.
    patch.setattr(architectures, 'write', killed)
    with pytest.raises(Killed):
      random_search.run(config(), workdir)
  with monkeypatch.context() as patch:
    saved = workdir / 'architectures' / '1' / 'checkpoints' / str(STEPS)
    patch.setattr(training_loop, 'InterruptGuard', make_guard(lambda: 'SIGTERM' if saved.exists() else None))
    stopped = random_search.run(config(), workdir)
  assert (stopped.finished, stopped.genotype) == (False, architectures.read(workdir)[0].genotype)
  assert len(architectures.read(workdir)) == 1
  resumed = random_search.run(config(), workdir)
  # The first of them was killed before anything could be told.
  assert events(workdir) == ['resumed', 'resumed', 'interrupted', 'resumed', 'finished']
  assert recorded(workdir) == recorded(whole)
  assert (resumed.genotype, resumed.test_accuracy) == (result.genotype, result.test_accuracy)
  jax.tree.map(np.testing.assert_array_equal, *(training.load(f / 'pick').variables for f in (whole, workdir)))


def test_a_signal_between_trainings_is_heard(config, scripted, make_guard, monkeypatch, tmp_path):
  workdir = tmp_path / 'run'
  calls = scripted(0.5, 0.6)
  with monkeypatch.context() as patch:
    asked = make_guard(lambda: 'SIGINT' if (workdir / 'architectures.json').exists() else None)
    patch.setattr(random_search, 'InterruptGuard', asked)
    result = random_search.run(config(), workdir)
  assert (len(calls), result.finished, result.valid_accuracy) == (1, False, 0.5)
  assert metrics.read(workdir)[-1]['message'].startswith('SIGINT between two trainings')
  result = random_search.run(config(), workdir)
  assert (len(calls), result.finished, result.valid_accuracy) == (3, True, 0.6)


@pytest.mark.parametrize('lost', ['the end', 'the record', 'nothing'])
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
  elif lost == 'the record':
    (workdir / 'architectures.json').write_text('[{')
    expected = ['resumed', 'finished']

  def compiled(*arguments):
    raise AssertionError('it trains')

  monkeypatch.setattr(loops, 'compile_with_report', compiled)
  again = random_search.run(config(), workdir)
  assert recorded(workdir) == recorded(whole)
  assert events(workdir) == expected
  assert (again.genotype, again.valid_accuracy, again.test_accuracy, again.finished) == (
    result.genotype,
    result.valid_accuracy,
    result.test_accuracy,
    True,
  )


def test_the_page_names_every_architecture(config, scripted, tmp_path, parse_page):
  scripted(0.7, None, 0.9, 0.8)
  result = random_search.run(config(architectures=4), tmp_path / 'run')
  text = result.report.read_text()
  found = parse_page(text)
  assert 'Best validation accuracy 90.00 %, architecture 2' in found.text
  assert 'Its test accuracy 43.21 %' in found.text
  assert 'Architectures 4 of 4 Time in epochs 10.0 s' in found.text
  assert '1 of 4 trainings diverged (1); they count as a validation accuracy of 0' in found.text
  for each in architectures.read(tmp_path / 'run'):
    accuracy = 'diverged' if each.diverged else f'{100 * each.valid_accuracy:.2f} %'
    assert f'{each.number} {each.parameters:,} {accuracy} 2.5' in found.text
    assert ('href', f'architectures/{each.number}/report.html') in found.attributes
  # The best alone stands out.
  assert text.count('%</b>') == text.count('<b>90.00 %</b>') == 1
  assert f'--genotype={tmp_path / "run" / "genotype.json"}' in found.text
  # Two cells and the chart.
  assert found.tags.count('svg') == 3


def test_the_chart_has_every_accuracy_and_the_best_so_far():
  cell = spaces.published()['DARTS_V2']
  accuracies = (0.5, 0.4, None, 0.8, 0.6, None)
  found = [Architecture(i, cell, 9, each or 0.0, 1.0, each is None) for i, each in enumerate(accuracies)]
  best, points, crosses = page.figure(found, 8).axes[0].lines
  assert points.get_xydata().tolist() == [[0, 0.5], [1, 0.4], [3, 0.8], [4, 0.6]]
  assert best.get_xydata().tolist() == [[0, 0.5], [1, 0.5], [3, 0.8], [4, 0.8], [5, 0.8]]
  assert crosses.get_xdata().tolist() == [2, 5]
  # There is room for those to come.
  assert page.figure(found, 8).axes[0].get_xlim()[1] > 7
  assert len(page.figure(found[2:3], 8).axes[0].lines) == 1


@pytest.mark.parametrize(
  ('lost', 'said'),
  [
    ('architectures.json', 'No training has ended yet.'),
    ('genotype.json', 'genotype.json is not there (yet).'),
    ('metrics.jsonl', 'metrics.jsonl is not there (yet).'),
  ],
)
def test_the_page_is_there_whatever_is_missing(finished, tmp_path, parse_page, lost, said):
  whole, _ = finished
  files = [path for path in whole.iterdir() if path.is_file() and path.name != lost]
  for path in files:
    shutil.copy(path, tmp_path)
  assert said in parse_page(report.write(tmp_path).read_text()).text
  if lost == 'architectures.json':
    (tmp_path / lost).write_text('[{"number": 0}]')
    text = parse_page(report.write(tmp_path).read_text()).text
    assert f'{tmp_path / lost}: cannot be read' in text


def test_what_is_found_can_be_trained(finished):
  workdir, result = finished
  found = spaces.resolve(str(workdir / 'genotype.json'))
  training.check_genotype(digits_eval.get_config(), found)
  assert found == result.genotype


def test_the_config_is_the_search_space_and_a_shorter_evaluation():
  settings = RandomSearch.read(digits_random.get_config())
  assert settings.space == spaces.Darts()
  evaluation = build(training.Training, digits_eval.get_config())
  assert settings.training.weights == evaluation.weights
  assert settings.training.augment == evaluation.augment
  assert settings.training.epochs < evaluation.epochs


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'architectures': 0}, 'config.architectures: 0 is not allowed; it has to be ≥ 1'),
    ({'seed': -1}, 'config.seed: -1 is not allowed; it has to be ≥ 0'),
    ({'training.seed': 5}, 'config.training.seed: 5 is not allowed; set config.seed, which is that of trainings, too'),
    ({'strategy': 'randm'}, "config.strategy: 'randm' is not known; did you mean 'random'?"),
    (
      {'space': {'name': 'recurrent'}},
      "config.space.name: 'recurrent' is not allowed; architectures are trained on images",
    ),
    ({'architecture': 3}, 'config.architecture: unknown field; did you mean config.architectures?'),
    ({'network': {'nodes': 3}}, 'config.network.nodes: it is called config.space.nodes now'),
    ({'space.nodes': 0}, 'config.space.nodes: 0 is not allowed; it has to be ≥ 1'),
    ({'space.operations': ('none',)}, r"config.space.operations: \('none',\) has nothing to choose"),
    ({'training.data.validation_fraction': 0.0}, 'config.training.data.validation_fraction: 0.0 is not allowed; arch'),
    ({'training.weights.warmup_epochs': 3.0}, 'config.training.weights.warmup_epochs: 3.0 is not allowed; there are 2'),
    ({'training.epoch': 3}, 'config.training.epoch: unknown field; did you mean config.training.epochs?'),
    ({'training.batch_size': 72}, 'config.training.batch_size: 72 is larger than the training part of npz, which has'),
    ({'training.network.auxiliary': True}, 'config.training.data.name: npz: image_size: 8×8 is too small for an auxil'),
  ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(tmp_path, config, changes, said):
  with pytest.raises(ValueError, match=f'^{said}') as error:
    random_search.run(config(**changes), tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert list(tmp_path.iterdir()) == []


def test_the_directory_of_another_run_is_refused(finished, config, tmp_path):
  workdir, _ = finished
  with pytest.raises(ValueError, match=r'another config \(config.seed: 2 → 4; config.training.seed: 2 → 4\)'):
    random_search.run(config(seed=4), workdir)
  training_config = json.loads((workdir / 'architectures' / '0' / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(training_config))
  with pytest.raises(ValueError, match='holds another run than a random search of this kind; choose another'):
    random_search.run(config(), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_what_follows_from_the_architectures_is_written_again(config, scripted, tmp_path):
  scripted(0.5, 0.75)
  workdir = tmp_path / 'run'
  result = random_search.run(config(), workdir)
  before = recorded(workdir)
  (workdir / 'metrics.jsonl').unlink()
  (workdir / 'genotype.json').write_text('{')
  assert random_search.run(config(), workdir) == result
  assert recorded(workdir) == before
  assert spaces.load(workdir / 'genotype.json') == result.genotype
  assert events(workdir).count('brought_back') == 1
  (workdir / 'metrics.jsonl').write_text('[\n')
  (workdir / architectures.FILE).write_text('[]')
  assert random_search.run(config(), workdir) == result
  assert recorded(workdir) == before


def test_other_images_are_refused(config, images, scripted, tmp_path):
  scripted(0.5, 0.75)
  path = tmp_path / 'images.npz'
  with np.load(images) as file:
    arrays = dict(file)
  for labels in (arrays['y_train'], arrays['y_train'][::-1]):
    np.savez(path, **arrays | {'y_train': labels})
    if labels is arrays['y_train']:
      random_search.run(config(**{'training.data.path': str(path)}), tmp_path / 'run')
  message = f'the data of npz {path} are not those of before; choose another --workdir or the same data'
  with pytest.raises(ValueError, match=rf'\(config.dataset.train.labels: .* → .*\): {re.escape(message)}$'):
    random_search.run(config(**{'training.data.path': str(path)}), tmp_path / 'run')


def test_more_architectures_than_any_search_has_are_refused(tmp_path):
  (tmp_path / architectures.FILE).write_text(json.dumps([{}] * 1001))
  with pytest.raises(ValueError, match=r'architectures.json: 1,001 architectures; there are up to 1,000$'):
    architectures.read(tmp_path)
