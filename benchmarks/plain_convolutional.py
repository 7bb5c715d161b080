"""Compares the search step on images with a plain one: a Flax supernet with a module for every operation of an edge.

python -m benchmarks.plain_convolutional [--config=configs/cifar.py] [--repeats=3] [--config.batch_size=64]

Both take a first-order step, one update of α and one of the weights, on the same batches of random images, augmented in
the step, from the same weights. The plain step is a straightforward port: `nn.Conv`, `nn.BatchNorm` and Flax's pools,
one after the other for every edge and operation, weights as a pytree of hundreds of arrays, Optax, and two calls of
`jax.grad`. The table gives the seconds to trace and compile each, and the median, fastest and slowest of `--repeats`
steps, made in turns; the ratio is that of the medians. Before that, the losses of both steps are compared.

On CPU the plain step of `configs/cifar.py` compiles for minutes and is slow, since depthwise convolutions are slow
there.
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from absl import flags
from flax import traverse_util
from ml_collections import config_flags

from benchmarks.command import exit_code
from benchmarks.comparison import Step, compare_steps
from benchmarks.search_step import open_search
from darts_jax.nets.cell import operation_groups
from darts_jax.nets.conv import Supernet, larger_inputs
from darts_jax.nets.layers import BN_DECAY, BN_EPSILON
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search, placed_task, read
from darts_jax.search.state import SearchState
from darts_jax.strategies.relaxed import ALPHAS
from darts_jax.tasks.images import ImageLearner

Array = jax.Array
PyTree = Any


class PlainSupernet(nn.Module):
  """The supernet for images, written directly from the formulas, without batching of operations.

  Attributes:
    net: the package's supernet, which gives the sizes.
  """

  net: Supernet

  @nn.compact
  def __call__(self, x: Array, mixing: Mapping[str, Array]) -> Array:
    """Computes logits `[N, num_classes]` from images and `[E, O]` mixing weights by kind of cell."""
    net = self.net
    x = _norm('stem_bn', affine=True)(_conv('stem', net.stem_multiplier * net.channels, 3)(x))
    before_last, last = x, x
    specs = dict(net.cells)
    for index, (layer, larger) in enumerate(
      zip(net.plan.layers, larger_inputs(net.cells, net.plan, net.stem), strict=True)
    ):
      kind, name, channels = layer.cell, f'cell{index}', layer.channels * net.channels
      if larger[0]:
        first = _factorized(f'{name}_first', before_last, channels)
      else:
        first = _conv(f'{name}_first', channels)(nn.relu(before_last))
      second = _conv(f'{name}_second', channels)(nn.relu(last))
      states = [_norm(f'{name}_first_bn')(first), _norm(f'{name}_second_bn')(second)]
      spec = specs[kind]
      arriving: list[list[Array]] = [[] for _ in spec.nodes]
      for e, (target, edge) in enumerate(spec.edges):
        while len(states) <= edge.source:
          states.append(sum(arriving[len(states) - spec.num_inputs]))
        stride = layer.stride if edge.source < spec.num_inputs else 1
        for o, operation in enumerate(spec.operations):
          if operation != 'none':
            y = _operate(f'{name}_edge{e}_{operation}', operation, states[edge.source], stride)
            arriving[target - spec.num_inputs].append(mixing[kind][e, o] * y)
      states += [sum(each) for each in arriving[len(states) - spec.num_inputs :]]
      before_last, last = last, jnp.concatenate([states[node] for node in spec.outputs], axis=-1)
    return nn.Dense(net.num_classes, name='classifier')(jnp.mean(last, axis=(1, 2)))


def _conv(name: str, features: int, size: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv:
  padding = (dilation * (size - 1) // 2,) * 2
  return nn.Conv(
    features,
    (size, size),
    strides=stride,
    padding=[padding, padding],
    kernel_dilation=dilation,
    feature_group_count=groups,
    use_bias=False,
    name=name,
  )


def _norm(name: str, affine: bool = False) -> nn.BatchNorm:
  return nn.BatchNorm(
    use_running_average=False, momentum=BN_DECAY, epsilon=BN_EPSILON, use_bias=affine, use_scale=affine, name=name
  )


def _factorized(name: str, x: Array, features: int) -> Array:
  # Odd sides are padded with zeros.
  x = jnp.pad(nn.relu(x), [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)])
  halves = [_conv(f'{name}_{i}', features // 2, stride=2)(x[:, i:, i:]) for i in range(2)]
  return jnp.concatenate(halves, axis=-1)


def _operate(name: str, operation: str, x: Array, stride: int) -> Array:
  channels, window = x.shape[-1], ((3, 3), (stride, stride), [(1, 1), (1, 1)])
  if operation == 'max_pool_3x3':
    return _norm(f'{name}_bn0')(nn.max_pool(x, *window))
  if operation == 'avg_pool_3x3':
    return _norm(f'{name}_bn0')(nn.avg_pool(x, *window, count_include_pad=False))
  if operation == 'skip_connect':
    return x if stride == 1 else _norm(f'{name}_bn0')(_factorized(name, x, channels))
  size, dilation = int(operation[-1]), 2 if operation.startswith('dil') else 1
  for stage in range(2 if operation.startswith('sep') else 1):
    x = _conv(f'{name}_depthwise{stage}', channels, size, 1 if stage else stride, dilation, channels)(nn.relu(x))
    x = _norm(f'{name}_bn{stage}')(_conv(f'{name}_pointwise{stage}', channels)(x))
  return x


def plain_weights(weights: PyTree, net: Supernet) -> PyTree:
  """Converts the parameters of the package's supernet, which are stacked over edges, to those of `PlainSupernet`."""
  flat: dict[tuple[str, ...], Array] = {
    ('stem', 'kernel'): weights['stem'][:, :, 0] if weights['stem'].ndim == 5 else weights['stem'],
    ('stem_bn', 'scale'): weights['stem_bn']['scale'],
    ('stem_bn', 'bias'): weights['stem_bn']['bias'],
    ('classifier', 'kernel'): weights['classifier'],
    ('classifier', 'bias'): weights['classifier_bias'],
  }

  def put(name: str, kernel: Array) -> None:
    flat[name, 'kernel'] = kernel

  def put_halves(name: str, kernels: Array) -> None:
    for i, kernel in enumerate(kernels):
      put(f'{name}_{i}', kernel[None, None])

  specs = dict(net.cells)
  for index, (layer, larger) in enumerate(
    zip(net.plan.layers, larger_inputs(net.cells, net.plan, net.stem), strict=True)
  ):
    cell, name = weights[f'cell{index}'], f'cell{index}'
    first = cell['preprocess0']['kernel']
    if larger[0]:
      put_halves(f'{name}_first', first[:, :, 0])
    else:
      put(f'{name}_first', first[None])
    put(f'{name}_second', cell['preprocess1']['kernel'][None])
    spec = specs[layer.cell]
    for source in range(spec.num_inputs + len(spec.nodes)):
      node = cell.get(f'node{source}', {})
      for operation, members in operation_groups(spec, source).items():
        for m, (e, _) in enumerate(members):
          edge = f'{name}_edge{e}_{operation}'
          if operation in node:
            put_halves(edge, node[operation]['kernel'][:, :, m])
          for stage in range(2):
            kernels = node.get(f'stage{stage}', {})
            if f'{operation}_depthwise' in kernels:
              put(f'{edge}_depthwise{stage}', kernels[f'{operation}_depthwise'][:, :, m, None])
              put(f'{edge}_pointwise{stage}', kernels[f'{operation}_pointwise'][None, None, m])
  return traverse_util.unflatten_dict(flat)


