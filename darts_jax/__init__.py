"""Differentiable architecture search in JAX and Flax.

`spaces` says what an architecture is. A search finds one by gradients: `strategies` turn architecture parameters α
into mixing weights, `nets` computes the supernet they mix, `hypergradient` estimates the gradient of the
validation loss with respect to α, and `search` moves α and the weights. `training` trains the network of an
architecture from scratch, and `load` gives it back.
"""

import os
from typing import Any

__version__ = '0.1.0'


def load(workdir: str | os.PathLike[str]) -> Any:
  """The network that was trained in a working directory: `apply, variables = darts_jax.load(workdir)`.

  See `darts_jax.training.load`.
  """
  from darts_jax import training  # Takes seconds to import, and genotypes need none of it.

  return training.load(workdir)
