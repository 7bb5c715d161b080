"""PC-DARTS on scikit-learn's 8×8 handwritten digits, small enough to watch on a laptop.

Command: python -m experiments.search --config=configs/digits_pc_darts.py
Cells have three nodes; α and the weights of edges are updated from the fifth epoch on.
Cost: two minutes on 2 CPU cores, more than half of it compilation; no download.
Should give: a validation accuracy of 97.36 % in the supernet with seed 0.
"""

from ml_collections import ConfigDict

from darts_jax.configs import digits


def get_config() -> ConfigDict:
  """The search on digits in first order, with a quarter of the channels and a late start of α."""
  config = digits.get_base()
  config.epochs = 15
  config.network.channels = 16
  config.space.nodes = 3
  config.alphas.from_epoch = 4
  config.hypergradient = ConfigDict({'name': 'first_order'})
  config.strategy = ConfigDict({'name': 'pc_darts'})
  return config
