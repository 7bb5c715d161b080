"""A search on MNIST, 28×28.

Command: python -m experiments.search --config=configs/mnist.py --config.data.dir=DIR
DIR holds the four idx files, packed or not; --config.data.download=True fetches them into it.
"""

from ml_collections import ConfigDict

from configs import cifar


def get_config() -> ConfigDict:
  """The paper's search with a smaller network and without mirroring, which would change digits."""
  config = cifar.get_config()
  config.epochs = 5
  config.data.name = 'mnist'
  config.augment.crop_padding = 2
  config.augment.flip = False
  config.network.channels = 8
  config.network.layers = 5
  config.hypergradient.name = 'first_order'
  return config
