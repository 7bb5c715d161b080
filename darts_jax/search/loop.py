"""A whole search: from a config to a genotype, resumable at every moment."""

import bisect
import contextlib
import dataclasses
import functools
import itertools
import math
import operator
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from darts_jax import report, spaces
from darts_jax.runtime import metrics, processes
from darts_jax.runtime.compilation import enable_cache
from darts_jax.runtime.files import user_path
from darts_jax.runtime.interrupts import InterruptGuard
from darts_jax.runtime.lock import locked
from darts_jax.runtime.loop import Loop, Plan, Sums
from darts_jax.runtime.mesh import check_batch, make_mesh
from darts_jax.runtime.metrics import Writer
from darts_jax.runtime.precision import in_float32
from darts_jax.runtime.workdir import as_json, claim, claim_together, named_errors
from darts_jax.search import records
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search, check_alone, read
from darts_jax.search.state import SearchState
from darts_jax.search.step import counted_by
from darts_jax.settings import as_config
from darts_jax.spaces import Genotype
from darts_jax.strategies.relaxed import Scores, Turn
from darts_jax.tasks import Feed

#: The file of what has been derived from α.
GENOTYPE = 'genotype.json'
_STAYS = 'the genotype is that of α as they were drawn; config.hypergradient is none, so they stay'


@dataclasses.dataclass(frozen=True)
class Result:
  """What a search found.

  Attributes:
    genotype: derived from the final α.
    valid_loss: of the supernet on the architecture half, in nats, at the end of the last complete epoch.
    valid_accuracy: likewise, 0 to 1; NaN on text, whose perplexity is the exponential of the loss.
    state: final state; of all searches side by side.
    finished: whether all epochs were done; not so after an interruption.
    interrupted: whether a signal asked for an end, which ends a sequence of searches even if this one is finished.
    report: path of the report page.
    history: what was logged of every epoch, in their order; empty in other processes than the first.
    warning: one line if the genotype would be another one if α moved once more as far as in the last epoch (see
      `darts_jax.spaces.doubts`); None after an interruption, and in other processes than the first.
  """

  genotype: Genotype
  valid_loss: float
  valid_accuracy: float
  state: SearchState
  finished: bool
  interrupted: bool
  report: pathlib.Path
  warning: str | None = None
  history: tuple[Mapping[str, Any], ...] = ()


def run(config: Mapping[str, Any], workdir: str | pathlib.Path) -> Result:
  """One search, see `run_side_by_side`, where `config.mesh.seed` has to be 1."""
  check_alone(read(config))
  [result] = run_side_by_side(config, workdir)
  return result


@in_float32
def run_side_by_side(
  config: Mapping[str, Any],
  workdir: str | pathlib.Path,
  *,
  data: tuple[Any, Any] | None = None,
  writers: Sequence[Writer] = (),
) -> list[Result]:
  """Searches, or goes on with the search or the searches that `workdir` holds.

  Args:
    config: fields of `darts_jax.search.settings.Search`, as nested mappings or `ConfigDict`.
    workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `genotype.json`, `alphas.npz`, `checkpoints/` and
      `report.html`. A search that was stopped resumes to the same result, bit for bit. Searches side by side have all
      but the checkpoints in folders `seed_0`, `seed_1`, … of their own.
    data: inputs and targets that take the place of those that the task would load; see `Task.given`.
    writers: are told of the metrics as they are logged.

  Returns:
    What each of the `config.mesh.seed` searches found; it is what a search by itself with the same seed finds, but for
    the order of additions.

  Raises:
    ValueError: a setting, the data or the directory is unfit; nothing has been written then.
    Diverged: a loss or gradient was not finite.
  """
  settings = processes.together(lambda: read(config))
  workdir = user_path(workdir, '--workdir')
  folders = _folders(settings, workdir)
  with locked(workdir, folders):
    return _run(settings, workdir, folders, data, writers)


def _run(
  settings: Search,
  workdir: pathlib.Path,
  folders: Sequence[pathlib.Path],
  given: tuple[Any, Any] | None,
  writers: Sequence[Writer],
) -> list[Result]:
  searcher, feed, fingerprint = processes.together(lambda: _open(settings, given))
  config = as_json({**as_config(settings), 'dataset': fingerprint})
  claim_together(workdir, lambda: _claim(config, workdir, folders), lambda: config)
  enable_cache()
  with InterruptGuard() as guard:
    loop = _Loop(settings, workdir, searcher, feed, guard, folders, config)
    loop.writers = writers
    with contextlib.closing(loop):
      state, last_epoch, finished, requested = loop.run()
  alphas = loop.alphas(state)
  reports, warnings = loop.reports(), loop.warnings()
  return [
    Result(
      loop.searched.read(alphas[i]),
      float(np.ravel(last_epoch.get('valid_loss', math.nan))[i]),
      float(np.ravel(last_epoch.get('valid_accuracy', [math.nan] * len(folders)))[i]),
      state,
      finished,
      requested is not None,
      reports[i],
      warnings[i] if finished else None,
      _epochs(folders[i]) if processes.is_first() else (),
    )
    for i in range(len(folders))
  ]


