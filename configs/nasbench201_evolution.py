"""Regularised evolution on the table of NAS-Bench-201: 100 architectures are looked up [RE, arXiv 1802.01548].

Command: python -m experiments.search --config=configs/nasbench201_evolution.py --config.evaluator.path=DIR
docs/nasbench201.md says what DIR holds.
Cost: seconds.
Should give: a test accuracy after 200 epochs of 94.06 ± 0.34 %, mean and standard deviation over seeds.
"""

from ml_collections import ConfigDict

from configs import nasbench201_random


def get_config() -> ConfigDict:
  """A population of 20; each child has the best of 5 members for its parent."""
  config = nasbench201_random.get_config()
  config.strategy = ConfigDict({'name': 'regularized_evolution', 'population': 20, 'sample_size': 5})
  return config
