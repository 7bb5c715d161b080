"""Comparison with the results of the published code of NAS-Bench-201; see `benchmarks.parity`."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from darts_jax.hypergradient import exact
from darts_jax.interop.nasbench201 import convert
from darts_jax.laboratory.bench import Bench, Frozen, to_host
from darts_jax.nets import cost
from darts_jax.nets.conv import Network, Supernet
from darts_jax.runtime.files import parse_json
from darts_jax.runtime.packed import Packed
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.searched import Searched
from darts_jax.search.settings import read
from darts_jax.search.state import SearchState
from darts_jax.spaces import Mixing
from darts_jax.spaces.nasbench201 import CELL, OPERATIONS, NasBench201
from darts_jax.tasks.base import Halves
from darts_jax.tasks.images import ImageBatch

#: Tolerance in float64, relative to the largest number of an array.
TOLERANCE = 1e-9
#: Tolerance of a finite difference, which divides the rounding errors of two gradients by its small step.
TOLERANCE_FINITE_DIFFERENCE = 1e-6
#: Absolute differences that are not counted: gradients of biases before BN, and behind zeros, are rounding errors only.
ROUNDING = 1e-12

Result = tuple[str, float, float]


def error_beyond_rounding(ours: Any, theirs: Any) -> float:
  """max |ours − theirs| − `ROUNDING`, at least 0, relative to max |theirs|."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  if ours.shape != theirs.shape:
    raise ValueError(f'shape {ours.shape} computed, {theirs.shape} found')
  beyond = float(np.max(np.abs(ours - theirs))) - ROUNDING
  # The comparison is written so that NaN is returned.
  return 0.0 if beyond <= 0 else beyond / max(float(np.max(np.abs(theirs))), np.finfo(np.float64).tiny)


def images_of(values: Mapping[str, np.ndarray], name: str) -> jax.Array:
  """The images of a file, `[N, H, W, C]`."""
  return jnp.asarray(values[name].transpose(0, 2, 3, 1))


