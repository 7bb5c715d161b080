"""Weights of the published PyTorch implementation of the search, under our names and in our layouts.

The reference names a tensor by its place, `cells.2._ops.5._ops.4.op.1.weight`: cell 2, edge 5, operation 4, layer 1.
It keeps one tensor an edge, in the layouts `OIHW` and `NCHW`; here the tensors of edges with the same source and
operation are stacked (see `darts_jax.nets.cell.operation_groups`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from darts_jax.genotype import NUM_INPUTS, CellSpec
from darts_jax.nets.cell import operation_groups
from darts_jax.nets.conv import Supernet, reduction_cells
from darts_jax.nets.operations import separable_filters

Tensors = Mapping[str, np.ndarray]
#: Takes a tensor by its name in the reference.
Take = Callable[[str], np.ndarray]

_STATISTICS = {'mean': 'running_mean', 'var': 'running_var'}


def convert_supernet(net: Supernet, tensors: Tensors, *, statistics: bool = True) -> dict[str, Any]:
  """The variables of a supernet from the reference's state dict.

  Args:
    net: the supernet; its shapes must be those of the tensors.
    tensors: arrays by the reference's names, of any dtype, which is kept.
    statistics: whether running statistics are wanted; not so for momentum buffers, for example.

  Returns:
    `{'params': …, 'batch_stats': …}`, the latter only with `statistics`.

  Raises:
    ValueError: a tensor is missing, has another shape than the network, or is left over.
  """
  used: set[str] = set()

  def take(name: str) -> np.ndarray:
    if name not in tensors:
      raise ValueError(f'tensor {name}: missing')
    used.add(name)
    return np.asarray(tensors[name])

  params: dict[str, Any] = {
    'stem': take('stem.0.weight').transpose(2, 3, 1, 0),
    'stem_bn': {'scale': take('stem.1.weight'), 'bias': take('stem.1.bias')},
    'classifier': take('classifier.weight').T,
    'classifier_bias': take('classifier.bias'),
  }
  stats: dict[str, Any] = {'stem_bn': _statistics(take, ['stem.1'])} if statistics else {}
  reductions = reduction_cells(net.num_layers)
  for layer in range(net.num_layers):
    reduction = layer in reductions
    scope = f'cell{layer}'
    params[scope], stats[scope] = _cell(
      take if statistics else _without_statistics(take),
      f'cells.{layer}',
      net.reduce if reduction else net.normal,
      reduction,
      layer - 1 in reductions,
    )
  unused = sorted(name for name in tensors if name not in used and not name.endswith('num_batches_tracked'))
  if unused:
    raise ValueError(f'tensor {unused[0]}: not part of this network ({len(unused)} such tensors)')
  variables = {'params': params, 'batch_stats': stats} if statistics else {'params': params}
  _check_shapes(net, variables)
  return variables


def _cell(take: Take, prefix: str, spec: CellSpec, reduction: bool, reduction_before: bool) -> tuple[Any, Any]:
  """Parameters and statistics of a cell."""
  inputs = [f'{prefix}.preprocess{i}' for i in range(2)]
  params: dict[str, Any] = {
    'preprocess0': (_factorized_reduce if reduction_before else _relu_conv)(take, inputs[:1]),
    'preprocess1': _relu_conv(take, inputs[1:]),
  }
  places = [f'{inputs[0]}.{"bn" if reduction_before else "op.2"}', f'{inputs[1]}.op.2']
  stats: dict[str, Any] = {'preprocess_bn': _statistics(take, places)}
  for source in range(NUM_INPUTS + len(spec.nodes)):
    names = {
      operation: [f'{prefix}._ops.{edge}._ops.{spec.operations.index(operation)}' for edge, _ in members]
      for operation, members in operation_groups(spec, source).items()
    }
    scope = f'node{source}'
    both = _operations(take, names, strided=reduction and source < NUM_INPUTS)
    for tree, own in zip((params, stats), both, strict=True):
      if own:
        tree[scope] = own
  return params, stats


def _operations(take: Take, names: Mapping[str, list[str]], strided: bool) -> tuple[Any, Any]:
  """What leaves a node, from the names of each operation's edges; a search has no other operations than these."""
  twice, once = separable_filters(tuple((operation, len(edges)) for operation, edges in names.items()))
  params, first, second = {}, [], []
  if twice or once:
    params['stage0'] = _separable_stage(take, {f.operation: names[f.operation] for f in twice + once}, 1)
    first += [f'{name}.op.3' for f in twice + once for name in names[f.operation]]
  if twice:
    params['stage1'] = _separable_stage(take, {f.operation: names[f.operation] for f in twice}, 5)
    second += [f'{name}.op.7' for f in twice for name in names[f.operation]]
  for operation, edges in names.items():
    if operation.endswith('pool_3x3'):
      # The edges pool the same image, so their statistics are the same.
      first.append(f'{edges[0]}.1')
      _statistics(take, [f'{name}.1' for name in edges])
    elif operation == 'skip_connect' and strided:
      params[operation] = _factorized_reduce(take, edges)
      first += [f'{name}.bn' for name in edges]
  stats = {'bn0': first, 'bn1': second}
  return params, {scope: _statistics(take, places) for scope, places in stats.items() if places}


def _separable_stage(take: Take, operations: Mapping[str, list[str]], first: int) -> dict[str, np.ndarray]:
  params = {}
  for operation, names in operations.items():
    depthwise = [take(f'{name}.op.{first}.weight')[:, 0].transpose(1, 2, 0) for name in names]
    params[f'{operation}_depthwise'] = np.stack(depthwise, axis=2)
    params[f'{operation}_pointwise'] = np.stack([take(f'{name}.op.{first + 1}.weight')[:, :, 0, 0].T for name in names])
  return params


def _relu_conv(take: Take, names: list[str]) -> dict[str, np.ndarray]:
  return {'kernel': np.stack([take(f'{name}.op.1.weight')[:, :, 0, 0].T for name in names])}


def _factorized_reduce(take: Take, names: list[str]) -> dict[str, np.ndarray]:
  halves = [np.stack([take(f'{name}.conv_{i}.weight')[:, :, 0, 0].T for name in names], axis=1) for i in (1, 2)]
  return {'kernel': np.stack(halves)}


def _statistics(take: Take, names: list[str]) -> dict[str, np.ndarray]:
  return {ours: np.concatenate([take(f'{name}.{theirs}') for name in names]) for ours, theirs in _STATISTICS.items()}


def _without_statistics(take: Take) -> Take:
  return lambda name: np.zeros(1) if name.endswith(tuple(_STATISTICS.values())) else take(name)


def _check_shapes(net: Supernet, variables: Mapping[str, Any]) -> None:
  mixing = {'normal': net.normal, 'reduce': net.reduce}
  channels = variables['params']['stem'].shape[2]
  expected = jax.eval_shape(
    lambda: net.init(
      jax.random.key(0),
      np.zeros((1, 8, 8, channels), np.float32),
      {name: np.zeros((spec.num_edges, len(spec.operations))) for name, spec in mixing.items()},
      train=False,
    )
  )
  found = dict(jax.tree_util.tree_leaves_with_path(dict(variables)))
  for path, leaf in jax.tree_util.tree_leaves_with_path({key: expected[key] for key in variables}):
    if path not in found or found[path].shape != leaf.shape:
      shape = found[path].shape if path in found else 'nothing'
      raise ValueError(f'{jax.tree_util.keystr(path)}: {leaf.shape} expected, {shape} found')
