"""A small search of DARTS on NAS-Bench-201 with scikit-learn's handwritten digits, first order.

Command: python -m experiments.search --config=configs/nasbench201_tiny_darts.py
On a part of CIFAR-10: --config.data.name=cifar10 --config.data.dir=DIR --config.data.num_images=3000
--config.augment.flip --config.augment.crop_padding=4 --config.epochs=3
Second order: configs/nasbench201_tiny_darts_second.py.
Cost: a minute on 2 CPU cores, half of it compilation; no download.
Should give: a supernet validation accuracy above 94 %.
"""

from ml_collections import ConfigDict

from darts_jax.configs import nasbench201_darts


def get_config() -> ConfigDict:
  """The search of configs/nasbench201_darts.py with three cells instead of fifteen, and larger learning rates."""
  config = nasbench201_darts.get_config()
  config.epochs = 10
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
