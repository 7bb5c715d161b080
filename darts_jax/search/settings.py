"""The settings of a search; defaults are the paper's CIFAR-10 search [DARTS §A.1]."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from darts_jax import limits
from darts_jax.data.settings import Augment, Source, TextSource
from darts_jax.hypergradient.settings import HYPERGRADIENTS, FiniteDifference, Hypergradient
from darts_jax.nets.recurrent import Dropout
from darts_jax.runtime.loop import Checkpoint
from darts_jax.settings import build_by_space, check_seeds, setting, variant
from darts_jax.spaces import Darts, Recurrent
from darts_jax.spaces.darts import CANDIDATES
from darts_jax.spaces.recurrent import ACTIVATIONS
from darts_jax.strategies import RELAXED
from darts_jax.strategies.darts import Darts as DartsStrategy
from darts_jax.strategies.relaxed import Relaxed
from darts_jax.strategies.sgas import Sgas

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
  }
)


@dataclasses.dataclass(frozen=True)
class Data(Source):
  """Which images, see `Source`, and the part of the training images that trains α; the rest trains the weights."""

  validation_fraction: float = setting(0.5, above=0, below=1)


@dataclasses.dataclass(frozen=True)
class Network:
  """The supernet.

  Attributes:
    channels: channels `C` of the first cell; even, since strided identities make two halves.
    layers: cells `L`; cells ⌊L/3⌋ and ⌊2L/3⌋ are reduction cells.
    nodes: intermediate nodes a cell.
    stem: `cifar`, one convolution that keeps the size of images; or `imagenet`, three that divide it by eight.
    stem_multiplier: the stem for CIFAR has so many times `C` channels.
    operations: candidate operations, the columns of α.
  """

  channels: int = setting(16, at_least=2, at_most=limits.CHANNELS)
  layers: int = setting(8, at_least=3, at_most=limits.LAYERS)
  nodes: int = setting(4, at_least=1, at_most=limits.NODES)
  stem: str = setting('cifar', choices=('cifar', 'imagenet'))
  stem_multiplier: int = setting(3, at_least=1, at_most=limits.STEM_MULTIPLIER)
  operations: tuple[str, ...] = setting(CANDIDATES)

  def space(self) -> Darts:
    """The search space; raises a ValueError if there is none of these operations."""
    return Darts(self.nodes, self.operations)


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
  """

  learning_rate: float = setting(0.025, above=0, at_most=limits.FACTOR)
  final_learning_rate: float = setting(0.001, at_least=0, at_most=limits.FACTOR)
  momentum: float = setting(0.9, at_least=0, below=1)
  weight_decay: float = setting(3e-4, at_least=0, at_most=limits.FACTOR)
  clip_norm: float = setting(5.0, above=0, at_most=limits.FACTOR)
  warmup_epochs: float = setting(0.0, at_least=0, at_most=limits.EPOCHS)
  reference_batch_size: int = setting(0, at_least=0, at_most=limits.BATCH)


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
  """

  group_size: int = setting(0, at_least=0, at_most=limits.BATCH)


@dataclasses.dataclass(frozen=True)
class Mesh:
  """How devices are used: all those that there are, divided evenly over searches, and each search's over its batches.

  Attributes:
    seed: searches side by side, with this and as many following values of `config.seed` less one.
  """

  seed: int = setting(1, at_least=1, at_most=limits.RUNS)


@dataclasses.dataclass(frozen=True)
class Settings:
  """What all searches have.

  Attributes:
    seed: of everything random: the split, initial weights and α, order and augmentation of images, dropout.
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


@dataclasses.dataclass(frozen=True)
class Search(Settings):
  """A search for convolutional cells.

  Attributes:
    space: what is searched.
    data: see `Data`; and so on.
  """

  space: str = setting('convolutional', choices=('convolutional',))
  data: Data = setting(Data())
  augment: Augment = setting(Augment())
  network: Network = setting(Network())

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.network.channels % 2:
      raise ValueError(f'config.network.channels: {self.network.channels} is not allowed; it has to be even')
    try:
      space = self.network.space()
    except ValueError as error:
      raise ValueError(f'config.network.{error}') from error
    for part in {stage.channel_part for stage in self.strategy.plan(space, self.epochs)} - {1}:
      if self.network.channels % (2 * part):
        raise ValueError(
          f'config.network.channels: {self.network.channels} is not allowed; it has to be a multiple of {2 * part},'
          f' since edges compute one in {part} channels (config.strategy.channel_part)'
        )
    if self.mesh.seed > 1 and (self.strategy.start() is not None or len(self.strategy.plan(space, self.epochs)) > 1):
      raise ValueError(
        f'config.mesh.seed: {self.mesh.seed} is not allowed; with {self.strategy.name} it has to be 1, since supernets'
        ' of different seeds change in different ways'
      )


