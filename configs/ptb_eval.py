"""The Penn Treebank evaluation of the paper [DARTS §3.2, §A.2]: a found recurrent cell, trained from scratch.

Command: python -m experiments.train --config=configs/ptb_eval.py --genotype=RNN_DARTS_V2 --config.data.dir=DIR
DIR holds train.txt, valid.txt and test.txt, or ptb.train.txt and so on, perhaps in a folder `ptb`: words separated by
white space, one sentence a line.

The test text is read once, at the end and at batch size 1, with the weights that were best by validation. If memory is
short: --config.small_batch_size=32 --config.remat=True.
Cost: 1600 epochs of some 430 steps; an accelerator is needed.
Should give: a validation and test perplexity of 58.1 and 55.7 for RNN_DARTS_V2, of 60.2 and 57.6 for RNN_DARTS_V1,
according to the paper. This training has not been repeated here in full.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The training with all of its fields."""
  config = ConfigDict()
  config.task = 'text'
  config.seed = 0
  config.epochs = 1600
  config.batch_size = 64
  config.small_batch_size = 0
  config.valid_batch_size = 10
  config.test_batch_size = 1
  config.bptt = 35
  config.short_fraction = 0.05
  config.spread = 5.0
  config.temporal_activation = 1e-3
  config.max_rollbacks = 5
  config.log_every = 50
  config.precision = 'float32'
  config.remat = False

  config.data = ConfigDict()
  config.data.name = 'ptb'
  config.data.dir = 'data'
  config.data.test = True

  config.network = ConfigDict()
  config.network.width = 850
  config.network.dropout = ConfigDict()
  config.network.dropout.words = 0.1
  config.network.dropout.embedded = 0.2
  config.network.dropout.x = 0.75
  config.network.dropout.h = 0.25
  config.network.dropout.output = 0.75

  config.weights = ConfigDict()
  config.weights.learning_rate = 20.0
  config.weights.weight_decay = 8e-7
  config.weights.clip_norm = 0.25
  config.weights.nonmonotone_interval = 5

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 1
  config.checkpoint.keep = 3
  return config
