"""The protocol: who is picked by what, who reads which images, and that it resumes at every stage."""

import json

import numpy as np
import pytest

from configs import digits_select
from darts_jax import selection, spaces, training
from darts_jax.commands import select as command
from darts_jax.report.html import duration
from darts_jax.runtime import metrics
from darts_jax.search import loop as search_loop
from darts_jax.selection import stages
from darts_jax.settings import build
from darts_jax.training import comparison
from darts_jax.training import loop as training_loop

pytestmark = pytest.mark.usefixtures('undrawn', 'same_programs')


def config(**changes):
  """Two searches of three operations, two epochs each."""
  found = digits_select.get_config()
  found.update(searches=2, selection_epochs=1, trainings=2, random_architectures=1, random_candidates=1)
  found.search.update(epochs=2, batch_size=64)
  found.search.network.update(channels=2, layers=3)
  found.search.space.update(nodes=1, operations=('none', 'skip_connect', 'avg_pool_3x3'))
  found.training.epochs = 2
  found.training.network.update(channels=2, layers=3)
  found.update_from_flattened_dict(changes)
  return found


@pytest.fixture(autouse=True)
def shared_cache(monkeypatch):
  """The compilation cache as the tests have set it up."""
  for module in (search_loop, training_loop):
    monkeypatch.setattr(module, 'enable_cache', lambda: None)


@pytest.fixture(scope='module')
def finished(tmp_path_factory, make_guard):
  """Stopped by a signal in a search, in a brief and in a full training, and each time started again."""
  workdir = tmp_path_factory.mktemp('selection')
  with pytest.MonkeyPatch.context() as patch:
    for module in (search_loop, training_loop):
      patch.setattr(module, 'enable_cache', lambda: None)
    stopped = []
    for name in ('search/seed_1', 'candidates/seed_0', 'final/darts/seed_1'):
      # When the folder is there.
      guard = make_guard(lambda folder=workdir / name: 'SIGTERM' if folder.exists() else None)
      for module in (search_loop, training_loop):
        patch.setattr(module, 'InterruptGuard', guard)
      with pytest.raises(selection.Interrupted) as error:
        selection.run(config(), workdir)
      stopped.append(str(error.value))
      patch.undo()
      for module in (search_loop, training_loop):
        patch.setattr(module, 'enable_cache', lambda: None)
    return workdir, selection.run(config(), workdir), stopped


def test_the_pick_is_the_best_by_validation_and_is_what_is_trained(finished):
  workdir, results, _ = finished
  for method, names in zip(results['methods'][:2], (['seed_0', 'seed_1'], None), strict=True):
    accuracies = {candidate['name']: candidate['valid_accuracy'] for candidate in method['candidates']}
    assert names is None or list(accuracies) == names
    assert accuracies[method['pick']] == max(accuracies.values())
    for name, accuracy in accuracies.items():
      lines = metrics.read(workdir / 'candidates' / name)
      assert [line for line in lines if line['kind'] == 'epoch'][-1]['valid_accuracy'] == accuracy
    picked = next(c['genotype'] for c in method['candidates'] if c['name'] == method['pick'])
    folder = workdir / 'final' / method['name'].replace(' ', '_')
    assert spaces.to_json(spaces.load(folder / 'seed_0' / 'genotype.json')) == picked == method['genotype']
    tests = [next(x for x in metrics.read(folder / f'seed_{i}') if x['kind'] == 'test')['accuracy'] for i in (0, 1)]
    assert method['test_accuracies'] == tests
    # Every cell's count is its own.
    model = training.Model.read(folder / 'seed_0')
    assert method['parameters'] == model.num_weights


def test_only_full_trainings_read_the_test_images(finished):
  workdir, _, _ = finished
  tested = {
    path.parent.relative_to(workdir).parts[0] for path in workdir.rglob('metrics.jsonl') if 'test' in kinds(path)
  }
  untested = {path.parent.relative_to(workdir).parts[0] for path in workdir.rglob('metrics.jsonl')} - tested
  assert (tested, untested) == ({'final'}, {'search', 'candidates'})


def kinds(path):
  return {line['kind'] for line in metrics.read(path.parent)}


def test_every_stage_resumes(finished):
  workdir, _, stopped = finished
  assert 'search with seed 1' in stopped[0]
  assert 'candidates/seed_0' in stopped[1]
  assert 'final/darts/seed_1' in stopped[2]
  for name in ('search/seed_1', 'candidates/seed_0', 'final/darts/seed_1'):
    events = [line['event'] for line in metrics.read(workdir / name) if line['kind'] == 'event']
    assert events.count('interrupted') == 1
    assert events.count('finished') == 1


