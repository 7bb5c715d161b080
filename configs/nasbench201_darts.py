"""The search of DARTS on NAS-Bench-201 in first order, as in the benchmark's published code [NB201 §3.2].

Command: python -m experiments.search --config=configs/nasbench201_darts.py --config.data.dir=DIR
CIFAR-10 in DIR as in configs/cifar.py. Second order: configs/nasbench201_darts_second.py.
With --config.space.table=DIR the log has, after every epoch, the benchmark's accuracy of the architecture that the
search would return; docs/nasbench201.md describes the files in DIR.

Cost: 50 epochs of 390 steps; an accelerator is advised.
Should give: skip connections on all edges, as the benchmark's authors report for DARTS; the network of this cell has a
test accuracy of 54.30 % according to the benchmark. This search has not been repeated here in full.
"""

from ml_collections import ConfigDict

from darts_jax.configs import cifar


def get_config() -> ConfigDict:
  """The published search, in which a step updates the weights before α."""
  config = cifar.get_config()
  config.space = ConfigDict({'name': 'nasbench201'})
  config.network.channels = 16
  config.network.layers = 15
  config.network.stem_multiplier = 1
  config.batch_norm.tracked = False
  config.weights.weight_decay = 5e-4
  config.weights.nesterov = True
  config.alphas.order = 'weights_first'
  config.hypergradient = ConfigDict({'name': 'first_order'})
  return config
