"""The CIFAR-10 search of RobustDARTS in S2 with early stopping [RobustDARTS §4.3]: DARTS that stops in time.

Command: python -m experiments.search --config=configs/cifar_robust_darts.py --config.data.dir=DIR
Data as in configs/cifar.py. Other spaces: --config.space.subspace=s1 or s3, or --config.space=darts. In S1 to S3, plain
DARTS finds cells that consist mostly of identities. With --config.strategy.weight_decays="(3e-3,3e-2)" the search does
not stop when the curvature rises, but goes back and on with the next of these weight decays (DARTS-ADA).

Settings are those of the paper and of the authors' code (github.com/automl/RobustDARTS): the search of DARTS in second
order, the curvature after every second epoch, means over five curvatures, a threshold of a factor of 1.3. The authors'
code adds the decay of α to curvatures: --config.strategy.ridge=1e-3.

Cost: up to 50 epochs of 390 steps, as configs/cifar.py; and the curvature after half of the epochs, which takes as long
as some thirty steps. An accelerator is advised.
Should give: if the curvature rises, an architecture of an epoch before that. Without stopping, the cells that DARTS
finds in S1, S2 and S3 have test errors of 3.84, 4.85 and 3.34 % according to the paper, trained from scratch. This
search has not been repeated here in full.
"""

from ml_collections import ConfigDict

from configs import cifar


def get_config() -> ConfigDict:
  """The search of DARTS in second order, in a small space, with early stopping."""
  config = cifar.get_config()
  config.space = ConfigDict({'name': 'robust', 'subspace': 's2', 'nodes': 4})
  config.strategy = ConfigDict()
  config.strategy.name = 'robust_darts'
  config.strategy.frequency = 2
  config.strategy.window = 5
  config.strategy.lag = 4
  config.strategy.factor = 1.3
  config.strategy.first_epoch = 10
  config.strategy.ridge = 0.0
  config.strategy.weight_decays = ()
  config.strategy.init_scale = 1e-3
  config.strategy.temperature = (1.0, 1.0)
  return config
