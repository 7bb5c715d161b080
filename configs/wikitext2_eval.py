"""The WikiText-2 evaluation of the paper [DARTS §A.2]: a cell found on Penn Treebank, trained from scratch.

Command: python -m experiments.train --config=configs/wikitext2_eval.py --genotype=RNN_DARTS_V2 --config.data.dir=DIR
DIR holds wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens, or train.txt and so on, perhaps in a folder
`wikitext-2`.

Cost: 1600 epochs of some 970 steps with a vocabulary of 33,278 words; an accelerator is needed.
Should give: a validation and test perplexity of 71.2 and 69.6 for RNN_DARTS_V2 according to the paper. This training
has not been repeated here in full.
"""

from ml_collections import ConfigDict

from darts_jax.configs import ptb_eval


def get_config() -> ConfigDict:
  """The evaluation on Penn Treebank with a narrower network."""
  config = ptb_eval.get_config()
  config.data.name = 'wikitext2'
  config.network.width = 700
  config.network.dropout.h = 0.15
  config.weights.weight_decay = 5e-7
  return config
