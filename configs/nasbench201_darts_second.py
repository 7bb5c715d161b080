"""The search of DARTS on NAS-Bench-201 in second order, as in the benchmark's published code [NB201 §3.2].

Command: python -m experiments.search --config=configs/nasbench201_darts_second.py --config.data.dir=DIR
Data, table and expected result as in configs/nasbench201_darts.py. Exact: --config.hypergradient.name=exact.

As published, a step updates α before the weights, and the virtual step has heavy-ball momentum, although the weights
have Nesterov's; with --config.hypergradient.virtual_step=as_optimizer, the virtual step is that of the weights.
Cost: 50 epochs of 390 steps, each about twice as long as one in first order; an accelerator is advised.
"""

from ml_collections import ConfigDict

from darts_jax.configs import nasbench201_darts


def get_config() -> ConfigDict:
  """The published search with the finite difference."""
  config = nasbench201_darts.get_config()
  config.alphas.order = 'alphas_first'
  config.hypergradient = ConfigDict({'name': 'finite_difference', 'radius': 0.01, 'virtual_step': 'heavy_ball'})
  return config
