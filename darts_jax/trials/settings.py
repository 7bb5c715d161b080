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
  """The settings of the loop: number of evaluations, and the order in which the strategy is told their outcomes.

  Attributes:
    seed: seed of all random numbers of the strategy.
    trials: total number of proposals.
    workers: number of evaluations that run at once.
    tell: `as_completed`: an outcome is told as soon as its evaluation ends, and the search depends on which ends first.
      `in_order`: outcomes are told in the order of their proposals, and the search is a function of seed and number of
      workers, but workers have to wait for each other.
    fit_every: number of proposals from one training of shared state, such as shared weights, to the next; the first is
      before the first proposal.

  Raises:
    ValueError: a value is not allowed; one line that names the field.
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
  """The settings of a search by proposals; see `Trials` for its other fields.

  Attributes:
    space: the search space, one of `SPACES`.
    strategy: proposes the architectures, one of `SAMPLED`.
    evaluator: scores the architectures, one of `EVALUATORS`. If it has a field `seed` that the config does not set, it
      is the seed of the search.
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
    """See `darts_jax.settings.build`: by default, an evaluator with a seed gets the seed of the search."""
    given = {'seed': config['seed']} if 'seed' in config else {}
    found = build_from(cls, given, path, base)
    usual = next(name for name, kind in EVALUATORS.items() if kind is type(found.evaluator))
    name = name_in(EVALUATORS, config.get('evaluator'), usual)
    if 'seed' in {field.name for field in dataclasses.fields(EVALUATORS[name])}:  # type: ignore[arg-type]
      base = build_from(cls, {**given, 'evaluator': {'name': name, 'seed': found.seed}}, path, base)
    return dict(config), base


def read(config: Mapping[str, Any]) -> TrialSearch:
  """The settings of a search by proposals from its config; raises a ValueError as `darts_jax.settings.build` does."""
  return build(TrialSearch, config)
