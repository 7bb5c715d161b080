"""The cost of a network: weights and multiply-adds of each part, from shapes alone."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from darts_jax.nets.conv import Network
from darts_jax.nets.layers import OWN
from darts_jax.nets.operations import make_own, train_of
from darts_jax.spaces import CellSpec
from darts_jax.spaces.operations import OPERATIONS

#: How multiply-adds of image classifiers are counted; published counts follow several conventions.
CONVENTION = (
  'multiply-adds of convolutions and linear layers for one image in evaluation; a product and its addition count as'
  ' one, biases, BN, pooling, ReLU and sums of edges as none'
)
#: How multiply-adds of language models are counted.
LANGUAGE_CONVENTION = (
  'multiply-adds of linear layers for one token in evaluation, the scores of all words included; a product and its'
  ' addition count as one, looking up a word, biases, activations, gates and the mean of states as none'
)


class Part(NamedTuple):
  """A part of a network.

  Attributes:
    name: `stem`, `cell0`, …, `classifier` or `auxiliary`; `residual1` and the like for fixed blocks.
    kind: the kind of cell, or the name of the block; empty for other parts.
    size: height and width of its output.
    channels: channels of its output.
    weights: number of parameters, including those of BN.
    multiply_adds: see `CONVENTION`; 0 for the auxiliary head, which an evaluation leaves out.
  """

  name: str
  kind: str
  size: tuple[int, int]
  channels: int
  weights: int
  multiply_adds: int


class LanguagePart(NamedTuple):
  """A part of a language model.

  Attributes:
    name: `embedding`, `s0`, `s1`, …, `decoder`.
    activation: activation of a node of the cell; empty for other parts.
    reads: description of its input.
    weights: number of parameters; parameters that decoder and embedding share are counted for the embedding.
    multiply_adds: see `LANGUAGE_CONVENTION`.
  """

  name: str
  activation: str
  reads: str
  weights: int
  multiply_adds: int


def language_parts_of(cell: CellSpec, width: int, vocabulary: int) -> list[LanguagePart]:
  """The parts of a language model [DARTS §3.1.2] in the order of computation.

  With width H and V words, the tied embedding has V·H weights, the product for the first state (from the input and the
  previous output) has 2H·2H, the product of every node has H·2H, and the decoder has V biases.

  Args:
    cell: the recurrent cell, discrete.
    width: width H of embedding and states.
    vocabulary: number of words V.
  """
  assert cell.output == 'mean', cell
  assert cell.is_discrete, cell
  embedding, first, inner = vocabulary * width, (2 * width) ** 2, 2 * width**2
  whole = cell.outputs == tuple(range(1, len(cell.nodes) + 1)) and len(cell.nodes) > 1
  output = f's1–s{len(cell.nodes)}' if whole else ', '.join(f's{node}' for node in cell.outputs)
  return [
    LanguagePart('embedding', '', 'word', embedding, 0),
    LanguagePart('s0', '', 'input and previous state', first, first),
    *(LanguagePart(f's{node}', edge.operations[0], f's{edge.source}', inner, inner) for node, edge in cell.edges),
    LanguagePart('decoder', '', f'mean of {output}', vocabulary, embedding),
  ]


def parts_of(net: Network, height: int, width: int, channels: int) -> list[Part]:
  """The parts of a network for images of this size, in the order of computation, the auxiliary head last.

  Nothing is allocated. The multiply-adds of a kernel are its size times the number of its output pixels.

  Args:
    net: the network.
    height: height of the images.
    width: width of the images.
    channels: channels of the images.
  """
  images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
  variables = jax.eval_shape(lambda images: net.init(jax.random.key(0), images, train=True), images)
  params: Mapping[str, Any] = variables['params']
  found: list[Part] = []

  def halved(size: tuple[int, int], times: int = 1) -> tuple[int, int]:
    height, width = size
    return -(-height // 2**times), -(-width // 2**times)

  size = (height, width)
  names: tuple[str, ...]
  if net.stem == 'imagenet':
    names = ('stem0_first', 'stem0_second', 'stem1')
    sizes = [halved(size, times) for times in (1, 2, 3)]
    size = sizes[-1]
  else:
    names, sizes = ('stem',), [size]
  stem = {name: value for name, value in params.items() if name.startswith('stem')}
  multiply_adds = sum(params[name].size * math.prod(at) for name, at in zip(names, sizes, strict=True))
  found.append(Part('stem', '', size, params[names[-1]].shape[-1], _count(stem), multiply_adds))
  specs = dict(net.cells)
  for index, layer in enumerate(net.plan.layers):
    before, size = size, halved(size, layer.stride - 1)
    features = layer.channels * net.channels
    if layer.cell not in specs:
      name = f'{layer.cell}{index}'
      kernels = [value for key, value in params[name].items() if not key.startswith('bn')]
      found.append(Part(name, layer.cell, size, features, _count(params[name]), _count(kernels) * math.prod(size)))
      continue
    # A cell that has only pools and identities has no parameters.
    cell: Mapping[str, Any] = params.get(f'cell{index}', {})
    spec = specs[layer.cell]
    multiply_adds = math.prod(before) * sum(
      _count(value) for key, value in cell.items() if key.startswith('preprocess') and key != 'preprocess_bn'
    )
    for name, node in cell.items():
      if name.startswith('node'):
        for operation, values in node.items():
          if operation.startswith('bn'):
            continue
          at_input = int(name.removeprefix('node')) < spec.num_inputs
          if operation.startswith(OWN):
            stride = layer.stride if at_input else 1
            read = before if at_input else size
            multiply_adds += products_of(operation.removeprefix(OWN)[:-3], features, stride, *read)
            continue
          multiply_adds += _count(values) * math.prod(size)
          if operation == 'conv_7x1_1x7' and layer.stride == 2 and at_input:
            # The first of its two convolutions halves only the width.
            multiply_adds += values['across'].size * (before[0] * size[1] - math.prod(size))
    width_out = features * (len(spec.outputs) if spec.output == 'concat' else 1)
    found.append(Part(f'cell{index}', layer.cell, size, width_out, _count(cell), multiply_adds))
  classifier = {name: value for name, value in params.items() if name.startswith(('classifier', 'last_bn'))}
  found.append(Part('classifier', '', (1, 1), net.num_classes, _count(classifier), params['classifier'].size))
  if 'auxiliary' in params:
    found.append(Part('auxiliary', '', (1, 1), net.num_classes, _count(params['auxiliary']), 0))
  return found


def products_of(operation: str, features: int, stride: int, height: int, width: int) -> int:
  """Multiply-adds of a user's own operation on one image, counted in its jaxpr in evaluation; see `CONVENTION`.

  The body of a `lax.scan` counts once per iteration, a `lax.cond` or `lax.switch` as its most expensive branch. The
  number of iterations of a `lax.while_loop` depends on values, so its body and its condition count once.
  """
  return _products_of(OPERATIONS[operation], operation, features, stride, height, width)


@functools.cache
def _products_of(kind: Any, operation: str, features: int, stride: int, height: int, width: int) -> int:
  """See `products_of`; `kind`, the module, is a part of the cache key, since another may get the same name."""
  del kind
  module = make_own(operation, features, stride)
  images = jax.ShapeDtypeStruct((1, height, width, features), jnp.float32)
  kwargs: dict[str, Any] = {**train_of(module, False)}

  def apply(variables: Any, images: Any) -> Any:
    return module.apply(variables, images, **kwargs)

  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **kwargs), images)
  return _products(jax.make_jaxpr(apply)(variables, images).jaxpr)


def _products(jaxpr: Any) -> int:
  """Multiply-adds of the matrix products and convolutions in a jaxpr."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      total += math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    elif eqn.primitive.name == 'conv_general_dilated':
      _, inputs, *spatial = eqn.params['dimension_numbers'].rhs_spec
      kernel = eqn.invars[1].aval.shape
      total += math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel[axis] for axis in (inputs, *spatial))
    else:
      inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr'))
      programs = [getattr(each, 'jaxpr', each) for each in inner if hasattr(each, 'eqns') or hasattr(each, 'jaxpr')]
      turns = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
      total += turns * (max if eqn.primitive.name == 'cond' else sum)(map(_products, programs))
  return total


def _count(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
