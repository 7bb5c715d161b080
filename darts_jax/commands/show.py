"""Prints a config of the package, for a file of one's own: `darts-jax show digits > mine.py`."""

from darts_jax.commands import named
from darts_jax.commands.entry import Command
from darts_jax.runtime.terminal import show


def run(name: str) -> int:
  """Prints the file of a config; returns the exit code."""
  found = named.paths()
  if name not in found:
    raise ValueError(named.unknown(name))
  show(found[name].read_text(encoding='utf-8').rstrip('\n'))
  return 0


COMMAND = Command(run, 'NAME', 'digits', config='none', positional='name')
