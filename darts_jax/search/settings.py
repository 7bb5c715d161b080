"""The settings of a search; defaults are the paper's CIFAR-10 search [DARTS §A.1]."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from darts_jax import limits
from darts_jax.hypergradient.settings import HYPERGRADIENTS, FiniteDifference, Hypergradient
from darts_jax.runtime.loop import Checkpoint
from darts_jax.settings import build, build_from, check_seeds, items, name_in, name_of, setting, variant
from darts_jax.spaces import SPACES, CellSpace, Darts
from darts_jax.strategies import RELAXED
from darts_jax.strategies.darts import Darts as DartsStrategy
from darts_jax.strategies.relaxed import Relaxed
from darts_jax.tasks import TASKS, ImageTask, Task

#: Names of fields in earlier versions, with their present names.
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

#: Names of spaces in earlier versions, with their present names.
EARLIER_SPACES: Mapping[Any, str] = MappingProxyType({'convolutional': 'darts'})


@dataclasses.dataclass(frozen=True)
class Weights:
  """SGD of the weights.

  Attributes:
    learning_rate: learning rate of the first epoch, from which it falls by a cosine, epoch by epoch.
    final_learning_rate: end of the cosine, which the epoch after the last one would have.
    momentum: momentum of the gradient.
    weight_decay: L2 decay, added to the gradient.
    clip_norm: largest norm of the gradient over all weights.
    warmup_epochs: number of epochs over which the learning rate grows linearly, step by step, up to the cosine.
    reference_batch_size: if not 0, the batch size that both learning rates are given for; they are multiplied by
      `batch_size / reference_batch_size` [Goyal et al. 2017, arXiv 1706.02677].
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
  """Adam of α, and the steps at which α move.

  Attributes:
    learning_rate: learning rate, the same in all epochs after the warm-up.
    beta1: decay of the mean gradient.
    beta2: decay of the mean squared gradient.
    weight_decay: L2 decay, added to the gradient.
    warmup_epochs: number of epochs, counted from `from_epoch`, over which the learning rate grows linearly.
    reference_batch_size: see `Weights`.
    order: which of the two is updated first in a step, α or the weights; the second update is made at the new values of
      the first.
    every: steps from one update of α to the next; the other steps update the weights alone.
    from_epoch: first epoch, counted from 0, in which α move.
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
    group_size: number of consecutive examples of a batch that share statistics; 0 for the whole batch, across devices.
      Groups within one device need no communication.
    tracked: whether supernets of images keep running statistics and are evaluated with them; if not, an evaluation
      uses the statistics of each batch, as in NAS-Bench-201.
  """

  group_size: int = setting(0, at_least=0, at_most=limits.BATCH)
  tracked: bool = setting(True)


@dataclasses.dataclass(frozen=True)
class Mesh:
  """The mesh of all devices: they are divided evenly over the searches, and those of a search share its batches.

  Attributes:
    seed: number of searches side by side; their seeds are consecutive numbers from `config.seed` on.
  """

  seed: int = setting(1, at_least=1, at_most=limits.RUNS)


@dataclasses.dataclass(frozen=True)
class Search:
  """The settings of a gradient-based search.

  Attributes:
    seed: seed of all random numbers: the split, initial weights and α, order and augmentation of images, dropout.
    space: the search space, one of `SPACES`.
    task: the task that the supernet learns, one of `TASKS`; in a config its groups, such as `data` and `network`, are
      groups of the config itself.
    strategy: turns α into mixing weights and derives an architecture from them; one of `RELAXED`.
    epochs: passes over the weights' half of the data.
    batch_size: examples per batch, over all devices of a search.
    log_every: steps from one log line to the next.
    precision: dtype in which the network computes; weights, BN statistics and α are always float32.
    remat: gradient checkpointing: whether the backward pass recomputes the inside of cells to save memory.
    weights: see `Weights`.
    alphas: see `Alphas`.
    hypergradient: the estimator of the hypergradient, one of `HYPERGRADIENTS`.
    batch_norm: see `BatchNorm`.
    mesh: see `Mesh`.
    checkpoint: see `darts_jax.runtime.loop.Checkpoint`.

  Raises:
    ValueError: settings contradict each other; one line that names the field.
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
    """See `darts_jax.settings.build`: fields that the config leaves out get the defaults of the space and the task."""
    called = name_of(config.get('space'))
    if called in EARLIER_SPACES:
      raise ValueError(f'{path}.space: {called!r} is called {EARLIER_SPACES[called]!r} now')
    if called and called not in SPACES:
      # `build_from` raises the error that names the known spaces.
      build_from(cls, {'space': called}, path, base)
    named = {'space': name_in(SPACES, config.get('space'), Darts.name)}
    space = SPACES[named['space']]
    named['task'] = name_in(TASKS, config.get('task'), space.task)
    if named['task'] not in TASKS:
      known = ', '.join(TASKS)
      raise ValueError(f'{path}.task: {space.task!r}, that of the space {space.name}, is not known; there are {known}')
    task = TASKS[named['task']]
    # The defaults of a space are sizes of networks for its own task.
    usual = space.defaults if named['task'] == space.task else {}
    defaults = build_from(cls, {**usual, **task.defaults, **named}, path, base)
    fields = dict(config)
    given = fields.get('strategy')
    if name_of(given) in task.strategies:
      own = {'name': given} if isinstance(given, str) else items(given, f'{path}.strategy')
      fields['strategy'] = {**task.strategies[name_of(given)], **own}
    return fields, defaults


def check_alone(settings: Search, path: str = 'config') -> None:
  """Raises a ValueError if the settings are of several searches side by side; `path` is their place in the config."""
  if settings.mesh.seed > 1:
    raise ValueError(f'{path}.mesh.seed: {settings.mesh.seed} is not allowed; it has to be 1 here')


def image_task(settings: Search, path: str = 'config') -> ImageTask:
  """The task of a search on images.

  Args:
    settings: the settings of the search.
    path: their place in the config, for the message.

  Raises:
    ValueError: the settings have another task.
  """
  if not isinstance(settings.task, ImageTask):
    raise ValueError(f'{path}.task.name: {settings.task.name!r} is not allowed; it has to be {ImageTask.name!r} here')
  return settings.task


def placed_task(settings: Search, path: str = 'config') -> ImageTask:
  """See `image_task`; a ValueError also if the images are streamed and not held on the devices."""
  task = image_task(settings, path)
  if task.data.stream:
    raise ValueError(f'{path}.data.stream: True is not allowed; it has to be False here')
  return task


def read(config: Mapping[str, Any]) -> Search:
  """The settings of a search from its config; raises a ValueError as `darts_jax.settings.build` does."""
  return build(Search, config)
