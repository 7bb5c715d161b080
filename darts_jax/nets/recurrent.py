"""The recurrent cell and the language model around it [DARTS §2.1, §3.1.2].

Time is the first axis, `[T, B, …]`. One cell reads the embedded words one after the other; its output is also the
hidden state that the next time step reads. Sequences are padded to a static length, and their own length is a traced
argument, so that one program serves all lengths.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from darts_jax.data.sequences import Sequences
from darts_jax.nets.layers import BN_EPSILON, WHOLE_BATCH, NormGroups, pointwise, running_average
from darts_jax.runtime.materialise import materialise
from darts_jax.settings import setting
from darts_jax.spaces import CellSpec, Edge
from darts_jax.spaces.operations import ACTIVATIONS

Array = jax.Array
PyTree = Any

#: Weights are initialised uniformly in ±`INIT_RANGE` [DARTS §A.1].
INIT_RANGE = 0.04

# Largest number of time steps per chunk. Fewer, longer chunks are faster for short texts and small networks; more
# chunks compute less padding.
_CHUNK = 20

# Checkpoint name of the products that the backward pass keeps.
_KEPT = 'product'

# The functions of the package's own activations other than `none`, which adds nothing.
_FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {
  'tanh': jnp.tanh,
  'relu': jax.nn.relu,
  'sigmoid': jax.nn.sigmoid,
  'identity': lambda x: x,
}


def activation(name: str) -> Callable[[Array], Array]:
  """The function of an activation other than `none`, the package's or a user's own.

  Raises:
    ValueError: a user's own activation is not a function.
  """
  own = ACTIVATIONS[name]
  if not isinstance(own, str) and not callable(own):
    raise ValueError(f'activation {name}: ACTIVATIONS has {own!r}; it has to be a function')
  return _FUNCTIONS[name] if isinstance(own, str) else own


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Dropout rates, with one mask for all time steps of a sequence; the defaults are those of the paper's search.

  Attributes:
    words: rate for whole words of the embedding.
    embedded: rate for the components of embedded words.
    x: rate for the cell's input, in products.
    h: rate for the cell's states, in products.
    output: rate for the decoder's input.
  """

  words: float = setting(0.0, at_least=0, below=1)
  embedded: float = setting(0.2, at_least=0, below=1)
  x: float = setting(0.75, at_least=0, below=1)
  h: float = setting(0.25, at_least=0, below=1)
  output: float = setting(0.75, at_least=0, below=1)


class Masks(NamedTuple):
  """Dropout masks of a sequence, see `Dropout`; entries are 0, or 1/(1 − rate).

  Attributes:
    words: `[V]`.
    embedded: `[B, H]`.
    x: `[B, H]`.
    h: `[B, H]`.
    output: `[B, H]`.
  """

  words: Any
  embedded: Any
  x: Any
  h: Any
  output: Any

  @classmethod
  def draw(cls, key: Array, dropout: Dropout, batch_size: int, width: int, vocab_size: int) -> 'Masks':
    """Draws the masks of a sequence; the key is consumed."""
    rates = dataclasses.astuple(dropout)
    shapes = [(vocab_size,), *[(batch_size, width)] * 4]
    masks = []
    for one, rate, shape in zip(jax.random.split(key, len(shapes)), rates, shapes, strict=True):
      keep = 1 - rate
      masks.append(jax.random.bernoulli(one, keep, shape) / jnp.float32(keep) if rate else jnp.ones(shape))
    return cls(*masks)


class Read(NamedTuple):
  """The results of a language model on a batch.

  Attributes:
    loss: `[]`, mean negative log-likelihood of the targets, in nats per token.
    temporal: `[]`, mean of (h_t − h_{t−1})² over time, batch and width, the penalty of temporal activation
      regularisation (Merity et al. 2017, arXiv 1708.01009); 0 for a single time step.
    hidden: `[B, H]`, hidden state after the last time step.
    statistics: running BN statistics after the last time step.
  """

  loss: Array
  temporal: Array
  hidden: Array
  statistics: PyTree


