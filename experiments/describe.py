"""Counts parameters and multiply-adds of a network: `darts-jax describe`, from a checkout.

python -m experiments.describe --genotype=NAME|PATH
"""

import pathlib
import sys

# For a script, sys.path begins with its folder, whose select.py would hide that of the standard library.
if not __package__:
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from darts_jax.commands.describe import COMMAND
from darts_jax.commands.entry import launch

if __name__ == '__main__':
  launch(COMMAND, 'python -m experiments.describe')
