"""Searches of either kind, by gradients or by proposals; the strategy of the config decides.

`darts_jax.search` runs the strategies of `RELAXED`, `darts_jax.trials` the strategies of `SAMPLED`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax

from darts_jax import search, trials
from darts_jax.runtime import processes
from darts_jax.search import Search
from darts_jax.settings import build, items, variant
from darts_jax.strategies import RELAXED, SAMPLED, STRATEGIES
from darts_jax.strategies.darts import Darts
from darts_jax.strategies.sampled import Sampled
from darts_jax.tasks import TASKS
from darts_jax.trials import TrialSearch, TrialsResult
from darts_jax.trials.evaluators import ScratchSettings

#: New names of strategies by their names in earlier versions.
_EARLIER: Mapping[Any, str] = MappingProxyType({'random': 'random_search'})


@dataclasses.dataclass(frozen=True)
class _Named:
  strategy: Any = variant(STRATEGIES, Darts())


def proposes(config: Mapping[str, Any]) -> bool:
  """Whether the strategy of a config proposes architectures, so that its settings are `TrialSearch` and not `Search`.

  Raises:
    ValueError: there is no such strategy, or a field of the config belongs to searches of the other kind.
  """
  fields = items(config, 'config')
  given = {name: fields[name] for name in ('strategy',) if name in fields}
  called: Any = given.get('strategy')
  if hasattr(called, 'items'):
    called = items(called, 'config.strategy').get('name', Darts.name)
  if isinstance(called, str) and called in _EARLIER:
    raise ValueError(f'config.strategy: {called!r} is called {_EARLIER[called]!r} now')
  # Its fields are read with the rest of the config, whose groups an unknown field may belong to.
  strategy = build(_Named, {'strategy': called} if given else {}).strategy
  found = isinstance(strategy, Sampled)
  relaxed, sampled = _fields(Search, *TASKS.values()), _fields(TrialSearch)
  own, other, kinds = (sampled, relaxed, RELAXED) if found else (relaxed, sampled, SAMPLED)
  for field in fields:
    if field in other and field not in own:
      name = next(name for name, kind in STRATEGIES.items() if kind is type(strategy))
      message = f'config.{field}: unknown field of {name}; it is one of {", ".join(kinds)}'
      if found and field in _fields(ScratchSettings):
        message += f'; trainings of the evaluator scratch have config.evaluator.{field}'
      raise ValueError(message)
  return found


def _fields(*kinds: type[Any]) -> set[str]:
  return {field.name for kind in kinds for field in dataclasses.fields(kind)}


def read(config: Mapping[str, Any]) -> Search | TrialSearch:
  """Reads the settings of a search; raises a ValueError as `darts_jax.settings.build` does."""
  return trials.settings.read(config) if proposes(config) else search.settings.read(config)


def run(
  config: Mapping[str, Any], workdir: str | pathlib.Path, note: Callable[[str], None] = lambda message: None
) -> list[search.Result] | TrialsResult:
  """Searches, or resumes the search that `workdir` holds.

  Args:
    config: fields of `Search`, or of `TrialSearch` if its strategy is one of `SAMPLED`.
    workdir: see `darts_jax.search.run_side_by_side` and `darts_jax.trials.search.run`.
    note: called with a line about the outcome of every trial.

  Returns:
    The result of `darts_jax.search.run_side_by_side` or of `darts_jax.trials.search.run`.

  Raises:
    ValueError: a setting, the data or the directory is unfit.
    Diverged: a loss or gradient of a search by gradients was not finite.
    Failed: no trial has succeeded.
  """
  if not processes.together(lambda: proposes(config)):
    return search.run_side_by_side(config, workdir)
  if jax.process_count() > 1:
    raise ValueError(
      '--distributed: a search by proposals runs in one process; with config.workers it starts others by itself'
    )
  return trials.search.run(config, workdir, note)
