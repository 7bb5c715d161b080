"""The settings of a training from scratch; defaults are the paper's CIFAR-10 evaluation [DARTS §A.2]."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from darts_jax import limits
from darts_jax.data import settings as augmentation
from darts_jax.data.settings import IN_FILES, Source
from darts_jax.runtime.loop import Checkpoint
from darts_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class Data(Source):
  """Which images, see `Source`, and how they are divided; images in files are streamed.

  Attributes:
    test_split: of images in files, the split that is the test set; if not set, the first that is there of `val`,
      `validation`, `valid` and `test`.
    validation_fraction: part of the training images that is held out and measured after every epoch; 0 trains on all,
      as the paper does in the end.
    test: whether the test images are measured, once, after the last epoch; not so while candidates are compared.
  """

  test_split: str = setting('')
  validation_fraction: float = setting(0.1, at_least=0, below=1)
  test: bool = setting(True)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.num_images and self.name in IN_FILES:
      raise ValueError(f'config.num_images: {self.num_images} is not allowed; all images of {self.name} are streamed')


@dataclasses.dataclass(frozen=True)
class Augment(augmentation.Augment):
  """Augmentation in training, see `darts_jax.data.settings.Augment`; streamed images are also cropped at random.

  Attributes:
    brightness: of RGB images: their factor is drawn from 1 ± this; 0 for none.
    contrast: likewise.
    saturation: likewise.
    hue: it is shifted by up to this part of the colour circle.
  """

  brightness: float = setting(0.0, at_least=0, at_most=limits.FACTOR)
  contrast: float = setting(0.0, at_least=0, at_most=limits.FACTOR)
  saturation: float = setting(0.0, at_least=0, at_most=limits.FACTOR)
  hue: float = setting(0.0, at_least=0, at_most=0.5)

  @property
  def jitters(self) -> bool:
    """Whether colours change."""
    return any((self.brightness, self.contrast, self.saturation, self.hue))


@dataclasses.dataclass(frozen=True)
class Network:
  """The network that a genotype's cells are stacked to; see `darts_jax.nets.conv.Network`.

  Attributes:
    channels: channels `C` of the first cell.
    layers: cells `L`.
    stem: `cifar` or `imagenet`.
    stem_multiplier: the stem for CIFAR has so many times `C` channels.
    auxiliary: whether there is an auxiliary head in training.
    auxiliary_norm: whether BN follows its last convolution.
    drop_path: probability to drop an edge that the last epoch would come to if it grew linearly from 0 on.
  """

  channels: int = setting(36, at_least=2, at_most=limits.CHANNELS)
  layers: int = setting(20, at_least=1, at_most=limits.LAYERS)
  stem: str = setting('cifar', choices=('cifar', 'imagenet'))
  stem_multiplier: int = setting(3, at_least=1, at_most=limits.STEM_MULTIPLIER)
  auxiliary: bool = setting(True)
  auxiliary_norm: bool = setting(True)
  drop_path: float = setting(0.2, at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class Weights:
  """SGD of the weights, with a learning rate that changes from epoch to epoch.

  Attributes:
    learning_rate: of the first epoch; of a batch of `reference_batch_size` images, if that is set.
    schedule: `cosine` or `linear` to `final_learning_rate`, or `exponential`, a factor `decay` an epoch.
    final_learning_rate: where cosine and line end, after the last epoch.
    decay: see `schedule`.
    warmup_epochs: over so many epochs the learning rate grows linearly, step by step, to what the schedule says.
    reference_batch_size: if not 0, the learning rate is multiplied by the batch size divided by this [Goyal et al.
      2017, arXiv 1706.02677].
    momentum: of the gradient.
    weight_decay: L2, in the gradient.
    clip_norm: of the gradient, over all weights; 0: no clipping.
    nesterov: whether the momentum is Nesterov's.
  """

  learning_rate: float = setting(0.025, above=0, at_most=limits.FACTOR)
  schedule: str = setting('cosine', choices=('cosine', 'linear', 'exponential'))
  final_learning_rate: float = setting(0.0, at_least=0, at_most=limits.FACTOR)
  decay: float = setting(0.97, above=0, at_most=1)
  warmup_epochs: float = setting(0.0, at_least=0, at_most=limits.EPOCHS)
  reference_batch_size: int = setting(0, at_least=0, at_most=limits.BATCH)
  momentum: float = setting(0.9, at_least=0, below=1)
  weight_decay: float = setting(3e-4, at_least=0, at_most=limits.FACTOR)
  clip_norm: float = setting(5.0, at_least=0, at_most=limits.FACTOR)
  nesterov: bool = setting(False)


@dataclasses.dataclass(frozen=True)
class Training:
  """A training.

  Attributes:
    task: what is learnt, `images` or `text`, which have settings of their own.
    seed: of everything random: the split, initial weights, order and augmentation of images, drop path.
    epochs: passes over the training images.
    batch_size: images a batch, over all devices.
    log_every: steps from one logged line to the next.
    precision: of images inside the network; weights and BN statistics are float32 in either.
    remat: whether gradients recompute the inside of cells instead of keeping it in memory.
    label_smoothing: this part of a label is spread evenly over all classes [Szegedy et al. 2016, arXiv 1512.00567].
    auxiliary_weight: of the auxiliary head's loss.
    data: see `Data`; and so on.
  """

  renamed: ClassVar[Mapping[str, str]] = MappingProxyType({'space': 'task'})

  task: str = setting('images', choices=('images',))
  seed: int = setting(0, at_least=0, at_most=limits.SEEDS - 1)
  epochs: int = setting(600, at_least=1, at_most=limits.EPOCHS)
  batch_size: int = setting(96, at_least=1, at_most=limits.BATCH)
  log_every: int = setting(50, at_least=1, at_most=limits.COUNT)
  precision: str = setting('float32', choices=('float32', 'bfloat16'))
  remat: bool = setting(False)
  label_smoothing: float = setting(0.0, at_least=0, below=1)
  auxiliary_weight: float = setting(0.4, at_least=0, at_most=limits.FACTOR)
  data: Data = setting(Data())
  augment: Augment = setting(Augment(cutout=16))
  network: Network = setting(Network())
  weights: Weights = setting(Weights())
  checkpoint: Checkpoint = setting(Checkpoint())

  def __post_init__(self) -> None:
    if self.network.channels % 2:
      raise ValueError(f'config.network.channels: {self.network.channels} is not allowed; it has to be even')
    if self.weights.warmup_epochs > self.epochs:
      raise ValueError(
        f'config.weights.warmup_epochs: {self.weights.warmup_epochs} is not allowed; there are {self.epochs} epochs'
      )
