"""The settings of a search; defaults are the paper's CIFAR-10 search [DARTS §A.1]."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from darts_jax import limits
from darts_jax.hypergradient.settings import HYPERGRADIENTS, FiniteDifference, Hypergradient
from darts_jax.runtime.loop import Checkpoint
from darts_jax.settings import build, build_from, check_seeds, items, name_in, setting, variant
from darts_jax.spaces import SPACES, CellSpace, Darts
from darts_jax.strategies import RELAXED
from darts_jax.strategies.darts import Darts as DartsStrategy
from darts_jax.strategies.relaxed import Relaxed
from darts_jax.tasks import TASKS, ImageTask, Task

#: Fields of earlier versions, and how they are called now.
RENAMED: Mapping[str, str] = MappingProxyType(
  {
    **{
      f'sgas.{name}': f'strategy.{name}'
      for name in ('criterion', 'warmup_epochs', 'decision_frequency', 'history', 'batch_growth', 'decisions')
    },
    'sgas': 'strategy',
    'temperature.initial': 'strategy.temperature',
    'temperature.final': 'strategy.temperature',
    'temperature': 'strategy.temperature',
    'alphas.init_scale': 'strategy.init_scale',
    'network.nodes': 'space.nodes',
    'network.operations': 'space.operations',
    **{name: f'task.{name}' for name in ('bptt', 'short_fraction', 'temporal_activation')},
  }
)

#: Names of spaces in earlier versions, and how they are called now.
EARLIER_SPACES: Mapping[Any, str] = MappingProxyType({'convolutional': 'darts'})


@dataclasses.dataclass(frozen=True)
class Weights:
  """SGD of the weights.

  Attributes:
    learning_rate: on a cosine by epoch, of the first one.
    final_learning_rate: after the last one.
    momentum: of the gradient.
    weight_decay: L2, in the gradient.
    clip_norm: of the gradient, over all weights.
    warmup_epochs: over so many epochs the learning rate grows linearly, step by step, to what the cosine says.
    reference_batch_size: if not 0, both learning rates are for a batch of this size, and multiplied by `batch_size`
      divided by it [Goyal et al. 2017, arXiv 1706.02677].
    nesterov: whether the momentum is Nesterov's.
  """

  learning_rate: float = setting(0.025, above=0, at_most=limits.FACTOR)
  final_learning_rate: float = setting(0.001, at_least=0, at_most=limits.FACTOR)
  momentum: float = setting(0.9, at_least=0, below=1)
  weight_decay: float = setting(3e-4, at_least=0, at_most=limits.FACTOR)
  clip_norm: float = setting(5.0, above=0, at_most=limits.FACTOR)
  warmup_epochs: float = setting(0.0, at_least=0, at_most=limits.EPOCHS)
  reference_batch_size: int = setting(0, at_least=0, at_most=limits.BATCH)
  nesterov: bool = setting(False)


@dataclasses.dataclass(frozen=True)
class Alphas:
  """Adam of the α, and when it moves them.

  Attributes:
    learning_rate: of all epochs.
    beta1: decay of the mean gradient.
    beta2: decay of the mean squared gradient.
    weight_decay: L2, in the gradient.
    warmup_epochs: see `Weights`; from `from_epoch` on.
    reference_batch_size: likewise.
    order: whether α or the weights move first in a step; the others then move at what the first have become.
    every: α move at every so-many-th step; the other steps are updates of the weights alone.
    from_epoch: the epoch, counted from 0, from which on α move.
  """

  learning_rate: float = setting(3e-4, above=0, at_most=limits.FACTOR)
  beta1: float = setting(0.5, at_least=0, below=1)
  beta2: float = setting(0.999, at_least=0, below=1)
  weight_decay: float = setting(1e-3, at_least=0, at_most=limits.FACTOR)
  warmup_epochs: float = setting(0.0, at_least=0, at_most=limits.EPOCHS)
  reference_batch_size: int = setting(0, at_least=0, at_most=limits.BATCH)
  order: str = setting('alphas_first', choices=('alphas_first', 'weights_first'))
  every: int = setting(1, at_least=1, at_most=limits.STEPS)
  from_epoch: int = setting(0, at_least=0, at_most=limits.EPOCHS)


@dataclasses.dataclass(frozen=True)
class BatchNorm:
  """Batch normalisation in training.

  Attributes:
    group_size: consecutive examples of a batch that share statistics; 0: all of them, on all devices. Groups that no
      two devices share need no communication.
    tracked: whether cells of images have running statistics, with which supernets are evaluated; if not, a supernet is
      evaluated with the statistics of each batch, as in NAS-Bench-201.
  """

  group_size: int = setting(0, at_least=0, at_most=limits.BATCH)
  tracked: bool = setting(True)


@dataclasses.dataclass(frozen=True)
class Mesh:
  """How devices are used: all those that there are, divided evenly over searches, and each search's over its batches.

  Attributes:
    seed: searches side by side, with this and as many following values of `config.seed` less one.
  """

  seed: int = setting(1, at_least=1, at_most=limits.RUNS)


@dataclasses.dataclass(frozen=True)
class Search:
  """A search by gradients.

  Attributes:
    seed: of everything random: the split, initial weights and α, order and augmentation of images, dropout.
    space: the search space, one of `SPACES`.
    task: what is learnt, one of `TASKS`; in a config its groups, such as `data` and `network`, stand beside it.
    strategy: how mixing weights are made of α, and an architecture is read off them; one of `RELAXED`.
    epochs: passes over the data that train the weights.
    batch_size: examples a batch, over all devices of a search.
    log_every: steps from one logged line to the next.
    precision: of what the network computes on; weights, BN statistics and α are float32 in either.
    remat: whether gradients recompute the inside of cells instead of keeping it in memory.
    weights: see `Weights`; and so on.
    hypergradient: the estimator of the architecture gradient, one of `HYPERGRADIENTS`.
  """

  renamed: ClassVar[Mapping[str, str]] = RENAMED

  seed: int = setting(0, at_least=0, at_most=limits.SEEDS - 1)
  space: CellSpace = variant(SPACES, Darts(), kept=False)
  task: Task[Any] = variant(TASKS, ImageTask(), kept=False, beside=True)
  strategy: Relaxed = variant(RELAXED, DartsStrategy())
  epochs: int = setting(50, at_least=1, at_most=limits.EPOCHS)
  batch_size: int = setting(64, at_least=1, at_most=limits.BATCH)
  log_every: int = setting(50, at_least=1, at_most=limits.COUNT)
  precision: str = setting('float32', choices=('float32', 'bfloat16'))
  remat: bool = setting(False)
  weights: Weights = setting(Weights())
  alphas: Alphas = setting(Alphas())
  hypergradient: Hypergradient = variant(HYPERGRADIENTS, FiniteDifference())
  batch_norm: BatchNorm = setting(BatchNorm())
  mesh: Mesh = setting(Mesh())
  checkpoint: Checkpoint = setting(Checkpoint())

  def __post_init__(self) -> None:
    if SPACES.get(self.space.name) is not type(self.space):
      kind, name = type(self.space).__name__, self.space.name
      raise ValueError(f'config.space.name: {kind} has the name {name!r}, which has to be its key in SPACES')
    estimator = self.hypergradient.estimator()
    alphas, epochs = self.alphas, self.epochs
    if alphas.from_epoch >= epochs:
      raise ValueError(f'config.alphas.from_epoch: {alphas.from_epoch} is not allowed; there are {epochs} epochs')
    left = epochs - alphas.from_epoch
    for name, warmup, count in (
      ('weights', self.weights.warmup_epochs, epochs),
      ('alphas', alphas.warmup_epochs, left),
    ):
      if warmup > count:
        since = ' from config.alphas.from_epoch on' if count < epochs else ''
        raise ValueError(f'config.{name}.warmup_epochs: {warmup} is not allowed; there are {count} epochs{since}')
    if estimator.single_level and alphas.order != 'alphas_first':
      raise ValueError(f'config.alphas.order: {alphas.order!r} is not allowed; with {estimator.name} both move at once')
    check_seeds(self.seed, self.mesh.seed, 'searches', 'config.seed')
    stages = self.strategy.plan(self.space, self.epochs)
    self.task.check(self.space, self, stages, self.mesh.seed)
    if self.mesh.seed > 1 and (self.strategy.start() is not None or len(stages) > 1):
      raise ValueError(
        f'config.mesh.seed: {self.mesh.seed} is not allowed; with {self.strategy.name} it has to be 1, since supernets'
        ' of different seeds change in different ways'
      )

  @classmethod
  def prepared(cls, config: Mapping[str, Any], path: str, base: 'Search | None') -> tuple[dict[str, Any], 'Search']:
    """See `darts_jax.settings.build`: fields that are left out have the defaults of the space and of the task."""
    called = _name(config.get('space'))
    if called in EARLIER_SPACES:
      raise ValueError(f'{path}.space: {called!r} is called {EARLIER_SPACES[called]!r} now')
    if called and called not in SPACES:
      # Its defaults are not known; this says so.
      build_from(cls, {'space': called}, path, base)
    named = {'space': name_in(SPACES, config.get('space'), Darts.name)}
    space = SPACES[named['space']]
    named['task'] = name_in(TASKS, config.get('task'), space.task)
    if named['task'] not in TASKS:
      known = ', '.join(TASKS)
      raise ValueError(f'{path}.task: {space.task!r}, that of the space {space.name}, is not known; there are {known}')
    task = TASKS[named['task']]
    # They are of the networks that the space has in its own task.
    usual = space.defaults if named['task'] == space.task else {}
    defaults = build_from(cls, {**usual, **task.defaults, **named}, path, base)
    fields = dict(config)
    given = fields.get('strategy')
    if _name(given) in task.strategies:
      own = {'name': given} if isinstance(given, str) else items(given, f'{path}.strategy')
      fields['strategy'] = {**task.strategies[_name(given)], **own}
    return fields, defaults


def _name(group: Any) -> str:
  """The name that a group of a config has, or is; empty if there is none."""
  name = group.get('name') if hasattr(group, 'items') else group
  return name if isinstance(name, str) else ''


def check_alone(settings: Search, path: str = 'config') -> None:
  """Raises a ValueError if the settings, which hang at `path`, are of several searches side by side."""
  if settings.mesh.seed > 1:
    raise ValueError(f'{path}.mesh.seed: {settings.mesh.seed} is not allowed; it has to be 1 here')


def image_task(settings: Search, path: str = 'config') -> ImageTask:
  """The task of a search on images; a ValueError if the settings, which hang at `path`, have another one."""
  if not isinstance(settings.task, ImageTask):
    raise ValueError(f'{path}.task.name: {settings.task.name!r} is not allowed; it has to be {ImageTask.name!r} here')
  return settings.task


def placed_task(settings: Search, path: str = 'config') -> ImageTask:
  """Likewise, of images that lie on the devices."""
  task = image_task(settings, path)
  if task.data.stream:
    raise ValueError(f'{path}.data.stream: True is not allowed; it has to be False here')
  return task


def read(config: Mapping[str, Any]) -> Search:
  """The settings of a search; raises a ValueError as `darts_jax.settings.build`."""
  return build(Search, config)
