"""What the documents and docstrings say is there."""

import importlib
import inspect
import pathlib
import re

import pytest

from darts_jax.hypergradient import ESTIMATORS, settings, unrolled
from darts_jax.hypergradient.settings import HYPERGRADIENTS

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])
FOLDERS = ('darts_jax', 'experiments', 'benchmarks', 'configs')
TEXTS = sorted([*DOCUMENTS, *(path for folder in FOLDERS for path in ROOT.glob(f'{folder}/**/*.py'))])


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_whole(path):
  """A row belongs to a header, or the row before it does."""
  lines = ['', *path.read_text(encoding='utf-8').splitlines(), '']
  for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
    if line.startswith('|') and not before.startswith('|'):
      assert re.match(r'\|( *:?-+:? *\|)+$', after), line


def resolves(name):
  parts = name.split('.')
  for count in range(len(parts), 0, -1):
    try:
      found = importlib.import_module('.'.join(parts[:count]))
    except ModuleNotFoundError:
      continue
    for part in parts[count:]:
      # Attributes of instances are declared in the class.
      if not hasattr(found, part) and part not in getattr(found, '__annotations__', {}):
        return False
      found = getattr(found, part, None)
    return True
  return False


def test_names_in_documents_and_docstrings_exist():
  named = {
    (path.relative_to(ROOT), name)
    for path in TEXTS
    for name in re.findall(r'`(darts_jax(?:\.\w+)+)`', path.read_text(encoding='utf-8'))
  }
  assert len(named) > 50
  assert [(str(path), name) for path, name in sorted(named) if not resolves(name)] == []


def test_an_estimator_has_the_same_defaults_by_itself_and_in_a_config():
  assert list(HYPERGRADIENTS) == list(ESTIMATORS)
  for name, function in ESTIMATORS.items():
    defaults = {field: parameter.default for field, parameter in inspect.signature(function).parameters.items()}
    assert (HYPERGRADIENTS[name].name, HYPERGRADIENTS[name]().fields) == (name, defaults)
  assert unrolled().cost == HYPERGRADIENTS['unrolled']().estimator().cost


def test_a_config_makes_its_estimator_as_everybody_does(monkeypatch):
  monkeypatch.setattr(settings, 'make', lambda name, fields: (name, fields))
  assert HYPERGRADIENTS['unrolled']().estimator() == ('unrolled', {'steps': 4})
