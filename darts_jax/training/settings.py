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
  """The images, see `Source`, and their split; images in files are streamed.

  Attributes:
    test_split: for images in files, name of the test split; by default the first existing one of `val`, `validation`,
      `valid` and `test`.
    validation_fraction: fraction of the training images that is held out and measured after every epoch; 0 trains on
      all images, as the paper's final trainings do.
    test: whether the test images are measured, once, after the last epoch. It is off while candidates are compared.
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
    brightness: for RGB images, the factor of the brightness is drawn from 1 ± this; 0 for none.
    contrast: for RGB images, the factor of the contrast is drawn from 1 ± this; 0 for none.
    saturation: for RGB images, the factor of the saturation is drawn from 1 ± this; 0 for none.
    hue: for RGB images, the hue is shifted by up to this fraction of the colour circle.
  """

  brightness: float = setting(0.0, at_least=0, at_most=limits.FACTOR)
  contrast: float = setting(0.0, at_least=0, at_most=limits.FACTOR)
  saturation: float = setting(0.0, at_least=0, at_most=limits.FACTOR)
  hue: float = setting(0.0, at_least=0, at_most=0.5)

  @property
  def jitters(self) -> bool:
    """Whether any of the colour transformations is on."""
    return any((self.brightness, self.contrast, self.saturation, self.hue))


@dataclasses.dataclass(frozen=True)
class Network:
  """The network of a genotype's cells; see `darts_jax.nets.conv.Network`.

  Attributes:
    channels: channels `C` of the first cell.
    layers: number of cells `L`.
    stem: `cifar` or `imagenet`.
    stem_multiplier: the stem for CIFAR has this many times `C` channels.
    auxiliary: whether there is an auxiliary head in training.
    auxiliary_norm: whether BN follows the last convolution of the auxiliary head.
    drop_path: probability that drop path drops an edge; it grows linearly by epoch, from 0 in the first epoch towards
      this value after the last.
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
    learning_rate: learning rate of the first epoch; if `reference_batch_size` is set, for a batch of that size.
    schedule: `cosine` or `linear` to `final_learning_rate`, or `exponential` with the factor `decay` for each epoch.
    final_learning_rate: end of the cosine or linear schedule, after the last epoch.
    decay: factor of the exponential schedule.
    warmup_epochs: number of epochs over which the learning rate grows linearly, step by step, to the schedule's value.
    reference_batch_size: if not 0, learning rates are multiplied by the batch size divided by this [Goyal et al. 2017,
      arXiv 1706.02677].
    momentum: momentum of SGD.
    weight_decay: L2 decay, added to the gradient.
    clip_norm: largest norm of the gradient over all weights; 0 for no clipping.
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
  """Settings of a training on images.

  Attributes:
    task: `images`; the task `text` has its own settings, `darts_jax.training.language.LanguageTraining`.
    seed: seed of everything random: the split, initial weights, order and augmentation of images, drop path.
    epochs: number of passes over the training images.
    batch_size: number of images in a batch, over all devices.
    log_every: number of steps from one logged line to the next.
    precision: precision of activations, `float32` or `bfloat16`; weights and BN statistics are always float32.
    remat: whether gradients recompute the inside of cells instead of keeping it in memory (gradient checkpointing).
    label_smoothing: fraction of a label that is spread evenly over all classes [Szegedy et al. 2016, arXiv 1512.00567].
    auxiliary_weight: weight of the auxiliary head's loss.
    data: see `Data`.
    augment: see `Augment`.
    network: see `Network`.
    weights: see `Weights`.
    checkpoint: see `darts_jax.runtime.loop.Checkpoint`.
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