class PlainState(NamedTuple):
  """State of the plain step.

  Attributes:
    search: state of a search, of which α, their optimiser, the step and the key are used.
    weights: parameters of `PlainSupernet`.
    statistics: running statistics of BN.
    optimizer: state of the weights' optimiser.
  """

  search: SearchState
  weights: PyTree
  statistics: PyTree
  optimizer: PyTree


class PlainSearch:
  """The plain step of a search.

  Attributes:
    searcher: the package's search, which gives batches and the update of α.
    net: the plain supernet.
    optimizer: optimiser of the weights.
  """

  def __init__(self, searcher: Searcher) -> None:
    """Builds the functions; compiles nothing."""
    assert isinstance(searcher.learner, ImageLearner)
    self.image_shape = searcher.learner.image_shape
    self.searcher, self.net = searcher, PlainSupernet(searcher.learner.net)
    rates = searcher.settings.weights
    self.optimizer = optax.chain(
      optax.clip_by_global_norm(rates.clip_norm),
      optax.add_decayed_weights(rates.weight_decay),
      optax.sgd(rates.learning_rate, rates.momentum or None),
    )

  def start(self, state: SearchState) -> PlainState:
    """Makes the state of the plain step from the state of a search."""
    weights = plain_weights(state.weights.tree, self.searcher.learner.net)
    images = jnp.zeros((1, *self.image_shape))
    mixing = self._mixing(state, state.alphas)
    statistics = jax.eval_shape(self.net.init, state.key, images, mixing)['batch_stats']
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), statistics)
    return PlainState(state, weights, zeros, self.optimizer.init(weights))

  def _mixing(self, state: SearchState, alphas: PyTree) -> dict[str, Array]:
    found = self.searcher.searched.mix(alphas, state.step, state.key, ALPHAS)
    return {name: each.operations for name, each in found.items()}

  def step(self, state: PlainState, data: Any) -> tuple[PlainState, dict[str, Array]]:
    """Takes one step: an update of α and an update of the weights."""
    batches = self.searcher.batches(state.search, data)

    def loss(weights: PyTree, alphas: PyTree, batch: Any) -> tuple[Array, PyTree]:
      mixing = self._mixing(state.search, alphas)
      variables = {'params': weights, 'batch_stats': state.statistics}
      logits, updated = self.net.apply(variables, batch.images, mixing, mutable=['batch_stats'])
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)), updated['batch_stats']

    with jax.default_matmul_precision('highest'):
      (outer, _), gradient = jax.value_and_grad(loss, 1, has_aux=True)(
        state.weights, state.search.alphas, batches.valid
      )
      after = self.searcher.optimizers(state.search, data).move_alphas(state.search, gradient)
      (inner, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(state.weights, after.alphas, batches.train)
    updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    losses = {'valid_loss': outer, 'train_loss': inner}
    return PlainState(after.replace(step=after.step + 1), weights, statistics, optimizer), losses


def run(settings: Search, repeats: int) -> None:
  """Measures and prints the table."""
  searcher, data, _, _ = open_search(settings, 1)
  state = searcher.init(jax.random.key(settings.seed))
  plain = PlainSearch(searcher)
  steps: dict[str, Step] = {
    'package': (searcher._step, (state, data)),
    'plain': (plain.step, (plain.start(state), data)),
  }
  compare_steps(steps, repeats)


def main() -> int:
  """Parses the command line; returns the exit code."""
  config = config_flags.DEFINE_config_file('config', 'configs/cifar.py', 'Path of the config file.')
  repeats = flags.DEFINE_integer('repeats', 3, 'Timed steps of either kind.', lower_bound=1)

  def measured() -> None:
    flags.FLAGS(sys.argv)
    jax.config.update('jax_enable_compilation_cache', False)
    settings = read(config.value)
    if placed_task(settings).network.stem != 'cifar' or settings.precision != 'float32':
      raise ValueError('--config: the plain step has the stem cifar and computes in float32')
    hypergradient = settings.hypergradient.other('first_order')
    run(dataclasses.replace(settings, hypergradient=hypergradient), repeats.value)

  return exit_code(measured, __doc__)


if __name__ == '__main__':
  sys.exit(main())
