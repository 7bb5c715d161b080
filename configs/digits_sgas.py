"""SGAS on scikit-learn's 8×8 handwritten digits: a decision in every epoch, small enough to watch on a laptop.

Command: python -m experiments.search --config=configs/digits_sgas.py
Cells have three nodes, and edges four operations besides none; after each of six decisions a smaller supernet is
compiled.
Cost: some two and a half minutes on 2 CPU cores, nearly all of it compilation; a repeated run takes 40 s. No download.
Should give: a validation accuracy of about 90 % of the supernet that is left in the end.
"""

from ml_collections import ConfigDict

from darts_jax.configs import digits


def get_config() -> ConfigDict:
  """The search on digits in first order, with greedy decisions, in a smaller space."""
  config = digits.get_base()
  config.epochs = 9
  config.space.nodes = 3
  config.space.operations = ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'dil_conv_3x3')
  config.hypergradient = ConfigDict({'name': 'first_order'})
  config.strategy = ConfigDict({'name': 'sgas', 'warmup_epochs': 1, 'decision_frequency': 1, 'batch_growth': 4})
  return config
