"""The layers of a network by their definitions, in NumPy, and derivatives to be compared with theirs."""

import collections
import dataclasses
import itertools
import types
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def windows(x, sides, stride=1, dilation=1, fill=0.0):
  """`[N, H, W, C]` → `[N, H', W', K, L, C]`: what a `K × L` window sees, centred on every `stride`-th pixel."""
  places, pads = [], [(0, 0)]
  for extent, side in zip(x.shape[1:3], sides, strict=True):
    pads.append((dilation * (side - 1) // 2,) * 2)
    places.append(stride * np.arange(-(-extent // stride))[:, None] + dilation * np.arange(side))
  padded = np.pad(x, [*pads, (0, 0)], constant_values=fill)
  return padded[:, places[0][:, None, :, None], places[1][None, :, None, :]]


def conv(x, kernel, stride=1):
  """A dense convolution, kernel `[K, L, C, D]`."""
  return np.einsum('nijklc,klcd->nijd', windows(x, kernel.shape[:2], stride), kernel)


def depthwise(x, kernel, stride=1, dilation=1):
  """Kernel `[K, L, M, C]`; channel `m·C + c` of the output is channel `c` under its filter `m`."""
  y = np.einsum('nijklc,klmc->nijmc', windows(x, kernel.shape[:2], stride, dilation), kernel)
  return y.reshape(*y.shape[:3], -1)


def depthwise_input_gradient(dy, kernel, size, stride=1, dilation=1):
  """The transpose of `depthwise` in images of `size`: every product goes back to the pixel it came from."""
  multiplier, channels = kernel.shape[2:]
  num_pixels = size[0] * size[1]
  pixels = np.arange(num_pixels).reshape(1, *size, 1)
  sources = windows(pixels, kernel.shape[:2], stride, dilation, fill=num_pixels)[0, ..., 0]
  dx = np.zeros((num_pixels + 1, len(dy), channels))
  dy = dy.reshape(*dy.shape[:3], multiplier, channels)
  np.add.at(dx, sources, np.einsum('nijmc,klmc->ijklnc', dy, kernel))
  return np.moveaxis(dx[:-1], 0, 1).reshape(-1, *size, channels)


def depthwise_filter_gradient(x, dy, sides, stride=1, dilation=1):
  """The transpose of `depthwise` in filters with these sides."""
  dy = dy.reshape(*dy.shape[:3], -1, x.shape[-1])
  return np.einsum('nijklc,nijmc->klmc', windows(x, sides, stride, dilation), dy)


def max_pool(x, stride=1):
  return windows(x, (3, 3), stride, fill=-np.inf).max(axis=(3, 4))


def avg_pool(x, stride=1):
  return np.nanmean(windows(x, (3, 3), stride, fill=np.nan), axis=(3, 4))


def halve(x):
  """Means over 2×2 pixels, or over what is there of them at the end of an odd side."""
  padded = np.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)], constant_values=np.nan)
  return np.nanmean([padded[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)


def max_halve(x):
  """Maxima over 2×2 pixels, or over what is there of them at the end of an odd side."""
  padded = np.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)], constant_values=-np.inf)
  return np.max([padded[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)


def batch_norm(x, statistics=None, affine=None):
  """With `statistics` and `affine`, each a mapping of `[C]` arrays, or with the batch's own statistics."""
  mean = statistics['mean'] if statistics else x.mean(axis=(0, 1, 2))
  var = statistics['var'] if statistics else x.var(axis=(0, 1, 2))
  y = (x - mean) / np.sqrt(var + 1e-5)
  return y * affine['scale'] + affine['bias'] if affine else y


def relu(x):
  return np.maximum(x, 0)


@dataclasses.dataclass(frozen=True)
class Variables:
  """The variables of a module, of which one edge uses the part at `place` of `places` stacked ones."""

  params: Mapping
  statistics: Mapping
  train: bool

  def inside(self, name):
    return dataclasses.replace(self, params=self.params.get(name, {}), statistics=self.statistics.get(name, {}))

  def batch_norm(self, x, name, start=0):
    """By the BN `name`, of whose variables, if any, the channels of `x` have those from `start` on."""
    inside, own = self.inside(name), slice(start, start + x.shape[-1])
    statistics, affine = (
      {key: array[own] for key, array in arrays.items()} for arrays in (inside.statistics, inside.params)
    )
    return batch_norm(x, None if self.train else statistics, affine)

  def relu_conv(self, x):
    return relu(x) @ self.params['kernel'][0]

  def factorized_reduce(self, x, member=0):
    kernel = self.params['kernel'][:, :, member]
    # The convolution of an odd image that begins one pixel further reads zeros where it ends.
    x = np.pad(relu(x), [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)])
    return np.concatenate([x[:, shift::2, shift::2] @ kernel[shift] for shift in (0, 1)], axis=-1)

  def separable_stage(self, x, name, member, stride):
    filters = self.params[f'{name}_depthwise'][:, :, [member]]
    y = depthwise(relu(x), filters, stride, 2 if name.startswith('dil') else 1)
    return y @ self.params[f'{name}_pointwise'][member]

  def relu_dense(self, x, member, stride):
    kernel, bias = self.params['kernel'][:, :, :, member], self.params.get('kernel_bias')
    return conv(relu(x), kernel, stride) + (0 if bias is None else bias[member])

  def residual(self, x, stride):
    y = self.batch_norm(conv(relu(x), self.params['conv0'], stride), 'bn0')
    y = self.batch_norm(conv(relu(y), self.params['conv1']), 'bn1')
    return y + (halve(x) if stride == 2 else x) @ self.params.get('shortcut', np.eye(x.shape[-1]))

  def operation(self, x, name, member, *, edges, stride, discrete, pools_normalised=True):
    """The operation on edge `member` of the `edges[name]` that have it."""
    channels = x.shape[-1]
    separable = sorted((n for n in edges if n[:3] in ('sep', 'dil')), key=lambda n: n[:3] == 'dil')
    others = ['conv_7x1_1x7', 'nor_conv_1x1', 'nor_conv_3x3', *(['skip_connect'] if stride == 2 else [])]
    others += ['max_pool_3x3', 'avg_pool_3x3'] if pools_normalised and not discrete else []
    shared = 'pool' in name

    def start(names):
      """Channels in BN before those of this edge; a pool has them once for all its edges."""
      before = names[: names.index(name)]
      return channels * (sum(1 if 'pool' in n else edges[n] for n in before) + (0 if shared else member))

    normalised = separable + [n for n in edges if n in others]
    if name in separable:
      y = self.inside('stage0').separable_stage(x, name, member, stride)
      y = self.batch_norm(y, 'bn0', start(normalised))
      if name.startswith('dil'):
        return y
      y = self.inside('stage1').separable_stage(y, name, member, 1)
      return self.batch_norm(y, 'bn1', start([n for n in separable if n[:3] == 'sep']))
    if shared:
      y = {'max': max_pool, 'avg': avg_pool}[name[:3]](x, stride)
    elif name == 'skip_connect':
      y = x if stride == 1 else self.inside(name).factorized_reduce(x, member)
    elif name.startswith('nor'):
      y = self.inside(name).relu_dense(x, member, stride)
    else:
      assert name == 'conv_7x1_1x7'
      inside = self.inside(name)
      y = conv(relu(x), inside.params['across'][member])[:, :, ::stride]
      y = conv(y, inside.params['down'][member].swapaxes(0, 1))[:, ::stride]
    return self.batch_norm(y, 'bn0', start(normalised)) if name in normalised else y


def prepared(module, whole, inputs):
  """The states that a cell begins with."""
  if module.spec.preparation == 'none':
    return list(inputs)
  states = []
  for i, (x, larger) in enumerate(zip(inputs, module.larger, strict=True)):
    inside = whole.inside(f'preprocess{i}')
    y = inside.factorized_reduce(x) if larger else inside.relu_conv(x)
    states.append(whole.batch_norm(y, 'preprocess_bn', i * y.shape[-1]))
  return states


def cell(module, variables, inputs, mixing=None, *, train, constants=None, edges_mixing=None):
  """A cell, one edge and one operation after the other.

  `constants[edge]` are added to every pixel of an edge, which is multiplied with `edges_mixing[edge]`.
  """
  part = module.channels // module.channel_part
  whole = Variables(variables['params'], variables.get('batch_stats', {}), train)
  states = prepared(module, whole, inputs)
  edges = collections.defaultdict(collections.Counter)
  for _, edge in module.spec.edges:
    edges[edge.source].update(edge.operations)
  used = collections.Counter()
  rows = itertools.count()
  for arriving in module.spec.nodes:
    total = 0
    for edge in arriving:
      row = next(rows)
      image, rest = np.split(states[edge.source], [part], axis=-1)
      stride = module.stride if edge.source < module.spec.num_inputs else 1
      message = 0 if constants is None else constants[row]
      for name in edge.operations:
        if name != 'none':
          y = whole.inside(f'node{edge.source}').operation(
            image,
            name,
            used[edge.source, name],
            edges=edges[edge.source],
            stride=stride,
            discrete=module.discrete,
            pools_normalised=module.spec.pools_normalised,
          )
          used[edge.source, name] += 1
          message = message + (y if mixing is None else mixing[row, module.spec.operations.index(name)] * y)
      if module.channel_part > 1:
        rest = max_halve(rest) if stride == 2 else rest
        parts = [message, *np.split(rest, module.channel_part - 1, axis=-1)]
        # Channel after channel, of each part in turn.
        message = np.stack(parts, axis=-1).reshape(*message.shape[:-1], -1)
      total = total + message * (1 if edges_mixing is None else edges_mixing[row])
    states.append(total / len(arriving) if module.spec.merge == 'mean' else total)
  found = [states[node] for node in module.spec.outputs]
  return np.concatenate(found, axis=-1) if module.spec.output == 'concat' else np.mean(found, axis=0)


def draw(init):
  """Float64 variables as `init` would return them, all of them random, running statistics and scales included."""
  rng = np.random.default_rng(0)

  def one(path, leaf):
    if path[-1].key in ('var', 'scale'):
      return rng.uniform(0.5, 2, leaf.shape)
    return rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[-2] if leaf.ndim > 1 else 1)

  return {'params': {}, 'batch_stats': {}} | jax.tree_util.tree_map_with_path(one, jax.eval_shape(init))


@pytest.fixture(scope='session')
def plain() -> types.SimpleNamespace:
  """The functions of this file."""
  functions = (windows, conv, depthwise, depthwise_input_gradient, depthwise_filter_gradient)
  functions += (max_pool, avg_pool, halve, batch_norm, Variables, cell, draw)
  return types.SimpleNamespace(**{function.__name__: function for function in functions})


@pytest.fixture(scope='session')
def two_orders():
  """Of a function of several arguments: values, and the derivatives of a loss, in both modes for the second."""

  def two_orders(function, point, direction):
    def loss(*point):
      outputs = jax.tree.leaves(function(*point))
      return sum(jnp.vdot(jnp.sin(y), jnp.arange(1.0, y.size + 1) / y.size) for y in outputs)

    gradient = jax.grad(loss, tuple(range(len(point))))
    first, forward = jax.jvp(gradient, point, direction)
    return function(*point), first, forward, jax.vjp(gradient, *point)[1](direction)

  return two_orders


@pytest.fixture(scope='session')
def program_for():
  """The program of a function for a platform; it can be called here, too, and is compiled for the CPU then."""

  def program_for(platform, function, *args):
    checks = [jax.export.DisabledSafetyCheck.platform()]
    return jax.export.export(jax.jit(function), platforms=[platform], disabled_checks=checks)(*args)

  return program_for


@pytest.fixture(scope='session')
def assert_close():
  """Compares two trees leaf by leaf; errors are relative to the largest number of a leaf."""

  def assert_close(found, expected, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())

  return assert_close