def group(values: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  """The arrays whose names begin with a prefix, by name without the prefix."""
  return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def compare_trees(name: str, ours: Any, theirs: Any) -> Iterator[Result]:
  """Yields the name, relative error and tolerance of every leaf."""
  expected = dict(jax.tree_util.tree_leaves_with_path(theirs))
  for path, leaf in jax.tree_util.tree_leaves_with_path(ours):
    place = '/'.join(key.key for key in path)
    yield f'{name}/{place}', error_beyond_rounding(leaf, expected[path]), TOLERANCE


def compare_networks(values: Mapping[str, np.ndarray]) -> Iterator[Result]:
  """Yields the name, relative error and tolerance of the results of discrete networks."""
  meta = parse_json(str(values['meta']).encode())
  space, labels, images = NasBench201(), jnp.asarray(values['y']), images_of(values, 'x')
  for i, arch in enumerate(meta['archs']):
    results = group(values, f'{i}/')
    tensors = group(results, 'w/')
    net = Network(
      space.from_json(arch).cells, space.plan(3 * meta['N']), meta['C'], meta['num_classes'], stem_multiplier=1
    )
    variables = convert(net, tensors)

    def loss_of(params: Any, net: Network = net, stats: Any = variables['batch_stats']) -> Any:
      found: Any = net.apply(
        {'params': params, 'batch_stats': stats}, images, train=True, mutable=['batch_stats', 'intermediates']
      )
      (logits, _), changed = found
      loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
      return loss, (logits, changed['intermediates']['features'][0], changed['batch_stats'])

    found, gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(variables['params'])
    loss, (logits, features, after) = found
    evaluated = jax.jit(lambda net=net, variables=variables: net.apply(variables, images, train=False).main)()
    for name, ours in (
      ('logits_eval', evaluated),
      ('logits_train', logits),
      ('features_train', features),
      ('loss_train', loss),
    ):
      yield f'{i}/{name}', error_beyond_rounding(ours, results[name]), TOLERANCE
    yield from compare_trees(f'{i}/grad', gradient, convert(net, group(results, 'grad/'), statistics=False)['params'])
    yield from compare_trees(f'{i}/after', after, convert(net, tensors | group(results, 'after/'))['batch_stats'])


def _supernet(values: Mapping[str, np.ndarray]) -> tuple[Mapping[str, Any], Supernet]:
  """The metadata of a file, and its supernet."""
  meta = parse_json(str(values['meta']).encode())
  space = NasBench201()
  cells = tuple(space.cells.items())
  edges = [f'{target}<-{edge.source}' for target, edge in cells[0][1].edges]
  if (meta['ops'], meta['edges']) != (list(OPERATIONS), edges):
    raise ValueError(f'meta: ops and edges are not {", ".join(OPERATIONS)} and {", ".join(edges)}')
  plan = space.plan(3 * meta['N'])
  return meta, Supernet(cells, plan, meta['C'], meta['num_classes'], stem_multiplier=1, tracked=False)


def compare_supernet(values: Mapping[str, np.ndarray]) -> Iterator[Result]:
  """Yields the name, relative error and tolerance of the results of a supernet in first order."""
  _, net = _supernet(values)
  tensors = group(values, 'w/')
  variables = convert(net, tensors)

  def logits_of(params: Any, alpha: Any, images: Any, train: bool) -> Any:
    mixing = {CELL: Mixing(jax.nn.softmax(alpha))}
    return net.apply({**variables, 'params': params}, images, mixing, train=train, mutable=['batch_stats'])

  def loss_of(params: Any, alpha: Any, images: Any, labels: Any) -> Any:
    logits, changed = logits_of(params, alpha, images, True)
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    return loss, (logits, changed['batch_stats'])

  alpha = jnp.asarray(values['alpha'])
  compute = jax.jit(jax.value_and_grad(loss_of, (0, 1), has_aux=True))
  for half in ('train', 'valid'):
    found = compute(variables['params'], alpha, images_of(values, f'x_{half}'), jnp.asarray(values[f'y_{half}']))
    (loss, (logits, after)), (weights, alphas) = found
    for name, ours in (('logits', logits), ('loss', loss), ('dalpha', alphas)):
      yield f'{name}_{half}', error_beyond_rounding(ours, values[f'{name}_{half}']), TOLERANCE
    if half == 'train':
      theirs = convert(net, group(values, 'dw_train/'), statistics=False)
      yield from compare_trees('dw_train', weights, theirs['params'])
      theirs = convert(net, tensors | group(values, 'after_train/'))
      yield from compare_trees('after_train', after, theirs['batch_stats'])
  evaluate = jax.jit(lambda images: logits_of(variables['params'], alpha, images, False)[0])
  yield 'logits_eval', error_beyond_rounding(evaluate(images_of(values, 'x_train')), values['logits_eval']), TOLERANCE


def compare_virtual_steps(values: Mapping[str, np.ndarray]) -> Iterator[Result]:
  """Yields the name, relative error and tolerance of second-order hypergradients, with momentum and without.

  The file has those of the released code and exact ones. The released code takes a central difference with the step
  `fd_radius / ‖v‖`, and its virtual step has heavy-ball momentum, although its optimiser has Nesterov's.
  """
  meta, net = _supernet(values)
  variables = convert(net, group(values, 'w/'))
  rates = {'learning_rate': meta['lr'], 'final_learning_rate': meta['lr'], 'momentum': meta['momentum']}
  settings = read(
    {
      'space': NasBench201.name,
      'epochs': 1,
      'weights': {**rates, 'weight_decay': meta['weight_decay'], 'nesterov': True},
      'hypergradient': {'name': 'finite_difference', 'radius': meta['fd_radius'], 'virtual_step': 'heavy_ball'},
    }
  )
  optimizers, searched = Optimizers.from_settings(settings, [1]), Searched.from_settings(settings)
  weights, alphas = Packed.pack(variables['params']), {CELL: jnp.asarray(values['alpha'])}
  momentum = Packed.pack(convert(net, group(values, 'momentum/'), statistics=False)['params']).vector
  train, valid = (
    ImageBatch(images_of(values, f'x_{half}'), jnp.asarray(values[f'y_{half}'])) for half in ('train', 'valid')
  )
  bench = Bench(net, searched, optimizers, 'float64', products_of_weights=False)

  @jax.jit
  def at_virtual_step(state: SearchState, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    updates, _ = optimizers.inner.update(gradient, state.weights_optimizer, state.weights.vector)
    params = state.weights.replace(optax.apply_updates(state.weights.vector, updates)).tree
    mixing = {CELL: Mixing(jax.nn.softmax(state.alphas[CELL]))}
    logits: Any = net.apply({**variables, 'params': params}, valid.images, mixing, train=True, mutable=['batch_stats'])[
      0
    ]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, valid.labels)), logits

  for prefix, trace in (('v2_', momentum), ('v2_nomom_', jnp.zeros_like(momentum))):
    state = SearchState(
      step=jnp.zeros((), jnp.int32),
      key=jax.random.key(0),
      weights=weights,
      statistics=Packed.pack(variables['batch_stats']),
      alphas=alphas,
      weights_optimizer=optax.tree_utils.tree_set(optimizers.weights.init(weights.vector), trace=trace),
      alphas_optimizer=optimizers.alphas.init(alphas),
    )
    frozen = Frozen(to_host(state), Halves(train, valid))
    loss, logits = at_virtual_step(state, bench.gradients(frozen)[1].weights)
    yield f'{prefix}loss', error_beyond_rounding(loss, values[f'{prefix}loss']), TOLERANCE
    yield f'{prefix}logits', error_beyond_rounding(logits, values[f'{prefix}logits']), TOLERANCE
    released = bench.estimate(settings.hypergradient.estimator(), frozen)
    own = bench.estimate(exact(), frozen)
    rate = -meta['lr']
    for name, ours, tolerance in (
      ('dalpha', released.estimate[CELL], TOLERANCE_FINITE_DIFFERENCE),
      ('fd_product', released.term[CELL] / rate, TOLERANCE_FINITE_DIFFERENCE),
      ('first_term', released.outer[CELL], TOLERANCE),
      ('exact_dalpha', own.estimate[CELL], TOLERANCE),
      ('exact_product', own.term[CELL] / rate, TOLERANCE),
    ):
      yield f'{prefix}{name}', error_beyond_rounding(ours, values[f'{prefix}{name}']), tolerance


def compare_counts(file: Mapping[str, Any]) -> Iterator[Result]:
  """Yields the name, error (0 or 1) and tolerance of validity, key and counts of some cells.

  The published counts include the additions of the classifier's bias.
  """
  meta, space = file['meta'], NasBench201()
  plan = space.plan(3 * meta['N'])
  for i, row in enumerate(file['rows']):
    genotype = space.from_json(row['arch'])
    yield f'{i}/valid', float(space.is_connected(genotype) != row['valid']), 0.0
    yield f'{i}/unique_zero', float(space.key(genotype) != row['unique_zero']), 0.0
    for classes, shape in meta['inputs'].items():
      _, channels, height, width = map(int, shape.split('x'))
      net = Network(genotype.cells, plan, meta['C'], int(classes), stem_multiplier=1)
      parts = cost.parts_of(net, height, width, channels)
      weights, products = sum(part.weights for part in parts), sum(part.multiply_adds for part in parts)
      yield f'{i}/params_{classes}', float(weights != row[f'params_{classes}']), 0.0
      yield f'{i}/flops_{classes}', float(products + int(classes) != row[f'flops_{classes}']), 0.0
