"""Comparison with the results of the published code of NAS-Bench-201; see `benchmarks.parity`."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from darts_jax.interop.nasbench201 import convert
from darts_jax.nets import cost
from darts_jax.nets.conv import Network, Supernet
from darts_jax.runtime.files import parse_json
from darts_jax.spaces import Mixing
from darts_jax.spaces.nasbench201 import CELL, OPERATIONS, NasBench201

#: Of float64, relative to the largest number of an array.
TOLERANCE = 1e-9
#: Differences that are not counted: gradients of biases before BN, and behind what is zero, are nothing but rounding.
ROUNDING = 1e-12

Result = tuple[str, float, float]


def error_beyond_rounding(ours: Any, theirs: Any) -> float:
  """max |ours − theirs| − `ROUNDING`, at least 0, relative to max |theirs|."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  if ours.shape != theirs.shape:
    raise ValueError(f'shape {ours.shape} computed, {theirs.shape} found')
  beyond = float(np.max(np.abs(ours - theirs))) - ROUNDING
  # Written so that NaN is passed on.
  return 0.0 if beyond <= 0 else beyond / max(float(np.max(np.abs(theirs))), np.finfo(np.float64).tiny)


def images_of(values: Mapping[str, np.ndarray], name: str) -> jax.Array:
  """The images of a file, `[N, H, W, C]`."""
  return jnp.asarray(values[name].transpose(0, 2, 3, 1))


def group(values: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  """The arrays whose names have a prefix, without it."""
  return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def compare_trees(name: str, ours: Any, theirs: Any) -> Iterator[Result]:
  """Yields the name, relative error and tolerance of every leaf."""
  expected = dict(jax.tree_util.tree_leaves_with_path(theirs))
  for path, leaf in jax.tree_util.tree_leaves_with_path(ours):
    place = '/'.join(key.key for key in path)
    yield f'{name}/{place}', error_beyond_rounding(leaf, expected[path]), TOLERANCE


def compare_networks(values: Mapping[str, np.ndarray]) -> Iterator[Result]:
  """Yields the name, relative error and tolerance of the results of some discrete cells."""
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


def compare_supernet(values: Mapping[str, np.ndarray]) -> Iterator[Result]:
  """Yields the name, relative error and tolerance of the results of a supernet, without those of virtual steps."""
  meta = parse_json(str(values['meta']).encode())
  space = NasBench201()
  cells = tuple(space.cells.items())
  edges = [f'{target}<-{edge.source}' for target, edge in cells[0][1].edges]
  if (meta['ops'], meta['edges']) != (list(OPERATIONS), edges):
    raise ValueError(f'meta: ops and edges are not {", ".join(OPERATIONS)} and {", ".join(edges)}')
  plan = space.plan(3 * meta['N'])
  net = Supernet(cells, plan, meta['C'], meta['num_classes'], stem_multiplier=1, tracked=False)
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


def compare_counts(file: Mapping[str, Any]) -> Iterator[Result]:
  """Yields the name, error (0 or 1) and tolerance of the number of weights and multiply-adds of some cells.

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
