"""Training of a found architecture from scratch. `run` is a whole training; `Trainer` has its compiled functions.

Recurrent architectures are trained on text by `darts_jax.training.language`.
"""

from darts_jax.runtime.loop import Diverged
from darts_jax.training.language import LanguageResult, LanguageTraining
from darts_jax.training.loop import Result, check
from darts_jax.training.model import Model
from darts_jax.training.repeats import mean_and_std, run_seeds, summarise
from darts_jax.training.restore import Trained, write
from darts_jax.training.settings import Training
from darts_jax.training.tasks import check_genotype, load, run
from darts_jax.training.trainer import Trainer, TrainState

__all__ = [
  'Diverged',
  'LanguageResult',
  'LanguageTraining',
  'Model',
  'Result',
  'TrainState',
  'Trained',
  'Trainer',
  'Training',
  'check',
  'check_genotype',
  'load',
  'mean_and_std',
  'run',
  'run_seeds',
  'summarise',
  'write',
]
