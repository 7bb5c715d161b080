"""The CIFAR-10 search of SGAS [SGAS §4.1]: one edge of every cell is decided at a time, and the supernet shrinks.

Command: python -m experiments.search --config=configs/cifar_sgas.py --config.data.dir=DIR
Data as in configs/cifar.py. It uses criterion 1; with --config.strategy.criterion=2 scores include the stability of
edges.

Cost: 50 epochs, at first of 390 steps of batch 64, after the eighth decision of 195 steps of batch 128; nine supernets
are compiled, each smaller than the one before. An accelerator is advised; the paper gives 0.25 GPU-days, GTX 1080Ti.
Should give: cells that, trained from scratch (36 channels, 20 cells, 600 epochs), have a test error of 2.66 ± 0.24 %
by criterion 1 (best 2.39 %) and at best 2.44 % by criterion 2, according to the paper. This search has not been
repeated here in full.
"""

from ml_collections import ConfigDict

from darts_jax.configs import cifar


def get_config() -> ConfigDict:
  """The search of DARTS in first order, with decisions."""
  config = cifar.get_config()
  config.strategy = ConfigDict()
  config.strategy.name = 'sgas'
  config.strategy.criterion = 1
  config.strategy.warmup_epochs = 9
  config.strategy.decision_frequency = 5
  config.strategy.history = 4
  config.strategy.batch_growth = 8
  config.strategy.decisions = 0
  config.strategy.init_scale = 1e-3
  config.strategy.temperature = (1.0, 1.0)
  config.hypergradient = ConfigDict({'name': 'first_order'})
  return config
