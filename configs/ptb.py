"""The Penn Treebank search of the paper for a recurrent cell [DARTS §3.1.2, §A.1], second order, field by field.

Command: python -m experiments.search --config=configs/ptb.py --config.data.dir=DIR
DIR holds train.txt, valid.txt and test.txt, or ptb.train.txt and so on, perhaps in a folder `ptb`: words separated by
white space, one sentence a line. α is trained on the validation text; the test text is not used.
First order: --config.hypergradient.name=first_order. Exact: --config.hypergradient.name=exact.

Cost: 50 epochs of some 106 steps; an accelerator is advised. On CPU, make it narrower with --config.network.width=64.
Should give: a cell that, trained from scratch (configs/ptb_eval.py), has a test perplexity of 55.7 in second order and
57.6 in first order, according to the paper. This search has not been repeated here in full.
"""

from ml_collections import ConfigDict

from darts_jax.configs import cifar


def get_config() -> ConfigDict:
  """The recurrent search with all of its fields; the estimator is that of configs/cifar.py."""
  config = ConfigDict()
  config.seed = 0
  config.epochs = 50
  config.batch_size = 256
  config.log_every = 50
  config.precision = 'float32'
  config.remat = False

  config.space = ConfigDict()
  config.space.name = 'recurrent'
  config.space.nodes = 8
  config.space.operations = ('none', 'tanh', 'relu', 'sigmoid', 'identity')

  config.task = ConfigDict()
  config.task.name = 'text'
  config.task.bptt = 35
  config.task.short_fraction = 0.05
  config.task.temporal_activation = 1e-3

  config.data = ConfigDict()
  config.data.name = 'ptb'
  config.data.dir = 'data'

  config.network = ConfigDict()
  config.network.width = 300
  config.network.dropout = ConfigDict()
  config.network.dropout.words = 0.0
  config.network.dropout.embedded = 0.2
  config.network.dropout.x = 0.75
  config.network.dropout.h = 0.25
  config.network.dropout.output = 0.75

  config.weights = ConfigDict()
  config.weights.learning_rate = 20.0
  config.weights.final_learning_rate = 20.0
  config.weights.momentum = 0.0
  config.weights.weight_decay = 5e-7
  config.weights.clip_norm = 0.25
  config.weights.warmup_epochs = 0.0
  config.weights.reference_batch_size = 0
  config.weights.nesterov = False

  config.strategy = ConfigDict()
  config.strategy.name = 'darts'
  config.strategy.init_scale = 1e-3
  config.strategy.temperature = (1.0, 1.0)

  config.alphas = ConfigDict()
  config.alphas.learning_rate = 3e-3
  config.alphas.beta1 = 0.9
  config.alphas.beta2 = 0.999
  config.alphas.weight_decay = 1e-3
  config.alphas.warmup_epochs = 0.0
  config.alphas.reference_batch_size = 0
  config.alphas.order = 'alphas_first'
  config.alphas.every = 1
  config.alphas.from_epoch = 0

  config.hypergradient = cifar.get_config().hypergradient
  # As in the published code, virtual steps clip the gradient as real steps do, and the outer gradient is clipped, too.
  config.hypergradient.clipping = 'constant'
  config.hypergradient.clip_outer = True

  config.batch_norm = ConfigDict()
  config.batch_norm.group_size = 0
  config.batch_norm.tracked = True

  config.mesh = ConfigDict()
  config.mesh.seed = 1

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 1
  config.checkpoint.keep = 3
  return config
