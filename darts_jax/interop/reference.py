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
  preprocess0 = _factorized_reduce if reduction_before else _relu_conv_bn
  both: dict[str, tuple[Any, ...]] = {
    'preprocess0': preprocess0(take, [f'{prefix}.preprocess0']),
    'preprocess1': _relu_conv_bn(take, [f'{prefix}.preprocess1']),
  }
  for source in range(NUM_INPUTS + len(spec.nodes)):
    strided = reduction and source < NUM_INPUTS
    separable = {}
    for operation, members in operation_groups(spec, source).items():
      place = spec.operations.index(operation)
      names = [f'{prefix}._ops.{edge}._ops.{place}' for edge, _ in members]
      if operation.endswith('pool_3x3'):
        # The edges of a group pool the same image, so their statistics are the same.
        both[f'node{source}_{operation}'] = {}, {'BatchNorm_0': _statistics(take, [f'{names[0]}.1'])}
        for name in names[1:]:
          _statistics(take, [f'{name}.1'])
      elif operation == 'skip_connect':
        if strided:
          inner = _factorized_reduce(take, names)
          both[f'node{source}_{operation}'] = tuple({'FactorizedReduce_0': part} for part in inner)
      else:
        separable[operation] = names
    if separable:
      double = {operation: names for operation, names in separable.items() if operation.startswith('sep_conv')}
      stages = {'stage0': _separable_stage(take, {**double, **separable}, 1)}
      if double:
        stages['stage1'] = _separable_stage(take, double, 5)
      both[f'node{source}_conv'] = tuple({name: stage[kind] for name, stage in stages.items()} for kind in range(2))
  params = {name: pair[0] for name, pair in both.items() if pair[0]}
  return params, {name: pair[1] for name, pair in both.items()}


def _separable_stage(take: Take, operations: dict[str, list[str]], first: int) -> tuple[Any, Any]:
  params = {}
  for operation, names in operations.items():
    depthwise = [take(f'{name}.op.{first}.weight')[:, 0].transpose(1, 2, 0) for name in names]
    params[f'{operation}_depthwise'] = np.stack(depthwise, axis=2)
    params[f'{operation}_pointwise'] = np.stack([take(f'{name}.op.{first + 1}.weight')[:, :, 0, 0].T for name in names])
  places = [f'{name}.op.{first + 2}' for names in operations.values() for name in names]
  return params, {'BatchNorm_0': _statistics(take, places)}


def _relu_conv_bn(take: Take, names: list[str]) -> tuple[Any, Any]:
  kernel = np.stack([take(f'{name}.op.1.weight')[:, :, 0, 0].T for name in names])
  return {'kernel': kernel}, {'BatchNorm_0': _statistics(take, [f'{name}.op.2' for name in names])}


def _factorized_reduce(take: Take, names: list[str]) -> tuple[Any, Any]:
  halves = [np.stack([take(f'{name}.conv_{i}.weight')[:, :, 0, 0].T for name in names], axis=1) for i in (1, 2)]
  return {'kernel': np.stack(halves)}, {'BatchNorm_0': _statistics(take, [f'{name}.bn' for name in names])}


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