class LanguageModel(nn.Module):
  """An embedding, one recurrent cell, and a decoder with the embedding's weights and a bias.

  With `[c₀, g₀] = [x; h]·W₀`, the cell's first state is `s₀ = h + σ(c₀)⊙(tanh(g₀) − h)`. Node `i` computes
  `[c, g] = s·Wᵢ` of the earlier states `s` it reads, one matrix for all of them, and adds up
  `Σₖ pₖ (s + σ(c)⊙(fₖ(g) − s))` over states and activations. The output is the mean of some of the nodes.

  Attributes:
    spec: the cell; a discrete cell has no mixing weights.
    vocab_size: number of words V.
    width: width H of embedding and states.
    norm: whether BN without scale and bias follows s₀ and every node, as in a search. As in the reference, all of these
      share their running statistics.
    precision: dtype that the arguments of products are converted to; `'float32'` for no conversion.
    groups: groups of columns of the batch that share BN statistics.
  """

  spec: CellSpec
  vocab_size: int
  width: int
  norm: bool = False
  precision: str = 'float32'
  groups: NormGroups = WHOLE_BATCH

  def setup(self) -> None:
    """Declares the variables."""
    size, inner = (self.vocab_size, self.width), 2 * self.width
    self.embedding = self.param('embedding', _uniform, size)
    self.bias = self.param('bias', nn.initializers.zeros, (self.vocab_size,))
    self.first = self.param('first', _uniform, (inner, inner))
    self.nodes = self.param('nodes', _uniform, (len(self.spec.nodes), self.width, inner))
    if self.norm:
      self.mean = self.variable('batch_stats', 'mean', jnp.zeros, (self.width,))
      self.var = self.variable('batch_stats', 'var', jnp.ones, (self.width,))

  def __call__(
    self, tokens: Array, hidden: Array, mixing: Array | None = None, masks: Masks | None = None, *, train: bool
  ) -> tuple[Array, Array]:
    """Computes log-probabilities of the next words.

    Args:
      tokens: `[T, B]` int32.
      hidden: `[B, H]`, hidden state before the first time step.
      mixing: `[E, O]` mixing weights; None for a discrete cell.
      masks: dropout masks; None for no dropout.
      train: whether BN uses the statistics of the batch, and updates the running ones if `batch_stats` is mutable.

    Returns:
      `[T, B, V]` log-probabilities of the word after each token, and the hidden state after the last time step,
      `[B, H]`.
    """
    states = self.advance(self.embed(tokens, masks), hidden, mixing, masks, train=train)
    return jax.nn.log_softmax(self.decode(states, masks)), states[-1]

  def embed(self, tokens: Array, masks: Masks | None = None) -> Array:
    """The part of the cell's first product that comes from the embedded words: `[T, B]` int32 → `[T, B, 2H]`."""
    x = self.embedding[tokens]
    if masks is not None:
      x = x * masks.words[tokens][..., None].astype(x.dtype) * (masks.embedded * masks.x).astype(x.dtype)
    return self._product(x, self.first[: self.width])

  def advance(
    self,
    embedded: Array,
    hidden: Array,
    mixing: Array | None = None,
    masks: Masks | None = None,
    length: Array | int | None = None,
    *,
    train: bool,
  ) -> Array:
    """Runs the cell over time.

    Args:
      embedded: `[T, B, 2H]`, see `embed`.
      hidden: `[B, H]`, hidden state before the first time step.
      mixing: see `__call__`.
      masks: see `__call__`.
      length: number of time steps that are not padding; padding changes neither hidden state nor running statistics.
        None for all.
      train: see `__call__`.

    Returns:
      `[T, B, H]`, hidden states after every time step.
    """
    h_mask = None if masks is None else masks.h.astype(hidden.dtype)
    steps = len(embedded)
    moving = self.norm and train and self.is_mutable_collection('batch_stats') and not self.is_initializing()
    running: PyTree = (self.mean.value, self.var.value) if self.norm else ()

    # Gradient checkpointing: the backward pass keeps only the products of a time step, which takes a tenth of the
    # memory; the rest is cheap to recompute.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(_KEPT), prevent_cse=False)
    def cell(x: Array, h: Array, running: PyTree) -> tuple[Array, PyTree]:
      return self._cell(x, h, mixing, h_mask, running, train)

    def step(carry: tuple[Array, PyTree], inputs: tuple[Array, Array]) -> tuple[tuple[Array, PyTree], Array]:
      (h, running), (x, counts) = carry, inputs
      after, moved = cell(x, h, running)
      kept = jnp.where(counts, after, h)
      if moving:
        running = jax.tree.map(lambda new, old: jnp.where(counts, new, old), moved, running)
      return (kept, running), kept

    counts = jnp.arange(steps) < (steps if length is None else length)
    (_, running), states = lax.scan(step, (hidden, running), (embedded, counts))
    if moving:
      self.mean.value, self.var.value = running
    return states

  def decode(self, states: Array, masks: Masks | None = None) -> Array:
    """`[…, B, V]` logits from `[…, B, H]` hidden states."""
    if masks is not None:
      states = states * masks.output.astype(states.dtype)
    # The bias is one more row of the matrix: added separately, it takes two more passes over all logits.
    ones = jnp.ones((*states.shape[:-1], 1), states.dtype)
    matrix = jnp.concatenate([self.embedding.T, self.bias[None]])
    return self._product(jnp.concatenate([states, ones], axis=-1), matrix)

  def _cell(
    self, x: Array, h: Array, mixing: Array | None, h_mask: Array | None, running: PyTree, train: bool
  ) -> tuple[Array, PyTree]:
    """Computes one time step: the output `[B, H]`, and running statistics."""

    def masked(state: Array) -> Array:
      return state if h_mask is None else state * h_mask

    def normalised(state: Array, running: PyTree) -> tuple[Array, PyTree]:
      return _normalise(state, running, train, self.groups) if self.norm else (state, running)

    gate, value = jnp.split(x + self._product(masked(h), self.first[self.width :]), 2, axis=-1)
    state, running = normalised(h + jax.nn.sigmoid(gate) * (jnp.tanh(value) - h), running)
    # Materialised, since all later nodes read a state, and its gradient is a sum over them.
    states = [materialise(state)]
    row = 0
    for i, edges in enumerate(self.spec.nodes):
      # One product for all the states that the node reads.
      read = jnp.stack([states[edge.source] for edge in edges])
      gate, value = jnp.split(self._product(masked(read), self.nodes[i]), 2, axis=-1)
      state = self._mixture(edges, read, jax.nn.sigmoid(gate), value, mixing, row)
      state, running = normalised(state, running)
      states.append(materialise(state))
      row += len(edges)
    return jnp.mean(jnp.stack([states[node] for node in self.spec.outputs]), axis=0), running

  def _mixture(
    self, edges: tuple[Edge, ...], read: Array, gate: Array, value: Array, mixing: Array | None, row: int
  ) -> Array:
    """`Σₑ Σₖ pₖ (s + c⊙(fₖ(g) − s))`, `[B, H]`, over the edges of a node, `[E, B, H]`, and activations but `none`."""
    names = [name for name in self.spec.operations if name != 'none' and any(name in edge.operations for edge in edges)]
    is_candidate = np.array([[name in edge.operations for name in names] for edge in edges])
    if mixing is None:
      assert is_candidate.sum() == len(edges) == 1, 'a cell that is not discrete needs mixing weights'
      return read[0] + gate[0] * (activation(names[0])(value[0]) - read[0])
    columns = np.array([self.spec.operations.index(name) for name in names])
    weights = jnp.where(is_candidate, mixing[row : row + len(edges)][:, columns], 0).astype(value.dtype)[
      ..., None, None
    ]
    mixed = sum((weights[:, k] * activation(name)(value) for k, name in enumerate(names)), jnp.zeros_like(value))
    kept = jnp.sum(weights, axis=1) * read
    return jnp.sum(kept + gate * (mixed - kept), axis=0)

  def _product(self, x: Array, matrix: Array) -> Array:
    compute = x.dtype if self.precision == 'float32' else self.precision
    return checkpoint_name(pointwise(x.astype(compute), matrix).astype(x.dtype), _KEPT)


