"""Estimators of the hypergradient, compared on the toy problem, a quadratic problem and a supernet.

Command: python -m experiments.hypergradients --config=configs/hypergradients.py
At a checkpoint of a search: --checkpoint=WORKDIR. On CIFAR-10: --config.search.data.name=cifar10
--config.search.data.dir=DIR --config.search.network.channels=16 and so on, or --checkpoint with such a search.
With a whole search by every estimator: --search.
"""

from ml_collections import ConfigDict

from darts_jax.configs import digits


def get_config() -> ConfigDict:
  """A small supernet on digits, with both sources of kinks: ReLU and max pooling."""
  config = ConfigDict()
  config.problems = ('quadratic', 'supernet')
  config.estimators = (
    'first_order',
    'finite_difference',
    'exact',
    'exact_reverse',
    'unrolled',
    'truncated',
    'neumann',
    'conjugate_gradient',
    'amended',
  )
  config.precisions = ('float32', 'float64', 'bfloat16')
  config.reference_steps = 4
  config.repeats = 3
  config.radii = 22
  config.batch_sizes = (128,)
  config.images = 512
  config.search_steps = 40
  config.compare_every = 8
  config.unrolled_steps = (1, 2, 4, 8)

  config.quadratic = ConfigDict()
  config.quadratic.weights = 20
  config.quadratic.alphas = 6
  config.quadratic.condition = 100.0

  config.search = digits.get_base()
  config.search.network.channels = 4
  config.search.space.nodes = 2
  config.search.space.operations = ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3')
  return config
