"""Training a found architecture from scratch. `run` is a whole training; `Trainer` its compiled parts."""

from darts_jax.runtime.loop import Diverged
from darts_jax.training.loop import Result, run
from darts_jax.training.model import Model, num_weights
from darts_jax.training.repeats import mean_and_std, run_seeds, summarise
from darts_jax.training.restore import Trained, load, write
from darts_jax.training.settings import Training
from darts_jax.training.trainer import Trainer, TrainState

__all__ = [
  'Diverged',
  'Model',
  'Result',
  'TrainState',
  'Trained',
  'Trainer',
  'Training',
  'load',
  'mean_and_std',
  'num_weights',
  'run',
  'run_seeds',
  'summarise',
  'write',
]