def read_text(
  net: LanguageModel,
  variables: Mapping[str, PyTree],
  batch: Sequences,
  hidden: Array,
  mixing: Array | None = None,
  masks: Masks | None = None,
  *,
  train: bool,
  chunk: int | None = None,
  remat: bool = False,
) -> Read:
  """Reads a batch of text and predicts it; padding does not change the results.

  Time steps are computed in chunks, each with its part of the decoder. Chunks of padding alone are skipped; with
  `remat` the backward pass needs the memory of one chunk.

  Args:
    net: the language model.
    variables: its `params`, and `batch_stats` if it has BN.
    batch: the batch of text.
    hidden: `[B, H]`, hidden state before the batch.
    mixing: `[E, O]` mixing weights; None for a discrete cell.
    masks: dropout masks; None for no dropout.
    train: whether BN uses the statistics of the batch.
    chunk: time steps per chunk; by default at most 20, with chunks as equal as possible.
    remat: whether chunks use gradient checkpointing.
  """
  steps, batch_size = batch.tokens.shape
  chunk = chunk or -(-steps // -(-steps // _CHUNK))
  num_chunks = -(-steps // chunk)
  padding = num_chunks * chunk - steps

  def divide(x: Array) -> Array:
    return jnp.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1))).reshape(num_chunks, chunk, *x.shape[1:])

  embedded_whole: Any = net.apply(variables, batch.tokens, masks, method='embed')
  embedded = divide(embedded_whole)
  parts = (embedded, divide(batch.targets), chunk * jnp.arange(num_chunks))
  constants = variables['params']

  def read(carry: tuple[Array, PyTree], part: tuple[Array, Array, Array]) -> tuple[tuple[Array, PyTree], Array]:
    (before, statistics), (embedded, targets, first) = carry, part
    current = {'params': constants, 'batch_stats': statistics}
    found: Any = net.apply(
      current,
      embedded,
      before,
      mixing,
      masks,
      batch.length - first,
      train=train,
      method='advance',
      mutable=['batch_stats'] if train else [],
    )
    states, updated = found
    logits: Any = net.apply(current, states, masks, method='decode')
    time = first + jnp.arange(chunk)
    losses = _cross_entropy(logits, targets)
    loss = jnp.sum(jnp.where(time < batch.length, jnp.sum(losses, axis=1), 0))
    changes = jnp.sum((states - jnp.concatenate([before[None], states[:-1]])) ** 2, axis=(1, 2))
    temporal = jnp.sum(jnp.where((time > 0) & (time < batch.length), changes, 0))
    return (states[-1], updated.get('batch_stats', statistics)), jnp.stack([loss, temporal])

  if remat:
    read = jax.checkpoint(read)

  def step(carry: tuple[Array, PyTree], part: tuple[Array, Array, Array]) -> tuple[tuple[Array, PyTree], Array]:
    nothing = jnp.zeros((2,), hidden.dtype)
    return lax.cond(part[2] < batch.length, read, lambda carry, part: (carry, nothing), carry, part)

  statistics = variables.get('batch_stats', {})
  (hidden, statistics), sums = lax.scan(step, (hidden, statistics), parts)
  loss, temporal = jnp.sum(sums, axis=0)
  length = batch.length.astype(loss.dtype)
  changes = jnp.maximum(length - 1, 1) * batch_size * net.width
  return Read(loss / (length * batch_size), temporal / changes, hidden, lax.stop_gradient(statistics))


