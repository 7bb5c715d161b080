"""What architectures are scored by: one file an evaluator, under the name that configs use.

An evaluator of one's own is added with `EVALUATORS['mine'] = Mine`.
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
