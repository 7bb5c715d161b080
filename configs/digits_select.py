"""The paper's whole protocol on scikit-learn's 8×8 digits: search, select, train, and compare with random cells.

Command: python -m experiments.select --config=configs/digits_select.py
Cost: about seven minutes on 2 CPU cores, most of it compilation; no download.
Should give: test accuracies around 98 % for all methods; digits are too easy to distinguish them.
"""

from ml_collections import ConfigDict

from darts_jax.configs import digits, digits_eval


def get_config() -> ConfigDict:
  """Three searches, brief trainings of a third of the epochs, and networks that are small enough to compare cells."""
  config = ConfigDict()
  config.searches = 3
  config.selection_epochs = 7
  config.trainings = 3
  config.random_architectures = 3
  config.random_search = True
  config.random_candidates = 8
  config.search = digits.get_base()
  config.training = digits_eval.get_config()
  config.training.epochs = 20
  config.training.network.channels = 4
  config.training.network.layers = 3
  # First order compiles in half the time, and this config is about the protocol.
  config.search.hypergradient = ConfigDict({'name': 'first_order'})
  return config
