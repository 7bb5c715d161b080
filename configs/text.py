"""A search for a recurrent cell on the English of Python's own help texts, `pydoc_data.topics`; no download.

Command: python -m experiments.search --config=configs/text.py
"""

from ml_collections import ConfigDict

from configs import ptb


def get_config() -> ConfigDict:
  """The paper's search with a small network and little text."""
  config = ptb.get_config()
  config.epochs = 16
  config.batch_size = 32
  config.bptt = 20
  config.log_every = 25
  config.data.name = 'pydoc'
  config.network.width = 64
  config.network.dropout.x = 0.2
  config.network.dropout.h = 0.1
  config.network.dropout.output = 0.2
  return config
