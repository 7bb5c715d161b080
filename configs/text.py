"""A search for a recurrent cell on the English of Python's own help texts, `pydoc_data.topics`; no download.

Command: python -m experiments.search --config=configs/text.py
Cost: some three minutes on 2 CPU cores; no download.
Should give: a validation perplexity of about 70 in the supernet, with the text of Python 3.11; a unigram model has 209.
Seven or eight of the eight activations found are the identity: after so few steps α follow the activations that learn
fastest, and the report warns of such a cell.
"""

from ml_collections import ConfigDict

from darts_jax.configs import ptb


def get_config() -> ConfigDict:
  """The paper's search with a small network and little text."""
  config = ptb.get_config()
  config.epochs = 16
  config.batch_size = 32
  config.task.bptt = 20
  config.log_every = 25
  config.data.name = 'pydoc'
  config.network.width = 64
  config.network.dropout.x = 0.2
  config.network.dropout.h = 0.1
  config.network.dropout.output = 0.2
  return config
