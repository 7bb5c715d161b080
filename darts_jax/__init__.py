"""Differentiable architecture search in JAX and Flax.

`spaces` says what an architecture is. A search finds one by gradients: `strategies` turn architecture parameters α
into mixing weights, `nets` computes the supernet they mix, `hypergradient` estimates the gradient of the
validation loss with respect to α, `tasks` say what is learnt, and `search` moves α and the weights; or by proposals,
in `trials`. `training` trains the network of an architecture from scratch, and `load` gives it back.

`darts_jax.search(config, workdir)`, `train`, `load`, `describe`, `export` and `hypergradient` are functions; see
docs/python.md.
"""

import importlib
import os
from typing import Any

__version__ = '0.1.0'

# Packages that can be called, and functions of `darts_jax.api`.
_CALLABLE, _FUNCTIONS = ('search', 'hypergradient'), ('train', 'describe', 'export')


def load(workdir: str | os.PathLike[str]) -> Any:
  """The network that was trained in a working directory: `apply, variables = darts_jax.load(workdir)`.

  See `darts_jax.training.load`.
  """
  from darts_jax import training  # Takes seconds to import, and genotypes need none of it.

  return training.load(workdir)


def __getattr__(name: str) -> Any:
  # Likewise; what is not asked for is not imported.
  if name in _CALLABLE:
    return importlib.import_module(f'darts_jax.{name}')
  if name in _FUNCTIONS:
    return getattr(importlib.import_module('darts_jax.api'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
