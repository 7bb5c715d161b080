"""The loop over the epochs of a search: it evaluates, lets the strategy decide, logs and writes files."""

import bisect
import functools
import itertools
import operator
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from darts_jax import report, spaces
from darts_jax.runtime import processes
from darts_jax.runtime.interrupts import InterruptGuard
from darts_jax.runtime.loop import Loop, Plan, Sums
from darts_jax.runtime.workdir import named_errors
from darts_jax.search import records
from darts_jax.search.probe import Evaluator, SupernetProbe
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search
from darts_jax.search.state import SearchState
from darts_jax.search.step import counted_by
from darts_jax.strategies.relaxed import Memory, Scores, Turn
from darts_jax.tasks import Feed

#: Name of the file with the architecture that α stand for.
GENOTYPE = 'genotype.json'
_STAYS = 'the genotype is that of α as they were drawn; config.hypergradient is none, so they stay'


class Epochs(Loop[SearchState]):
  """The loop over the epochs of a search."""

  shown = ('train_loss', 'valid_loss')
  derived = (records.FILE, GENOTYPE)

  def __init__(
    self,
    settings: Search,
    workdir: pathlib.Path,
    searcher: Searcher,
    feed: Feed,
    guard: InterruptGuard,
    folders: Sequence[pathlib.Path],
    config: Mapping[str, Any],
  ) -> None:
    """Opens the checkpoints; see `Loop`."""
    plan = Plan(f'search {settings.task.source}', searcher.epoch_ends, settings.log_every, settings.checkpoint)
    super().__init__(workdir, plan, guard, folders, config)
    self._settings = settings
    self._searcher = searcher
    self._feed = feed
    #: The strategy with its decisions so far.
    self.searched = searcher.searched
    stages = self.searched.plan(settings.epochs)
    # Epochs after which another stage begins.
    self._ends = [*itertools.accumulate(stage.epochs for stage in stages[:-1])]
    # The epoch in which the present supernet was first trained.
    self._since = 0
    self._turned: list[Turn] = []
    # A step that ends an epoch, and the strategy's turns after it, one for each search.
    self._latest: tuple[int, list[Any]] | None = None
    # The strategy's memory to go on with when the search returns to an earlier epoch.
    self._learnt: Memory = None
    self._ended = False
    self._judge = settings.space.judge(settings.task.source)
    self._histories: list[records.AlphaHistory] = []
    # The searcher whose step is compiled, the compiled step, and its other programs, which are compiled when needed.
    self._prepared: Searcher | None = None
    self._run: Any = None
    self._programs: dict[Any, Any] = {}

  def init(self) -> SearchState:
    """See `Loop`."""
    return self._searcher.init(self._searcher.keys())

  def template(self) -> SearchState:
    """See `Loop`."""
    return self._searcher.template()

  @property
  def memory(self) -> Any:
    """See `Loop`."""
    if self.searched.memory is None and not self._ends and not self._ended:
      return None
    ended = {'ended': self.total} if self._ended else {}
    return {'since': self._since, 'strategy': self.searched.memory, **ended}

  def recall(self, memory: Any) -> None:
    """See `Loop`."""
    before = self._since, self.searched.cells
    self._since = memory['since']
    self.searched = self.searched.recall(memory['strategy'])
    if (self._since, self.searched.cells) != before:
      self._searcher = self._searcher.restage(self.searched, self._since)
    if 'ended' in memory:
      self._ended, self.total = True, memory['ended']

  def opened(self, state: SearchState, resume_step: int | None) -> None:
    """See `Loop`."""
    if processes.is_first():
      doubt = _STAYS if self._settings.hypergradient.name == 'none' else None
      self._histories = [records.AlphaHistory(folder, self.searched, resume_step, doubt) for folder in self.folders]
    if resume_step is None:
      if self._ends:
        number = 1 + len(self._ends)
        self.note(0, 'stages', f'{number} supernets will be compiled, each smaller than the one before')
      self._write_alphas(state, 0, 0, [self.searched.scores(alphas) for alphas in self.alphas(state)])
    else:
      self._write_again(state, resume_step)

  def prepare(self, state: SearchState, step: int) -> None:
    """See `Loop`."""
    if self._prepared is self._searcher:
      return
    detail = f' ({self._settings.hypergradient.name})'
    self._feed = self._feed.again(self._searcher.feed)
    shapes = self._feed.shapes
    self._run = self.compile(step, 'search step', self._searcher.run, state, shapes, np.int32(1), detail=detail)
    self._prepared, self._programs = self._searcher, {}

  def advance(self, state: SearchState, num_steps: int) -> tuple[SearchState, Mapping[str, Any]]:
    """See `Loop`."""
    data, count = self._feed.read(state.step, state.key, num_steps, self.note)
    found: tuple[SearchState, Mapping[str, Any]] = self._run(state, data, np.int32(count))
    return found

  def close(self) -> None:
    """Stops reading data ahead."""
    self._feed.close()

  def evaluate(self, state: SearchState, step: int) -> dict[str, float]:
    """See `Loop`."""
    found = self._evaluator(state, step).over('evaluation', self._searcher.evaluate)
    measured = self._joined([self._searcher.learner.metrics(each) for each in self._each(found)])
    measures = self._joined([turned.measures for _, turned in self._turns(state, step)])
    return {**{f'valid_{name}': value for name, value in measured.items()}, **self._judged(state, step), **measures}

  def _evaluator(self, state: SearchState, step: int) -> Evaluator:
    return Evaluator(self._searcher, state, step, self._feed, self.note, functools.partial(self._compiled, step))

  def _compiled(self, step: int, name: str, function: Any, *arguments: Any) -> Any:
    """A compiled program; it is compiled at its first use, so that the first step starts sooner."""
    key = name, jax.tree.structure(arguments)
    if key not in self._programs:
      self._programs[key] = self.compile(step, name, function, *arguments)
    return self._programs[key]

  def _turns(self, state: SearchState, step: int) -> list[Any]:
    """For every search the strategy after an epoch and its `Turn`; `turn` is called once per epoch."""
    if self._latest is None or self._latest[0] != step:
      epoch, evaluator, alone = self.plan.epoch_ends.index(step), self._evaluator(state, step), len(self.folders) == 1
      found = []
      for i, alphas in enumerate(self.alphas(state)):
        found.append(self.searched.turn(alphas, epoch, SupernetProbe(evaluator, None if alone else i)))
      self._latest = step, found
    return self._latest[1]

  def _judged(self, state: SearchState, step: int) -> dict[str, Any]:
    """Metrics from `CellSpace.judge` of the architectures that the searches would return after an epoch."""
    if self._judge is None:
      return {}
    turns = zip(self._turns(state, step), self.alphas(state), strict=True)
    return self._joined([self._judge(after.read(alphas)) for (after, _), alphas in turns])

  def alphas(self, state: SearchState) -> list[dict[str, np.ndarray]]:
    """The architecture parameters of each search, on the host."""
    return self._each(processes.fetch(state.alphas))

  def _keys(self, state: SearchState) -> list[jax.Array]:
    """The key of each search, on the host."""
    return [*map(jax.random.wrap_key_data, self._each(processes.fetch(jax.random.key_data(state.key))))]

  def _each(self, tree: Any) -> list[Any]:
    """Splits a pytree with a leading axis of searches into one pytree per search."""
    if len(self.folders) == 1:
      return [tree]
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(len(self.folders))]

  def _joined(self, values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stacks the metrics of each search into one array per metric; of a single search they stay numbers."""
    if len(values) == 1:
      return dict(values[0])
    return {name: np.array([each[name] for each in values]) for name in values[0]}

  def counted_by(self, name: str) -> str:
    """See `Loop`."""
    return counted_by(name)

  def summary(self, state: SearchState, sums: Sums) -> dict[str, Any]:
    """See `Loop`."""
    step = np.int32(np.ravel(processes.fetch(state.step))[0])
    found = zip(self.alphas(state), self._keys(state), strict=True)
    details = self._joined([self._describe(alphas, step, key) for alphas, key in found])
    return {**details, **self._searcher.learner.summary(sums.means(), sums.values), **super().summary(state, sums)}

  def _describe(self, alphas: Mapping[str, Any], step: Any, key: jax.Array) -> dict[str, float | int]:
    """Log values of α and of the mixing weights after `step` steps: entropies, and the number of skip connections."""
    values: dict[str, float | int] = {}
    weights = self.searched.shown(alphas, step, key)
    for name in sorted(weights):
      # Edges with a single candidate have nothing to choose, and would lower the mean.
      open_edges = [len(edge.operations) > 1 for _, edge in self.searched.cells[name].edges]
      mixing = np.asarray(weights[name].operations, np.float64)[open_edges]
      entropies = -np.sum(mixing * np.log(np.maximum(mixing, 1e-300)), axis=-1)
      values[f'entropy_{name}'] = float(np.mean(entropies)) if len(entropies) else 0.0
    derived = self.searched.read(alphas)
    if self.searched.space.identity == 'skip_connect':
      _, first = derived.cells[0]
      values['skip_connections'] = sum(operation == 'skip_connect' for operation, _ in first.pairs)
    return values

  def turn_epoch(self, state: SearchState, evaluation: Mapping[str, Any], step: int) -> SearchState:
    """See `Loop`."""
    epoch = self.plan.epoch_ends.index(step)
    found, self._latest = self._turns(state, step), None
    self._turned = [turned for _, turned in found]
    # Searches side by side share one strategy, whose memory is always None (see `Search`).
    before = self.searched
    self.searched, turned = found[0]
    if len(found) > 1 and any(each.then != 'on' for each in self._turned):
      raise ValueError(
        f'config.mesh.seed: {len(found)} is not allowed; with {before.strategy.name} it has to be 1, since searches'
        ' side by side end together'
      )
    if turned.then == 'on':
      for message in turned.messages:
        self.note(step, 'decided', message)
    elif self._leaves(turned, step):
      return state
    usual = self._settings.weights.weight_decay
    if self.searched.weight_decay(usual) != before.weight_decay(usual):
      state = self._searcher.with_weight_decay(state, self.searched)
    ends_here = epoch + 1 in self._ends
    if self.searched.cells == before.cells and not ends_here:
      return state
    if not ends_here and step < self.total:
      raise ValueError(
        f'config.strategy: {self.searched.strategy.name} changes cells after epoch {epoch + 1}, where no stage ends'
      )
    searcher, self._since = self._searcher, epoch + 1
    self._searcher = searcher.restage(self.searched, self._since)
    state = self._searcher.inherit(state, searcher)
    if step < self.total:
      self.prepare(state, step)
    return state

  def _leaves(self, turned: Turn, step: int) -> bool:
    """Ends the search or returns to an earlier epoch, as the turn says; returns whether it restores a checkpoint."""
    epoch = self.plan.epoch_ends.index(step)
    to_epoch = epoch if turned.to_epoch is None else turned.to_epoch
    to_step = self.plan.epoch_ends[to_epoch]
    if turned.then == 'stop':
      self._ended, self.total = True, to_step
      event, what = 'stopped_early', f'the search stops, with the architecture of epoch {to_epoch + 1}'
    else:
      event, what = 'went_back', f'the search goes on from epoch {to_epoch + 1}'
    message = '; '.join(turned.messages) or f'epoch {epoch + 1} has ended: {what}'
    self.note(step, event, message, epoch=epoch, to_epoch=to_epoch, to_step=to_step)
    if to_epoch == epoch:
      return False
    self.back_to, self._learnt = to_step, turned.memory
    return True

  def needed(self, step: int) -> Collection[int]:
    """See `Loop`."""
    done = bisect.bisect_right(self.plan.epoch_ends, step)
    return [self.plan.epoch_ends[epoch] for epoch in self.searched.may_return_to(done - 1)]

  def went_back(self, state: SearchState, step: int) -> SearchState:
    """See `Loop`."""
    then, name = self.searched, self.searched.strategy.name
    if not self._ended and self._learnt == then.memory:
      raise ValueError(
        f'config.strategy: {name} goes back to step {step} with the memory that it had there, and would do so for ever'
      )
    self.searched = then.recall(self._learnt)
    if self.searched.cells != then.cells:
      raise ValueError(f'config.strategy: {name} goes back to step {step}, where the supernet had other cells')
    for folder, history, alphas in zip(self.folders, self._histories, self.alphas(state), strict=False):
      with named_errors(folder):
        history.go_back(step)
        spaces.save(self.searched.read(alphas), folder / GENOTYPE)
    return self._searcher.with_weight_decay(state, self.searched)

  def epoch_done(self, state: SearchState, step: int, epoch: int) -> None:
    """See `Loop`."""
    self._write_alphas(state, step, epoch, [turned.scores for turned in self._turned])

  def lacks(self) -> str:
    """See `Loop`."""
    # Only the first process has histories, so its answer is sent to the others.
    unsettled = processes.gather([any(warning is not None for warning in self.warnings())])[0, 0]
    told = self.has_logged(lambda line: line.get('event') == 'not_settled')
    return 'the warning that a genotype is not settled' if unsettled and not told else ''

  def finish(self, state: SearchState) -> None:
    """See `Loop`."""
    alone = len(self.folders) == 1
    found = [
      warning if alone else f'{folder.name}: {warning}'
      for folder, warning in zip(self.folders, self.warnings(), strict=True)
      if warning is not None
    ]
    self.write('event', self.total, {'event': 'not_settled', 'message': '; '.join(found)})

  def warnings(self) -> list[str | None]:
    """For each search one line if its genotype is not settled, else None; all None outside the first process."""
    return [history.doubt for history in self._histories] or [None] * len(self.folders)

  def report(self, folder: pathlib.Path) -> pathlib.Path:
    """See `Loop`."""
    return report.write(folder)

  def _write_alphas(self, state: SearchState, step: int, epoch: int, scores: Sequence[Scores]) -> None:
    found, keys = self.alphas(state), self._keys(state)
    # Only the first process has histories; in the others `zip` yields nothing.
    for folder, history, alphas, key, score in zip(self.folders, self._histories, found, keys, scores, strict=False):
      with named_errors(folder):
        history.append(step, epoch, alphas, key, self.searched, score)
        spaces.save(self.searched.read(alphas), folder / GENOTYPE)

  def is_readable(self, path: pathlib.Path) -> bool:
    """See `Loop`."""
    if path.name != GENOTYPE:
      return path.name not in report.workdir.read(path.parent).problems
    try:
      spaces.load(path)
    except ValueError:
      return False
    return True

  def _write_again(self, state: SearchState, step: int) -> None:
    """Writes the files derived from α again after a resume; a history that no checkpoint holds is lost."""
    epoch = bisect.bisect_right(self.plan.epoch_ends, step)
    found, keys = self.alphas(state), self._keys(state)
    for folder, history, alphas, key in zip(self.folders, self._histories, found, keys, strict=False):
      with named_errors(folder):
        if history.steps:
          history.write()
        else:
          message = f'{(folder / records.FILE).relative_to(self.workdir)}: lost or damaged; the history begins here'
          self.note(step, 'incomplete_log', message)
          history.append(step, epoch, alphas, key, self.searched, self.searched.scores(alphas))
        if step == self.total or not self.is_readable(folder / GENOTYPE):
          spaces.save(self.searched.read(alphas), folder / GENOTYPE)
