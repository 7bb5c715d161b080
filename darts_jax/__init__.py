"""Differentiable architecture search in JAX and Flax.

`spaces` defines architectures. A gradient-based search uses `strategies` to turn architecture parameters α into mixing
weights, `nets` to compute the supernet, `hypergradient` to estimate the gradient of the validation loss with respect to
α, `tasks` for data and losses, and `search` to update α and the weights. A search by proposals is in `trials`.
`training` trains the network of an architecture from scratch, and `load` reads a trained network.

`darts_jax.search(config, workdir)`, `train`, `load`, `describe`, `export` and `hypergradient` are functions; see
docs/python.md.
"""

import importlib
import os
from typing import Any

__version__ = '0.1.0'

# Packages that are callable, and functions of `darts_jax.api`.
_CALLABLE, _FUNCTIONS = ('search', 'hypergradient'), ('train', 'describe', 'export')


def load(workdir: str | os.PathLike[str]) -> Any:
  """Reads the network that was trained in a working directory: `apply, variables = darts_jax.load(workdir)`.

  See `darts_jax.training.load`.
  """
  from darts_jax import training  # Imported late, since it takes seconds and working with genotypes does not need it.

  return training.load(workdir)


def __getattr__(name: str) -> Any:
  # Packages are imported at their first use, for the same reason.
  if name in _CALLABLE:
    return importlib.import_module(f'darts_jax.{name}')
  if name in _FUNCTIONS:
    return getattr(importlib.import_module('darts_jax.api'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
