"""The CIFAR-10 evaluation of the paper [DARTS §3.2, §A.2]: a network of 20 found cells, trained for 600 epochs.

Command: python -m experiments.train --config=configs/cifar_eval.py --genotype=DARTS_V2 --config.data.dir=DIR
DIR holds CIFAR as configs/cifar.py says. CIFAR-100: --config.data.name=cifar100.

Here a tenth of the training images is held out and measured after every epoch, and the test images are read once, at
the end. The paper trains on all training images: --config.data.validation_fraction=0.
Cost: 600 epochs of 468 steps; an accelerator is needed. The paper gives a day and a half on a GTX 1080Ti.
Should give: a test error of 2.76 ± 0.09 % for DARTS_V2 and 3.00 ± 0.14 % for DARTS_V1 on all training images, according
to the paper. This training has not been repeated here in full.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The training with all of its fields."""
  config = ConfigDict()
  config.task = 'images'
  config.seed = 0
  config.epochs = 600
  config.batch_size = 96
  config.log_every = 50
  config.precision = 'float32'
  config.remat = False
  config.label_smoothing = 0.0
  config.auxiliary_weight = 0.4

  config.data = ConfigDict()
  config.data.name = 'cifar10'
  config.data.dir = 'data'
  config.data.path = ''
  config.data.download = False
  config.data.num_images = 0
  config.data.validation_fraction = 0.1
  config.data.test = True
  config.data.dataset = ''
  config.data.test_split = ''
  config.data.image_size = 32
  config.data.num_threads = 8
  config.data.num_workers = 0

  config.augment = ConfigDict()
  config.augment.crop_padding = 4
  config.augment.flip = True
  config.augment.cutout = 16
  config.augment.brightness = 0.0
  config.augment.contrast = 0.0
  config.augment.saturation = 0.0
  config.augment.hue = 0.0

  config.network = ConfigDict()
  config.network.channels = 36
  config.network.layers = 20
  config.network.stem = 'cifar'
  config.network.stem_multiplier = 3
  config.network.auxiliary = True
  config.network.auxiliary_norm = True
  config.network.drop_path = 0.2

  config.weights = ConfigDict()
  config.weights.learning_rate = 0.025
  config.weights.schedule = 'cosine'
  config.weights.final_learning_rate = 0.0
  config.weights.decay = 0.97
  config.weights.warmup_epochs = 0.0
  config.weights.reference_batch_size = 0
  config.weights.momentum = 0.9
  config.weights.weight_decay = 3e-4
  config.weights.clip_norm = 5.0
  config.weights.nesterov = False

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 1
  config.checkpoint.keep = 3
  return config
