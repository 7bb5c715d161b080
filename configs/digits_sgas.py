"""SGAS on scikit-learn's 8×8 handwritten digits: a decision an epoch, small enough to watch on a laptop.

Command: python -m experiments.search --config=configs/digits_sgas.py
Three nodes and four operations besides none; each of six decisions makes a smaller supernet, which is compiled anew.
Cost: some two and a half minutes on 2 CPU cores, nearly all of it compilation; a repeated run takes 40 s. No download.
Should give: a validation accuracy of about 90 % in what is left of the supernet in the end.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
  """The search on digits, greedy and in first order, in a smaller space."""
  config = digits.get_config()
  config.epochs = 9
  config.space.nodes = 3
  config.space.operations = ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'dil_conv_3x3')
  config.hypergradient = ConfigDict({'name': 'first_order'})
  config.strategy = ConfigDict({'name': 'sgas', 'warmup_epochs': 1, 'decision_frequency': 1, 'batch_growth': 4})
  return config
