"""RobustDARTS on scikit-learn's 8×8 handwritten digits, small enough to watch on a laptop.

Command: python -m experiments.search --config=configs/digits_robust_darts.py
Cells have three nodes, and every edge has the identity and a separable convolution, which is S2 of the paper. When the
curvature of the loss in α has risen, the search goes back and on with a larger weight decay; with
--config.strategy.weight_decays="()" it stops instead.
Cost: two to three minutes on 2 CPU cores, almost one of it compilation if nothing is cached; no download.
Should give: with seed 0, mean curvatures that rise from 0.11 to 0.20, and with the first larger decay to 0.16; both
times the search goes back to epoch 11. In the end the supernet has a validation accuracy of 98.61 %.
"""

from ml_collections import ConfigDict

from darts_jax.configs import digits


def get_config() -> ConfigDict:
  """The search on digits in first order, with adaptive regularisation, in a space that invites DARTS to degenerate."""
  config = digits.get_base()
  config.epochs = 40
  config.space = ConfigDict({'name': 'robust', 'subspace': 's2', 'nodes': 3})
  config.alphas.learning_rate = 0.01
  config.hypergradient = ConfigDict({'name': 'first_order'})
  config.strategy = ConfigDict({'name': 'robust_darts', 'weight_decays': (3e-3, 3e-2)})
  return config
