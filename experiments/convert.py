"""Converts a checkpoint of the published PyTorch code: `darts-jax convert`, from a checkout.

python -m experiments.convert --weights=FILE --genotype=NAME|PATH --workdir=DIR --dataset=NAME
"""

import pathlib
import sys

# For a script, sys.path begins with its folder, whose select.py would hide that of the standard library.
if not __package__:
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from darts_jax.commands.convert import COMMAND
from darts_jax.commands.entry import launch

if __name__ == '__main__':
  launch(COMMAND, 'python -m experiments.convert')
