"""The settings of a search by proposals."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from darts_jax import limits
from darts_jax.settings import build, build_from, check, name_in, setting, variant
from darts_jax.spaces import SPACES, CellSpace, Darts
from darts_jax.strategies import SAMPLED
from darts_jax.strategies.random_search import RandomSearch
from darts_jax.strategies.sampled import Sampled
from darts_jax.trials.evaluators import EVALUATORS, EvaluatorSettings, ScratchSettings


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

  seed: int = setting(0, at_least=0, at_most=limits.SEEDS - 1)
  trials: int = setting(100, at_least=1, at_most=limits.TRIALS)
  workers: int = setting(1, at_least=1, at_most=limits.WORKERS)
  tell: str = setting('as_completed', choices=('as_completed', 'in_order'))
  fit_every: int = setting(1, at_least=1, at_most=limits.TRIALS)

  def __post_init__(self) -> None:
    check(self)


@dataclasses.dataclass(frozen=True)
class TrialSearch(Trials):
  """A search by proposals; see `Trials` for how many there are, and in what order.

  Attributes:
    space: the search space, one of `SPACES`.
    strategy: which architecture is evaluated next, one of `SAMPLED`.
    evaluator: what architectures are scored by, one of `EVALUATORS`. A field `seed` of it is that of the search where a
      config does not set it.
  """

  renamed: ClassVar[Mapping[str, str]] = MappingProxyType(
    {
      'architectures': 'trials',
      'training': 'evaluator',
      'network.nodes': 'space.nodes',
      'network.operations': 'space.operations',
    }
  )

  space: CellSpace = variant(SPACES, Darts(), kept=False)
  strategy: Sampled[Any] = variant(SAMPLED, RandomSearch())
  evaluator: EvaluatorSettings = variant(EVALUATORS, ScratchSettings(), kept=False)

  @classmethod
  def prepared(
    cls, config: Mapping[str, Any], path: str, base: 'TrialSearch | None'
  ) -> tuple[dict[str, Any], 'TrialSearch | None']:
    """See `darts_jax.settings.build`: an evaluator with a seed has that of the search by default."""
    given = {'seed': config['seed']} if 'seed' in config else {}
    found = build_from(cls, given, path, base)
    usual = next(name for name, kind in EVALUATORS.items() if kind is type(found.evaluator))
    name = name_in(EVALUATORS, config.get('evaluator'), usual)
    if 'seed' in {field.name for field in dataclasses.fields(EVALUATORS[name])}:  # type: ignore[arg-type]
      base = build_from(cls, {**given, 'evaluator': {'name': name, 'seed': found.seed}}, path, base)
    return dict(config), base


def read(config: Mapping[str, Any]) -> TrialSearch:
  """The settings of a search by proposals; raises a ValueError as `darts_jax.settings.build`."""
  return build(TrialSearch, config)