def test_time_is_that_of_the_runs(finished):
  workdir, results, _ = finished
  seconds = results['methods'][0]['seconds']
  for stage, folder in (('search', 'search'), ('selection', 'candidates'), ('evaluation', 'final/darts')):
    runs = [path for path in sorted((workdir / folder).iterdir()) if 'random' not in path.name]
    assert len(runs) == 2
    total = sum(line['seconds'] for run in runs for line in metrics.read(run) if line['kind'] == 'epoch')
    assert seconds[stage] == pytest.approx(total)


def test_table_and_page(finished, parse_page):
  workdir, results, _ = finished
  text = (workdir / 'results.md').read_text()
  assert text == selection.markdown(results)
  assert json.loads((workdir / 'results.json').read_text()) == results
  method = results['methods'][0]
  valid = [candidate['valid_accuracy'] for candidate in method['candidates']]
  mean, std = training.mean_and_std(valid)
  row = next(line for line in text.splitlines() if line.startswith('| darts'))
  cells = [cell.strip() for cell in row.strip('|').split('|')]
  assert cells[1:4] == ['2', f'{100 * mean:.2f} ± {100 * std:.2f} %', f'{100 * max(valid):.2f} %']
  assert cells[4] == f'{method["parameters"]:,}'
  assert cells[6:] == [duration(method['seconds'][name]) for name in ('search', 'selection', 'evaluation')]
  page = parse_page((workdir / 'report.html').read_text())
  for cell in cells:
    assert cell in page.text
  # The figure of all runs, and both cells of two picks.
  assert page.tags.count('svg') == 1 + 2 * 2


def test_the_command_prints_the_table_and_says_how_it_ended(finished, capsys, monkeypatch):
  workdir, results, _ = finished
  assert command.run(config(), workdir) == 0
  assert capsys.readouterr().out == f'{selection.markdown(results)}\nreport: {workdir / "report.html"}\n'
  for error, code in ((selection.Interrupted('the search was interrupted'), 130), (selection.Diverged('step 3'), 1)):

    def run(*arguments, error=error):
      raise error

    monkeypatch.setattr(selection, 'run', run)
    assert command.run(config(), workdir) == code
    assert str(error) in capsys.readouterr().err


def test_random_architectures_are_not_those_that_are_selected_among(finished):
  workdir, results, _ = finished
  method = results['methods'][2]
  assert (method['name'], len(method['test_accuracies'])) == ('random architectures', 1)
  space = build(selection.Selection, config()).search.space
  found = spaces.load(workdir / 'final' / 'random_architectures' / '0' / 'genotype.json')
  assert found == selection.random_genotype(space, 0, 10**6)


def test_random_search_has_the_time_of_the_search(monkeypatch, tmp_path):
  """Every candidate takes 3 s here, and the two searches with their selection 10 s."""
  begun = []

  def briefly_trained(self, name, genotype, search_seconds):
    begun.append(name)
    return stages._Candidate(name, genotype, 0.5, search_seconds, 3.0)

  monkeypatch.setattr(stages._Selection, '_briefly_trained', briefly_trained)
  settings = build(selection.Selection, config(random_candidates=24))
  found = [stages._Candidate('a', None, 0.5, 3.0, 2.0)] * 2
  stages._Selection(settings, tmp_path, print).randomly_searched(found)
  assert begun == ['random_0', 'random_1', 'random_2']


def test_a_candidate_that_diverges_is_not_picked(monkeypatch, tmp_path):
  def run(config, folder, genotype):
    raise training.Diverged('a loss is not finite')

  monkeypatch.setattr(comparison.loop, 'run', run)
  monkeypatch.setattr(comparison, 'seconds', lambda folder: 1.0)
  notes = []
  settings = build(selection.Selection, config())
  found = stages._Selection(settings, tmp_path, notes.append)._briefly_trained('random_0', None, 0.0)
  assert found.valid_accuracy == 0
  assert notes[-1] == 'a loss is not finite; it counts as a validation accuracy of 0'


def test_earlier_results_are_there_until_they_are_renewed(finished, monkeypatch):
  workdir, results, _ = finished
  seen = []

  def write(results, folder):
    seen.append([method['name'] for method in results['methods']])

  monkeypatch.setattr(stages, 'write', write)
  assert selection.run(config(), workdir) == results
  assert seen == [['darts', 'random search', 'random architectures']] * 3


