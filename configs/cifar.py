"""The CIFAR-10 search of the paper [DARTS §3.1.1, §A.1], second order, field by field.

Command: python -m experiments.search --config=configs/cifar.py --config.data.dir=DIR
DIR holds cifar-10-binary.tar.gz or cifar-10-python.tar.gz, the folder unpacked from either, or a TensorFlow Datasets
folder in array_record format; --config.data.download=True fetches the archive into it.
First order: --config.hypergradient.name=first_order. Exact: --config.hypergradient.name=exact.

Cost: 50 epochs of 390 steps; an accelerator is advised. The paper gives 1 GPU-day a run (4 for four runs) in
second order and 0.4 in first order on a GTX 1080Ti.
Should give: cells that, trained from scratch (36 channels, 20 cells, 600 epochs), have a test error of
2.76 ± 0.09 % in second order and 3.00 ± 0.14 % in first order, according to the paper. This search has not been
repeated here in full.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The search with all of its fields."""
  config = ConfigDict()
  config.seed = 0
  config.epochs = 50
  config.batch_size = 64
  config.log_every = 50
  config.precision = 'float32'
  config.remat = False

  config.space = ConfigDict()
  config.space.name = 'darts'
  config.space.nodes = 4
  config.space.operations = (
    'none',
    'max_pool_3x3',
    'avg_pool_3x3',
    'skip_connect',
    'sep_conv_3x3',
    'sep_conv_5x5',
    'dil_conv_3x3',
    'dil_conv_5x5',
  )

  config.task = ConfigDict()
  config.task.name = 'images'

  config.data = ConfigDict()
  config.data.name = 'cifar10'
  config.data.dir = 'data'
  config.data.path = ''
  config.data.download = False
  config.data.num_images = 0
  config.data.dataset = ''
  config.data.image_size = 32
  config.data.num_threads = 8
  config.data.num_workers = 0
  config.data.stream = False
  config.data.validation_fraction = 0.5

  config.augment = ConfigDict()
  config.augment.crop_padding = 4
  config.augment.flip = True
  config.augment.cutout = 0

  config.network = ConfigDict()
  config.network.channels = 16
  config.network.layers = 8
  config.network.stem = 'cifar'
  config.network.stem_multiplier = 3

  config.weights = ConfigDict()
  config.weights.learning_rate = 0.025
  config.weights.final_learning_rate = 0.001
  config.weights.momentum = 0.9
  config.weights.weight_decay = 3e-4
  config.weights.clip_norm = 5.0
  config.weights.warmup_epochs = 0.0
  config.weights.reference_batch_size = 0
  config.weights.nesterov = False

  config.strategy = ConfigDict()
  config.strategy.name = 'darts'
  config.strategy.init_scale = 1e-3
  config.strategy.temperature = (1.0, 1.0)

  config.alphas = ConfigDict()
  config.alphas.learning_rate = 3e-4
  config.alphas.beta1 = 0.5
  config.alphas.beta2 = 0.999
  config.alphas.weight_decay = 1e-3
  config.alphas.warmup_epochs = 0.0
  config.alphas.reference_batch_size = 0
  config.alphas.order = 'alphas_first'
  config.alphas.every = 1
  config.alphas.from_epoch = 0

  config.hypergradient = ConfigDict()
  config.hypergradient.name = 'finite_difference'
  config.hypergradient.clipping = 'none'
  config.hypergradient.clip_outer = False
  config.hypergradient.virtual_step = 'as_optimizer'
  config.hypergradient.radius = 0.01
  config.hypergradient.one_sided = False

  config.batch_norm = ConfigDict()
  config.batch_norm.group_size = 0
  config.batch_norm.tracked = True

  config.mesh = ConfigDict()
  config.mesh.seed = 1

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 1
  config.checkpoint.keep = 3
  return config
