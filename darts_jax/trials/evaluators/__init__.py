"""Evaluators, which score architectures: one file per evaluator, under the names that configs use.

A user adds an evaluator with `EVALUATORS['mine'] = Mine`.
"""

from darts_jax.trials.evaluators.base import Evaluator, EvaluatorSettings
from darts_jax.trials.evaluators.scratch import ScratchSettings
from darts_jax.trials.evaluators.scratch_text import ScratchTextSettings
from darts_jax.trials.evaluators.table import TableEvaluator

EVALUATORS: dict[str, type[EvaluatorSettings]] = {
  'scratch': ScratchSettings,
  'scratch_text': ScratchTextSettings,
  'table': TableEvaluator,
}

__all__ = ['EVALUATORS', 'Evaluator', 'EvaluatorSettings', 'ScratchSettings', 'ScratchTextSettings']
