"""Compiled functions of a language model's training: many steps in one call, the evaluation; and their state."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from darts_jax.data.sequences import Sequences, Text
from darts_jax.hypergradient import global_norm
from darts_jax.nets.recurrent import Masks, Read, init_language_model, initial_hidden, read_text
from darts_jax.optimizers import Average, clip_by_global_norm
from darts_jax.runtime.compilation import compiler_options
from darts_jax.runtime.mesh import replicated, template
from darts_jax.runtime.packed import Packed
from darts_jax.runtime.precision import precisely
from darts_jax.runtime.steps import take_steps
from darts_jax.streams import Stream
from darts_jax.training.language.model import RecurrentModel
from darts_jax.training.language.settings import LanguageTraining

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LanguageState:
  """All that a training step reads and writes; a pytree. The optimiser, SGD without momentum, has no state.

  Attributes:
    step: `[]` int32, number of steps taken.
    key: typed random key of the run, which never changes: every step draws from this key folded with `step`.
    weights: parameters of the network, `state.weights.tree`.
    hidden: `[B, H]`, hidden state after the last sequence.
    averaging: `[]` bool, whether iterates are averaged.
    average: mean of the iterates since averaging began.
    valid_losses: `[epochs]` float32, validation losses by epoch; infinite for epochs to come.
    rollbacks: `[]` int32, number of returns to the best weights.
  """

  step: Array
  key: Array
  weights: Packed
  hidden: Array
  averaging: Array
  average: Average
  valid_losses: Array
  rollbacks: Array

  @property
  def evaluated(self) -> Packed:
    """The weights that are evaluated: the average of iterates once averaging has begun, else the latest."""
    return self.weights.replace(jnp.where(self.average.num_iterates > 0, self.average.mean, self.weights.vector))

  def replace(self, **changes: Any) -> Self:
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)


class LanguageTrainer:
  """Compiled functions of a training: `init`, `run` (many steps), `losses` of windows.

  Attributes:
    net: the network.
  """

  def __init__(self, settings: LanguageTraining, model: RecurrentModel, mesh: Mesh) -> None:
    """Builds the functions; compiles nothing.

    Args:
      settings: settings of the training.
      model: the model to train.
      mesh: devices with an axis `data`.
    """
    self.net = model.network(settings.precision)
    self._settings = settings
    self._mesh = mesh
    self._direction = optax.chain(
      clip_by_global_norm(settings.weights.clip_norm), optax.add_decayed_weights(settings.weights.weight_decay)
    )
    same = replicated(mesh)
    options = compiler_options(mesh)
    self.init = jax.jit(self._init, out_shardings=same)
    self.run = jax.jit(self._run, donate_argnums=0, out_shardings=same, compiler_options=options)
    self.losses = jax.jit(self._losses, out_shardings=same, compiler_options=options)

  def template(self) -> LanguageState:
    """Shapes, dtypes and shardings of the state, without arrays."""
    return template(self.init, replicated(self._mesh), jax.random.key(0))

  def _init(self, key: Array) -> LanguageState:
    """The state before the first step, from the typed key of the run."""
    run_key, weights_key = jax.random.split(key)
    weights = Packed.pack(init_language_model(self.net, weights_key)['params'])
    return LanguageState(
      step=jnp.zeros((), jnp.int32),
      key=run_key,
      weights=weights,
      hidden=initial_hidden(self._settings.batch_size, self.net.width),
      averaging=jnp.array(False),
      average=Average.empty(weights.vector),
      valid_losses=jnp.full((self._settings.epochs,), jnp.inf, jnp.float32),
      rollbacks=jnp.zeros((), jnp.int32),
    )

  def _run(self, state: LanguageState, text: Text, num_steps: Array) -> tuple[LanguageState, dict[str, Array]]:
    """Takes up to `num_steps` steps; stops after a step whose loss or gradient is not finite.

    Args:
      state: the state before the steps; donated.
      text: the training text, with a window for every step of the run.
      num_steps: `[]` int32; traced, so that one program serves any number.

    Returns:
      The new state; and sums over steps of the metrics, with `steps` and `finite` (see `take_steps`).
    """
    return take_steps(lambda state: self.step(state, text), state, num_steps, ('train_loss', 'weights_gradient_norm'))

  def masks(self, state: LanguageState) -> Masks:
    """Dropout masks of the next step."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), Stream.DROPOUT)
    settings = self._settings
    return Masks.draw(key, settings.network.dropout, settings.batch_size, self.net.width, self.net.vocab_size)

  def step(self, state: LanguageState, text: Text) -> tuple[LanguageState, dict[str, Array]]:
    """Takes one step of clipped SGD on the next window.

    Args:
      state: the state before the step.
      text: see `run`.

    Returns:
      The new state; and metrics, `[]` each: `train_loss` in nats per token and `temporal`, see
      `darts_jax.nets.recurrent.Read`; `weights_gradient_norm` of the regularised loss before clipping, and `clipped`,
      1 or 0; `learning_rate` and `sequence_length`.
    """
    rates = self._settings.weights
    start, batch = text.window(state.step)
    vector = state.weights.vector
    # Every epoch begins at the start of the text, with a zero hidden state.
    hidden = jnp.where(start == 0, jnp.zeros_like(state.hidden), state.hidden)
    gradient, read = self.gradient(state.weights, batch, hidden, self.masks(state))
    direction, _ = self._direction.update(gradient, self._direction.init(vector), vector)
    learning_rate = rates.learning_rate * batch.length.astype(vector.dtype) / self._settings.bptt
    weights = state.weights.replace(vector - learning_rate * direction)
    norm = global_norm(gradient)
    metrics = {
      'train_loss': read.loss,
      'temporal': read.temporal,
      'weights_gradient_norm': norm,
      'clipped': jnp.asarray(norm > rates.clip_norm, norm.dtype),
      'learning_rate': learning_rate,
      'sequence_length': batch.length.astype(norm.dtype),
    }
    after = state.replace(
      step=state.step + 1,
      weights=weights,
      hidden=read.hidden,
      average=state.average.add(weights.vector, state.averaging),
    )
    return after, metrics

  def gradient(self, weights: Packed, batch: Sequences, hidden: Array, masks: Masks) -> tuple[Array, Read]:
    """The gradient of the regularised loss, `[P]`, and the loss's parts, in the precision of the settings.

    Args:
      weights: parameters of the network.
      batch: `[T, B]` tokens and targets.
      hidden: `[B, H]` hidden state before the batch; a constant to the gradient.
      masks: dropout masks.
    """
    size = len(hidden)
    small = self._settings.small_batch_size or size
    if small == size:
      return self._gradient(weights, batch, hidden, masks)
    parts = size // small

    def divide(x: Array, axis: int) -> Array:
      """Groups consecutive columns: `[…, B, …]` to `[parts, …, small, …]`."""
      shape = (*x.shape[:axis], parts, small, *x.shape[axis + 1 :])
      return jnp.moveaxis(x.reshape(shape), axis, 0)

    def accumulate(total: Array, part: tuple[Array, Array, Array, Masks]) -> tuple[Array, Read]:
      tokens, targets, hidden, own = part
      found, read = self._gradient(
        weights, Sequences(tokens, targets, batch.length), hidden, own._replace(words=masks.words)
      )
      return total + found / parts, read

    rows = [divide(mask, 0) for mask in masks[1:]]
    # The mask of words is shared by all columns.
    own = Masks(jnp.zeros((parts, 0)), *rows)
    slices = divide(batch.tokens, 1), divide(batch.targets, 1), divide(hidden, 0), own
    total, reads = lax.scan(accumulate, jnp.zeros_like(weights.vector), slices)
    # All parts have the same number of targets, so the mean of means is the mean.
    return total, reads._replace(
      loss=jnp.mean(reads.loss), temporal=jnp.mean(reads.temporal), hidden=reads.hidden.reshape(hidden.shape)
    )

  def _gradient(self, weights: Packed, batch: Sequences, hidden: Array, masks: Masks) -> tuple[Array, Read]:
    columns, rows = (NamedSharding(self._mesh, PartitionSpec(*axes)) for axes in ((None, 'data'), ('data',)))
    tokens, targets = lax.with_sharding_constraint((batch.tokens, batch.targets), columns)
    hidden, own = lax.with_sharding_constraint((hidden, tuple(masks[1:])), rows)
    batch, masks = Sequences(tokens, targets, batch.length), Masks(masks.words, *own)

    def loss_of(vector: Array) -> tuple[Array, Read]:
      variables = {'params': weights.replace(vector).tree}
      read = read_text(self.net, variables, batch, hidden, masks=masks, train=True, remat=self._settings.remat)
      return read.loss + self._settings.temporal_activation * read.temporal, read

    with precisely(self._settings.precision):
      return jax.grad(loss_of, has_aux=True)(weights.vector)

  def _losses(self, state: LanguageState, text: Text) -> Array:
    """Losses of consecutive windows without dropout, `[S]` in nats per token."""
    weights = state.evaluated
    variables = {'params': weights.tree}

    def read(hidden: Array, index: Array) -> tuple[Array, Array]:
      _, batch = text.window(index)
      found = read_text(self.net, variables, batch, hidden, train=False)
      return found.hidden, found.loss

    hidden = initial_hidden(text.columns.shape[1], self.net.width, weights.vector.dtype)
    with precisely(self._settings.precision):
      losses: Array
      _, losses = lax.scan(read, hidden, jnp.arange(len(text.starts)))
    return losses
