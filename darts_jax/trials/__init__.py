"""Searches by proposals: a sampled strategy proposes architectures, and an evaluator scores them, several at a time.

`run` is the loop, `Journal` the file from which a run resumes, and `evaluators` the package of the evaluators.
`search` runs a whole search in a working directory, from a config.
"""

from darts_jax.trials.evaluators import EVALUATORS, Evaluator, EvaluatorSettings
from darts_jax.trials.executors import InProcess, Processes
from darts_jax.trials.journal import Journal
from darts_jax.trials.loop import Result, run
from darts_jax.trials.search import Failed, TrialsResult
from darts_jax.trials.settings import Trials, TrialSearch

__all__ = [
  'EVALUATORS',
  'Evaluator',
  'EvaluatorSettings',
  'Failed',
  'InProcess',
  'Journal',
  'Processes',
  'Result',
  'TrialSearch',
  'Trials',
  'TrialsResult',
  'run',
]
