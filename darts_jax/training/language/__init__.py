"""Training of the language model of a recurrent cell from scratch. `run` is a whole training."""

from darts_jax.training.language.loop import LanguageResult, check, run
from darts_jax.training.language.model import RecurrentModel
from darts_jax.training.language.restore import load
from darts_jax.training.language.settings import LanguageTraining
from darts_jax.training.language.trainer import LanguageState, LanguageTrainer

__all__ = [
  'LanguageResult',
  'LanguageState',
  'LanguageTrainer',
  'LanguageTraining',
  'RecurrentModel',
  'check',
  'load',
  'run',
]
