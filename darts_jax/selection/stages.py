"""The stages of a selection: searches, brief trainings, full trainings. Every run in them can be resumed."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from darts_jax import search as searches
from darts_jax import spaces, training
from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.files import one_line, read_object, user_path
from darts_jax.runtime.lock import locked
from darts_jax.runtime.workdir import claim, named_errors
from darts_jax.selection import page
from darts_jax.selection.random_cells import random_genotype
from darts_jax.selection.settings import Selection, checked
from darts_jax.settings import as_config, build
from darts_jax.spaces import Genotype
from darts_jax.training import comparison
from darts_jax.training.comparison import Interrupted

Json = dict[str, Any]


class _Candidate(NamedTuple):
  """An architecture, its validation accuracy after brief training, and the seconds of its search and brief training."""

  name: str
  genotype: Genotype
  valid_accuracy: float
  search_seconds: float
  selection_seconds: float


def run(
  config: Mapping[str, Any], workdir: str | pathlib.Path, note: Callable[[str], None] = lambda message: None
) -> Json:
  """Searches, selects and trains, or resumes the selection in `workdir`.

  Args:
    config: fields of `darts_jax.selection.settings.Selection`, as nested mappings or `ConfigDict`.
    workdir: working directory; gets `results.json`, `results.md`, `report.html`, and a folder for every run:
      `search/…`, `candidates/…`, `final/…`.
    note: called with a message when a run begins.

  Returns:
    The content of `results.json`: for each method the candidates, the pick and its test accuracies.

  Raises:
    ValueError: a setting, the data or the directory cannot be used.
    Interrupted: a signal ended a run; the same call resumes it.
    Diverged: a loss or gradient was not finite.
  """
  settings = build(Selection, config)
  workdir = user_path(workdir, '--workdir')
  with locked(workdir):
    return _run(settings, workdir, note)


def _run(settings: Selection, workdir: pathlib.Path, note: Callable[[str], None]) -> Json:
  # All settings and data are checked before the first stage, so that no later stage fails because of them.
  searched = checked('config.search', searches.check, settings.search)
  parts, trained = checked('config.training', training.check, settings.training)
  if 'test' not in parts:
    raise ValueError('config.training.data: has no test images; picks are compared by them in the end')
  dataset = {'search': searched, 'training': trained}
  claim(workdir, {**as_config(settings), 'dataset': dataset}, 'selection')
  selection = _Selection(settings, workdir, note)
  results: Json = {
    'settings': {
      'searches': settings.searches,
      'selection_epochs': settings.selection_epochs,
      'trainings': settings.trainings,
      'epochs': settings.training.epochs,
      'search_epochs': settings.search.epochs,
      'strategy': settings.search.strategy.name,
      'hypergradient': settings.search.hypergradient.name,
      'data': settings.training.data.name,
      'validation_fraction': settings.training.data.validation_fraction,
    },
    'methods': [],
  }
  if (workdir / 'results.json').exists():
    # Methods are replaced one by one; until then the page shows their earlier results.
    results['methods'] = known_methods(workdir / 'results.json', results, note)

  def add(method: Json) -> None:
    names = [known['name'] for known in results['methods']]
    if method['name'] in names:
      results['methods'][names.index(method['name'])] = method
    else:
      results['methods'].append(method)
    write(results, workdir)

  found = selection.searched()
  add(selection.method(settings.search.strategy.name, found))
  if settings.random_search:
    candidates = selection.randomly_searched(found)
    limited = len(candidates) == settings.random_candidates
    add({**selection.method('random search', candidates), 'limited': limited})
  if settings.random_architectures:
    add(selection.random_architectures())
  return results


def known_methods(path: pathlib.Path, results: Json, note: Callable[[str], None]) -> list[Json]:
  """Reads the methods of an earlier call; none if the file is damaged, since the runs can give them again.

  Args:
    path: path of `results.json`.
    results: the results so far, with the settings.
    note: called with a message if the file is damaged.
  """
  names = (results['settings']['strategy'], 'random search', 'random architectures')
  try:
    methods = [method for method in read_object(path)['methods'] if method['name'] in names]
    page.render({**results, 'methods': methods})
    page.markdown({**results, 'methods': methods})
  except Exception as error:  # A damaged file can fail in many ways.
    note(f'{path.name} is damaged ({one_line(error)}) and written again')
    return []
  return methods


def write(results: Json, workdir: pathlib.Path) -> None:
  """Writes `results.json`, `results.md` and `report.html` to the working directory."""
  files = {
    'results.json': json.dumps(results, indent=1) + '\n',
    'results.md': page.markdown(results),
    'report.html': page.render(results),
  }
  with named_errors(workdir):
    for name, text in files.items():
      write_whole(workdir / name, text.encode())


class _Selection:
  def __init__(self, settings: Selection, workdir: pathlib.Path, note: Callable[[str], None]) -> None:
    self._settings = settings
    self._workdir = workdir
    self._note = note

  def searched(self) -> list[_Candidate]:
    """The architectures that the searches found, each trained briefly."""
    settings = self._settings
    found: list[tuple[str, Genotype, float]] = []
    for seed in range(settings.search.seed, settings.search.seed + settings.searches):
      self._note(f'search {len(found) + 1} of {settings.searches}')
      folder = self._workdir / 'search' / f'seed_{seed}'
      [result] = searches.run_side_by_side(as_config(dataclasses.replace(settings.search, seed=seed)), folder)
      if result.interrupted or not result.finished:
        raise Interrupted(f'the search with seed {seed} was interrupted; the same command goes on with it')
      found.append((f'seed_{seed}', result.genotype, comparison.seconds(folder)))
    return [self._briefly_trained(*each) for each in found]

  def randomly_searched(self, found: Sequence[_Candidate]) -> list[_Candidate]:
    """Random architectures, each trained briefly, as many as fit into the time spent on `found`."""
    settings = self._settings
    budget = sum(candidate.search_seconds + candidate.selection_seconds for candidate in found)
    candidates: list[_Candidate] = []
    while len(candidates) < settings.random_candidates:
      number = len(candidates)
      # Another one begins if its expected time, the mean so far, still fits into the budget.
      spent = sum(candidate.selection_seconds for candidate in candidates)
      if number and spent + spent / number > budget:
        break
      genotype = random_genotype(settings.search.space, settings.training.seed, number)
      candidates.append(self._briefly_trained(f'random_{number}', genotype, 0.0))
    return candidates

  def method(self, name: str, candidates: Sequence[_Candidate]) -> Json:
    """Selects a candidate by validation accuracy, and trains and tests it."""
    # The first one, if several are equally accurate.
    pick = max(candidates, key=lambda candidate: candidate.valid_accuracy)
    tests, seconds = [], 0.0
    for i in range(self._settings.trainings):
      settings = self._settings.training
      settings = dataclasses.replace(settings, seed=settings.seed + i)
      self._note(f'{name}: training {i + 1} of {self._settings.trainings} of the pick')
      folder = self._workdir / 'final' / name.replace(' ', '_') / f'seed_{settings.seed}'
      tests.append(comparison.train(settings, pick.genotype, folder).test_accuracy)
      seconds += comparison.seconds(folder)
    return {
      'name': name,
      'candidates': [
        {
          'name': candidate.name,
          'genotype': spaces.to_json(candidate.genotype),
          'valid_accuracy': candidate.valid_accuracy,
        }
        for candidate in candidates
      ],
      'pick': pick.name,
      'genotype': spaces.to_json(pick.genotype),
      'parameters': self._num_weights(pick.genotype),
      'test_accuracies': tests,
      'seconds': {
        'search': sum(candidate.search_seconds for candidate in candidates),
        'selection': sum(candidate.selection_seconds for candidate in candidates),
        'evaluation': seconds,
      },
    }

  def random_architectures(self) -> Json:
    """Random architectures, each fully trained once, without any selection."""
    settings = self._settings.training
    tests, seconds = [], 0.0
    for number in range(self._settings.random_architectures):
      # These numbers differ from those of the candidates, so that the architectures are others.
      genotype = random_genotype(self._settings.search.space, settings.seed, 10**6 + number)
      self._note(f'random architecture {number + 1} of {self._settings.random_architectures}')
      folder = self._workdir / 'final' / 'random_architectures' / str(number)
      tests.append(comparison.train(settings, genotype, folder).test_accuracy)
      seconds += comparison.seconds(folder)
    return {
      'name': 'random architectures',
      'candidates': [],
      'pick': None,
      'genotype': None,
      'parameters': None,
      'test_accuracies': tests,
      'seconds': {'search': 0.0, 'selection': 0.0, 'evaluation': seconds},
    }

  def _briefly_trained(self, name: str, genotype: Genotype, search_seconds: float) -> _Candidate:
    self._note(f'brief training of {name}')
    folder = self._workdir / 'candidates' / name
    found = comparison.compare(self._settings.brief, genotype, folder, self._note)
    return _Candidate(name, genotype, found.valid_accuracy, search_seconds, found.seconds)

  def _num_weights(self, genotype: Genotype) -> int:
    model = training.Model.read(self._workdir / 'final' / self._settings.search.strategy.name / self._first_seed)
    return dataclasses.replace(model, genotype=genotype).num_weights

  @property
  def _first_seed(self) -> str:
    return f'seed_{self._settings.training.seed}'
