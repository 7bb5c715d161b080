"""The training of NAS-Bench-201: a cell, fifteen times, trained from scratch for 200 epochs [NB201 §2.2].

Command: python -m experiments.train --config=configs/nasbench201_eval.py --genotype='|op~0|+|op~0|op~1|+|…|'
  --config.data.dir=DIR
CIFAR as in configs/cifar_eval.py; --config.data.name=cifar100. As in the benchmark all training images are trained on.

Cost: 200 epochs of 195 steps; an accelerator is needed.
Should give: the test accuracies of the benchmark, which the table of docs/nasbench201.md holds; 93.61 ± 0.09 % for the
cells that GDAS finds. This training has not been repeated here in full.
"""

from ml_collections import ConfigDict

from configs import cifar_eval


def get_config() -> ConfigDict:
  """The published recipe: SGD with Nesterov's momentum and a cosine, crops and mirror images, no cutout."""
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
