"""A user's own operations: what the library makes of them in cells, supernets, networks, counts and files."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax import nets, spaces
from darts_jax.nets import conv, cost
from darts_jax.nets.bilinear import edges_as_channels
from darts_jax.nets.conv import Network, Supernet, check_operations
from darts_jax.nets.layers import init_variables
from darts_jax.nets.operations import Operations, check_own
from darts_jax.nets.owners import owners
from darts_jax.nets.recurrent import activation
from darts_jax.nets.statistics import apply_in_training
from darts_jax.runtime.packed import Packed
from darts_jax.spaces import nasbench201

pytestmark = pytest.mark.usefixtures('own')

IMAGES = np.random.default_rng(0).normal(size=(3, 6, 8, 4)).astype(np.float32)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('as_channels', [False, True])
def test_every_edge_has_a_module_of_its_own(stride, as_channels):
  operate = Operations((('pointwise', 3), ('squeeze', 1), ('skip_connect', 2)), stride, discrete=False)
  variables = operate.init(jax.random.key(0), IMAGES, train=False)
  with edges_as_channels(as_channels):
    found = operate.apply(variables, IMAGES, train=False)
  height, width = 6 // stride, 8 // stride
  for member in range(3):
    kernel = variables['params'][f'own_pointwise_{member:02d}']['Conv_0']
    expected = np.maximum(IMAGES, 0)[:, ::stride, ::stride] @ kernel['kernel'][0, 0] + kernel['bias']
    images = found['pointwise'].evaluate()
    image = images[0, ..., 4 * member : 4 * member + 4] if as_channels else images[member]
    assert image.shape == (3, height, width, 4)
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6)
  assert found['squeeze'].image.shape == (1, 3, height, width, 4)


def make_supernet(operations, nodes=1):
  space = spaces.Darts(nodes, operations)
  net = Supernet(tuple(space.cells.items()), space.plan(3), 4, 10)
  mixing = {name: jnp.full((spec.num_edges, len(operations)), 0.5) for name, spec in space.cells.items()}
  variables = init_variables(net, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), mixing, train=False)
  return space, net, mixing, variables


def test_initialisers_of_own_modules_are_kept_and_others_are_drawn():
  _, _, _, variables = make_supernet(('none', 'pointwise', 'squeeze', 'sep_conv_3x3'))
  node = variables['params']['cell0']['node0']
  # What Flax gives a kernel of four channels: a normal distribution that is cut at two standard deviations.
  drawn = np.concatenate([np.ravel(node[f'own_{name}_00']['Conv_0']['kernel']) for name in ('pointwise', 'squeeze')])
  assert 0.15 < drawn.std() < 0.6
  np.testing.assert_array_equal(node['own_pointwise_00']['Conv_0']['bias'], 0)
  np.testing.assert_array_equal(node['own_squeeze_00']['BatchNorm_0']['scale'], 1)
  assert np.abs(node['stage0']['sep_conv_3x3_pointwise']).max() <= 0.5


def test_statistics_of_own_modules_are_as_they_leave_them():
  _, net, mixing, variables = make_supernet(('none', 'squeeze', 'sep_conv_3x3'))
  images = np.random.default_rng(1).normal(size=(5, 8, 8, 1)).astype(np.float32)
  statistics = Packed.pack(variables['batch_stats'])
  _, after = apply_in_training(net, variables['params'], statistics, images, mixing)
  tree = statistics.replace(after).tree
  _, expected = net.apply(variables, images, mixing, train=True, mutable=['batch_stats'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), tree, expected['batch_stats'])
  own = tree['cell0']['node0']['own_squeeze_00']['BatchNorm_0']
  # Flax keeps 0.99 of a running average, the package 0.9.
  assert np.all(own['var'] != 1)
  assert np.all(np.abs(own['var'] - 1) < 0.1)


def test_variables_of_own_modules_have_the_edge_as_their_owner():
  space, net, _, variables = make_supernet(('none', 'pointwise', 'squeeze', 'skip_connect'), nodes=2)
  for group in ('params', 'batch_stats'):
    found = owners(net, variables[group])
    numbered = Packed.pack(variables[group]).replace(jnp.arange(len(found.entries))).tree
    spec = space.cells['normal']
    for operation in ('pointwise', 'squeeze')[group == 'batch_stats' :]:
      for edge, target in ((0, 2), (2, 3)):
        # Of the first input: the edges into both nodes, in their order.
        module = numbered['cell0']['node0'][f'own_{operation}_{(0, 2).index(edge):02d}']
        flags = {name: np.zeros((each.num_edges, 4), bool) for name, each in space.cells.items()}
        assert spec.edges[edge] == (target, spec.edges[0][1])
        flags['normal'][edge, spec.operations.index(operation)] = True
        flagged = np.flatnonzero(found.flagged(flags) & (found.entries >= 0))
        assert {int(x) for leaf in jax.tree.leaves(module) for x in np.ravel(leaf)} <= set(flagged.tolist())


def test_multiply_adds_are_those_of_products_and_convolutions():
  # 1×1: 16 a pixel. 3×3: 144 a pixel; two linear layers, 8 each. Attention: four maps of 16 a pixel, scores and sums.
  assert cost.products_of('pointwise', 4, 1, 8, 8) == 16 * 64
  assert cost.products_of('pointwise', 4, 2, 8, 8) == 16 * 16
  assert cost.products_of('squeeze', 4, 2, 8, 8) == 144 * 16 + 16
  assert cost.products_of('attention', 4, 1, 4, 2) == 4 * 16 * 8 + 2 * 8 * 8 * 4


def test_a_found_network_has_its_operations():
  arch = spaces.from_json(
    {
      'normal': [['pointwise', 0], ['skip_connect', 1]],
      'normal_concat': [2],
      'reduce': [['squeeze', 0], ['attention', 1]],
      'reduce_concat': [2],
    }
  )
  net = Network(arch.cells, spaces.Darts().plan(3), 4, 10)
  parts = {part.name: part for part in cost.parts_of(net, 8, 8, 1)}
  preparation = 2 * 12 * 4 * 64
  assert parts['cell0'].multiply_adds == preparation + 16 * 64
  # 3 classes of parameters: two 1×1 convolutions and BN before, an affine BN after none.
  assert parts['cell0'].weights == 2 * 12 * 4 + 2 * 8 + 16 + 4


class WrongShape(nn.Module):
  features: int
  stride: int

  def __call__(self, x):
    return x


class Failing(nn.Module):
  features: int
  stride: int

  def __call__(self, x):
    return {}['image']


class NoStride(nn.Module):
  features: int

  def __call__(self, x):
    return x


class Random(nn.Module):
  features: int
  stride: int

  @nn.compact
  def __call__(self, x):
    return nn.Dropout(0.5, deterministic=False)(x)


class Counting(nn.Module):
  features: int
  stride: int

  @nn.compact
  def __call__(self, x):
    count = self.variable('calls', 'count', jnp.zeros, ())
    count.value += 1
    return x


class Searching(nn.Module):
  features: int
  stride: int

  def __call__(self, x):
    return jax.lax.while_loop(lambda y: jnp.max(y) > 1, lambda y: y / 2, x)


class Halves(nn.Module):
  """A batch is initialised with one image."""

  features: int
  stride: int

  @nn.compact
  def __call__(self, x):
    return x * self.param('scale', nn.initializers.ones, (len(x), 1, 1, 1))


class Complex(nn.Module):
  features: int
  stride: int

  def __call__(self, x):
    return jnp.fft.fft2(x.astype(jnp.float32), axes=(1, 2))


class Whole(nn.Module):
  features: int
  stride: int

  def __call__(self, x):
    return jnp.round(x).astype(jnp.int32)


class WholeParameter(nn.Module):
  features: int
  stride: int

  @nn.compact
  def __call__(self, x):
    return x * self.param('times', lambda key: jnp.ones((), jnp.int32)).astype(x.dtype)


class Unwilling(nn.Module):
  features: int
  stride: int

  def __post_init__(self):
    raise RuntimeError('two\nlines')

  def __call__(self, x):
    return x


class InTraining(nn.Module):
  features: int
  stride: int

  def __call__(self, x, train):
    return x if train else x[0]


class OneDtype(nn.Module):
  features: int
  stride: int

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', nn.initializers.normal(), (1, 1, self.features, self.features))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@pytest.mark.parametrize(
  ('kind', 'stride', 'message'),
  [
    (WrongShape, 2, 'gives (1, 6, 8, 4) of (1, 6, 8, 4) at stride 2; it has to be (1, 3, 4, 4)'),
    (NoStride, 1, 'NoStride(features=4, stride=1) cannot be made (NoStride.__init__() got an unexpected keyword'),
    (Failing, 1, 'fails on bfloat16 images of 6×8 pixels and 4 channels at stride 1 (KeyError: '),
    (print, 1, 'OPERATIONS has <built-in function print>; it has to be a Flax module, a class'),
    ({}, 1, 'OPERATIONS has {}; it has to be a Flax module, a class'),
    (Random, 1, 'fails on bfloat16 images of 6×8 pixels and 4 channels at stride 1 (InvalidRngError: '),
    (Counting, 1, "has variables 'calls'; it may have params and batch_stats alone"),
    (Searching, 1, 'fails on bfloat16 images of 6×8 pixels and 4 channels at stride 1 (ValueError: Reverse-mode diff'),
    (InTraining, 1, 'gives (6, 8, 4) of (2, 6, 8, 4) at stride 1; it has to be (2, 6, 8, 4)'),
    (Halves, 1, 'fails on bfloat16 images of 6×8 pixels and 4 channels at stride 1 (ScopeParamShapeError: '),
    (Complex, 1, 'gives images of dtype complex64; it has to give floating-point images'),
    (Whole, 1, 'gives images of dtype int32; it has to give floating-point images'),
    (WholeParameter, 1, 'its variable times has dtype int32; it has to be float32'),
    (Unwilling, 1, 'Unwilling(features=4, stride=1) cannot be made (two lines); it has to have the attributes'),
    (OneDtype, 1, 'fails on bfloat16 images of 6×8 pixels and 4 channels at stride 1 (TypeError: '),
  ],
)
def test_what_is_no_operation_is_one_line(monkeypatch, kind, stride, message):
  monkeypatch.setitem(nets.OPERATIONS, 'mine', kind)
  # A second time nothing is remembered of it.
  for _ in range(2):
    with pytest.raises(ValueError, match='^operation mine: ') as caught:
      check_own('mine', 4, 6, 8, stride, 'bfloat16')
    # JAX adds notes, which commands do not print.
    assert str(caught.value).startswith(f'operation mine: {message}')
    assert '\n' not in str(caught.value)


def test_operations_are_checked_as_they_are_in_the_network(monkeypatch):
  checked = []
  monkeypatch.setattr(conv, 'check_own', lambda *place: checked.append(place))
  spec = spaces.Darts(1, ('none', 'pointwise', 'sep_conv_3x3')).cells['normal']
  plan = spaces.Darts().plan(4)
  assert [(layer.cell, layer.channels, layer.stride) for layer in plan.layers] == [
    ('normal', 1, 1),
    ('reduce', 2, 2),
    ('reduce', 4, 2),
    ('normal', 4, 1),
  ]
  reduce = spaces.Darts(2, ('none', 'squeeze')).cells['reduce']
  check_operations((('normal', spec), ('reduce', reduce)), plan, 8, 11, 6, channel_part=2, precision='bfloat16')
  # One in two of 8, 16 and 32 channels. The second node reads the first at stride 1, too.
  assert checked == [
    ('pointwise', 4, 11, 6, 1, 'bfloat16'),
    ('squeeze', 8, 11, 6, 2, 'bfloat16'),
    ('squeeze', 8, 6, 3, 1, 'bfloat16'),
    ('squeeze', 16, 6, 3, 2, 'bfloat16'),
    ('squeeze', 16, 3, 2, 1, 'bfloat16'),
    ('pointwise', 16, 3, 2, 1, 'bfloat16'),
  ]
  checked.clear()
  stages = nasbench201.NasBench201().plan(3)
  check_operations((('cell', spec),), stages, 6, 65, 32, stem='imagenet')
  assert checked == [('pointwise', 6 * 2**i, *size, 1, 'float32') for i, size in enumerate([(9, 4), (5, 2), (3, 1)])]


class Wide(nn.Module):
  """Needs images of 5 pixels a side."""

  features: int
  stride: int

  @nn.compact
  def __call__(self, x):
    assert min(x.shape[1:3]) >= 5
    return nn.Conv(self.features, (1, 1), strides=self.stride)(x)


def test_owners_are_known_of_operations_that_need_larger_images(monkeypatch):
  monkeypatch.setitem(nets.OPERATIONS, 'wide', Wide)
  space = spaces.Darts(1, ('none', 'wide'))
  net = Supernet(tuple(space.cells.items()), space.plan(3), 4, 10)
  mixing = {name: jnp.full((2, 2), 0.5) for name in space.cells}
  variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 20, 20, 1)), mixing, train=False))
  found = owners(net, variables['params'])
  # On two edges, a kernel and biases of 4 channels in the first cell, then of 8 and 16.
  sizes = {
    cell: sum(number + number**2 for number in numbers) for cell, numbers in (('normal', [4]), ('reduce', [8, 16]))
  }
  for cell in ('normal', 'reduce'):
    for edge in (0, 1):
      flags = {name: np.zeros((2, 2), bool) for name in space.cells}
      flags[cell][edge, 1] = True
      assert (found.flagged(flags) & (found.entries >= 0)).sum() == sizes[cell]


def test_a_module_that_takes_the_place_of_another_is_traced_anew(monkeypatch, own):
  operate = Operations((('mine', 1),), 1, discrete=False)
  monkeypatch.setitem(nets.OPERATIONS, 'mine', own['Pointwise'])
  assert 'Conv_0' in operate.init(jax.random.key(0), IMAGES, train=False)['params']['own_mine_00']
  monkeypatch.setitem(nets.OPERATIONS, 'mine', own['Attention'])
  variables = operate.init(jax.random.key(0), IMAGES, train=False)
  assert 'MultiHeadDotProductAttention_0' in variables['params']['own_mine_00']


def test_activations_of_ones_own(monkeypatch):
  with pytest.raises(ValueError, match="^operations: 'swich' is not an operation; did you mean 'swish'"):
    spaces.Recurrent(2, ('none', 'swich'))
  assert spaces.Recurrent(2, ('none', 'swish')).operations == ('none', 'swish')
  assert activation('swish') is jax.nn.silu
  assert activation('relu')(jnp.float32(-1)) == 0
  found = spaces.from_json({'recurrent': [['swish', 0]], 'concat': [1]})
  assert spaces.to_text(found) == "Genotype(recurrent=[('swish', 0)], concat=range(1, 2))"
  monkeypatch.setitem(nets.ACTIVATIONS, 'swish', 3)
  with pytest.raises(ValueError, match=r'^activation swish: ACTIVATIONS has 3; it has to be a function$'):
    activation('swish')


class Loops(nn.Module):
  """A product of 4 × 4 at every pixel: five times, or as an attribute says."""

  features: int
  stride: int = 1
  kind: str = ''

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', nn.initializers.normal(), (4, 4))
    if self.kind == 'scan':
      return jax.lax.scan(lambda y, _: (y @ kernel, None), x, length=5)[0]
    if self.kind == 'fori':
      return jax.lax.fori_loop(0, 5, lambda _, y: y @ kernel, x)
    if self.kind == 'scan of cond':

      def turn(y, i):
        return jax.lax.cond(i > 1, lambda y: y @ kernel @ kernel, lambda y: y, y), None

      return jax.lax.scan(turn, x, jnp.arange(5))[0]
    if self.kind == 'switch':
      branches = [lambda y, n=n: jax.lax.scan(lambda y, _: (y @ kernel, None), y, length=n)[0] for n in (1, 7, 3)]
      return jax.lax.switch(jnp.int32(x[0, 0, 0, 0]), branches, x)
    return jax.lax.while_loop(lambda y: jnp.max(y) > 1, lambda y: y @ kernel, x)


@pytest.mark.parametrize(
  ('kind', 'products'), [('scan', 5), ('fori', 5), ('scan of cond', 10), ('switch', 7), ('while', 1)]
)
def test_loops_count_as_often_as_they_turn_and_branches_at_their_most(monkeypatch, kind, products):
  monkeypatch.setitem(nets.OPERATIONS, 'mine', type('Mine', (Loops,), {'__annotations__': {'kind': str}, 'kind': kind}))
  assert cost.products_of('mine', 4, 1, 6, 2) == products * 16 * 12


def test_the_cost_is_that_of_the_module_of_now(monkeypatch, own):
  for name, products in (('Pointwise', 16), ('Attention', 4 * 16 + 2 * 4 * 12)):
    monkeypatch.setitem(nets.OPERATIONS, 'mine', own[name])
    assert cost.products_of('mine', 4, 1, 6, 2) == products * 12
