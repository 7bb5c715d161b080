"""Writes networks as ONNX files, for other runtimes: one node for each convolution, BN and pool of the architecture.

The ONNX graph is built from the genotype, and not translated from JAX's program, which would become hundreds of slices
and reshapes.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from darts_jax.nets.cell import operation_groups
from darts_jax.nets.conv import larger_inputs
from darts_jax.nets.layers import BN_EPSILON
from darts_jax.nets.operations import separable_filters
from darts_jax.spaces import CellSpec, Darts
from darts_jax.training.model import Model

#: Versions of the operators and of the format; runtimes since 2022 support them.
_OPSET, _IR_VERSION = 17, 8
# The operations that can be written.
_OPERATIONS = (
  *('none', 'skip_connect', 'max_pool_3x3', 'avg_pool_3x3', 'conv_7x1_1x7'),
  *('sep_conv_3x3', 'sep_conv_5x5', 'sep_conv_7x7', 'dil_conv_3x3', 'dil_conv_5x5'),
)
Tree = Mapping[str, Any]
#: Height and width.
Size = tuple[int, int]


def build(model: Model, variables: Tree) -> Any:
  """Builds an ONNX model of a network in evaluation mode.

  Its input `images` is `[N, C, H, W]` float32, raw pixel values as in the dataset that the network was trained on; its
  output `logits` is `[N, num_classes]` float32.

  Args:
    model: the network and how images are normalised.
    variables: variables of the network, on the host or a device.

  Returns:
    The `onnx.ModelProto`.

  Raises:
    ValueError: the package `onnx` is not installed, or the network has a part that cannot be written as ONNX.
  """
  _check(model)
  try:
    from onnx import TensorProto, checker, helper
  except ImportError as error:
    raise ValueError(f'ONNX: needs pip install darts_jax[export] ({error})') from error
  graph = _Graph()
  height, width, channels = model.image_shape
  shape = (1, channels, 1, 1)
  images = graph.add('Sub', 'images', graph.constant('mean', np.reshape(model.mean, shape)))
  images = graph.add('Div', images, graph.constant('std', np.reshape(model.std, shape)))
  graph.add('Identity', _Writer(graph, model, variables).logits(images), output='logits')
  built = helper.make_model(
    helper.make_graph(
      graph.nodes,
      'network',
      [helper.make_tensor_value_info('images', TensorProto.FLOAT, ['N', channels, height, width])],
      [helper.make_tensor_value_info('logits', TensorProto.FLOAT, ['N', model.num_classes])],
      graph.constants,
    ),
    opset_imports=[helper.make_opsetid('', _OPSET)],
    producer_name='darts_jax',
  )
  built.ir_version = _IR_VERSION
  checker.check_model(built, full_check=True)
  return built


def run(path: pathlib.Path, images: np.ndarray) -> np.ndarray:
  """Runs an ONNX file on CPU.

  Args:
    path: path of the file.
    images: `[N, H, W, C]` raw images.

  Returns:
    `[N, num_classes]` logits.

  Raises:
    ValueError: the package `onnxruntime` is not installed.
  """
  try:
    import onnxruntime
  except ImportError as error:
    raise ValueError(f'ONNX: needs pip install darts_jax[export] ({error})') from error
  session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
  logits: np.ndarray = session.run(None, {'images': images.transpose(0, 3, 1, 2).astype(np.float32)})[0]
  return logits


def _halved(size: Size, times: int) -> Size:
  """Height and width after `times` strides of 2, rounded up."""
  return -(-size[0] // 2**times), -(-size[1] // 2**times)


def _check(model: Model) -> None:
  """Raises a ValueError unless all parts of a network can be written."""
  cells = [spec for _, spec in model.genotype.cells]
  lacking = [
    *(f'the operation {operation}' for spec in cells for operation, _ in spec.pairs if operation not in _OPERATIONS),
    *(f'cells of the space {model.genotype.space}' for spec in cells if _form(spec) != _form(Darts().cells['normal'])),
  ]
  if lacking:
    raise ValueError(f'--format: onnx: {lacking[0]} cannot be written so; stablehlo and safetensors hold any network')


def _form(spec: CellSpec) -> tuple[str, ...]:
  return spec.output, spec.merge, spec.preparation


class _Graph:
  """The nodes and constants of an ONNX graph; values are referred to by name."""

  def __init__(self) -> None:
    self.nodes: list[Any] = []
    self.constants: list[Any] = []

  def constant(self, name: str, array: np.ndarray, dtype: Any = np.float32) -> str:
    from onnx import numpy_helper

    self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype), name))
    return name

  def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
    from onnx import helper

    output = output or f'{operator.lower()}_{len(self.nodes)}'
    self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
    return output


class _Writer:
  """Adds the operations of a network to a graph, one edge after the other."""

  def __init__(self, graph: _Graph, model: Model, variables: Tree) -> None:
    self._graph = graph
    self._model = model
    self._params: Tree = variables['params']
    self._stats: Tree = variables['batch_stats']

  def logits(self, images: str) -> str:
    model, params, stats = self._model, self._params, self._stats

    def stem(name: str, x: str, stride: int) -> str:
      x = self._conv(x, params[name], name, stride=stride)
      return self._norm(x, params[f'{name}_bn'], stats[f'{name}_bn'], f'{name}_bn', 0, params[name].shape[-1])

    if model.stem == 'imagenet':
      before_last = stem('stem0_first', images, 2)
      before_last = stem('stem0_second', self._graph.add('Relu', before_last), 2)
      last = stem('stem1', self._graph.add('Relu', before_last), 2)
    else:
      before_last = last = stem('stem', images, 1)
    # Sizes of the two inputs of a cell.
    size = _halved(model.image_shape[:2], 3 if model.stem == 'imagenet' else 0)
    before = _halved(model.image_shape[:2], 2 if model.stem == 'imagenet' else 0)
    larger = larger_inputs(model.genotype.cells, model.plan, model.stem)
    for index, layer in enumerate(model.plan.layers):
      spec, channels, reduction = model.genotype.cell(layer.cell), layer.channels * model.channels, layer.stride == 2
      sizes = before, size
      before_last, last = (
        last,
        self._cell(index, spec, (before_last, last), sizes, channels, reduction, larger[index][0]),
      )
      before, size = size, _halved(size, int(reduction))
    pooled = self._graph.add('Flatten', self._graph.add('GlobalAveragePool', last))
    weights = self._graph.constant('classifier/weights', params['classifier'])
    return self._graph.add('Gemm', pooled, weights, self._graph.constant('classifier/bias', params['classifier_bias']))

  def _cell(
    self,
    layer: int,
    spec: CellSpec,
    inputs: tuple[str, str],
    sizes: tuple[Size, Size],
    channels: int,
    reduction: bool,
    reduction_before: bool,
  ) -> str:
    scope = f'cell{layer}'
    params, stats = self._params[scope], self._stats[scope]
    states: list[str] = []
    for i, x in enumerate(inputs):
      kernel = params[f'preprocess{i}']['kernel']
      name = f'{scope}/preprocess{i}'
      if i == 0 and reduction_before:
        y = self._factorized_reduce(x, kernel[:, :, 0], name, sizes[0])
      else:
        y = self._conv(self._graph.add('Relu', x), kernel[0][None, None], name)
      norm = params['preprocess_bn'], stats['preprocess_bn']
      states.append(self._norm(y, *norm, f'{name}/bn', i * channels, channels))
    used: dict[tuple[int, str], int] = {}
    for edges in spec.nodes:
      arriving = []
      for edge in edges:
        (operation,) = edge.operations
        member = used.get((edge.source, operation), 0)
        used[edge.source, operation] = member + 1
        stride = 2 if reduction and edge.source < spec.num_inputs else 1
        node = f'{scope}/node{edge.source}'
        writer = _Edges(self, spec, edge.source, node, params, stats, channels, stride, sizes[1])
        arriving.append(writer.operation(states[edge.source], operation, member))
      states.append(self._graph.add('Sum', *arriving) if len(arriving) > 1 else arriving[0])
    return self._graph.add('Concat', *(states[node] for node in spec.outputs), axis=1)

  def _conv(
    self,
    x: str,
    kernel: Any,
    name: str,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int = 1,
    groups: int = 1,
  ) -> str:
    """Adds a convolution with filters `[K, L, C, D]`; its padding keeps the size at stride 1."""
    kernel = np.asarray(kernel)
    strides = [stride, stride] if isinstance(stride, int) else list(stride)
    pads = [dilation * (side - 1) // 2 for side in kernel.shape[:2]]
    weights = self._graph.constant(f'{name}/weights', kernel.transpose(3, 2, 0, 1))
    return self._graph.add('Conv', x, weights, strides=strides, pads=pads * 2, dilations=[dilation] * 2, group=groups)

  def _norm(self, x: str, params: Tree, stats: Tree, name: str, start: int, channels: int) -> str:
    """Adds BN with the entries `start` to `start + channels` of concatenated variables."""
    own = slice(start, start + channels)
    arrays = (params['scale'], params['bias'], stats['mean'], stats['var'])
    kinds = ('scale', 'bias', 'mean', 'var')
    names = [self._graph.constant(f'{name}/{kind}', a[own]) for kind, a in zip(kinds, arrays, strict=True)]
    return self._graph.add('BatchNormalization', x, *names, epsilon=BN_EPSILON)

  def _factorized_reduce(self, x: str, kernel: Any, name: str, size: Size) -> str:
    """Adds a factorized reduction with matrices `[2, C, D/2]` of an image of this size."""
    graph = self._graph
    x = graph.add('Relu', x)
    if size[0] % 2 or size[1] % 2:
      margins = [0, 0, 0, 0, 0, 0, size[0] % 2, size[1] % 2]
      x = graph.add('Pad', x, graph.constant(f'{name}/margins', np.array(margins), np.int64))
    bounds = [graph.constant(f'{name}/{kind}', np.array(v), np.int64) for kind, v in _SHIFT.items()]
    shifted = graph.add('Slice', x, *bounds)
    halves = [
      self._conv(half, kernel[i][None, None], f'{name}/half{i}', stride=2) for i, half in enumerate((x, shifted))
    ]
    return graph.add('Concat', *halves, axis=1)


#: Arguments of `Slice` that remove the first row and column.
_SHIFT = {'starts': [1, 1], 'ends': [2**31, 2**31], 'axes': [2, 3]}


class _Edges:
  """Adds the operations on the edges that leave a node of a cell."""

  def __init__(
    self,
    writer: _Writer,
    spec: CellSpec,
    source: int,
    scope: str,
    params: Tree,
    stats: Tree,
    channels: int,
    stride: int,
    size: Size,
  ) -> None:
    self._writer = writer
    self._graph = writer._graph
    self._scope = scope
    self._params: Tree = params.get(f'node{source}', {})
    self._stats: Tree = stats.get(f'node{source}', {})
    self._channels = channels
    self._stride = stride
    self._size = size
    counts = {operation: len(members) for operation, members in operation_groups(spec, source).items()}
    twice, once = separable_filters(tuple(counts.items()))
    others = [name for name in counts if name == 'conv_7x1_1x7' or (name == 'skip_connect' and stride == 2)]
    self._counts = counts
    # The order in which the variables of BN are concatenated.
    self._normalised = {'bn0': [f.operation for f in twice + once] + others, 'bn1': [f.operation for f in twice]}

  def operation(self, x: str, name: str, member: int) -> str:
    """Adds an operation for one edge: number `member` of the edges that leave the node with this operation."""
    graph, writer, scope = self._graph, self._writer, f'{self._scope}/{name}_{member}'
    if name == 'max_pool_3x3':
      return graph.add('MaxPool', x, kernel_shape=[3, 3], strides=[self._stride] * 2, pads=[1] * 4)
    if name == 'avg_pool_3x3':
      sizes: dict[str, Any] = {'kernel_shape': [3, 3], 'strides': [self._stride] * 2, 'pads': [1] * 4}
      return graph.add('AveragePool', x, count_include_pad=0, **sizes)
    if name == 'skip_connect':
      if self._stride == 1:
        return x
      kernel = self._params[name]['kernel'][:, :, member]
      return self._norm(writer._factorized_reduce(x, kernel, scope, self._size), 'bn0', name, member)
    if name == 'conv_7x1_1x7':
      kernels = self._params[name]
      x = graph.add('Relu', x)
      x = writer._conv(x, kernels['across'][member], f'{scope}/across', stride=(1, self._stride))
      x = writer._conv(x, np.swapaxes(kernels['down'][member], 0, 1), f'{scope}/down', stride=(self._stride, 1))
      return self._norm(x, 'bn0', name, member)
    x = self._norm(self._separable(x, name, member, 0, self._stride), 'bn0', name, member)
    if name.startswith('sep'):
      x = self._norm(self._separable(x, name, member, 1, 1), 'bn1', name, member)
    return x

  def _separable(self, x: str, name: str, member: int, stage: int, stride: int) -> str:
    """Adds ReLU, a depthwise and a pointwise convolution."""
    params, scope = self._params[f'stage{stage}'], f'{self._scope}/{name}_{member}/stage{stage}'
    depthwise = params[f'{name}_depthwise'][:, :, member][:, :, None]
    dilation = 2 if name.startswith('dil') else 1
    y = self._writer._conv(
      self._graph.add('Relu', x),
      depthwise,
      f'{scope}/depthwise',
      stride=stride,
      dilation=dilation,
      groups=self._channels,
    )
    return self._writer._conv(y, params[f'{name}_pointwise'][member][None, None], f'{scope}/pointwise')

  def _norm(self, x: str, norm: str, name: str, member: int) -> str:
    order = self._normalised[norm]
    before = sum(self._counts[other] for other in order[: order.index(name)])
    scope = f'{self._scope}/{name}_{member}/{norm}'
    start = self._channels * (before + member)
    return self._writer._norm(x, self._params[norm], self._stats[norm], scope, start, self._channels)
