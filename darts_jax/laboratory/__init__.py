"""The hypergradient laboratory: estimators compared on problems with closed forms and on the real supernet."""

from darts_jax.laboratory.run import Interrupted, run
from darts_jax.laboratory.settings import Laboratory

__all__ = ['Interrupted', 'Laboratory', 'run']
