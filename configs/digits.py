"""A search on scikit-learn's 8×8 handwritten digits, small enough to watch on a laptop.

Command: make search, or python -m experiments.search --config=configs/digits.py --compare=configs/digits_eval.py
Cells have two nodes, and edges no operation of 5×5, which is mostly padding on images of this size. The hypergradient
is exact. The temperature of the softmax over operations falls, so that the mixing weights separate within 24 epochs.
Cost: about a minute on 2 CPU cores, half of it compilation, and as much for the comparison; no download.
Should give: a supernet validation accuracy above 95 %.
"""

from ml_collections import ConfigDict

from darts_jax.configs import cifar


def get_config() -> ConfigDict:
  """A search that comes to a decision within a minute."""
  config = get_base()
  config.epochs = 24
  config.space.nodes = 2
  config.space.operations = ('none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'dil_conv_3x3')
  config.hypergradient = ConfigDict({'name': 'exact'})
  config.strategy = ConfigDict({'name': 'darts', 'temperature': (0.3, 0.1)})
  config.alphas.learning_rate = 0.02
  # On so few images α's gradients become small, and decay would outweigh them.
  config.alphas.weight_decay = 0.0
  return config


def get_base() -> ConfigDict:
  """The paper's search with a small network and larger learning rates, for all searches on these images."""
  config = cifar.get_config()
  config.epochs = 8
  config.batch_size = 32
  config.log_every = 10
  config.data.name = 'digits'
  config.augment.crop_padding = 1
  config.augment.flip = False
  config.network.channels = 8
  config.network.layers = 3
  config.weights.learning_rate = 0.05
  config.alphas.learning_rate = 3e-3
  return config
