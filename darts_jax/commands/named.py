"""The configs of the package by name, without running them."""

import ast
import difflib
import importlib
import pathlib
import re
from typing import NamedTuple

from darts_jax.runtime.files import one_line, user_path


class Named(NamedTuple):
  """A config of the package.

  Attributes:
    path: its file.
    command: the command that it is for.
    summary: the first line of its docstring.
    cost: what its docstring says about time and downloads; empty if it says nothing.
  """

  path: pathlib.Path
  command: str
  summary: str
  cost: str

  @property
  def line(self) -> str:
    """What it is and costs, in one line; empty if it does not say what it costs."""
    return one_line(f'{self.path.stem}: {self.summary} Cost: {self.cost}') if self.cost else ''


def paths() -> dict[str, pathlib.Path]:
  """The files of the package's configs by name, in the order of their names."""
  folders = importlib.import_module('darts_jax.configs').__path__
  found = [path for folder in folders for path in pathlib.Path(folder).glob('[!_]*.py')]
  return {path.stem: path for path in sorted(found)}


def read(path: pathlib.Path) -> Named:
  """Reads what the docstring of a config says about it."""
  text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
  command = re.search(r'experiments\.(\w+)', text)
  cost = re.search(r'^Cost: (.*?)(?=^[A-Z][a-z ]*:|\Z)', text, re.MULTILINE | re.DOTALL)
  return Named(path, command[1] if command else '', text.partition('\n')[0], ' '.join(cost[1].split()) if cost else '')


def find_config(name_or_path: str, flag: str = '--config') -> pathlib.Path:
  """Returns the path of a config file, given to a flag as such or as the name of a config of the package.

  Raises:
    ValueError: there is no such file and no such config.
  """
  path = user_path(name_or_path, flag)
  if path.is_file():
    return path
  own = paths()
  if name_or_path in own:
    return own[name_or_path]
  if path.stem in own and path.suffix == '.py':
    raise ValueError(f'{flag}: {path}: no such file; the config of the package is {flag}={path.stem}')
  if path.suffix or path.name != name_or_path:
    raise ValueError(f'{flag}: {path}: no such file')
  if path.with_suffix('.py').is_file():
    raise ValueError(f'{flag}: {path}: no such file; did you mean {path}.py?')
  raise ValueError(f'{flag}: {unknown(name_or_path)}')


def about(name_or_path: str) -> Named:
  """What a config that has been run says about itself, which is nothing if it cannot be parsed as UTF-8."""
  path = find_config(name_or_path)
  try:
    return read(path)
  except (OSError, SyntaxError, ValueError):
    return Named(path, '', '', '')


def unknown(name: str) -> str:
  """Says that there is no config of a name, and which is meant if one is like it."""
  close = difflib.get_close_matches(name, paths(), 1)
  meant = f' (did you mean {close[0]}?)' if close else ''
  return (
    f'{one_line(name) or repr(name)} is no file and no config of the package{meant}; `darts-jax configs` lists them'
  )
