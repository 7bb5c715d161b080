"""A small search of DARTS on NAS-Bench-201 with scikit-learn's handwritten digits, second order as published.

Command: python -m experiments.search --config=configs/nasbench201_tiny_darts_second.py
CIFAR-10 as in configs/nasbench201_tiny_darts.py. Exact: --config.hypergradient.name=exact.
Cost: a minute on 2 CPU cores, half of it compilation; no download.
Should give: a supernet validation accuracy above 94 %.
"""

from ml_collections import ConfigDict

from darts_jax.configs import nasbench201_darts_second, nasbench201_tiny_darts


def get_config() -> ConfigDict:
  """The small search with the hypergradient and the order of updates of configs/nasbench201_darts_second.py."""
  config, published = nasbench201_tiny_darts.get_config(), nasbench201_darts_second.get_config()
  config.alphas.order = published.alphas.order
  config.hypergradient = published.hypergradient
  return config
