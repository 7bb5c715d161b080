"""Random search on the table of NAS-Bench-201: 100 architectures are drawn and looked up.

Command: python -m experiments.search --config=configs/nasbench201_random.py --config.evaluator.path=DIR
docs/nasbench201.md describes the files in DIR. Another dataset: --config.evaluator.dataset=cifar100.
Cost: seconds.
Should give: a test accuracy after 200 epochs of 93.73 ± 0.38 %, mean and standard deviation over seeds.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """100 random architectures, of which the best by validation accuracy after 12 epochs is returned."""
  config = ConfigDict()
  config.seed = 0
  config.space = ConfigDict({'name': 'nasbench201'})
  config.strategy = ConfigDict({'name': 'random_search'})
  config.evaluator = ConfigDict({'name': 'table', 'path': '', 'dataset': 'cifar10'})
  config.trials = 100
  config.workers = 1
  config.tell = 'as_completed'
  return config
