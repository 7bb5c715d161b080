"""The CIFAR-10 search of GDAS [GDAS §4]: every step draws one operation for each edge, and trains that architecture.

Command: python -m experiments.search --config=configs/cifar_gdas.py --config.data.dir=DIR
Data as in configs/cifar.py. Operations that were not drawn do not contribute to gradients, as in the paper; with
--config.strategy.inactive_gradient=released they contribute as in the authors' code.

Settings are those of the authors' code for the cells of DARTS (AutoDL-Projects, GDAS-NASNet-CIFAR.config and
GDAS-search-NASNet-space.sh): weights are updated before α and with Nesterov's momentum, and τ falls from 10 to 0.1 by
epochs. The network is that of the search of DARTS, 8 cells of 16 channels.

Cost: 250 epochs of 97 steps, each of which costs as much as a step of DARTS in first order: all operations are
computed, and weighted with 0 or 1. An accelerator is advised. The paper gives four GPU hours for a search that computes
only the drawn operations.
Should give: cells that, trained from scratch, have a test error of 2.93 % with 3.4 million weights, according to the
paper. This search has not been repeated here in full.
"""

from ml_collections import ConfigDict

from darts_jax.configs import cifar


def get_config() -> ConfigDict:
  """The search of DARTS in first order, with drawn operations."""
  config = cifar.get_config()
  config.epochs = 250
  config.batch_size = 256
  config.weights.weight_decay = 5e-4
  config.weights.nesterov = True
  config.alphas.order = 'weights_first'
  config.strategy = ConfigDict()
  config.strategy.name = 'gdas'
  config.strategy.init_scale = 1e-3
  config.strategy.tau = (10.0, 0.1)
  config.strategy.inactive_gradient = 'none'
  config.hypergradient = ConfigDict({'name': 'first_order'})
  return config
