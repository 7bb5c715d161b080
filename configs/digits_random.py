"""A random search on scikit-learn's 8×8 handwritten digits, as a baseline for other searches.

Six cells are drawn, each is trained from scratch as configs/digits_eval.py does, and the best by validation is tested.
Command: python -m experiments.search --config=configs/digits_random.py
Cost: some two minutes on 2 CPU cores, nearly all of it compilation; no download.
Should give: a best validation accuracy of around 96 % (all six are from 93.4 to 95.8 %), and a test accuracy of about
as much (95.3 %).
"""

from ml_collections import ConfigDict

from darts_jax.configs import digits, digits_eval


def get_config() -> ConfigDict:
  """Cells of the search in configs/digits.py, each trained as configs/digits_eval.py does, shorter and smaller."""
  config = ConfigDict()
  config.seed = 0
  config.space = digits.get_base().space
  config.strategy = ConfigDict({'name': 'random_search'})
  config.trials = 6
  config.workers = 1
  config.tell = 'as_completed'
  config.evaluator = digits_eval.get_config()
  config.evaluator.name = 'scratch'
  # The evaluator has the seed of the search.
  del config.evaluator.seed
  config.evaluator.epochs = 10
  # A tenth would be 144 images, too few to tell cells apart.
  config.evaluator.data.validation_fraction = 0.2
  config.evaluator.network.channels = 4
  config.evaluator.network.layers = 3
  return config
