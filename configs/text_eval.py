"""A found recurrent cell trained from scratch on the English of Python's own help texts, within minutes on a laptop.

Command: python -m experiments.train --config=configs/text_eval.py --genotype=RNN_DARTS_V2
Cost: some two minutes on 2 CPU cores; no download.
Should give: a test perplexity of about 50; 50.2 ± 0.8 over 3 seeds with the text of Python 3.11, which differs from one
version of Python to the next. A unigram model has 208, and its mixture with a bigram model 80.
"""

from ml_collections import ConfigDict

from darts_jax.configs import ptb_eval


def get_config() -> ConfigDict:
  """The paper's evaluation with a small network and little text."""
  config = ptb_eval.get_config()
  config.epochs = 40
  config.batch_size = 32
  config.log_every = 10
  config.data.name = 'pydoc'
  config.network.width = 128
  # A small network overfits less, and needs less dropout.
  config.network.dropout.x = 0.3
  config.network.dropout.output = 0.3
  # A short interval, so that averaging begins while there are epochs left.
  config.weights.nonmonotone_interval = 3
  return config
