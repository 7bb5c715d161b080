"""The ImageNet evaluation of the paper [DARTS §3.3, §A.3], streamed: a network of 14 found cells, 250 epochs.

Command: python -m experiments.train --config=configs/imagenet_eval.py --genotype=DARTS_V2 --config.data.dir=DIR
DIR holds the folders train/CLASS/… and val/CLASS/… of JPEG or PNG files, of any number of classes and images; or, with
--config.data.name=tfds, a dataset that TensorFlow Datasets prepared as array_record
(--config.data.dataset=imagenet2012). Needs pip install darts_jax[stream], or [tfds].

The folder val is the test set here, which is read once, at the end. One in a hundred of the training images is held out
and measured after every epoch.
Large batches (the paper's follow-ups use 1024 and 0.5): --config.batch_size=1024 --config.weights.schedule=linear
--config.weights.reference_batch_size=256 --config.weights.learning_rate=0.125 --config.weights.warmup_epochs=5
Cost: 250 epochs of 9,909 steps; several accelerators are needed. The paper gives 12 days on a GTX 1080Ti.
Should give: a top-1 error of 26.7 % and a top-5 error of 8.7 % for DARTS_V2, according to the paper. This training has
not been repeated here.
"""

from ml_collections import ConfigDict

from darts_jax.configs import cifar_eval


def get_config() -> ConfigDict:
  """The evaluation on CIFAR-10 with the fields that differ."""
  config = cifar_eval.get_config()
  config.epochs = 250
  config.batch_size = 128
  config.label_smoothing = 0.1
  config.data.name = 'image_folder'
  config.data.dataset = 'imagenet2012'
  config.data.image_size = 224
  config.data.validation_fraction = 0.01
  config.augment.crop_padding = 0
  config.augment.cutout = 0
  config.augment.brightness = 0.4
  config.augment.contrast = 0.4
  config.augment.saturation = 0.4
  config.augment.hue = 0.2
  config.network.channels = 48
  config.network.layers = 14
  config.network.stem = 'imagenet'
  config.network.auxiliary_norm = False
  config.network.drop_path = 0.0
  config.weights.learning_rate = 0.1
  config.weights.schedule = 'exponential'
  config.weights.decay = 0.97
  config.weights.weight_decay = 3e-5
  return config
