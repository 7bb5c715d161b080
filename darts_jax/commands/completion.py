"""Prints a script with which a shell completes these commands, for `darts-jax completion bash > FILE`."""

import argparse
import importlib
import re
from collections.abc import Callable, Iterable

import shtab

from darts_jax import spaces
from darts_jax.commands import COMMANDS, named
from darts_jax.commands.entry import Command, describe
from darts_jax.commands.main import PROGRAM
from darts_jax.runtime.files import one_line
from darts_jax.runtime.terminal import show

SHELLS = ('bash', 'zsh', 'fish')
# Flags whose values are names or paths of files, with all names.
_NAMED: dict[str, Callable[[], Iterable[str]]] = {
  'config': named.paths,
  'compare': named.paths,
  'genotype': spaces.published,
}
# Flags whose values are paths.
_PATHS = {'weights': shtab.FILE, 'output': shtab.FILE, 'draw': shtab.FILE, 'workdir': shtab.DIR, 'table': shtab.DIR}


# Bash takes `--config=digits` for three words, of which the function of shtab expects two.
_REGISTERED = 'complete -o bashdefault -F _shtab_darts_jax darts-jax'
_JOINED = """
_darts_jax() {
  local words=() at=0 i
  for i in "${!COMP_WORDS[@]}"; do
    if [[ "${COMP_WORDS[i]}" != = ]]; then words+=("${COMP_WORDS[i]}"); elif ((i == COMP_CWORD)); then words+=(""); fi
    if ((i == COMP_CWORD)); then at=$((${#words[@]} - 1)); fi
  done
  COMP_WORDS=("${words[@]}") COMP_CWORD=$at
  _shtab_darts_jax "$@"
}
complete -o bashdefault -F _darts_jax darts-jax"""


def run(shell: str) -> int:
  """Prints the script for a shell; returns the exit code."""
  if shell not in SHELLS:
    raise ValueError(f'SHELL: {one_line(shell)} is not known; allowed are {", ".join(SHELLS)}')
  script = shtab.complete(_parser(), shell)
  if shell == 'bash':
    script = _JOINED.join(script.rsplit(_REGISTERED, 1))
  elif shell == 'zsh':
    # A flag with a value, which may be joined to it by =.
    script = re.sub(r'"(--[\w.]+)(\[[^"\n]*\]:)', r'"\1=\2', script)
  show(script)
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
      if action.dest in _NAMED:
        action.complete = _names_and_files(action.dest, _NAMED[action.dest]())  # type: ignore[attr-defined]
      elif action.dest == 'name':
        action.choices = list(named.paths())
      elif action.dest == 'shell':
        action.choices = list(SHELLS)
      elif action.dest in _PATHS:
        action.complete = _PATHS[action.dest]  # type: ignore[attr-defined]
  return made


def _names_and_files(of: str, found: Iterable[str]) -> dict[str, object]:
  """Completes a name, or the path of a file."""
  names = ' '.join(found)
  return {
    'bash': f'_darts_jax_{of}',
    'zsh': f'_darts_jax_{of}',
    'fish': f'(string split " " "{names}"; __fish_complete_path (commandline -ct))',
    'preamble': {
      'bash': f'_darts_jax_{of}() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
      # A colon would end what `_arguments` takes for the action.
      'zsh': f"_darts_jax_{of}() {{ _alternative 'names:name:({names})' 'files:file:_files' }}",
    },
  }


COMMAND = Command(run, 'SHELL', 'bash', config='none', positional='shell')
