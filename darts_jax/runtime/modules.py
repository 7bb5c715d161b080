"""Imports a user's own modules by name, for `--import=MODULE` of commands and their child processes."""

import importlib
import pathlib
import sys
import traceback
from collections.abc import Sequence

from darts_jax.runtime.files import one_line

_imported: list[str] = []


def imported() -> tuple[str, ...]:
  """Names of the modules that `import_modules` has imported, in order."""
  return tuple(_imported)


def import_modules(names: Sequence[str]) -> None:
  """Imports modules, also from the current folder; they add operations, spaces, strategies or tasks.

  Raises:
    ValueError: there is no such module, or importing it raises an error; one line.
  """
  for name in names:
    folder = str(pathlib.Path.cwd())
    if folder not in sys.path:
      sys.path.append(folder)
    try:
      importlib.import_module(name)
    except ModuleNotFoundError as error:
      if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
        raise ValueError(f'--import: {one_line(name)}: {_described(error)}') from error
      raise ValueError(
        f'--import: {one_line(name)}: no such module; it is looked for in the current folder, and where Python does'
      ) from error
    except (Exception, SystemExit) as error:  # A user's module may raise anything.
      raise ValueError(f'--import: {one_line(name)}: {_described(error)}') from error
    if name not in _imported:
      _imported.append(name)


def _described(error: BaseException) -> str:
  """Describes an error in one line, with the file and line where it was raised."""
  ours = (__file__, importlib.__file__)
  frames = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if not frame.filename.startswith('<frozen') and frame.filename not in ours
  ]
  place = f'{frames[-1].filename}, line {frames[-1].lineno}: ' if frames else ''
  try:
    return f'{place}{type(error).__name__}: {one_line(error)}'
  except Exception:  # The `__str__` of a user's exception may fail.
    return f'{place}{type(error).__name__}'
