"""The training of NAS-Bench-201: a network of fifteen cells, trained from scratch for 200 epochs [NB201 §2.2].

Command: python -m experiments.train --config=configs/nasbench201_eval.py --genotype='|op~0|+|op~0|op~1|+|…|'
  --config.data.dir=DIR
Data as in configs/cifar_eval.py; CIFAR-100: --config.data.name=cifar100. As in the benchmark, no training image is held
out.

Cost: 200 epochs of 195 steps; an accelerator is needed.
Should give: the test accuracies of the benchmark, which are in the table described in docs/nasbench201.md;
93.61 ± 0.09 % for the cells that GDAS finds. This training has not been repeated here in full.
"""

from ml_collections import ConfigDict

from darts_jax.configs import cifar_eval


def get_config() -> ConfigDict:
  """The published recipe: SGD with Nesterov's momentum and a cosine schedule, crops and flips, no cutout."""
  config = cifar_eval.get_config()
  config.epochs = 200
  config.batch_size = 256
  config.data.validation_fraction = 0.0
  config.augment.cutout = 0
  config.network.channels = 16
  config.network.layers = 15
  config.network.stem_multiplier = 1
  config.network.auxiliary = False
  config.network.drop_path = 0.0
  config.weights.learning_rate = 0.1
  config.weights.weight_decay = 5e-4
  config.weights.nesterov = True
  config.weights.clip_norm = 0.0
  return config
