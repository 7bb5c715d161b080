"""A found cell trained from scratch on scikit-learn's 8×8 handwritten digits, within minutes on a laptop.

Command: make evaluate, or python -m experiments.train --config=configs/digits_eval.py --genotype=DARTS_V2 --seeds=3
Cost: less than five minutes for three seeds on 2 CPU cores; no download.
Should give: a mean test accuracy above 97 %.
"""

from ml_collections import ConfigDict

from darts_jax.configs import cifar_eval


def get_config() -> ConfigDict:
  """The paper's evaluation with a small network."""
  config = cifar_eval.get_config()
  config.epochs = 30
  config.batch_size = 64
  config.log_every = 10
  config.data.name = 'digits'
  config.augment.crop_padding = 1
  config.augment.flip = False
  config.augment.cutout = 2
  config.network.channels = 8
  config.network.layers = 5
  # Two pixels a side are too few for the auxiliary head.
  config.network.auxiliary = False
  config.network.drop_path = 0.1
  config.weights.learning_rate = 0.1
  return config
