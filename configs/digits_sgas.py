"""SGAS on scikit-learn's 8×8 handwritten digits: a decision an epoch, small enough to watch on a laptop.

Command: python -m experiments.search --config=configs/digits_sgas.py
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
  """The search on digits, greedy and in first order."""
  config = digits.get_config()
  config.strategy = 'sgas'
  config.epochs = 10
  config.hypergradient.name = 'first_order'
  config.sgas.criterion = 1
  config.sgas.warmup_epochs = 1
  config.sgas.decision_frequency = 1
  config.sgas.batch_growth = 4
  return config
