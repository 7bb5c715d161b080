"""Comparison with the results of the published code of relaxed strategies; see `benchmarks.parity`."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.nasbench201_parity import TOLERANCE, Result, compare_trees, error_beyond_rounding, group, images_of
from darts_jax.hypergradient.lanczos import tridiagonal
from darts_jax.interop.nasbench201 import convert
from darts_jax.interop.reference import Reader, convert_supernet, read_operations
from darts_jax.nets.cell import Cell
from darts_jax.nets.channels import shuffle_channels
from darts_jax.nets.conv import Supernet
from darts_jax.nets.owners import flagged
from darts_jax.runtime.files import parse_json
from darts_jax.runtime.mesh import UNSHARED
from darts_jax.runtime.packed import Packed
from darts_jax.search.curvature import hessian_product
from darts_jax.search.searched import NoSupernet, Searched
from darts_jax.search.step import BatchLoss
from darts_jax.spaces import CellSpec, Darts, Edge
from darts_jax.spaces.nasbench201 import CELL, NasBench201
from darts_jax.strategies.darts import Darts as DartsStrategy
from darts_jax.strategies.gdas import Gdas
from darts_jax.strategies.pc_darts import PcDarts
from darts_jax.strategies.relaxed import ALPHAS, Time
from darts_jax.strategies.robust_darts import RobustDarts
from darts_jax.tasks.images import ImageBatch, ImageLoss

#: Larger than that of gradients, since second derivatives are sums of many more products.
TOLERANCE_HESSIAN = 1e-8
#: Values of `Gdas.inactive_gradient`, the gradient at operations that were not chosen.
MODES = ('released', 'exact', 'none')


def compare_gdas(values: Mapping[str, np.ndarray]) -> Iterator[Result]:
  """Yields the name, relative error and tolerance of the results of GDAS on a supernet of NAS-Bench-201.

  For every draw: the chosen operations, logits and loss; for each kind of gradient, the gradients in α and in the
  mixing weights; and which weights of the network were in use. For some draws: the gradients of the weights.
  """
  meta = parse_json(str(values['meta']).encode())
  space = NasBench201()
  spec = space.cells[CELL]
  plan = space.plan(3 * meta['N'])
  net = Supernet(tuple(space.cells.items()), plan, meta['C'], meta['num_classes'], stem_multiplier=1, tracked=False)
  tensors = group(values, 'w/')
  variables = convert(net, tensors)
  images, labels, alpha = images_of(values, 'x'), jnp.asarray(values['y']), jnp.asarray(values['alpha'])

  def choose(alpha: Any, noise: Any, tau: Any, mode: str) -> Any:
    return Gdas(inactive_gradient=mode).choose(alpha + noise, spec, spec, tau)

  def loss_of(params: Any, operations: Any, mixing: Any) -> Any:
    mixing = mixing._replace(operations=operations)
    logits = net.apply({**variables, 'params': params}, images, {CELL: mixing}, train=True, mutable=['batch_stats'])[0]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), logits

  def compute(mode: str, noise: Any, tau: Any) -> Any:
    mixing = choose(alpha, noise, tau, mode)
    operations, back = jax.vjp(lambda a: choose(a, noise, tau, mode).operations, alpha)
    differentiate = jax.value_and_grad(loss_of, (0, 1), has_aux=True)
    (loss, logits), (weights, hard) = differentiate(variables['params'], operations, mixing)
    return mixing, loss, logits, weights, hard, back(hard)[0]

  programs = {mode: jax.jit(lambda noise, tau, mode=mode: compute(mode, noise, tau)) for mode in MODES}
  for i, tau in enumerate(meta['taus']):
    results = group(values, f'{i}/')
    for mode, program in programs.items():
      mixing, loss, logits, weights, hard, of_alpha = program(jnp.asarray(results['gumbel']), tau)
      for name, ours in (('dalpha', of_alpha), ('dhard', hard)):
        yield f'{i}/{name}_{mode}', error_beyond_rounding(ours, results[f'{name}_{mode}']), TOLERANCE
      if mode != 'released':
        continue
      yield f'{i}/index', float((mixing.active.argmax(axis=1) != results['index']).any()), 0.0
      for name, ours in (('hardwts', mixing.operations), ('logits', logits), ('loss', loss)):
        yield f'{i}/{name}', error_beyond_rounding(ours, results[name]), TOLERANCE
      unused = set(results['unused_weights'].tolist())
      used = {
        name: np.full(value.shape, float(name not in unused))
        for name, value in tensors.items()
        if 'running' not in name
      }
      theirs = Packed.pack(convert(net, used, statistics=False)['params']).vector
      ours = flagged(net, variables['params'], {CELL: mixing.active})
      yield f'{i}/unused_weights', float((np.asarray(ours) != np.asarray(theirs)).any()), 0.0
      found = group(results, 'dw/')
      if found:
        # Weights that were not in use have no gradient in the file, and zeros here.
        gradients = {name: np.zeros(tensors[name].shape) for name in unused} | found
        yield from compare_trees(f'{i}/dw', weights, convert(net, gradients, statistics=False)['params'])


def compare_pc_darts(values: Mapping[str, np.ndarray]) -> Iterator[Result]:
  """Yields the name, relative error and tolerance of the results of a supernet of PC-DARTS.

  For the network: logits and loss in training, and gradients in α, β and all weights. Further: the outputs of an edge
  of stride 1 and of an edge of stride 2; and orders of shuffled channels. Logits in evaluation are not compared: the
  file has random running statistics, which differ for edges that pool the same image, while such edges share them here.
  """
  meta = parse_json(str(values['meta']).encode())
  space, strategy = Darts(operations=tuple(meta['ops'])), PcDarts(channel_part=meta['K'])
  net = Supernet(
    tuple(space.cells.items()),
    space.plan(meta['layers']),
    meta['C'],
    meta['num_classes'],
    channel_part=strategy.channel_part,
  )
  tensors = group(values, 'w/')
  variables = convert_supernet(net, tensors)
  images, labels = images_of(values, 'x'), jnp.asarray(values['y'])
  arch = {name: jnp.asarray(values[f'alphas_{name}']) for name in space.cells}
  arch |= {f'betas_{name}': jnp.asarray(values[f'betas_{name}']) for name in space.cells}

  def loss_of(params: Any, arch: Any) -> Any:
    mixing = strategy.mix(arch, space, space.cells, Time(0, (1,)), None, ALPHAS)
    logits = net.apply({**variables, 'params': params}, images, mixing, train=True, mutable=['batch_stats'])[0]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), logits

  compute = jax.jit(jax.value_and_grad(loss_of, (0, 1), has_aux=True))
  (loss, logits), (weights, of_arch) = compute(variables['params'], arch)
  for name, ours in (('logits_train', logits), ('loss_train', loss)):
    yield name, error_beyond_rounding(ours, values[name]), TOLERANCE
  for name in space.cells:
    yield f'dalphas_{name}', error_beyond_rounding(of_arch[name], values[f'dalphas_{name}']), TOLERANCE
    yield f'dbetas_{name}', error_beyond_rounding(of_arch[f'betas_{name}'], values[f'dbetas_{name}']), TOLERANCE
  theirs = convert_supernet(net, group(values, 'dw/'), statistics=False)
  yield from compare_trees('dw', weights, theirs['params'])
  for name, stride in (('normal', 1), ('reduce', 2)):
    found = _edge(group(values, f'edge_{name}/'), tensors, stride, net.channel_part, space.operations)
    yield f'edge_{name}', error_beyond_rounding(found, images_of(values, f'edge_{name}/output')), TOLERANCE
  for name, order in group(values, 'shuffle/').items():
    channels, groups = map(int, name.split('_'))
    ours = shuffle_channels(jnp.arange(channels), groups)
    yield f'shuffle/{name}', float((np.asarray(ours) != order).any()), 0.0


def _edge(values: Mapping[str, Any], tensors: Any, stride: int, part: int, operations: tuple[str, ...]) -> Any:
  """The output of an edge, as the only edge of a cell."""
  spec = CellSpec(((Edge(0, operations),),), operations, 1, (1,), 'last', None, preparation='none')
  images = images_of(values, 'input')
  cell = Cell(spec, images.shape[-1], stride, (False,), discrete=False, channel_part=part)
  names = {name: [f'{values["prefix"]}._ops.{column}'] for column, name in enumerate(operations) if name != 'none'}
  params, _ = read_operations(Reader(tensors, False), names, stride == 2, False)
  mixing = jnp.asarray(values['weights'])[None]
  return jax.jit(lambda: cell.apply({'params': {'node0': params}}, [images], mixing, train=True))()


def compare_pc_darts_genotypes(cases: list[Any]) -> Iterator[Result]:
  """Yields the name, error (0 or 1) and tolerance of every architecture in a list of α and β of PC-DARTS."""
  space = Darts()
  for i, case in enumerate(cases):
    arch = {name: jnp.asarray(case[f'alphas_{name}']) for name in space.cells}
    arch |= {f'betas_{name}': jnp.asarray(case[f'betas_{name}']) for name in space.cells}
    yield f'genotype_{i}', float(space.to_json(PcDarts().read(arch, space, None)) != case['genotype']), 0.0


def compare_robust_darts(values: Mapping[str, np.ndarray]) -> Iterator[Result]:
  """Yields the name, relative error and tolerance of the curvature of a supernet of DARTS.

  Results are: the loss of a batch and its gradient in α; its second derivative in α, to which the published code adds
  the decay of α, with all eigenvalues; and the largest eigenvalue by the Lanczos method, as in a search.
  """
  meta = parse_json(str(values['meta']).encode())
  space = Darts(operations=tuple(meta['ops']))
  net = Supernet(tuple(space.cells.items()), space.plan(meta['layers']), meta['C'], meta['num_classes'])
  variables = convert_supernet(net, group(values, 'w/'))
  batch = ImageBatch(images_of(values, 'x'), jnp.asarray(values['y']))
  alphas = {name: jnp.asarray(values[f'alphas_{name}']) for name in space.cells}
  weights, statistics = Packed.pack(variables['params']), Packed.pack(variables['batch_stats'])
  searched = Searched.start(DartsStrategy(), space)
  loss = BatchLoss(ImageLoss(net), searched, weights, statistics, jax.random.key(0), jnp.int32(0))

  @jax.jit
  def compute() -> Any:
    value, gradient = jax.value_and_grad(lambda x: loss(weights.vector, x, batch)[0])(alphas)
    product, size = hessian_product(loss, weights.vector, alphas, batch, UNSHARED)
    # `lax.map` over rows, so that the program contains the product once.
    hessian = jax.lax.map(product, jnp.eye(size))
    return value, gradient, hessian, tridiagonal(lambda vector: hessian @ vector, loss.key, size)

  value, gradient, hessian, small = compute()
  yield 'loss', error_beyond_rounding(value, values['loss']), TOLERANCE
  for name in space.cells:
    yield f'dalphas_{name}', error_beyond_rounding(gradient[name], values[f'dalphas_{name}']), TOLERANCE
  decay = meta['arch_weight_decay']
  hessian = np.asarray(hessian) + decay * np.eye(len(hessian))
  yield 'hessian', error_beyond_rounding(hessian, values['hessian']), TOLERANCE_HESSIAN
  eigenvalues = np.linalg.eigvalsh((hessian + hessian.T) / 2)
  yield 'eigenvalues', error_beyond_rounding(eigenvalues, np.sort(values['eigenvalues'])), TOLERANCE_HESSIAN
  yield 'max_abs', error_beyond_rounding(np.abs(eigenvalues).max(), values['max_abs']), TOLERANCE_HESSIAN
  yield 'dominant', error_beyond_rounding(small.largest() + decay, values['dominant']), TOLERANCE_HESSIAN


class _Told(NoSupernet):
  """A probe with a given curvature."""

  def __init__(self, value: float) -> None:
    self._value = value

  def curvature(self) -> float:
    return self._value


def compare_curvatures(cases: Mapping[str, Any]) -> Iterator[Result]:
  """Yields the name, relative error and tolerance of the decisions of RobustDARTS by the curvatures of some searches.

  Results are: the means of curvatures, up to the decision or the end; whether and after which epoch the search stops,
  and the epoch whose architecture it returns. The published code computes one more mean after the last epoch, without
  use.
  """
  meta = cases['meta']
  for i, case in enumerate(cases['rows']):
    strategy = RobustDarts(
      frequency=meta['ev_freq'],
      window=meta['window'],
      lag=case['delta'],
      factor=case['factor'],
      first_epoch=case['es_start_epoch'],
    )
    memory, means = strategy.start(), []
    decided: list[int | None] = [None, None]
    for epoch, value in zip(case['epochs'], case['eigenvalues'], strict=True):
      turned = strategy.turn(memory, None, Darts(), epoch, _Told(value))
      memory = turned.memory
      means += [turned.measures[name] for name in ('curvature_mean',) if name in turned.measures]
      if turned.then == 'stop':
        decided = [epoch, turned.to_epoch]
        break
    yield f'decision_{i}', float(decided != [case['decided_at'], case['stop_epoch']]), 0.0
    expected = case['local_avg'] if decided[0] is not None else case['local_avg'][: len(means)]
    yield f'means_{i}', error_beyond_rounding(means, expected), TOLERANCE
