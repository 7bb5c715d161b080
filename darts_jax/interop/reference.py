"""Converts weights of the published PyTorch implementation, the reference, to our names and layouts.

The reference names a tensor by its position: `cells.2._ops.5._ops.4.op.1.weight` in a search (cell 2, edge 5, operation
4, layer 1), and `cells.2._ops.5.op.1.weight` in the network of a found architecture, whose edges have one operation. It
has one tensor per edge, in the layouts `OIHW` and `NCHW`; here the tensors of edges with the same source and operation
are stacked (see `darts_jax.nets.cell.operation_groups`).
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from darts_jax.nets.cell import operation_groups
from darts_jax.nets.conv import Network, Supernet, larger_inputs
from darts_jax.nets.operations import separable_filters
from darts_jax.nets.recurrent import LanguageModel
from darts_jax.spaces import CellSpec, Genotype, space_of

Tensors = Mapping[str, np.ndarray]
Tree = dict[str, Any]

#: Names under which PyTorch's wrappers hold a network, and names of PyTorch's tensors that are not weights.
_WRAPPERS = ('module', '_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')
_COUNTERS = ('num_batches_tracked', 'n_averaged')
#: The first convolution of the network for CIFAR, and of that for ImageNet.
_STEMS = ('stem.0.weight', 'stem0.0.weight')
_MAX_NAMES, _MAX_NAME = 5, 80

_STATISTICS = {'mean': 'running_mean', 'var': 'running_var'}
_AFFINE = {'scale': 'weight', 'bias': 'bias'}


def convert_supernet(net: Supernet, tensors: Tensors, *, statistics: bool = True) -> Tree:
  """Converts the reference's state dict to the variables of a supernet.

  Args:
    net: the supernet; its shapes must be those of the tensors.
    tensors: arrays by the reference's names, of any floating-point dtype, which is kept.
    statistics: whether running statistics are wanted; False for momentum buffers, for example.

  Returns:
    `{'params': …, 'batch_stats': …}`, the latter only with `statistics`.

  Raises:
    ValueError: tensors are missing, left over, of another shape than the network's, or not finite floating-point
      numbers; the first of them are named.
  """
  mixing = {kind: np.zeros((spec.num_edges, len(spec.operations))) for kind, spec in net.cells}
  return converted(
    lambda reader: _read_supernet(reader, net),
    tensors,
    statistics,
    lambda images: net.init(jax.random.key(0), images, mixing, train=False),
    8,
  )


def convert_network(net: Network, tensors: Tensors) -> Tree:
  """Converts the reference's state dict to the variables of the network of a found architecture.

  Args:
    net: the network; its shapes must be those of the tensors, as `infer_network` makes it.
    tensors: arrays by the reference's names, of any floating-point dtype, which is kept.

  Returns:
    `{'params': …, 'batch_stats': …}`.

  Raises:
    ValueError: see `convert_supernet`.
  """
  # 224 pixels are enough for every network, with any stem and an auxiliary head.
  return converted(
    lambda reader: _read_network(reader, net),
    tensors,
    True,
    lambda images: net.init(jax.random.key(0), images, train=True),
    224,
  )


def unwrapped(tensors: Tensors) -> Tensors:
  """Removes from the names of tensors the parts that wrappers of a network add, such as `module.` and `_orig_mod.`.

  Any prefix of the name of the first convolution is removed from all names that begin with it.

  Raises:
    ValueError: there are several networks, or two tensors would have the same name.
  """
  plain: dict[str, np.ndarray] = {}
  for name, tensor in tensors.items():
    # No module of the reference has one of these names.
    kept = '.'.join(part for part in name.split('.') if part not in _WRAPPERS)
    if kept in plain:
      raise ValueError(f'tensor {few([name])}: there is another one with this name and other wrappers')
    plain[kept] = tensor
  prefixes = [name.removesuffix(stem) for stem in _STEMS for name in plain if name == stem or name.endswith(f'.{stem}')]
  if not prefixes or '' in prefixes:
    return plain
  if len(prefixes) > 1:
    raise ValueError(f'it holds {len(prefixes)} networks: {few(prefixes)}; a file with one of them is needed')
  return {name.removeprefix(prefixes[0]): tensor for name, tensor in plain.items()}


def few(names: Collection[str]) -> str:
  """The first names, short enough for one line, and the number of the others."""
  shown = [name if len(name) <= _MAX_NAME else f'{name[:_MAX_NAME]}…' for name in itertools.islice(names, _MAX_NAMES)]
  return ', '.join(shown) + (f' and {len(names) - _MAX_NAMES} more' if len(names) > _MAX_NAMES else '')


def infer_network(genotype: Genotype, tensors: Tensors) -> Network:
  """Infers the network that a state dict of the reference belongs to, from the shapes of the tensors.

  Args:
    genotype: the architecture.
    tensors: arrays by the reference's names.

  Raises:
    ValueError: the tensors cannot belong to such a network. `convert_network` checks all the others.
  """
  imagenet = 'stem0.0.weight' in tensors
  layers = {int(found[1]) for name in tensors if (found := re.match(r'cells\.(\d+)\.', name))}
  stem = 'stem0.3.weight' if imagenet else 'stem.0.weight'
  for name in (stem, 'cells.0.preprocess1.op.1.weight', 'classifier.weight'):
    if name not in tensors:
      raise ValueError(f'tensor {name}: missing; this is no network of the reference (found: {few(tensors)})')
    if not np.ndim(tensors[name]):
      raise ValueError(f'tensor {name}: a single number; this is no network of the reference')
  num_layers = max(layers) + 1
  if num_layers > len(tensors):
    raise ValueError(f'tensor cells.{max(layers)}: there are too few tensors for so many cells')
  plan = space_of(genotype).plan(num_layers)
  # The first cell may have twice the base number of channels.
  first = np.shape(tensors['cells.0.preprocess1.op.1.weight'])
  channels = first[0] // plan.layers[0].channels
  if channels < 1 or 0 in np.shape(tensors[stem]):
    raise ValueError(f'tensor {stem}: shape {np.shape(tensors[stem])} found, and cells of {channels} channels')
  return Network(
    genotype.cells,
    plan,
    channels,
    len(tensors['classifier.weight']),
    stem='imagenet' if imagenet else 'cifar',
    auxiliary=any(name.startswith('auxiliary_head.') for name in tensors),
    auxiliary_norm='auxiliary_head.features.6.weight' in tensors,
    stem_multiplier=3 if imagenet else max(1, len(tensors[stem]) // max(1, channels)),
  )


def convert_language_model(net: LanguageModel, tensors: Tensors) -> Tree:
  """Converts the reference's state dict to the variables of a recurrent supernet or of the network of a found cell.

  Args:
    net: the language model; its shapes must be those of the tensors.
    tensors: arrays by the reference's names, of any floating-point dtype, which is kept. The reference multiplies
      `x·W`, as we do.

  Returns:
    `{'params': …}`, with BN also `batch_stats`.

  Raises:
    ValueError: tensors are missing, left over, of another shape than the network's, or not finite floating-point
      numbers, the first of which are named; or encoder and decoder do not share their weights.
  """
  size, inner = (net.vocab_size, net.width), 2 * net.width
  nodes = [f'rnns.0._Ws.{i}' for i in range(len(net.spec.nodes))]
  statistics = {name: f'rnns.0.bn.{theirs}' for name, theirs in _STATISTICS.items()} if net.norm else {}
  shapes = {
    'encoder.weight': size,
    'decoder.weight': size,
    'decoder.bias': size[:1],
    'rnns.0._W0': (inner, inner),
    **dict.fromkeys(nodes, (net.width, inner)),
    **dict.fromkeys(statistics.values(), (net.width,)),
  }
  found = {name: np.shape(tensor) for name, tensor in tensors.items() if not name.endswith(_COUNTERS)}
  problems = [f'{name}: missing' for name in shapes if name not in found]
  problems += [f'{name}: not used' for name in found if name not in shapes]
  problems += [
    f'{name}: shape {found[name]} found, {shape} expected'
    for name, shape in shapes.items()
    if found.get(name, shape) != shape
  ]
  if problems:
    more = f'; and {len(problems) - _MAX_NAMES} more' if len(problems) > _MAX_NAMES else ''
    raise ValueError(f'tensors that do not fit: {"; ".join(problems[:_MAX_NAMES])}{more}')
  for name in shapes:
    _check_values(name, np.asarray(tensors[name]))
  if not np.array_equal(tensors['encoder.weight'], tensors['decoder.weight']):
    raise ValueError('tensor decoder.weight: not the same as encoder.weight, whose weights it has to share')
  params = {
    'embedding': np.asarray(tensors['encoder.weight']),
    'bias': np.asarray(tensors['decoder.bias']),
    'first': np.asarray(tensors['rnns.0._W0']),
    'nodes': np.stack([tensors[name] for name in nodes]),
  }
  if not net.norm:
    return {'params': params}
  return {'params': params, 'batch_stats': {name: np.asarray(tensors[theirs]) for name, theirs in statistics.items()}}


def _check_values(name: str, tensor: np.ndarray) -> None:
  if tensor.dtype.kind != 'f':
    raise ValueError(
      f'tensor {name}: dtype {tensor.dtype} found; floating-point numbers are expected, so quantised weights have to be'
      ' scaled first'
    )
  if not np.isfinite(tensor).all():
    raise ValueError(f'tensor {name}: a value is not finite')


@dataclasses.dataclass
class Reader:
  """Reads tensors by their published names, in the layouts of this package.

  Attributes:
    tensors: arrays by name; None to only record the names that are read, with arrays of one element as results.
    statistics: whether running statistics are wanted.
    names: the names that have been read, in order.
  """

  tensors: Tensors | None
  statistics: bool
  names: dict[str, None] = dataclasses.field(default_factory=dict)

  def take(self, name: str, ndim: int) -> np.ndarray:
    """Reads a tensor with `ndim` axes, unchanged.

    Raises:
      ValueError: the tensor has another number of axes, or is not finite floating-point numbers.
    """
    self.names[name] = None
    if self.tensors is None:
      return np.zeros((1,) * ndim)
    tensor = np.asarray(self.tensors[name])
    if tensor.ndim != ndim:
      raise ValueError(f'tensor {name}: shape {tensor.shape} found, {ndim} dimensions expected')
    _check_values(name, tensor)
    return tensor

  def dense(self, name: str) -> np.ndarray:
    """Reads the filters of a dense convolution, `[K, L, C, D]`."""
    return self.take(f'{name}.weight', 4).transpose(2, 3, 1, 0)

  def pointwise(self, names: Sequence[str], axis: int = 0) -> np.ndarray:
    """Reads the matrices of 1×1 convolutions, stacked along `axis`; `[M, C, D]` by default."""
    kernels = [self.dense(name) for name in names]
    self._check('1×1', [kernel.shape[:2] == (1, 1) for kernel in kernels], names)
    return stacked([kernel[0, 0] for kernel in kernels], names, axis)

  def depthwise(self, names: Sequence[str]) -> np.ndarray:
    """Reads the filters of depthwise convolutions, `[K, K, M, C]`."""
    kernels = [self.dense(name) for name in names]
    self._check('depthwise', [kernel.shape[2] == 1 for kernel in kernels], names)
    return stacked([kernel[:, :, 0] for kernel in kernels], names, 2)

  def _check(self, kind: str, right: Sequence[bool], names: Sequence[str]) -> None:
    for name, ok in zip(names, right, strict=True):
      if not ok:
        raise ValueError(f'tensor {name}.weight: a {kind} convolution is expected, shape {self._shape(name)} found')

  def _shape(self, name: str) -> tuple[int, ...]:
    return np.shape((self.tensors or {})[f'{name}.weight'])

  def classifier(self, params: Tree, name: str) -> None:
    """Reads a linear layer with a bias, and adds it to the parameters as `classifier` and `classifier_bias`."""
    params['classifier'] = self.take(f'{name}.weight', 2).T
    params['classifier_bias'] = self.take(f'{name}.bias', 1)

  def norms(self, params: Tree, stats: Tree, scope: str, names: Sequence[str], *, affine: bool) -> None:
    """Reads BN layers, and adds their concatenated variables to parameters and statistics.

    Args:
      params: parameters, which get an entry `scope` if `affine`.
      stats: running statistics, which get an entry `scope` if statistics are wanted.
      scope: our name of the BN.
      names: published names of the layers.
      affine: whether the layers have scale and bias.
    """
    if self.statistics and names:
      stats[scope] = self._vectors(names, _STATISTICS)
    if affine and names:
      params[scope] = self._vectors(names, _AFFINE)

  def _vectors(self, names: Sequence[str], kinds: Mapping[str, str]) -> dict[str, np.ndarray]:
    return {
      ours: np.concatenate([self.take(f'{name}.{theirs}', 1) for name in names]) for ours, theirs in kinds.items()
    }


def converted(
  read: Callable[[Reader], tuple[Tree, Tree]],
  tensors: Tensors,
  statistics: bool,
  init: Callable[[np.ndarray], Any],
  size: int,
) -> Tree:
  """Converts tensors to the variables of a network, and checks that names and shapes agree.

  Args:
    read: reads parameters and running statistics.
    tensors: arrays by their published names.
    statistics: whether running statistics are wanted.
    init: initialises the variables of the network for images `[1, size, size, C]`; only their shapes are used.
    size: side of images at which the network can be built, in pixels.

  Returns:
    `{'params': …, 'batch_stats': …}`, the latter only with `statistics`.

  Raises:
    ValueError: tensors are missing, left over, of another shape than the network's, or not finite floating-point
      numbers; the first of them are named.
  """
  plan = Reader(None, statistics)
  read(plan)
  given = [name for name in tensors if not name.endswith(_COUNTERS)]
  missing = [name for name in plan.names if name not in tensors]
  unused = [name for name in given if name not in plan.names]
  problems = []
  if missing:
    problems.append(f'{len(missing)} tensors of the network are missing: {few(missing)}')
  if unused:
    problems.append(f'{len(unused)} tensors are not part of the network: {few(unused)}')
  if problems:
    raise ValueError('; '.join(problems))
  params, stats = read(Reader(tensors, statistics))
  variables = {'params': params, 'batch_stats': stats} if statistics else {'params': params}
  stem = params['stem'] if 'stem' in params else params['stem0_first']
  expected = jax.eval_shape(lambda: init(np.zeros((1, size, size, stem.shape[2]), np.float32)))
  found = dict(jax.tree_util.tree_leaves_with_path(variables))
  for path, leaf in jax.tree_util.tree_leaves_with_path({key: expected[key] for key in variables}):
    if found[path].shape != leaf.shape:
      name = '/'.join(key.key for key in path)
      raise ValueError(f'{name}: shape {found[path].shape} found, {leaf.shape} expected by the network')
  return variables


def _read_supernet(reader: Reader, net: Supernet) -> tuple[Tree, Tree]:
  if net.stem != 'cifar':
    raise ValueError(f'stem: {net.stem!r} is not allowed; the published supernets have that for CIFAR')
  params: Tree = {'stem': reader.dense('stem.0')}
  stats: Tree = {}
  reader.norms(params, stats, 'stem_bn', ['stem.1'], affine=True)
  reader.classifier(params, 'classifier')
  _read_cells(reader, net, params, stats)
  return params, stats


def _read_network(reader: Reader, net: Network) -> tuple[Tree, Tree]:
  params: Tree = {}
  stats: Tree = {}
  convs = {'stem': ('stem.0', 'stem.1')}
  if net.stem == 'imagenet':
    names = {'stem0_first': 'stem0.0 stem0.1', 'stem0_second': 'stem0.3 stem0.4', 'stem1': 'stem1.1 stem1.2'}
    convs = {ours: (theirs.split()[0], theirs.split()[1]) for ours, theirs in names.items()}
  for name, (conv, norm) in convs.items():
    params[name] = reader.dense(conv)
    reader.norms(params, stats, f'{name}_bn', [norm], affine=True)
  reader.classifier(params, 'classifier')
  _read_cells(reader, net, params, stats)
  if net.auxiliary:
    head: Tree = {}
    head_stats: Tree = {}
    for i, (conv, norm) in enumerate((('features.2', 'features.3'), ('features.5', 'features.6'))):
      head[f'conv{i}'] = reader.dense(f'auxiliary_head.{conv}')
      if i == 0 or net.auxiliary_norm:
        reader.norms(head, head_stats, f'bn{i}', [f'auxiliary_head.{norm}'], affine=True)
    reader.classifier(head, 'auxiliary_head.classifier')
    params['auxiliary'], stats['auxiliary'] = head, head_stats
  return params, stats


def _read_cells(reader: Reader, net: Supernet | Network, params: Tree, stats: Tree) -> None:
  discrete, specs = isinstance(net, Network), dict(net.cells)
  for index, (layer, larger) in enumerate(
    zip(net.plan.layers, larger_inputs(net.cells, net.plan, net.stem), strict=True)
  ):
    own, own_stats = _read_cell(reader, f'cells.{index}', specs[layer.cell], layer.stride == 2, larger[0], discrete)
    params[f'cell{index}'] = own
    stats[f'cell{index}'] = own_stats


def _read_cell(
  reader: Reader, prefix: str, spec: CellSpec, reduction: bool, reduction_before: bool, discrete: bool
) -> tuple[Tree, Tree]:
  inputs = [f'{prefix}.preprocess{i}' for i in range(spec.num_inputs)]
  convs = [{'kernel': reader.pointwise([f'{inputs[1]}.op.1'])}]
  if reduction_before:
    convs.insert(0, _factorized_reduce(reader, inputs[:1]))
  else:
    convs.insert(0, {'kernel': reader.pointwise([f'{inputs[0]}.op.1'])})
  params: Tree = {f'preprocess{i}': conv for i, conv in enumerate(convs)}
  stats: Tree = {}
  places = [f'{inputs[0]}.{"bn" if reduction_before else "op.2"}', f'{inputs[1]}.op.2']
  reader.norms(params, stats, 'preprocess_bn', places, affine=discrete)
  for source in range(spec.num_inputs + len(spec.nodes)):
    names = {
      operation: [
        f'{prefix}._ops.{edge}' + ('' if discrete else f'._ops.{spec.operations.index(operation)}')
        for edge, _ in members
      ]
      for operation, members in operation_groups(spec, source).items()
    }
    own, own_stats = read_operations(reader, names, reduction and source < spec.num_inputs, discrete)
    for tree, part in ((params, own), (stats, own_stats)):
      if part:
        tree[f'node{source}'] = part
  return params, stats


def read_operations(reader: Reader, names: Mapping[str, list[str]], strided: bool, discrete: bool) -> tuple[Tree, Tree]:
  """Reads the variables of the operations that leave a node.

  Args:
    reader: reader of the tensors.
    names: for every operation, the names of its edges in the reference.
    strided: whether operations have stride 2.
    discrete: whether the network is discrete.

  Returns:
    Parameters and running statistics of the node.
  """
  twice, once = separable_filters(tuple((operation, len(edges)) for operation, edges in names.items()))
  params: Tree = {}
  stats: Tree = {}
  first: list[str] = []
  second: list[str] = []
  if twice or once:
    params['stage0'] = _separable_stage(reader, {f.operation: names[f.operation] for f in twice + once}, 1)
    first += [f'{name}.op.3' for f in twice + once for name in names[f.operation]]
  if twice:
    params['stage1'] = _separable_stage(reader, {f.operation: names[f.operation] for f in twice}, 5)
    second += [f'{name}.op.7' for f in twice for name in names[f.operation]]
  for operation, edges in names.items():
    if operation.endswith('pool_3x3'):
      if not discrete:
        # All edges pool the same image, so that their statistics are equal: the first is kept, all are marked as read.
        first.append(f'{edges[0]}.1')
        reader.norms({}, {}, '', [f'{name}.1' for name in edges], affine=False)
    elif operation == 'skip_connect' and strided:
      params[operation] = _factorized_reduce(reader, edges)
      first += [f'{name}.bn' for name in edges]
    elif operation == 'conv_7x1_1x7':
      # In the reference this operation is a plain sequence, so that its layers lack the prefix `op`.
      params[operation] = {
        ours: stacked([reader.dense(f'{name}.{place}') for name in edges], edges, 0)
        for ours, place in (('across', 1), ('down', 2))
      }
      # Here both filters are stored as 1×7.
      params[operation]['down'] = params[operation]['down'].swapaxes(1, 2)
      first += [f'{name}.3' for name in edges]
  reader.norms(params, stats, 'bn0', first, affine=discrete)
  reader.norms(params, stats, 'bn1', second, affine=discrete)
  return params, stats


def _separable_stage(reader: Reader, operations: Mapping[str, list[str]], first: int) -> Tree:
  params = {}
  for operation, names in operations.items():
    params[f'{operation}_depthwise'] = reader.depthwise([f'{name}.op.{first}' for name in names])
    params[f'{operation}_pointwise'] = reader.pointwise([f'{name}.op.{first + 1}' for name in names])
  return params


def _factorized_reduce(reader: Reader, names: Sequence[str]) -> Tree:
  halves = [reader.pointwise([f'{name}.conv_{i}' for name in names], axis=1) for i in (1, 2)]
  return {'kernel': stacked(halves, names, 0)}


def stacked(arrays: Sequence[np.ndarray], names: Sequence[str], axis: int) -> np.ndarray:
  """Stacks arrays along a new axis.

  Raises:
    ValueError: shapes differ; the message names a tensor with another shape.
  """
  for array, name in zip(arrays, names, strict=False):
    if array.shape != arrays[0].shape:
      raise ValueError(
        f'tensor {name}: its shape differs from that of {names[0]}, {array.shape} from {arrays[0].shape}'
      )
  return np.stack(arrays, axis)
