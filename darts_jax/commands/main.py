"""Finds the command that `darts-jax NAME` names."""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from darts_jax import __version__
from darts_jax.commands import COMMANDS
from darts_jax.runtime.files import one_line
from darts_jax.runtime.terminal import OutputError, complain_of_output, prepare_streams, say, settle_streams, show

PROGRAM = 'darts-jax'


def main(arguments: Sequence[str] | None = None) -> NoReturn:
  """Runs a command line and exits with its code; without a name it lists the commands.

  Args:
    arguments: what follows `darts-jax`; those of this process by default.
  """
  name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ['--help']
  if name in COMMANDS:
    # Each takes a second or more to import.
    from darts_jax.commands.entry import launch

    launch(importlib.import_module(f'darts_jax.commands.{name}').COMMAND, f'{PROGRAM} {name}', rest)
  prepare_streams()
  try:
    sys.exit(_without_a_command(name))
  finally:
    settle_streams()


def _without_a_command(name: str) -> int:
  """Answers flags of the program itself and refuses all others; returns the exit code."""
  text = {'--version': f'{PROGRAM} {__version__}', **dict.fromkeys(('--help', '-h', 'help'), overview())}.get(name)
  if text is not None:
    try:
      show(text)
    except OutputError as error:
      return complain_of_output(error)
    return 0
  close = difflib.get_close_matches(name, COMMANDS, 1)
  meant = f' (did you mean {close[0]}?)' if close else ''
  say(f'error: {one_line(name) or repr(name)} is no command{meant}; commands are {", ".join(COMMANDS)}')
  return 2


def overview() -> str:
  """All commands with a line each."""
  width = max(map(len, COMMANDS))
  lines = [f'usage: {PROGRAM} COMMAND [flags]', '', *(f'  {name:{width}}  {text}' for name, text in COMMANDS.items())]
  return '\n'.join([*lines, '', f'{PROGRAM} COMMAND --help lists flags, {PROGRAM} --version says the version'])
