"""Trains the network of an architecture from scratch and tests it: `darts-jax train`, from a checkout.

python -m experiments.train --config=configs/digits_eval.py --genotype=NAME|PATH [--seeds=N] [--workdir=DIR]
"""

import pathlib
import sys

# For a script, sys.path begins with its folder, whose select.py would hide that of the standard library.
if not __package__:
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from darts_jax.commands.entry import launch
from darts_jax.commands.train import COMMAND

if __name__ == '__main__':
  launch(COMMAND, 'python -m experiments.train')
