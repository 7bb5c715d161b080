"""Language modelling: text in device memory, its sequences, the recurrent supernet and its loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from darts_jax import limits
from darts_jax.data import windows
from darts_jax.data.corpus import Corpus
from darts_jax.data.sequences import Sequences, Text, divide, perplexity
from darts_jax.data.settings import TextSource
from darts_jax.nets.layers import NormGroups
from darts_jax.nets.recurrent import Dropout, LanguageModel, Masks, init_language_model, initial_hidden, read_text
from darts_jax.runtime.mesh import Shards
from darts_jax.runtime.packed import Packed
from darts_jax.runtime.precision import precisely
from darts_jax.settings import setting
from darts_jax.spaces import CellSpace, Mixing
from darts_jax.strategies.relaxed import Stage
from darts_jax.streams import Stream
from darts_jax.tasks.base import Conditions, Halves, Learner, Moment, Seen, SupernetSpec, Task

Array = jax.Array
PyTree = Any

# A window has at least two rows, and the targets of the second are in the third.
_LEAST_ROWS = 3


class TextBatch(NamedTuple):
  """A batch of text.

  Attributes:
    sequences: the sequences and their targets.
    hidden: `[B, H]`, the hidden states before the sequences.
    masks: the dropout masks.
  """

  sequences: Sequences
  hidden: Any
  masks: Masks


class Perplexity(NamedTuple):
  """The mean negative log-likelihood in nats per token, `[]`; the perplexity is its exponential."""

  loss: Array


@dataclasses.dataclass(frozen=True)
class Network:
  """The recurrent supernet.

  Attributes:
    width: number of features of the embedding and of every state.
    dropout: see `darts_jax.nets.recurrent.Dropout`.
  """

  width: int = setting(300, at_least=1, at_most=limits.WIDTH)
  dropout: Dropout = setting(Dropout())


@dataclasses.dataclass(frozen=True)
class TextTask(Task[Corpus]):
  """Language modelling with a recurrent network; the defaults are the paper's search on PTB [DARTS §A.1].

  Attributes:
    bptt: time steps of a sequence, through all of which gradients are backpropagated.
    short_fraction: probability that a sequence has half as many time steps; learning rates are scaled by the length.
    temporal_activation: weight of the temporal activation regularisation, which is added in weight updates only.
    data: see `TextSource`; α are trained on the validation text.
    network: see `Network`.
  """

  name: ClassVar[str] = 'text'
  unit: ClassVar[str] = 'tokens'
  defaults: ClassVar[Mapping[str, Any]] = MappingProxyType(
    {
      'batch_size': 256,
      'weights': {
        'learning_rate': 20.0,
        'final_learning_rate': 20.0,
        'momentum': 0.0,
        'weight_decay': 5e-7,
        'clip_norm': 0.25,
      },
      'alphas': {'learning_rate': 3e-3, 'beta1': 0.9},
      # The published code clips the gradient of the virtual step as that of the real one, and the outer gradient, too.
      'hypergradient': {'clipping': 'constant', 'clip_outer': True},
    }
  )
  strategies: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({'sgas': {'batch_growth': 0}})

  bptt: int = setting(35, at_least=2, at_most=limits.BPTT)
  short_fraction: float = setting(0.05, at_least=0, at_most=1)
  temporal_activation: float = setting(1e-3, at_least=0, at_most=limits.FACTOR)
  data: TextSource = setting(TextSource())
  network: Network = setting(Network())

  def check(self, space: CellSpace, conditions: Conditions, stages: Sequence[Stage], seeds: int) -> None:
    """See `Task`."""
    if conditions.batch_size < 2:
      raise ValueError(f'config.batch_size: {conditions.batch_size} is not allowed; it has to be ≥ 2')
    if any(spec.num_inputs != 1 or spec.output != 'mean' for spec in space.cells.values()) or len(space.cells) != 1:
      raise ValueError(
        f'config.space.name: {space.name!r} is not allowed; the task text has one cell of one input, whose output is'
        ' the mean of nodes'
      )
    if not conditions.batch_norm.tracked:
      raise ValueError(
        'config.batch_norm.tracked: False is not allowed; it has to be True on text, where'
        ' evaluations normalise by the statistics of the batch in any case'
      )
    for stage in stages:
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
    if seeds > 1:
      raise ValueError(
        f'config.mesh.seed: {seeds} is not allowed; it has to be 1 on text, where every seed divides an epoch into'
        ' another number of steps'
      )

  @property
  def source(self) -> str:
    """The name of the corpus."""
    return self.data.name

  def load(self) -> Corpus:
    """See `Task`."""
    return self.data.load()

  def fingerprint(self, data: Corpus) -> Any:
    """See `Task`."""
    return data.fingerprint

  def halves(self, data: Corpus, conditions: Conditions, seed: int) -> Halves:
    """The training and the validation text, a `Text` of NumPy arrays each.

    Raises:
      ValueError: a text is too short for the batch size.
    """
    size = conditions.batch_size
    train, valid = (divide(data, part, 'batch_size', size, _LEAST_ROWS) for part in Halves._fields)
    # Both have windows of the same capacity, so that one program reads either.
    plan = self.windows(len(train), conditions.epochs, seed)
    others = dataclasses.replace(windows.consecutive(len(valid), plan.capacity), capacity=plan.capacity)
    return Halves(Text.cut(train, plan), Text.cut(valid, others))

  def windows(self, num_rows: int, epochs: int, seed: int) -> windows.Windows:
    """Draws the windows of the training text for all epochs; see `darts_jax.data.windows.draw`."""
    return windows.draw(seed, num_rows, epochs, bptt=self.bptt, short_fraction=self.short_fraction)

  def learner(self, data: Corpus, conditions: Conditions, supernet: SupernetSpec, mesh: Mesh) -> 'TextLearner':
    """See `Task`."""
    return TextLearner(self, data, conditions, supernet, mesh)


@dataclasses.dataclass(frozen=True)
class TextLoss:
  """Negative log-likelihood per token, in nats, of a supernet in training mode; see `Objective`.

  In bfloat16, the operands of matrix products are rounded to bfloat16.

  Attributes:
    net: the supernet.
    temporal_activation: weight of the temporal activation regularisation, which is added in weight updates only.
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
  """The weight of every operation of the only cell in the sum of its node, `[E, O]`."""
  [cell] = mixing.values()
  if cell.drop is not None:
    raise ValueError('config.strategy: recurrent cells have no drop path')
  weights: Array = cell.operations if cell.edges is None else cell.edges[:, None] * cell.operations
  return weights if cell.computed is None else jnp.where(cell.computed, weights, 0)


