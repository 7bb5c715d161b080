"""Compares a recurrent search step with a plain one: every edge and activation written out by itself.

python -m benchmarks.plain_recurrent [--config=configs/ptb.py] [--time=scan] [--repeats=3]
    [--config.task.bptt=35]

Both take a first-order step, one update of α and one of the weights, on the same random words and masks. The plain
step is a straightforward port: Python loops over nodes, edges and activations, each with its own product, and
`jax.grad`. Over time steps it has a `lax.scan`, or with `--time=unrolled` a Python loop, which XLA compiles in minutes
for a few time steps and hardly at all for many. The table gives the seconds to trace and compile each, and the median,
fastest and slowest of `--repeats` steps, made in turns; the ratio is that of the medians. Before that, the losses of
both steps are compared.
"""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags
from jax import lax
from ml_collections import config_flags

from benchmarks.command import exit_code
from benchmarks.comparison import Step, compare_steps
from benchmarks.search_step import open_search
from darts_jax.nets.layers import BN_EPSILON
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search, read
from darts_jax.search.state import SearchState
from darts_jax.tasks import TextTask
from darts_jax.tasks.text import TextBatch

Array = jax.Array
PyTree = Any

_ACTIVATIONS = {'tanh': jnp.tanh, 'relu': jax.nn.relu, 'sigmoid': jax.nn.sigmoid, 'identity': lambda x: x}


def plain_loss(
  params: PyTree, alphas: Array, batch: TextBatch, operations: tuple[str, ...], nodes: int, scan: bool
) -> Array:
  """Mean negative log-likelihood of a sequence, written directly from the formulas, without batching of operations."""
  mixing = jax.nn.softmax(alphas)
  masks, sequences = batch.masks, batch.sequences
  embedding = params['embedding'] * masks.words[:, None]
  width = batch.hidden.shape[1]

  def normalised(state: Array) -> Array:
    mean = jnp.mean(state, axis=0)
    return (state - mean) / jnp.sqrt(jnp.mean((state - mean) ** 2, axis=0) + BN_EPSILON)

  def read(h: Array, words: tuple[Array, Array]) -> tuple[Array, Array]:
    tokens, targets = words
    x = embedding[tokens] * masks.embedded
    product = jnp.concatenate([x * masks.x, h * masks.h], axis=1) @ params['first']
    gate, value = product[:, :width], product[:, width:]
    states = [normalised(h + jax.nn.sigmoid(gate) * (jnp.tanh(value) - h))]
    edge = 0
    for i in range(nodes):
      total = jnp.zeros_like(h)
      for source in range(i + 1):
        for k, name in enumerate(operations):
          if name == 'none':
            continue
          state = states[source]
          product = (state * masks.h) @ params['nodes'][i]
          gate, value = product[:, :width], product[:, width:]
          total = total + mixing[edge, k] * (state + jax.nn.sigmoid(gate) * (_ACTIVATIONS[name](value) - state))
        edge += 1
      states.append(normalised(total))
    h = sum(states[1:], jnp.zeros_like(h)) / nodes
    logits = (h * masks.output) @ params['embedding'].T + params['bias']
    return h, optax.softmax_cross_entropy_with_integer_labels(logits, targets)

  words = sequences.tokens, sequences.targets
  if scan:
    return jnp.mean(lax.scan(read, batch.hidden, words)[1])
  h, losses = batch.hidden, []
  for step in zip(*words, strict=True):
    h, loss = read(h, step)
    losses.append(loss)
  return jnp.mean(jnp.stack(losses))


def plain_step(searcher: Searcher, state: SearchState, data: Any, scan: bool) -> tuple[SearchState, dict[str, Array]]:
  """A first-order step with `plain_loss`, which does not update statistics and hidden states."""
  [(cell, spec)] = searcher.searched.space.cells.items()
  batches = searcher.batches(state, data)
  optimizers = searcher.optimizers(state, data)
  operations, nodes = spec.operations, len(spec.nodes)

  def loss(vector: Array, alphas: PyTree, batch: TextBatch) -> Array:
    return plain_loss(state.weights.replace(vector).tree, alphas[cell], batch, operations, nodes, scan)

  with jax.default_matmul_precision('highest'):
    outer, gradient = jax.value_and_grad(loss, 1)(state.weights.vector, state.alphas, batches.valid)
    after = optimizers.move_alphas(state, gradient)
    inner, weights_gradient = jax.value_and_grad(loss)(state.weights.vector, after.alphas, batches.train)
  after = optimizers.move_weights(after, weights_gradient)
  return after, {'valid_loss': outer, 'train_loss': inner}


def run(settings: Search, repeats: int, scan: bool) -> None:
  """Measures and prints the table."""
  searcher, data, _, _ = open_search(settings, 1)
  state = searcher.init(jax.random.key(settings.seed))
  steps: dict[str, Step] = {
    'package': (searcher._step, (state, data)),
    'plain': (lambda state, data: plain_step(searcher, state, data, scan), (state, data)),
  }
  compare_steps(steps, repeats)


def main() -> int:
  """Parses the command line; returns the exit code."""
  config = config_flags.DEFINE_config_file('config', 'configs/ptb.py', 'Path of the config file.')
  repeats = flags.DEFINE_integer('repeats', 3, 'Timed steps of either kind.', lower_bound=1)
  time_loop = flags.DEFINE_enum('time', 'scan', ['scan', 'unrolled'], 'How the plain step goes through time.')

  def measured() -> None:
    flags.FLAGS(sys.argv)
    jax.config.update('jax_enable_compilation_cache', False)
    settings = read(config.value)
    task = settings.task
    if not isinstance(task, TextTask):
      raise ValueError(f'config.task.name: {task.name!r} is not allowed; it has to be {TextTask.name!r} here')
    hypergradient = settings.hypergradient.other('first_order')
    # The plain step has no temporal activation regularisation.
    task = dataclasses.replace(task, temporal_activation=0.0)
    compared = dataclasses.replace(settings, hypergradient=hypergradient, task=task)
    run(compared, repeats.value, time_loop.value == 'scan')

  return exit_code(measured, __doc__)


if __name__ == '__main__':
  sys.exit(main())