def _epochs(folder: pathlib.Path) -> tuple[Mapping[str, Any], ...]:
  """The lines of the log that are about epochs; of one that was done again the last."""
  lines = {line['epoch']: line for line in metrics.read(folder) if line['kind'] == 'epoch'}
  return tuple(lines[epoch] for epoch in sorted(lines))


def _folders(settings: Search, workdir: pathlib.Path) -> list[pathlib.Path]:
  """Where the searches write."""
  if settings.mesh.seed == 1:
    return [workdir]
  return [workdir / f'seed_{settings.seed + i}' for i in range(settings.mesh.seed)]


def _claim(config: Mapping[str, Any], workdir: pathlib.Path, folders: Sequence[pathlib.Path]) -> None:
  """See `claim`; folders of searches side by side get the config with their seed."""
  claim(workdir, config, 'search')
  if len(folders) > 1:
    for i, folder in enumerate(folders):
      claim(folder, {**config, 'seed': config['seed'] + i}, 'search')


@in_float32
def check(settings: Search) -> Any:
  """Raises the ValueError that `run` would, before anything is searched.

  Returns:
    JSON values that tell the data from others.
  """
  return _open(settings)[2]


def _open(settings: Search, given: tuple[Any, Any] | None = None) -> tuple[Searcher, Feed, Any]:
  """The search, what feeds it with data, and JSON values of these, with which alone a search goes on."""
  mesh = make_mesh(seeds=settings.mesh.seed)
  check_batch(settings.batch_size, mesh)
  task = settings.task
  # Before anything is written.
  settings.space.judge(task.source)
  found = task.load() if given is None else task.given(*given)
  seeds = range(settings.seed, settings.seed + settings.mesh.seed)
  halves = [task.halves(found, settings, seed) for seed in seeds]
  searcher = Searcher.open(settings, found, mesh)
  return searcher, searcher.feed(halves), task.fingerprint(found)


