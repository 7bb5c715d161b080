"""The search of DARTS on NAS-Bench-201 in first order, as in the benchmark's published code [NB201 §3.2].

Command: python -m experiments.search --config=configs/nasbench201_darts.py --config.data.dir=DIR
CIFAR-10 in DIR as in configs/cifar.py. Second order: configs/nasbench201_darts_second.py.
With --config.space.table=DIR the log says after every epoch how accurate the architecture is that the search would
return; docs/nasbench201.md says what DIR holds.

Cost: 50 epochs of 390 steps; an accelerator is advised.
Should give: skip connections on all edges, whose network has a test accuracy of 54.30 %, according to the benchmark;
its authors expect that of DARTS. This search has not been repeated here in full.
"""

from ml_collections import ConfigDict

from configs import cifar


def get_config() -> ConfigDict:
  """The published search; its weights move before α in a step."""
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
