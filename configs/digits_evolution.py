"""Regularised evolution on scikit-learn's 8×8 handwritten digits: cells are mutated, each is trained from scratch.

Command: python -m experiments.search --config=configs/digits_evolution.py
Two trainings at a time, each in its own process: --config.workers=2.
Cost: some three minutes on 2 CPU cores, nearly all of it compilation; no download.
Should give: a best validation accuracy of around 96.5 % (all ten are from 92.0 to 96.5 %), and a test accuracy of about
as much (96.4 %).
"""

from ml_collections import ConfigDict

from darts_jax.configs import digits_random


def get_config() -> ConfigDict:
  """Four random cells, then children of the better of two; the trainings are those of configs/digits_random.py."""
  config = digits_random.get_config()
  config.strategy = ConfigDict({'name': 'regularized_evolution', 'population': 4, 'sample_size': 2})
  config.trials = 10
  return config