def test_random_cells_are_uniform():
  space = spaces.Darts(nodes=3, operations=('none', 'skip_connect', 'max_pool_3x3', 'sep_conv_3x3'))
  drawn = [selection.random_genotype(space, 1, number) for number in range(600)]
  assert drawn[:3] == [selection.random_genotype(space, 1, number) for number in range(3)]
  assert selection.random_genotype(space, 2, 0) != drawn[0]
  cells = [cell for found in drawn for _, cell in found.cells]
  assert len(cells) == 1200
  assert all(cell.outputs == (2, 3, 4) for cell in cells)
  operations = [operation for cell in cells for operation, _ in cell.pairs]
  # 7200 draws among three: a share has a standard deviation of 0.0056.
  for operation in space.operations[1:]:
    assert abs(operations.count(operation) / len(operations) - 1 / 3) < 0.028
  assert 'none' not in operations
  # The third node reads two of four: each pair in a sixth of 1200 cells, standard deviation 0.0108.
  pairs = [tuple(source for _, source in cell.pairs[4:]) for cell in cells]
  for pair in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
    assert abs(pairs.count(pair) / len(pairs) - 1 / 6) < 0.054


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'training.data.validation_fraction': 0.0}, 'config.training.data.validation_fraction: 0.0 is not allowed; cand'),
    ({'training.data.test': False}, 'config.training.data.test: False is not allowed; picks are compared by test'),
    ({'training.weights.warmup_epochs': 2.0}, 'config.training.weights.warmup_epochs: 2.0 is not allowed; brief'),
    ({'search.batch_size': 2000}, 'config.search.batch_size: 2000 is larger than the train half of digits'),
    ({'search.data.dir': 'x', 'search.data.name': 'mnist'}, "config.search.data.dir 'x' holds no mnist"),
    ({'selection_epochs': 3}, 'config.selection_epochs: 3 is not allowed; a full training has 2 epochs'),
    ({'searches': 0}, 'config.searches: 0 is not allowed; it has to be ≥ 1'),
    ({'search.network.channels': 3}, 'config.search.network.channels: 3 is not allowed; it has to be even'),
    ({'training.network.auxiliary': True}, 'config.training.data.name: digits: image_size: 8×8 is too small'),
    ({'training.batch_size': 2000}, 'config.training.batch_size: 2000 is larger than the training part of digits'),
  ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(tmp_path, changes, said):
  with pytest.raises(ValueError, match=said):
    selection.run(config(**changes), tmp_path / 'run')
  assert list(tmp_path.iterdir()) == []


def test_damaged_results_are_found_again(tmp_path):
  settings = {'strategy': 'darts', 'hypergradient': 'exact', 'searches': 1, 'trainings': 1, 'data': 'digits'}
  results = {'settings': {**settings, 'selection_epochs': 1, 'epochs': 2, 'validation_fraction': 0.1}, 'methods': []}
  method = {
    'name': 'darts',
    'candidates': [{'name': 'seed_0', 'valid_accuracy': 0.5}],
    'pick': 'seed_0',
    'genotype': spaces.to_json(spaces.published()['DARTS_V2']),
    'parameters': 3,
    'test_accuracies': [0.5],
    'seconds': {'search': 1.0, 'selection': 1.0, 'evaluation': 1.0},
  }
  stages.write({**results, 'methods': [method]}, tmp_path)
  path = tmp_path / 'results.json'
  assert stages.known_methods(path, results, pytest.fail) == [method]
  for content in (b'', b'[]', b'{"methods": [{"name": []}, 3]}', path.read_bytes()[:-9], b'{"methods": ' + b'[' * 9999):
    path.write_bytes(content)
    told = []
    assert stages.known_methods(path, results, told.append) == []
    assert [line for line in told if 'results.json is damaged' in line and '\n' not in line] == told != []
  path.write_text(json.dumps({'methods': [{**method, 'parameters': 'many'}, {**method, 'name': 'mine'}]}))
  assert stages.known_methods(path, results, told.append) == []


def test_a_selection_goes_on_with_the_same_images_only(monkeypatch, tmp_path):
  class Begun(BaseException):
    pass

  def searched(self):
    raise Begun

  monkeypatch.setattr(stages._Selection, 'searched', searched)
  labels = np.arange(200) % 10
  images = {'x_train': np.random.default_rng(0).integers(0, 256, (200, 8, 8), np.uint8), 'y_train': labels}
  path = str(tmp_path / 'mine.npz')
  data = {'search.data.name': 'npz', 'search.data.path': path, 'search.batch_size': 16, 'training.batch_size': 16}
  changed = config(**data, **{'training.data.name': 'npz', 'training.data.path': path})
  np.savez(path, **images, x_test=images['x_train'], y_test=labels)
  for _ in range(2):
    with pytest.raises(Begun):
      selection.run(changed, tmp_path / 'run')
  # Test images are a part of what picks are compared by.
  np.savez(path, **images, x_test=images['x_train'], y_test=labels[::-1])
  with pytest.raises(ValueError, match=r'holds a selection .*config.dataset.training.test.labels: .*: the data of npz'):
    selection.run(changed, tmp_path / 'run')