@dataclasses.dataclass(frozen=True)
class RecurrentNetwork:
  """The recurrent supernet.

  Attributes:
    width: of the embedding and of every state.
    nodes: intermediate nodes of the cell.
    operations: candidate activations, the columns of α.
    dropout: see `darts_jax.nets.recurrent.Dropout`.
  """

  width: int = setting(300, at_least=1, at_most=limits.WIDTH)
  nodes: int = setting(8, at_least=1, at_most=limits.NODES)
  operations: tuple[str, ...] = setting(ACTIVATIONS)
  dropout: Dropout = setting(Dropout())

  def space(self) -> Recurrent:
    """The search space; raises a ValueError if there is none of these activations."""
    return Recurrent(self.nodes, self.operations)


@dataclasses.dataclass(frozen=True)
class RecurrentSearch(Settings):
  """A search for recurrent cells on text; defaults are the paper's search on PTB [DARTS §A.1].

  Attributes:
    space: what is searched.
    bptt: time steps of a sequence, which gradients go back through.
    short_fraction: the chance that a sequence has half of them; its learning rate is scaled by its length.
    temporal_activation: weight of temporal activation regularisation, in the update of the weights.
    data: see `TextSource`; α is trained on the validation text.
    network: see `RecurrentNetwork`.
  """

  batch_size: int = setting(256, at_least=2, at_most=limits.BATCH)
  weights: Weights = setting(Weights(20.0, 20.0, 0.0, 5e-7, 0.25))
  alphas: Alphas = setting(Alphas(3e-3, 0.9))
  hypergradient: Hypergradient = variant(HYPERGRADIENTS, FiniteDifference(clipping='constant', clip_outer=True))
  strategy: Relaxed = variant(RELAXED, DartsStrategy(), {'sgas': Sgas(batch_growth=0)})
  space: str = setting('recurrent', choices=('recurrent',))
  bptt: int = setting(35, at_least=2, at_most=limits.BPTT)
  short_fraction: float = setting(0.05, at_least=0, at_most=1)
  temporal_activation: float = setting(1e-3, at_least=0, at_most=limits.FACTOR)
  data: TextSource = setting(TextSource())
  network: RecurrentNetwork = setting(RecurrentNetwork())

  def __post_init__(self) -> None:
    super().__post_init__()
    try:
      space = self.network.space()
    except ValueError as error:
      raise ValueError(f'config.network.{error}') from error
    for stage in self.strategy.plan(space, self.epochs):
      if stage.batch_growth:
        raise ValueError(
          f'config.strategy.batch_growth: {stage.batch_growth} is not allowed; it has to be 0 on text, where hidden'
          ' states go from one batch to the next'
        )
      if stage.channel_part > 1:
        raise ValueError(
          f'config.strategy.channel_part: {stage.channel_part} is not allowed; it has to be 1 on text, where states'
          ' have no channels that could be shuffled'
        )
    if self.mesh.seed > 1:
      raise ValueError(
        f'config.mesh.seed: {self.mesh.seed} is not allowed; it has to be 1 on text, where every seed divides an epoch'
        ' into another number of steps'
      )


def check_alone(settings: Settings, path: str = 'config') -> None:
  """Raises a ValueError if the settings, which hang at `path`, are of several searches side by side."""
  if settings.mesh.seed > 1:
    raise ValueError(f'{path}.mesh.seed: {settings.mesh.seed} is not allowed; it has to be 1 here')


def read(config: Mapping[str, Any]) -> Search | RecurrentSearch:
  """The settings of a search; raises a ValueError as `darts_jax.settings.build_by_space`."""
  kinds: Mapping[str, type[Search] | type[RecurrentSearch]] = {
    'convolutional': Search,
    'recurrent': RecurrentSearch,
  }
  return build_by_space(kinds, config)
