"""Searches for recurrent cells: text on the devices, its sequences, the loss of the supernet on them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from darts_jax.data import windows
from darts_jax.data.corpus import Corpus
from darts_jax.data.sequences import Sequences, Text, divide, perplexity
from darts_jax.nets.layers import NormGroups
from darts_jax.nets.recurrent import LanguageModel, Masks, init_language_model, initial_hidden, read_text
from darts_jax.runtime.packed import Packed
from darts_jax.runtime.precision import precisely
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.searched import Searched
from darts_jax.search.searcher import FIRST_PURPOSE, Searcher
from darts_jax.search.settings import RecurrentSearch
from darts_jax.search.state import Halves, SearchState
from darts_jax.search.step import Seen
from darts_jax.spaces import Mixing

Array = jax.Array
PyTree = Any

# What the random key of a step is folded with for each purpose.
_MASKS_TRAIN, _MASKS_VALID = range(FIRST_PURPOSE, FIRST_PURPOSE + 2)
# A window has two rows and the targets of the second.
_LEAST_ROWS = 3


class TextBatch(NamedTuple):
  """What a step reads of one half.

  Attributes:
    sequences: the text.
    hidden: `[B, H]` before it.
    masks: of dropout.
  """

  sequences: Sequences
  hidden: Any
  masks: Masks


class Perplexity(NamedTuple):
  """`[]` mean negative log-likelihood in nats per token; the perplexity is its exponential."""

  loss: Array


def texts(corpus: Corpus, settings: RecurrentSearch) -> Halves:
  """Both texts, a `Text` of NumPy arrays each.

  Raises:
    ValueError: a text is too short for the batch.
  """
  size = settings.batch_size
  train, valid = (divide(corpus, part, 'batch_size', size, _LEAST_ROWS) for part in Halves._fields)
  # Both are padded alike, so that one program reads either.
  plan = draw_windows(settings, len(train))
  others = dataclasses.replace(windows.consecutive(len(valid), plan.capacity), capacity=plan.capacity)
  return Halves(Text.cut(train, plan), Text.cut(valid, others))


def draw_windows(settings: RecurrentSearch, num_rows: int) -> windows.Windows:
  """The sequences of a whole search."""
  return windows.draw(
    settings.seed, num_rows, settings.epochs, bptt=settings.bptt, short_fraction=settings.short_fraction
  )


@dataclasses.dataclass(frozen=True)
class TextLoss:
  """Negative log-likelihood per token of a supernet in training mode (see `darts_jax.search.step.Objective`).

  In bfloat16 products are of arguments that are rounded to that.

  Attributes:
    net: the supernet.
    temporal_activation: weight of temporal activation regularisation, which only the update of the weights has.
    remat: see `read_text`.
  """

  net: LanguageModel
  temporal_activation: float
  remat: bool

  def __call__(
    self,
    weights: PyTree,
    statistics: Packed,
    mixing: dict[str, Mixing],
    batch: TextBatch,
    precision: str,
    updating: Array,
  ) -> tuple[Array, Seen]:
    """See `Objective`."""
    net = self.net.clone(precision=precision)
    variables = {'params': weights, 'batch_stats': statistics.tree}
    found = read_text(
      net,
      variables,
      batch.sequences,
      batch.hidden,
      cell_weights(mixing),
      batch.masks,
      train=True,
      remat=self.remat,
    )
    loss = found.loss + jnp.where(updating, self.temporal_activation, 0) * found.temporal
    after = Packed.pack(found.statistics).vector
    return loss, Seen(found.loss, {}, after, lax.stop_gradient(found.hidden))


def cell_weights(mixing: Mapping[str, Mixing]) -> Array:
  """`[E, O]`: the weight of every operation of the one cell in the sum of a node."""
  [cell] = mixing.values()
  weights: Array = cell.operations if cell.edges is None else cell.edges[:, None] * cell.operations
  return weights if cell.computed is None else jnp.where(cell.computed, weights, 0)


class TextSearcher(Searcher[RecurrentSearch, Halves]):
  """See `Searcher`; its data are a `Text` for either half.

  Attributes:
    net: the supernet.
  """

  def __init__(self, settings: RecurrentSearch, searched: Searched, corpus: Corpus, mesh: Mesh) -> None:
    """Builds the functions; compiles nothing.

    Args:
      settings: of the search.
      searched: the strategy, whose one cell is that of the supernet.
      corpus: for the size of its vocabulary and its texts.
      mesh: devices with the axes `seed` and `data`.

    Raises:
      ValueError: groups of BN and batches do not fit into each other, or are of one column.
    """
    plan = draw_windows(settings, len(corpus.train) // settings.batch_size)
    axes = Text(PartitionSpec(None, 'data'), PartitionSpec(), PartitionSpec(), plan.capacity)
    self.data_axes = Halves(axes, axes)
    super().__init__(settings, searched, mesh, plan.epoch_ends)
    network = settings.network
    self._corpus = corpus
    groups = NormGroups(settings.batch_norm.group_size, self.shards)
    groups.divide(settings.batch_size // self.shards.size)
    field, shared = ('batch_norm.group_size', groups.size) if groups.size else ('batch_size', settings.batch_size)
    if shared == 1:
      raise ValueError(
        f'config.{field}: 1 is not allowed; batch normalisation would make a single number of every channel zero'
      )
    [spec] = self.searched.cells.values()
    self.net = LanguageModel(spec, len(corpus.vocabulary), network.width, norm=True, groups=groups)
    self.objective = TextLoss(self.net, settings.temporal_activation, settings.remat)

  @property
  def fingerprint(self) -> Any:
    """See `Searcher`."""
    return self._corpus.fingerprint

  def variables(self, key: Array, mixing: dict[str, Mixing]) -> PyTree:
    """See `Searcher`."""
    return init_language_model(self.net, key, cell_weights(mixing))

  def restage(self, searched: Searched, first_epoch: int) -> Self:
    """See `Searcher`. Batches stay as they are, since hidden states go from one to the next; so do all weights."""
    del first_epoch
    return type(self)(self.settings, searched, self._corpus, self.mesh)

  def carried(self) -> Halves:
    """Hidden states of zeros."""
    return Halves(*[initial_hidden(self.settings.batch_size, self.net.width)] * 2)

  def batches(self, state: SearchState, data: Halves) -> Halves:
    """This device's columns of the next sequence of either text; α's begins again when it is at its end.

    At steps where α stay, theirs is the one that they read next.
    """
    numbers = state.step, self.timing.updates(state.step) % len(data.valid.starts)
    step_key = jax.random.fold_in(state.key, state.step)
    dropout = self.settings.network.dropout
    parts = []
    purposes = _MASKS_TRAIN, _MASKS_VALID
    for text, number, hidden, purpose in zip(data, numbers, state.carried, purposes, strict=True):
      start, batch = text.window(number)
      hidden = jnp.where(start == 0, 0, hidden)
      key = jax.random.fold_in(step_key, purpose)
      drawn = Masks.draw(key, dropout, self.settings.batch_size, self.net.width, self.net.vocab_size)
      masks = Masks(drawn.words, *map(self.shards.own, drawn[1:]))
      parts.append(TextBatch(batch, hidden, masks))
    return Halves(*parts)

  def step_metrics(self, state: SearchState, data: Halves) -> dict[str, Array]:
    """See `Searcher`."""
    return {'sequence_length': jnp.float32(data.train.lengths[state.step])}

  def optimizers(self, state: SearchState, data: Halves) -> Optimizers:
    """The learning rate of a sequence is proportional to its length."""
    return self._optimizers.scaled(data.train.lengths[state.step] / jnp.float32(self.settings.bptt))

  def measure(self, state: SearchState, mixing: dict[str, Mixing], data: Halves) -> Perplexity:
    """On the whole validation text, without dropout; tokens that fill no column are left out.

    BN uses the statistics of its columns, as in a step. With running ones it would be a fixed map of the hidden state,
    and what that lets grow from one time step to the next nothing would stop.
    """
    net = self.net.clone(precision=self.settings.precision)
    variables = {'params': state.weights.tree, 'batch_stats': state.statistics.tree}
    text = data.valid
    weights = cell_weights(mixing)

    def read(hidden: Array, number: Array) -> tuple[Array, tuple[Array, Array]]:
      _, batch = text.window(number)
      found = read_text(net, variables, batch, hidden, weights, train=True)
      return found.hidden, (found.loss * text.lengths[number], text.lengths[number])

    hidden = initial_hidden(text.columns.shape[1], net.width)
    with precisely(self.settings.precision):
      _, (losses, lengths) = lax.scan(read, hidden, jnp.arange(len(text.starts)))
    return self.shards.mean(Perplexity(jnp.sum(losses) / jnp.sum(lengths)))

  def metrics(self, found: Perplexity) -> dict[str, float]:
    """See `Searcher`."""
    loss = float(found.loss)
    return {'loss': loss, 'perplexity': perplexity(loss)}

  def summary(self, means: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
    """See `Searcher`."""
    tokens = sums['sequence_length'] * self.settings.batch_size
    return {'train_perplexity': perplexity(means['train_loss']), 'tokens_per_second': tokens / sums['seconds']}