@functools.partial(jax.checkpoint, prevent_cse=False)
def _cross_entropy(logits: Array, targets: Array) -> Array:
  """Negative log-likelihood `[…]`, in nats, of targets `[…]` under logits `[…, V]`.

  Optax's function gathers the target's logit, whose gradient is a scatter into zeros of the size of the logits, and its
  backward pass keeps the exponentials in addition to the logits.
  """
  shifted = logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
  return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - jnp.sum(jnp.where(is_target, shifted, 0), axis=-1)


def _normalise(
  state: Array, running: tuple[Array, Array], train: bool, groups: NormGroups
) -> tuple[Array, tuple[Array, Array]]:
  """BN over the batch, without scale and bias; returns the normalised state and the new running statistics.

  The running variance is updated with the unbiased estimate.
  """
  if not train:
    mean, var = running
    return (state - mean) * lax.rsqrt(var + BN_EPSILON), running
  local, devices = groups.divide(len(state))
  # `[G, B/G, H]`.
  parts = state.reshape(local, -1, state.shape[-1])

  def mean_of(x: Array) -> Array:
    return groups.shards.mean(jnp.mean(x, axis=1, keepdims=True), devices)

  mean = mean_of(parts)
  var = mean_of((parts - mean) ** 2)
  count = parts.shape[1] * devices
  moments = jnp.mean(mean, axis=(0, 1)), jnp.mean(var, axis=(0, 1)) * (count / max(count - 1, 1))
  normalised = (parts - mean) * lax.rsqrt(var + BN_EPSILON)
  return normalised.reshape(state.shape), jax.tree.map(running_average, running, moments)


def _uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
  return jax.random.uniform(key, shape, dtype, -INIT_RANGE, INIT_RANGE)


def initial_hidden(batch_size: int, width: int, dtype: Any = jnp.float32) -> Array:
  """The hidden state before the first word of a text: zeros `[B, H]`."""
  return jnp.zeros((batch_size, width), dtype)


def init_language_model(net: LanguageModel, key: Array, mixing: Array | None = None) -> Any:
  """Initial variables of a language model.

  Args:
    net: the language model.
    key: key of the initialisers; it is consumed.
    mixing: `[E, O]` mixing weights; None for a discrete cell.
  """
  tokens = jnp.zeros((1, 1), jnp.int32)
  apply = functools.partial(net.init, train=False)
  return apply(key, tokens, initial_hidden(1, net.width), mixing)
