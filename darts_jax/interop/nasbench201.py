"""Converts weights of the published code of NAS-Bench-201 to the names and layouts of this package.

That code numbers cells and residual blocks together: `cells.2.layers.5.op.1.weight` is the convolution of edge 5 of a
discrete cell; in a search, `cells.2.edges.3<-1.3.op.1.weight` is the convolution of operation 3 on the edge from node 1
to node 3.
"""

import jax
import numpy as np

from darts_jax.interop.reference import Reader, Tensors, Tree, converted, stacked
from darts_jax.nets.cell import node_operations, operation_groups
from darts_jax.nets.conv import Network, Supernet
from darts_jax.spaces import CellSpec


def convert(net: Network | Supernet, tensors: Tensors, *, statistics: bool = True) -> Tree:
  """Converts a state dict of the published code to the variables of a network or a supernet.

  Args:
    net: the network; its shapes must be those of the tensors.
    tensors: arrays by their published names, of any floating-point dtype, which is kept.
    statistics: whether running statistics are wanted; False for gradients, for example.

  Returns:
    `{'params': …, 'batch_stats': …}`, the latter only with `statistics`.

  Raises:
    ValueError: tensors are missing, left over, of another shape than the network's, or not finite floating-point
      numbers; the first of them are named.
  """
  mixing = {kind: np.zeros((spec.num_edges, len(spec.operations))) for kind, spec in net.cells}
  more = (mixing,) if isinstance(net, Supernet) else ()
  return converted(
    lambda reader: _read(reader, net),
    tensors,
    statistics,
    lambda images: net.init(jax.random.key(0), images, *more, train=False),
    8,
  )


def _read(reader: Reader, net: Network | Supernet) -> tuple[Tree, Tree]:
  params: Tree = {'stem': reader.dense('stem.0')}
  stats: Tree = {}
  reader.norms(params, stats, 'stem_bn', ['stem.1'], affine=True)
  specs = dict(net.cells)
  for index, layer in enumerate(net.plan.layers):
    prefix = f'cells.{index}'
    if layer.cell in specs:
      name, own = f'cell{index}', _read_cell(reader, prefix, net, specs[layer.cell], layer.stride)
    else:
      name, own = f'{layer.cell}{index}', _read_block(reader, prefix)
    for tree, part in zip((params, stats), own, strict=True):
      if part:
        tree[name] = part
  reader.norms(params, stats, 'last_bn', ['lastact.0'], affine=True)
  reader.classifier(params, 'classifier')
  return params, stats


def _read_block(reader: Reader, prefix: str) -> tuple[Tree, Tree]:
  params: Tree = {}
  stats: Tree = {}
  for i, place in enumerate(('conv_a', 'conv_b')):
    params[f'conv{i}'] = reader.dense(f'{prefix}.{place}.op.1')
    reader.norms(params, stats, f'bn{i}', [f'{prefix}.{place}.op.2'], affine=True)
  params['shortcut'] = reader.pointwise([f'{prefix}.downsample.1'])[0]
  return params, stats


def _read_cell(reader: Reader, prefix: str, net: Network | Supernet, spec: CellSpec, stride: int) -> tuple[Tree, Tree]:
  discrete = isinstance(net, Network)
  params: Tree = {}
  stats: Tree = {}
  for source in range(spec.num_inputs + len(spec.nodes)):
    groups = operation_groups(spec, source)
    node: Tree = {}
    node_stats: Tree = {}
    normalised: list[str] = []
    # The order of the entries in BN's variables.
    for operation, _ in node_operations(spec, source, stride=stride, discrete=discrete).edges:
      if not operation.startswith('nor_conv'):
        continue
      column = spec.operations.index(operation)
      edges = [
        f'{prefix}.layers.{edge}' if discrete else f'{prefix}.edges.{target}<-{source}.{column}'
        for edge, target in groups[operation]
      ]
      node[operation] = {'kernel': stacked([reader.dense(f'{edge}.op.1') for edge in edges], edges, 3)}
      if not discrete:
        node[operation]['kernel_bias'] = stacked([reader.take(f'{edge}.op.1.bias', 1) for edge in edges], edges, 0)
      normalised += [f'{edge}.op.2' for edge in edges]
    if discrete:
      reader.norms(node, node_stats, 'bn0', normalised, affine=True)
    for tree, part in ((params, node), (stats, node_stats)):
      if part:
        tree[f'node{source}'] = part
  return params, stats