class TextLearner(Learner):
  """The learner of a `TextTask`; its data are a `Text` for each half.

  Attributes:
    net: the supernet.
  """

  def __init__(
    self, task: TextTask, corpus: Corpus, conditions: Conditions, supernet: SupernetSpec, mesh: Mesh
  ) -> None:
    """See `Task.learner`."""
    self._task, self._corpus, self._conditions, self._mesh = task, corpus, conditions, mesh
    self._shards = Shards(mesh.shape['data'])
    size, group_size = conditions.batch_size, conditions.batch_norm.group_size
    plan = task.windows(len(corpus.train) // size, conditions.epochs, conditions.seed)
    axes = Text(PartitionSpec(None, 'data'), PartitionSpec(), PartitionSpec(), plan.capacity)
    self.data_axes = Halves(axes, axes)
    self.epoch_ends = plan.epoch_ends
    groups = NormGroups(group_size, self._shards)
    groups.divide(size // self._shards.size)
    if groups.size == 1:
      raise ValueError(
        'config.batch_norm.group_size: 1 is not allowed; batch normalisation would make a single number of every'
        ' channel zero'
      )
    [spec] = supernet.cells.values()
    self.net = LanguageModel(spec, len(corpus.vocabulary), task.network.width, norm=True, groups=groups)
    self.objective = TextLoss(self.net, task.temporal_activation, conditions.remat)

  def variables(self, key: Array, mixing: dict[str, Mixing]) -> PyTree:
    """See `Learner`."""
    return init_language_model(self.net, key, cell_weights(mixing))

  def rebuilt(self, supernet: SupernetSpec) -> Self:
    """See `Learner`. The batch size stays, since hidden states pass from batch to batch; and so do all weights."""
    return type(self)(self._task, self._corpus, self._conditions, supernet, self._mesh)

  def carried(self) -> Halves:
    """Zero hidden states, `[B, H]` for each half."""
    return Halves(*[initial_hidden(self._conditions.batch_size, self.net.width)] * 2)

  def batches(self, moment: Moment, data: Halves) -> Halves:
    """This device's columns of the next sequence of each text; the validation text is read again and again.

    The position in the validation text advances by one sequence per update of α.
    """
    numbers = moment.step, moment.updates % len(data.valid.starts)
    step_key = jax.random.fold_in(moment.key, moment.step)
    parts = []
    purposes = Stream.MASKS_TRAIN, Stream.MASKS_VALID
    for text, number, hidden, purpose in zip(data, numbers, moment.carried, purposes, strict=True):
      start, batch = text.window(number)
      hidden = jnp.where(start == 0, 0, hidden)
      key = jax.random.fold_in(step_key, purpose)
      size, net = self._conditions.batch_size, self.net
      drawn = Masks.draw(key, self._task.network.dropout, size, net.width, net.vocab_size)
      masks = Masks(drawn.words, *map(self._shards.own, drawn[1:]))
      parts.append(TextBatch(batch, hidden, masks))
    return Halves(*parts)

  def step_metrics(self, moment: Moment, data: Halves) -> dict[str, Array]:
    """See `Learner`."""
    return {'sequence_length': jnp.float32(data.train.lengths[moment.step])}

  def rate(self, moment: Moment, data: Halves) -> Array:
    """See `Learner`; the learning rate is proportional to the length of the training sequence."""
    lengths: Array = data.train.lengths
    return lengths[moment.step] / jnp.float32(self._task.bptt)

  def measure(self, variables: PyTree, mixing: dict[str, Mixing], data: Halves) -> Perplexity:
    """Evaluates the supernet on the whole validation text, without dropout; tokens that fill no row are left out.

    BN uses batch statistics, as in a step. With running statistics it would be a fixed affine map, which does not keep
    the hidden state from growing from one time step to the next.
    """
    net = self.net.clone(precision=self._conditions.precision)
    text = data.valid
    weights = cell_weights(mixing)

    def read(hidden: Array, number: Array) -> tuple[Array, tuple[Array, Array]]:
      _, batch = text.window(number)
      found = read_text(net, variables, batch, hidden, weights, train=True)
      return found.hidden, (found.loss * text.lengths[number], text.lengths[number])

    hidden = initial_hidden(text.columns.shape[1], net.width)
    with precisely(self._conditions.precision):
      _, (losses, lengths) = lax.scan(read, hidden, jnp.arange(len(text.starts)))
    return self._shards.mean(Perplexity(jnp.sum(losses) / jnp.sum(lengths)))

  def metrics(self, found: Perplexity) -> dict[str, float]:
    """See `Learner`."""
    loss = float(found.loss)
    return {'loss': loss, 'perplexity': perplexity(loss)}

  def summary(self, means: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
    """See `Learner`."""
    tokens = sums['sequence_length'] * self._conditions.batch_size
    return {'train_perplexity': perplexity(means['train_loss']), 'tokens_per_second': tokens / sums['seconds']}
