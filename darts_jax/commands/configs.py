"""Lists the configs of the package, with a line each."""

from darts_jax.commands import named
from darts_jax.commands.entry import Command
from darts_jax.runtime.terminal import aligned, show


def run() -> int:
  """Prints name, command and first line of every config; returns the exit code."""
  configs = {name: named.read(path) for name, path in named.paths().items()}
  for line in aligned([(name, each.command, each.summary) for name, each in configs.items()], 3):
    show(line)
  return 0


COMMAND = Command(run, '', '', config='none')
