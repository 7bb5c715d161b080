"""A random search on scikit-learn's 8×8 handwritten digits: what any search has to beat.

Six cells are drawn, each is trained from scratch as configs/digits_eval.py does, and the best by validation is tested.
Command: python -m experiments.search --config=configs/digits_random.py
Cost: some two minutes on 2 CPU cores, nearly all of it compilation; no download.
Should give: a validation accuracy of the best around 95 % (of the six, from 89.6 to 95.1 %), and about as much on the
test images (95.8 %).
"""

from ml_collections import ConfigDict

from configs import digits, digits_eval


def get_config() -> ConfigDict:
  """Cells of the search in configs/digits.py, each trained as configs/digits_eval.py does, shorter and smaller."""
  config = ConfigDict()
  config.seed = 0
  config.strategy = 'random'
  config.space = digits.get_config().space
  config.architectures = 6
  config.training = digits_eval.get_config()
  # It is that of the search.
  del config.training.seed
  config.training.epochs = 10
  # A tenth would be 144 images, too few to tell cells apart.
  config.training.data.validation_fraction = 0.2
  config.training.network.channels = 4
  config.training.network.layers = 3
  return config
