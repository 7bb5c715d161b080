"""The settings of a search by proposals, whatever its space, strategy and evaluator."""

import dataclasses

from darts_jax import limits
from darts_jax.settings import check, setting


@dataclasses.dataclass(frozen=True)
class Trials:
  """How many architectures are evaluated, and in what order their outcomes are told.

  Attributes:
    seed: decides all random numbers of the strategy.
    trials: proposals in all.
    workers: evaluations at once.
    tell: `as_completed` tells an outcome at once, and the search depends on which evaluation ends first; `in_order`
      tells outcomes by the numbers of their proposals, and the search is a function of seed and number of workers, at
      the price of workers that wait.
    fit_every: what evaluations share, such as weights, is trained before the first and then every so many proposals.

  Raises:
    ValueError: a value is not allowed; one line naming the field.
  """

  seed: int = setting(0, at_least=0, below=limits.SEEDS)
  trials: int = setting(100, at_least=1, at_most=limits.TRIALS)
  workers: int = setting(1, at_least=1, at_most=limits.WORKERS)
  tell: str = setting('as_completed', choices=('as_completed', 'in_order'))
  fit_every: int = setting(1, at_least=1, at_most=limits.TRIALS)

  def __post_init__(self) -> None:
    check(self)
