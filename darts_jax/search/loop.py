"""A whole search: from a config to a genotype, resumable at every moment."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax import genotype as genotypes
from darts_jax import report
from darts_jax.genotype import AnyGenotype, Genotype, recurrent_search_space, search_space
from darts_jax.relaxation import Annealing, softmax
from darts_jax.runtime.compilation import enable_cache
from darts_jax.runtime.interrupts import InterruptGuard
from darts_jax.runtime.loop import Loop, Plan, Sums
from darts_jax.runtime.mesh import check_batch, make_mesh
from darts_jax.runtime.workdir import claim, named_errors
from darts_jax.search import images, records, text
from darts_jax.search.darts import Darts
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import RecurrentSearch, Search, Settings, read
from darts_jax.search.sgas import Sgas
from darts_jax.search.state import SearchState
from darts_jax.search.strategy import Scores, Strategy, Turn


@dataclasses.dataclass(frozen=True)
class Result:
  """What a search found.

  Attributes:
    genotype: derived from the final α.
    valid_loss: of the supernet on the architecture half, in nats, at the end of the last complete epoch.
    valid_accuracy: likewise, 0 to 1; NaN on text, whose perplexity is the exponential of the loss.
    state: final state.
    finished: whether all epochs were done; not so after an interruption.
    interrupted: whether a signal asked for an end, which ends a sequence of searches even if this one is finished.
    report: path of the report page.
  """

  genotype: AnyGenotype
  valid_loss: float
  valid_accuracy: float
  state: SearchState
  finished: bool
  interrupted: bool
  report: pathlib.Path


def make_strategy(settings: Search | RecurrentSearch) -> Strategy:
  """The strategy that the settings name, on the search space that they describe.

  Raises:
    ValueError: the strategy cannot work on it.
  """
  network, scale = settings.network, settings.alphas.init_scale
  if isinstance(settings, RecurrentSearch):
    space = {'recurrent': recurrent_search_space(network.operations, network.nodes)}
  else:
    space = dict.fromkeys(('normal', 'reduce'), search_space(network.operations, network.nodes))
  temperature = Annealing(settings.temperature.initial, settings.temperature.final)
  if settings.strategy == 'darts':
    return Darts(space, scale, temperature)
  try:
    return Sgas(space, settings.sgas, scale, temperature)
  except ValueError as error:
    raise ValueError(f'config.{error}') from error


def run(config: Mapping[str, Any], workdir: str | pathlib.Path) -> Result:
  """Searches, or goes on with the search that `workdir` holds.

  Args:
    config: fields of `darts_jax.search.settings.Search`, or of `RecurrentSearch` if its `space` is `recurrent`, as
      nested mappings or `ConfigDict`.
    workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `genotype.json`, `alphas.npz`, `checkpoints/` and
      `report.html`. A search that was stopped resumes to the same result, bit for bit.

  Raises:
    ValueError: a setting, the data or the directory is unfit; nothing has been written then.
    Diverged: a loss or gradient was not finite.
  """
  settings = read(config)
  workdir = pathlib.Path(workdir).expanduser()
  searcher, data, fingerprint = _open(settings)
  claim(workdir, {**dataclasses.asdict(settings), **fingerprint}, 'search')
  enable_cache()
  with InterruptGuard() as guard:
    loop = _Loop(settings, workdir, searcher, data, guard)
    state, last_epoch, finished, requested = loop.run()
  return Result(
    loop.strategy.derive(jax.device_get(state.alphas)),
    last_epoch.get('valid_loss', math.nan),
    last_epoch.get('valid_accuracy', math.nan),
    state,
    finished,
    requested is not None,
    loop.report(),
  )


def check(settings: Search | RecurrentSearch) -> None:
  """Raises the ValueError that `run` would, before anything is searched."""
  _open(settings)


def _open(settings: Search | RecurrentSearch) -> tuple[Searcher[Any, Any], Any, dict[str, Any]]:
  """The search, its data on the devices, and JSON values that a search goes on with only if they are the same."""
  mesh = make_mesh()
  check_batch(settings.batch_size, mesh)
  strategy = make_strategy(settings)
  if isinstance(settings, RecurrentSearch):
    corpus = settings.data.load()
    texts = text.place(corpus, settings, mesh)
    return text.TextSearcher(settings, strategy, corpus, mesh), texts, {'dataset': corpus.fingerprint}
  found = settings.data.load()
  images.check_images(found)
  halves = images.place(found, settings, mesh)
  least = min(len(half.labels) for half in halves)
  for size in (settings.batch_size + strategy.growth(epoch) for epoch in range(settings.epochs)):
    grown = f'config.batch_size: {settings.batch_size} grows to {size} by the decisions, which'
    if size % mesh.size:
      raise ValueError(
        f'{grown} does not divide evenly over the devices ({mesh.size} devices); see config.sgas.batch_growth'
      )
    if size > least:
      raise ValueError(
        f'{grown} is more than half of the images ({least} images in the smaller half); see config.sgas.batch_growth'
      )
  return images.ImageSearcher(settings, strategy, found, mesh), halves, {}


class _Loop(Loop[SearchState]):
  """The loop over the epochs of a search."""

  shown = ('train_loss', 'valid_loss')

  def __init__(
    self, settings: Settings, workdir: pathlib.Path, searcher: Searcher[Any, Any], data: Any, guard: InterruptGuard
  ) -> None:
    name = searcher.settings.data.name
    plan = Plan(f'search {name}', searcher.epoch_ends, settings.log_every, settings.checkpoint)
    super().__init__(workdir, plan, guard)
    self._settings = settings
    self._searcher = searcher
    self._data = data
    #: With all that it has decided.
    self.strategy = searcher.strategy
    # The epoch that the supernet, as it is now, was first trained in.
    self._since = 0
    self._turned: Turn | None = None
    self._history: records.AlphaHistory
    self._run: Any = None
    self._evaluate: Any = None

  def init(self) -> SearchState:
    return self._searcher.init(jax.random.key(self._settings.seed))

  def template(self) -> SearchState:
    return self._searcher.template()

  @property
  def memory(self) -> Any:
    strategy = self.strategy.memory
    return None if strategy is None else {'since': self._since, 'strategy': strategy}

  def recall(self, memory: Any) -> None:
    self._since = memory['since']
    self.strategy = self.strategy.recall(memory['strategy'])
    self._searcher = self._searcher.restage(self.strategy, self._since)

  def opened(self, state: SearchState, resume_step: int | None) -> None:
    self._history = records.AlphaHistory(self.workdir, self.strategy, resume_step)
    if resume_step is None:
      stages = self.strategy.stages(self._settings.epochs)
      if stages > 1:
        self.note(0, 'stages', f'{stages} supernets will be compiled, each smaller than the one before')
      self._write_alphas(state, 0, 0, self.strategy.scores(jax.device_get(state.alphas)))

  def prepare(self, state: SearchState, step: int) -> None:
    detail = f' ({self._settings.hypergradient.name})'
    self._run = self.compile(step, 'search step', self._searcher.run, state, self._data, jnp.int32(1), detail=detail)
    self._evaluate = None

  def advance(self, state: SearchState, num_steps: int) -> tuple[SearchState, Mapping[str, Any]]:
    found: tuple[SearchState, Mapping[str, Any]] = self._run(state, self._data, jnp.int32(num_steps))
    return found

  def evaluate(self, state: SearchState, step: int) -> dict[str, float]:
    # Not compiled before it is needed, so that the first step is seen sooner.
    self._evaluate = self._evaluate or self.compile(step, 'evaluation', self._searcher.evaluate, state, self._data)
    found = jax.device_get(self._evaluate(state, self._data))
    return {f'valid_{name}': value for name, value in self._searcher.metrics(found).items()}

  def summary(self, state: SearchState, sums: Sums) -> dict[str, float | int]:
    alphas = jax.device_get(state.alphas)
    values: dict[str, float | int] = {}
    for name in sorted(alphas):
      # Of the edges that there is something to choose on.
      mixing = np.asarray(softmax(alphas[name]), np.float64)[self.strategy.active[name]]
      entropies = -np.sum(mixing * np.log(np.maximum(mixing, 1e-300)), axis=-1)
      values[f'entropy_{name}'] = float(np.mean(entropies)) if len(entropies) else 0.0
    derived = self.strategy.derive(alphas)
    if isinstance(derived, Genotype):
      values['skip_connections'] = sum(operation == 'skip_connect' for operation, _ in derived.normal)
    return {**values, **self._searcher.summary(sums.means(), sums.values), **super().summary(state, sums)}

  def turn_epoch(self, state: SearchState, evaluation: Mapping[str, float], step: int) -> SearchState:
    epoch = self.plan.epoch_ends.index(step)
    self._turned = self.strategy.turn(jax.device_get(state.alphas), epoch)
    for message in self._turned.messages:
      self.note(step, 'decided', message)
    before, self.strategy = self._searcher, self._turned.strategy
    if self.strategy.specs == before.strategy.specs:
      return state
    self._since = epoch + 1
    self._searcher = before.restage(self.strategy, self._since)
    state = self._searcher.inherit(state, before)
    if step < self.total:
      self.prepare(state, step)
    return state

  def epoch_done(self, state: SearchState, step: int, epoch: int) -> None:
    assert self._turned is not None
    self._write_alphas(state, step, epoch, self._turned.scores)

  def report(self) -> pathlib.Path:
    with named_errors(self.workdir):
      return report.write(self.workdir)

  def _write_alphas(self, state: SearchState, step: int, epoch: int, scores: Scores) -> None:
    alphas = jax.device_get(state.alphas)
    with named_errors(self.workdir):
      self._history.append(step, epoch, alphas, self.strategy, scores)
      genotypes.save(self.strategy.derive(alphas), self.workdir / 'genotype.json')
