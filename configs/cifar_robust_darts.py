"""The CIFAR-10 search of RobustDARTS in S2 with early stopping [RobustDARTS §4.3]: DARTS that stops in time.

Command: python -m experiments.search --config=configs/cifar_robust_darts.py --config.data.dir=DIR
Data as in configs/cifar.py. Other spaces: --config.space.subspace=s1, s3 or s4, or --config.space=darts. In S1 to S3,
plain DARTS finds cells that consist mostly of identities, in S4 of noise. With
--config.strategy.weight_decays="(3e-3,3e-2)" the search does not stop when the curvature rises, but goes back and on
with the next of these weight decays (DARTS-ADA). With --config.strategy.drop_path=0.2 edges are dropped in training, at
a rate that grows linearly from 0 to 0.2. R-DARTS(DP) of the paper is the best cell, by validation, of several such
searches with rates from 0 to 0.6 and with cutout (--config.augment.cutout=16); R-DARTS(L2) that of several with
--config.weights.weight_decay=3e-4, 9e-4, 27e-4 and so on.

Settings are those of the paper and of the authors' code (github.com/automl/RobustDARTS): the search of DARTS in second
order, the curvature after every second epoch, means over five curvatures, a threshold of a factor of 1.3. The authors'
code adds the decay of α to curvatures: --config.strategy.ridge=1e-3. It also makes cutout as frequent as drop path,
whereas here every image has cutout.

Cost: up to 50 epochs of 390 steps, as configs/cifar.py; and the curvature after half of the epochs, which takes as long
as some thirty steps. An accelerator is advised.
Should give: if the curvature rises, an architecture of an epoch before that. Without stopping, the cells that DARTS
finds in S1 to S4 have test errors of 3.84, 4.85, 3.34 and 7.20 % according to the paper, trained from scratch. This
search has not been repeated here in full.
"""

from ml_collections import ConfigDict

from darts_jax.configs import cifar


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
  config.strategy.drop_path = 0.0
  config.strategy.init_scale = 1e-3
  config.strategy.temperature = (1.0, 1.0)
  return config
