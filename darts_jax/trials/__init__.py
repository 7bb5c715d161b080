"""Searches by proposals: a sampled strategy proposes architectures, an evaluator scores them, many at once.

`run` is the loop, `Journal` the file that a run resumes from, and `evaluators` has what architectures are scored by.
"""

from darts_jax.trials.evaluators.base import Evaluator
from darts_jax.trials.executors import InProcess, Processes
from darts_jax.trials.journal import Journal
from darts_jax.trials.loop import Result, run
from darts_jax.trials.settings import Trials

__all__ = ['Evaluator', 'InProcess', 'Journal', 'Processes', 'Result', 'Trials', 'run']
