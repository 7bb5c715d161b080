"""Prints a script with which a shell completes these commands, for `darts-jax completion bash > FILE`."""

import argparse
import importlib

import shtab

from darts_jax.commands import COMMANDS, named
from darts_jax.commands.entry import Command, describe
from darts_jax.commands.main import PROGRAM
from darts_jax.runtime.files import one_line
from darts_jax.runtime.terminal import show

SHELLS = ('bash', 'zsh', 'fish')
# Flags whose values are paths.
_PATHS = {'weights': shtab.FILE, 'output': shtab.FILE, 'draw': shtab.FILE, 'workdir': shtab.DIR, 'table': shtab.DIR}


def run(shell: str) -> int:
  """Prints the script for a shell; returns the exit code."""
  if shell not in SHELLS:
    raise ValueError(f'SHELL: {one_line(shell)} is not known; allowed are {", ".join(SHELLS)}')
  show(shtab.complete(_parser(), shell))
  return 0


def _parser() -> argparse.ArgumentParser:
  """Describes all commands as those of one program."""
  made = argparse.ArgumentParser(prog=PROGRAM)
  made.add_argument('--version', action='store_true', help='says the version')
  commands = made.add_subparsers()
  for name, text in COMMANDS.items():
    command: Command = importlib.import_module(f'darts_jax.commands.{name}').COMMAND
    parser = commands.add_parser(name, help=text)
    describe(parser, command, f'{PROGRAM} {name}')
    for action in parser._actions:
      if action.dest == 'config':
        action.complete = _configs()  # type: ignore[attr-defined]
      elif action.dest == 'name':
        action.choices = list(named.paths())
      elif action.dest == 'shell':
        action.choices = list(SHELLS)
      elif action.dest in _PATHS:
        action.complete = _PATHS[action.dest]  # type: ignore[attr-defined]
  return made


def _configs() -> dict[str, object]:
  """Completes the name of a config of the package, or the path of a file."""
  names = ' '.join(named.paths())
  return {
    'bash': '_darts_jax_configs',
    'zsh': f"_alternative 'configs:config:({names})' 'files:file:_files'",
    'fish': f'(string split " " "{names}"; __fish_complete_path (commandline -ct))',
    'preamble': {'bash': f'_darts_jax_configs() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}'},
  }


COMMAND = Command(run, 'SHELL', 'bash', config='none', positional='shell')
