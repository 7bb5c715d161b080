"""A search on MNIST, 28×28, with a small network.

Command: python -m experiments.search --config=configs/mnist.py --config.data.dir=DIR
DIR holds the four idx files, compressed or not; --config.data.download=True fetches them into it.
Cost: one epoch of 468 steps, 5 minutes on 2 CPU cores, after 50 seconds of compilation.
Should give: 96.75 % validation accuracy in the supernet with seed 0.
"""

from ml_collections import ConfigDict

from darts_jax.configs import cifar


def get_config() -> ConfigDict:
  """The paper's search in first order, with a small network and without flips, which would change digits."""
  config = cifar.get_config()
  config.epochs = 1
  config.data.name = 'mnist'
  config.augment.crop_padding = 2
  config.augment.flip = False
  config.network.channels = 4
  config.network.layers = 3
  config.hypergradient = ConfigDict({'name': 'first_order'})
  return config
