"""The settings of a language model's training; defaults are the paper's PTB evaluation [DARTS §A.2]."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from darts_jax import limits
from darts_jax.data.settings import TextSource
from darts_jax.nets.recurrent import Dropout
from darts_jax.runtime.loop import Checkpoint
from darts_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class Data(TextSource):
  """The text, see `TextSource`.

  Attributes:
    test: whether the test text is measured, once, after the last epoch. It is off while candidates are compared.
  """

  test: bool = setting(True)


@dataclasses.dataclass(frozen=True)
class Network:
  """The language model around a genotype's cell; see `darts_jax.nets.recurrent.LanguageModel`.

  Attributes:
    width: width of embedding and hidden states.
    dropout: see `darts_jax.nets.recurrent.Dropout`.
  """

  width: int = setting(850, at_least=1, at_most=limits.WIDTH)
  dropout: Dropout = setting(Dropout(words=0.1))


@dataclasses.dataclass(frozen=True)
class Weights:
  """SGD of the weights; late iterates are averaged [Merity et al. 2017, arXiv 1708.01009, §4].

  Attributes:
    learning_rate: learning rate for a sequence of `bptt` time steps; for other lengths it is scaled by the length.
    weight_decay: L2 decay, added to the gradient.
    clip_norm: largest norm of the gradient over all weights.
    nonmonotone_interval: averaging begins when a validation loss is worse than the best loss that is more than this
      many epochs old.
  """

  learning_rate: float = setting(20.0, above=0, at_most=limits.FACTOR)
  weight_decay: float = setting(8e-7, at_least=0, at_most=limits.FACTOR)
  clip_norm: float = setting(0.25, above=0, at_most=limits.FACTOR)
  nonmonotone_interval: int = setting(5, at_least=0, at_most=limits.EPOCHS)


@dataclasses.dataclass(frozen=True)
class LanguageTraining:
  """Settings of a training of a language model.

  Attributes:
    task: `text`; the task `images` has its own settings, `darts_jax.training.Training`.
    seed: seed of everything random: initial weights, lengths of sequences, dropout.
    epochs: number of passes over the training text.
    batch_size: number of columns that the training text is divided into, over all devices. The rest of a text that does
      not fill all columns is dropped, here and below.
    small_batch_size: if not 0, gradients are computed for this many columns at a time and averaged, which gives the
      same gradient and needs less memory.
    valid_batch_size: number of columns of the validation text.
    test_batch_size: number of columns of the test text.
    bptt: usual length of a sequence, in time steps. The hidden state is carried from a sequence to the next, gradients
      are not.
    short_fraction: probability that a sequence is half as long.
    spread: standard deviation of the length of a sequence; see `darts_jax.data.windows.draw`.
    temporal_activation: weight of temporal activation regularisation in the loss.
    max_rollbacks: after a non-finite loss or gradient, training returns to the best weights at most this many times.
    log_every: number of steps from one logged line to the next.
    precision: precision of the inputs of matrix products, `float32` or `bfloat16`; weights and hidden states are always
      float32.
    remat: whether gradients recompute the inside of pieces of a sequence instead of keeping it in memory (gradient
      checkpointing).
    data: see `Data`.
    network: see `Network`.
    weights: see `Weights`.
    checkpoint: see `darts_jax.runtime.loop.Checkpoint`.
  """

  renamed: ClassVar[Mapping[str, str]] = MappingProxyType({'space': 'task'})

  task: str = setting('text', choices=('text',))
  seed: int = setting(0, at_least=0, at_most=limits.SEEDS - 1)
  epochs: int = setting(1600, at_least=1, at_most=limits.EPOCHS)
  batch_size: int = setting(64, at_least=1, at_most=limits.BATCH)
  small_batch_size: int = setting(0, at_least=0, at_most=limits.BATCH)
  valid_batch_size: int = setting(10, at_least=1, at_most=limits.BATCH)
  test_batch_size: int = setting(1, at_least=1, at_most=limits.BATCH)
  bptt: int = setting(35, at_least=2, at_most=limits.BPTT)
  short_fraction: float = setting(0.05, at_least=0, at_most=1)
  spread: float = setting(5.0, at_least=0, at_most=limits.BPTT)
  temporal_activation: float = setting(1e-3, at_least=0, at_most=limits.FACTOR)
  max_rollbacks: int = setting(5, at_least=0, at_most=limits.COUNT)
  log_every: int = setting(50, at_least=1, at_most=limits.COUNT)
  precision: str = setting('float32', choices=('float32', 'bfloat16'))
  remat: bool = setting(False)
  data: Data = setting(Data())
  network: Network = setting(Network())
  weights: Weights = setting(Weights())
  checkpoint: Checkpoint = setting(Checkpoint())

  def __post_init__(self) -> None:
    if self.small_batch_size and self.batch_size % self.small_batch_size:
      raise ValueError(
        f'config.small_batch_size: {self.small_batch_size} is not allowed; it has to divide config.batch_size, which'
        f' is {self.batch_size}'
      )
