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
  """Which text, see `TextSource`.

  Attributes:
    test: whether the test text is read, once, after the last epoch; not so while candidates are compared.
  """

  test: bool = setting(True)


@dataclasses.dataclass(frozen=True)
class Network:
  """The language model around a genotype's cell; see `darts_jax.nets.recurrent.LanguageModel`.

  Attributes:
    width: of embedding and states.
    dropout: see `darts_jax.nets.recurrent.Dropout`.
  """

  width: int = setting(850, at_least=1, at_most=limits.WIDTH)
  dropout: Dropout = setting(Dropout(words=0.1))


@dataclasses.dataclass(frozen=True)
class Weights:
  """SGD of the weights, whose iterates are averaged in the end [Merity et al. 2017, arXiv 1708.01009, §4].

  Attributes:
    learning_rate: of a sequence of `bptt` time steps; that of others is scaled by their length.
    weight_decay: L2, in the gradient.
    clip_norm: of the gradient, over all weights.
    nonmonotone_interval: averaging begins when a validation loss is worse than the best one that is more than so many
      epochs old.
  """

  learning_rate: float = setting(20.0, above=0, at_most=limits.FACTOR)
  weight_decay: float = setting(8e-7, at_least=0, at_most=limits.FACTOR)
  clip_norm: float = setting(0.25, above=0, at_most=limits.FACTOR)
  nonmonotone_interval: int = setting(5, at_least=0, at_most=limits.EPOCHS)


@dataclasses.dataclass(frozen=True)
class LanguageTraining:
  """A training of a language model.

  Attributes:
    task: what is learnt, `images` or `text`, which have settings of their own.
    seed: of everything random: initial weights, lengths of sequences, dropout.
    epochs: passes over the training text.
    batch_size: columns that the training text is divided into, over all devices; what does not fill a column is not
      read, here and below.
    small_batch_size: if not 0, gradients are computed for so many columns at a time and averaged, which needs less
      memory and gives the same.
    valid_batch_size: columns of the validation text.
    test_batch_size: columns of the test text.
    bptt: usual length of a sequence, in time steps; the hidden state goes from one to the next, gradients do not.
    short_fraction: the chance that it is half as long.
    spread: standard deviation of the length around these; see `darts_jax.data.windows.draw`.
    temporal_activation: weight of temporal activation regularisation in the loss.
    max_rollbacks: how often a training that diverged goes back to its best weights before it ends.
    log_every: steps from one logged line to the next.
    precision: of what products of the network read; weights and states are float32 in either.
    remat: whether gradients recompute the inside of pieces of a sequence instead of keeping it in memory.
    data: see `Data`; and so on.
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