class _Loop(Loop[SearchState]):
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
    plan = Plan(f'search {settings.task.source}', searcher.epoch_ends, settings.log_every, settings.checkpoint)
    super().__init__(workdir, plan, guard, folders, config)
    self._settings = settings
    self._searcher = searcher
    self._feed = feed
    #: With all that it has decided.
    self.searched = searcher.searched
    stages = self.searched.plan(settings.epochs)
    # Epochs after which another stage begins.
    self._ends = [*itertools.accumulate(stage.epochs for stage in stages[:-1])]
    # The epoch that the supernet, as it is now, was first trained in.
    self._since = 0
    self._turned: list[Turn] = []
    self._judge = settings.space.judge(settings.task.source)
    self._histories: list[records.AlphaHistory] = []
    self._run: Any = None
    self._evaluate: Any = None

  def init(self) -> SearchState:
    return self._searcher.init(self._searcher.keys())

  def template(self) -> SearchState:
    return self._searcher.template()

  @property
  def memory(self) -> Any:
    if self.searched.memory is None and not self._ends:
      return None
    return {'since': self._since, 'strategy': self.searched.memory}

  def recall(self, memory: Any) -> None:
    self._since = memory['since']
    self.searched = self.searched.recall(memory['strategy'])
    self._searcher = self._searcher.restage(self.searched, self._since)

  def opened(self, state: SearchState, resume_step: int | None) -> None:
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
    detail = f' ({self._settings.hypergradient.name})'
    self._feed = self._feed.again(self._searcher.feed)
    shapes = self._feed.shapes
    self._run = self.compile(step, 'search step', self._searcher.run, state, shapes, np.int32(1), detail=detail)
    self._evaluate = None

  def advance(self, state: SearchState, num_steps: int) -> tuple[SearchState, Mapping[str, Any]]:
    data, count = self._feed.read(state.step, state.key, num_steps, self.note)
    found: tuple[SearchState, Mapping[str, Any]] = self._run(state, data, np.int32(count))
    return found

  def close(self) -> None:
    """Stops what reads ahead."""
    self._feed.close()

  def evaluate(self, state: SearchState, step: int) -> dict[str, float]:
    parts = []
    for data in self._feed.evaluation(step, self.note):
      # Not compiled before it is needed, so that the first step is seen sooner.
      self._evaluate = self._evaluate or self.compile(step, 'evaluation', self._searcher.evaluate, state, data)
      parts.append(self._evaluate(state, data))
    whole = functools.reduce(functools.partial(jax.tree.map, np.add), map(processes.fetch, parts))
    measured = self._joined([self._searcher.learner.metrics(each) for each in self._each(whole)])
    return {f'valid_{name}': value for name, value in measured.items()} | self._judged(state, step)

  def _judged(self, state: SearchState, step: int) -> dict[str, Any]:
    """What is known without a training of the architectures that the searches would return after an epoch."""
    if self._judge is None:
      return {}
    epoch = self.plan.epoch_ends.index(step)
    found = [self.searched.turn(alphas, epoch)[0].read(alphas) for alphas in self.alphas(state)]
    return self._joined([self._judge(each) for each in found])

  def alphas(self, state: SearchState) -> list[dict[str, np.ndarray]]:
    """Those of each search, on the host."""
    return self._each(processes.fetch(state.alphas))

  def _keys(self, state: SearchState) -> list[jax.Array]:
    """The key of each search, on the host."""
    return [*map(jax.random.wrap_key_data, self._each(processes.fetch(jax.random.key_data(state.key))))]

  def _each(self, tree: Any) -> list[Any]:
    """What there is for all searches, for each of them."""
    if len(self.folders) == 1:
      return [tree]
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(len(self.folders))]

  def _joined(self, values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics of each search, for all of them."""
    if len(values) == 1:
      return dict(values[0])
    return {name: np.array([each[name] for each in values]) for name in values[0]}

  def counted_by(self, name: str) -> str:
    return counted_by(name)

  def summary(self, state: SearchState, sums: Sums) -> dict[str, Any]:
    step = np.int32(np.ravel(processes.fetch(state.step))[0])
    found = zip(self.alphas(state), self._keys(state), strict=True)
    details = self._joined([self._describe(alphas, step, key) for alphas, key in found])
    return {**details, **self._searcher.learner.summary(sums.means(), sums.values), **super().summary(state, sums)}

  def _describe(self, alphas: Mapping[str, Any], step: Any, key: jax.Array) -> dict[str, float | int]:
    """What a line of the log says of α and of the mixing weights that the supernet has after `step` steps."""
    values: dict[str, float | int] = {}
    weights = self.searched.look(alphas, step, key)
    for name in sorted(weights):
      # Of the edges that there is something to choose on.
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
    epoch = self.plan.epoch_ends.index(step)
    found = [self.searched.turn(alphas, epoch) for alphas in self.alphas(state)]
    self._turned = [turned for _, turned in found]
    # Several searches have one strategy, which decides nothing.
    cells = self.searched.cells
    self.searched, turned = found[0]
    for message in turned.messages:
      self.note(step, 'decided', message)
    ends_here = epoch + 1 in self._ends
    if self.searched.cells == cells and not ends_here:
      return state
    if not ends_here and step < self.total:
      raise ValueError(
        f'config.strategy: {self.searched.strategy.name} changes cells after epoch {epoch + 1}, where no stage ends'
      )
    before, self._since = self._searcher, epoch + 1
    self._searcher = before.restage(self.searched, self._since)
    state = self._searcher.inherit(state, before)
    if step < self.total:
      self.prepare(state, step)
    return state

  def epoch_done(self, state: SearchState, step: int, epoch: int) -> None:
    self._write_alphas(state, step, epoch, [turned.scores for turned in self._turned])

  def lacks(self) -> str:
    # Only the first process has histories; it tells the others.
    unsettled = processes.gather([any(warning is not None for warning in self.warnings())])[0, 0]
    told = self.has_logged(lambda line: line.get('event') == 'not_settled')
    return 'the warning that a genotype is not settled' if unsettled and not told else ''

  def finish(self, state: SearchState) -> None:
    alone = len(self.folders) == 1
    found = [
      warning if alone else f'{folder.name}: {warning}'
      for folder, warning in zip(self.folders, self.warnings(), strict=True)
      if warning is not None
    ]
    self.write('event', self.total, {'event': 'not_settled', 'message': '; '.join(found)})

  def warnings(self) -> list[str | None]:
    """For each search a line if its genotype is not settled; of other processes than the first, none."""
    return [history.doubt for history in self._histories] or [None] * len(self.folders)

  def report(self, folder: pathlib.Path) -> pathlib.Path:
    return report.write(folder)

  def _write_alphas(self, state: SearchState, step: int, epoch: int, scores: Sequence[Scores]) -> None:
    found, keys = self.alphas(state), self._keys(state)
    # Of other processes than the first there are no histories.
    for folder, history, alphas, key, score in zip(self.folders, self._histories, found, keys, scores, strict=False):
      with named_errors(folder):
        history.append(step, epoch, alphas, key, self.searched, score)
        spaces.save(self.searched.read(alphas), folder / GENOTYPE)

  def is_readable(self, path: pathlib.Path) -> bool:
    if path.name != GENOTYPE:
      return path.name not in report.workdir.read(path.parent).problems
    try:
      spaces.load(path)
    except ValueError:
      return False
    return True

  def _write_again(self, state: SearchState, step: int) -> None:
    """Writes what is derived from α again; what no checkpoint keeps of its history is lost."""
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
