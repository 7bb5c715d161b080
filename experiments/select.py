"""Searches with several seeds and trains the pick: `darts-jax select`, from a checkout.

python -m experiments.select --config=configs/digits_select.py [--workdir=DIR] [--config.FIELD=VALUE ...]
"""

import pathlib
import sys

# For a script, sys.path begins with its folder, whose select.py would hide that of the standard library.
if not __package__:
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from darts_jax.commands.entry import launch
from darts_jax.commands.select import COMMAND

if __name__ == '__main__':
  launch(COMMAND, 'python -m experiments.select')
