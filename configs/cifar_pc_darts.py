"""The CIFAR-10 search of PC-DARTS [PC-DARTS §4.2]: operations see a quarter of the channels, and edges have weights.

Command: python -m experiments.search --config=configs/cifar_pc_darts.py --config.data.dir=DIR
Data as in configs/cifar.py. As in the authors' code, channels are not sampled: operations compute the first quarter of
the channels, which are shuffled after every node.

Cost: 50 epochs of 97 steps of batch 256; the first 15 epochs train the weights alone. It takes less memory than DARTS,
since operations have a quarter of the channels. An accelerator is advised; the paper gives 0.1 GPU-days.
Should give: cells that, trained from scratch (36 channels, 20 cells, 600 epochs), have a test error of 2.57 % with 3.6
million weights, according to the paper. This search has not been repeated here in full.
"""

from ml_collections import ConfigDict

from darts_jax.configs import cifar


def get_config() -> ConfigDict:
  """The search of DARTS in first order, with partial channels, larger batches and rates, and a late start of α."""
  config = cifar.get_config()
  config.batch_size = 256
  config.weights.learning_rate = 0.1
  config.weights.final_learning_rate = 0.0
  config.alphas.learning_rate = 6e-4
  config.alphas.from_epoch = 15
  config.strategy = ConfigDict()
  config.strategy.name = 'pc_darts'
  config.strategy.init_scale = 1e-3
  config.strategy.channel_part = 4
  config.hypergradient = ConfigDict({'name': 'first_order'})
  return config
