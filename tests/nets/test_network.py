"""The network of a found architecture: published sizes, drop path, auxiliary head, image sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.nets.cell import Cell
from darts_jax.nets.conv import (
  Network,
  Supernet,
  check_image_size,
  check_statistics,
  drop_path_factors,
  mixed_drop_path,
)
from darts_jax.spaces import CellSpec, Darts, Edge, Mixing, published


def build(name, channels, num_layers, num_classes, **attributes):
  found = published()[name]
  return Network(found.cells, Darts().plan(num_layers), channels, num_classes, **attributes)


def num_parameters(net, size):
  variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=True))
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize(
  ('name', 'num_classes', 'plain', 'with_auxiliary'),
  [
    ('DARTS_V2', 10, 3_349_342, 3_825_768),
    ('DARTS_V2', 100, 3_401_272, 3_946_908),
    ('DARTS_V1', 10, 3_169_414, 3_645_840),
    ('PC_DARTS_cifar', 10, 3_634_678, 4_111_104),
    ('PDARTS', 10, 3_433_798, 3_910_224),
    ('SGAS_Cri1_CIFAR_Best', 10, 3_795_166, 4_271_592),
    ('SGAS_Cri2_CIFAR_Best', 10, 4_094_110, 4_570_536),
  ],
)
def test_published_numbers_of_weights_on_cifar(name, num_classes, plain, with_auxiliary):
  assert num_parameters(build(name, 36, 20, num_classes), 32) == plain
  assert num_parameters(build(name, 36, 20, num_classes, auxiliary=True), 32) == with_auxiliary


@pytest.mark.parametrize(
  ('name', 'plain', 'with_auxiliary', 'norm'),
  [
    ('DARTS_V2', 4_718_752, 5_979_528, False),
    ('DARTS_V1', 4_510_432, 5_771_208, False),
    ('PC_DARTS_image', 5_342_464, 6_603_240, False),
    ('PDARTS', 4_944_352, 6_206_664, True),
    ('SGAS_Cri1_ImageNet_Best', 5_285_440, 6_547_752, True),
    ('SGAS_Cri2_ImageNet_Best', 5_438_464, 6_700_776, True),
  ],
)
def test_published_numbers_of_weights_on_imagenet(name, plain, with_auxiliary, norm):
  assert num_parameters(build(name, 48, 14, 1000, stem='imagenet'), 224) == plain
  net = build(name, 48, 14, 1000, stem='imagenet', auxiliary=True, auxiliary_norm=norm)
  assert num_parameters(net, 224) == with_auxiliary


@pytest.mark.parametrize('name', [name for name, found in published().items() if found.space == 'darts'])
def test_every_published_cell_can_be_built(name):
  net = build(name, 4, 3, 7)
  logits, variables = jax.eval_shape(
    lambda: net.init_with_output(jax.random.key(0), jnp.zeros((2, 8, 12, 1), jnp.bfloat16), train=True)
  )
  assert (logits.main.shape, logits.main.dtype, logits.auxiliary) == ((2, 7), jnp.float32, None)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_factors_of_drop_path_are_unbiased_and_independent():
  rate, shape = 0.3, (20, 8, 96)
  factors = np.asarray(drop_path_factors(jax.random.key(1), rate, shape), np.float64)
  np.testing.assert_allclose(np.unique(factors), [0, 1 / (1 - rate)], rtol=1e-6)
  # A factor has variance p/(1 − p); five standard deviations of a mean over n of them.
  deviation = np.sqrt(rate / (1 - rate))
  assert abs(factors.mean() - 1) < 5 * deviation / np.sqrt(factors.size)
  for axis in range(3):
    means = factors.mean(axis=tuple(i for i in range(3) if i != axis))
    assert np.abs(means - 1).max() < 5 * deviation / np.sqrt(factors.size / shape[axis])
  neighbours = np.mean((factors[:, :-1] - 1) * (factors[:, 1:] - 1))
  assert abs(neighbours) < 5 * deviation**2 / np.sqrt(factors.size)
  assert (drop_path_factors(jax.random.key(1), 0.0, shape) == 1).all()


def test_a_supernet_drops_the_edges_of_every_cell_by_the_rates_of_its_kind():
  plan, rates = Darts(2).plan(3), {'normal': np.array([0.1, 0.5, 0.0]), 'reduce': np.array([0.8, 0.3])}
  assert [layer.cell for layer in plan.layers] == ['normal', 'reduce', 'reduce']
  mixing = {kind: Mixing(jnp.ones((len(each), 8)), drop=jnp.asarray(each)) for kind, each in rates.items()}
  keys = jax.random.key_data(jax.random.split(jax.random.key(0), 4000))
  factors = np.asarray(mixed_drop_path(mixing, plan, 3, keys), np.float64)
  assert factors.shape == (3, 3, 4000)
  for layer, own in zip(plan.layers, factors, strict=True):
    for edge, rate in enumerate(rates[layer.cell]):
      np.testing.assert_allclose(own[edge][own[edge] > 0], 1 / (1 - rate), rtol=1e-6)
      # Five standard deviations of a mean of variance p/(1 − p) over the images.
      assert abs(own[edge].mean() - 1) <= 5 * np.sqrt(rate / (1 - rate) / 4000)
  # The cells of a kind draw by themselves.
  assert abs(np.mean((factors[1, 0] - 1) * (factors[2, 0] - 1))) < 5 * 4 / np.sqrt(4000)
  # Of a kind without rates nothing is dropped, and an image draws from its own key alone.
  mixing['reduce'] = Mixing(jnp.ones((2, 8)))
  some = np.asarray(mixed_drop_path(mixing, plan, 3, keys[7:9]))
  np.testing.assert_array_equal(some[0], factors[0, :, 7:9].astype(np.float32))
  np.testing.assert_array_equal(some[1:], 1)
  assert mixed_drop_path({'normal': Mixing(jnp.ones((3, 8)))}, plan, 3, keys) is None


def small_supernet():
  """A supernet of three cells with its variables, images, mixing weights and keys of the images."""
  space = Darts(1, ('skip_connect', 'sep_conv_3x3'))
  net = Supernet(tuple(space.cells.items()), space.plan(3), 2, 3, stem_multiplier=1)
  images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
  mixing = {kind: Mixing(jnp.full((2, 2), 0.5)) for kind in space.cells}
  variables = jax.jit(lambda: net.init(jax.random.key(0), images, mixing, train=True))()
  return net, variables, images, mixing, jax.random.key_data(jax.random.split(jax.random.key(0), 4))


def test_every_cell_of_a_supernet_drops_its_own_edges(monkeypatch):
  net, variables, images, mixing, keys = small_supernet()
  # All edges of the first and the last cell are dropped; the second one still reads the stem.
  factors = jnp.zeros((3, 2, 4)).at[1].set(1)
  monkeypatch.setattr('darts_jax.nets.conv.mixed_drop_path', lambda *args: factors)
  _, found = net.apply(variables, images, mixing, train=True, keys=keys, capture_intermediates=True, mutable=True)
  outputs = [np.asarray(found['intermediates'][f'cell{i}']['__call__'][0]) for i in range(3)]
  assert [each.any() for each in outputs] == [False, True, False]


def test_rates_of_zero_are_no_drop_path_and_an_evaluation_drops_nothing():
  net, variables, images, plain, keys = small_supernet()

  @functools.partial(jax.jit, static_argnames='train')
  def logits(mixing, keys=None, *, train):
    return net.apply(variables, images, mixing, train=train, keys=keys, mutable=['batch_stats'])[0]

  def with_rate(rate):
    return {kind: each._replace(drop=jnp.full(2, rate)) for kind, each in plain.items()}

  whole = logits(plain, train=True)
  np.testing.assert_array_equal(logits(with_rate(0.0), keys, train=True), whole)
  assert np.abs(logits(with_rate(0.5), keys, train=True) - whole).max() > 1e-3
  np.testing.assert_array_equal(logits(with_rate(0.5), keys, train=False), logits(plain, train=False))


@pytest.mark.parametrize(
  ('part', 'constant', 'message'),
  [(2, None, 'edges compute a part of the channels'), (1, jnp.ones(()), 'a constant stands for operations')],
)
def test_what_has_no_drop_path_is_one_line(part, constant, message):
  space = Darts(1, ('skip_connect', 'sep_conv_3x3'))
  net = Supernet(tuple(space.cells.items()), space.plan(3), 4, 3, channel_part=part)
  mixing = {kind: Mixing(jnp.ones((2, 2)), constant=constant, drop=jnp.zeros(2)) for kind in space.cells}
  with pytest.raises(ValueError, match=f'^config.strategy: there is no drop path where {message}'):
    net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), mixing, train=True, keys=jnp.zeros((1, 2), jnp.uint32))


OPERATIONS = ('sep_conv_3x3', 'skip_connect', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3')


@pytest.mark.parametrize('reduction', [False, True])
@pytest.mark.usefixtures('x64')
def test_drop_path_scales_each_edge_of_each_image_but_for_identities(plain, reduction):
  edges = tuple(Edge(i % 2, (operation,)) for i, operation in enumerate(OPERATIONS))
  spec = CellSpec((edges,), tuple(dict.fromkeys(OPERATIONS)), 2, (2,), 'concat', 2)
  cell = Cell(spec, 4, 2 if reduction else 1, (False, False), discrete=True)
  rng = np.random.default_rng(2)
  inputs = tuple(rng.normal(size=(2, 3, 4, 4, 6)))
  variables = plain.draw(lambda: cell.init(jax.random.key(0), inputs, train=False))
  apply = jax.jit(lambda factors: cell.apply(variables, inputs, None, factors, train=True))
  alone = np.stack([apply(np.repeat(np.eye(len(edges))[:, [i]], 3, axis=1)) for i in range(len(edges))])
  identities = np.asarray(apply(np.zeros((len(edges), 3))))
  # A reduction cell has no identities: there, skip connections halve the image and count as any other operation.
  assert (np.abs(identities).max() > 0.1) == (not reduction)
  contributions = alone - identities
  dropped = [i for i, operation in enumerate(OPERATIONS) if reduction or operation != 'skip_connect']
  sizes = np.abs(contributions).max(axis=(1, 2, 3, 4))
  assert [i for i, size in enumerate(sizes) if size > 0.1] == dropped
  assert all(size < 1e-12 for i, size in enumerate(sizes) if i not in dropped)
  factors = rng.uniform(0, 2, size=(len(edges), 3))
  expected = identities + np.einsum('en,enhwc->nhwc', factors, contributions)
  np.testing.assert_allclose(apply(factors), expected, atol=1e-12)
  # Without drop path every edge counts once.
  whole = jax.jit(lambda: cell.apply(variables, inputs, train=True))()
  np.testing.assert_allclose(whole, identities + contributions.sum(axis=0), atol=1e-12)


@pytest.fixture(scope='module')
def small():
  """A network with its variables and images."""
  net = build('DARTS_V2', 2, 3, 5, auxiliary=True, stem_multiplier=1)
  images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
  variables = jax.jit(lambda: net.init(jax.random.key(0), images, train=True))()
  return net, variables, images


def test_drop_path_and_auxiliary_head_are_for_training_alone(small):
  net, variables, images = small
  apply = jax.jit(lambda rate, key: net.apply(variables, images, train=True, drop_path=rate, key=key))
  without, same = (apply(0.0, jax.random.key(i)) for i in range(2))
  np.testing.assert_array_equal(without.main, same.main)
  one, other = (apply(0.5, jax.random.key(i)) for i in range(2))
  assert (one.main != other.main).any()
  assert (one.main != without.main).any()
  assert one.auxiliary.shape == (4, 5)
  evaluated, same = (
    jax.jit(lambda **drop: net.apply(variables, images, train=False, **drop))(**drop)
    for drop in ({}, {'drop_path': 0.5, 'key': jax.random.key(0)})
  )
  np.testing.assert_array_equal(evaluated.main, same.main)
  assert evaluated.auxiliary is None


def test_cells_drop_paths_independently(small, monkeypatch):
  """Each cell gets the masks of its own place."""
  net, variables, images = small
  shape = (3, 8, 4)
  masks = np.zeros(shape, np.float32)
  masks[1] = 1

  def outputs(factors):
    monkeypatch.setattr('darts_jax.nets.conv.drop_path_factors', lambda key, rate, shape: jnp.asarray(factors))
    _, found = net.apply(
      variables, images, train=True, drop_path=0.5, key=jax.random.key(0), capture_intermediates=True, mutable=True
    )
    return [np.asarray(found['intermediates'][f'cell{i}']['__call__'][0]) for i in range(3)]

  whole, one = outputs(np.ones(shape)), outputs(masks)
  assert (one[0] != whole[0]).any()
  assert np.abs(one[1]).max() > 0
  none = outputs(np.zeros(shape))
  assert (one[1] != none[1]).any()


def test_auxiliary_head_by_its_definition(small, plain):
  from darts_jax.nets.conv import AuxiliaryHead

  x = np.random.default_rng(1).normal(size=(3, 8, 8, 6))
  head = AuxiliaryHead(5, 3, True)
  with jax.enable_x64(True):
    variables = plain.draw(lambda: head.init(jax.random.key(0), x, train=True))
    found = np.asarray(jax.jit(lambda: head.apply(variables, x, train=False))())
  params, statistics = variables['params'], variables['batch_stats']
  y = np.stack(
    [np.stack([np.maximum(x, 0)[:, i : i + 5, j : j + 5].mean((1, 2)) for j in (0, 3)], 1) for i in (0, 3)], 1
  )
  y = np.maximum(plain.batch_norm(y @ params['conv0'][0, 0], statistics['bn0'], params['bn0']), 0)
  y = np.einsum('nijc,ijcd->nd', y, params['conv1'])
  y = np.maximum(plain.batch_norm(y, statistics['bn1'], params['bn1']), 0)
  np.testing.assert_allclose(found, y @ params['classifier'] + params['classifier_bias'], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
  ('size', 'stem', 'auxiliary', 'said'),
  [
    ((32, 32), 'cifar', True, None),
    ((28, 28), 'cifar', False, None),
    ((29, 30), 'cifar', True, None),
    ((28, 40), 'cifar', True, 'image_size: 28×40 is too small for an auxiliary head; it needs sides of 29 pixels'),
    ((224, 224), 'imagenet', True, None),
    ((193, 193), 'imagenet', True, None),
    ((192, 192), 'imagenet', True, 'image_size: 192×192 is too small .* 193 pixels'),
    ((101, 7), 'imagenet', False, None),
    ((1, 1), 'cifar', False, None),
  ],
)
def test_image_sizes_are_refused_where_the_network_cannot_be_built(size, stem, auxiliary, said):
  def check_and_build():
    check_image_size(*size, Darts().plan(3), stem=stem, auxiliary=auxiliary)
    net = build('DARTS_V2', 2, 3, 5, stem=stem, auxiliary=auxiliary)
    jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=True))

  if said is None:
    check_and_build()
    return
  with pytest.raises(ValueError, match=said):
    check_and_build()


@pytest.mark.parametrize(
  ('examples', 'size', 'layers', 'options', 'alone'),
  [
    (1, (4, 4), 3, {}, True),
    (1, (4, 3), 8, {}, True),
    (1, (5, 4), 3, {}, False),
    (2, (4, 4), 3, {}, False),
    (1, (2, 2), 1, {}, True),
    (1, (4, 4), 1, {}, False),
    (1, (32, 32), 3, {'stem': 'imagenet'}, True),
    (1, (33, 32), 3, {'stem': 'imagenet'}, False),
    (1, (32, 32), 3, {'auxiliary': True}, True),
    (1, (48, 48), 3, {'auxiliary': True}, False),
    (1, (224, 224), 3, {'stem': 'imagenet', 'auxiliary': True}, True),
  ],
)
def test_batches_of_which_bn_sees_single_numbers_are_refused(examples, size, layers, options, alone):
  if not alone:
    check_statistics('config.batch_size', examples, *size, Darts().plan(layers), **options)
    return
  said = rf'^config.batch_size: 1 is not allowed with images of {size[0]}×{size[1]} pixels, .* larger batches or images'
  with pytest.raises(ValueError, match=said):
    check_statistics('config.batch_size', examples, *size, Darts().plan(layers), **options)
