"""Regularised evolution on the table of NAS-Bench-201: 100 architectures are looked up [RE, arXiv 1802.01548].

Command: python -m experiments.search --config=configs/nasbench201_evolution.py --config.evaluator.path=DIR
docs/nasbench201.md describes the files in DIR.
Cost: seconds.
Should give: a test accuracy after 200 epochs of 94.06 ± 0.34 %, mean and standard deviation over seeds.
"""

from ml_collections import ConfigDict

from darts_jax.configs import nasbench201_random


def get_config() -> ConfigDict:
  """A population of 20; the parent of each child is the best of 5 random members."""
  config = nasbench201_random.get_config()
  config.strategy = ConfigDict({'name': 'regularized_evolution', 'population': 20, 'sample_size': 5})
  return config
