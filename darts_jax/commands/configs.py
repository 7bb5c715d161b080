"""Lists the configs of the package, with a line each."""

from darts_jax.commands import named
from darts_jax.commands.entry import Command
from darts_jax.runtime.terminal import show


def run() -> int:
  """Prints name, command and first line of every config; returns the exit code."""
  configs = {name: named.read(path) for name, path in named.paths().items()}
  widths = [
    max(map(len, texts)) for texts in zip(*((name, each.command) for name, each in configs.items()), strict=True)
  ]
  for name, each in configs.items():
    show(f'{name:{widths[0]}}  {each.command:{widths[1]}}  {each.summary}')
  return 0


COMMAND = Command(run, '', '', config='none')
