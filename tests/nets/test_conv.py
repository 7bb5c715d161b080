import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.nets.cell import Cell
from darts_jax.nets.conv import Network, Supernet
from darts_jax.spaces import Darts

NAMES = ('normal', 'reduce')


def supernet(specs, channels, num_layers, num_classes, **attributes):
  return Supernet(tuple(zip(NAMES, specs, strict=True)), Darts().plan(num_layers), channels, num_classes, **attributes)


def shapes(net, images, train=True):
  """Shapes and dtypes of the variables and of the logits."""
  mixing = {kind: jnp.zeros((spec.num_edges, len(spec.operations))) for kind, spec in net.cells}
  return jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), images, mixing, train=train))


def test_number_of_weights_is_the_published_one():
  net = supernet([Darts().cells['normal']] * 2, 16, 8, 10)
  logits, variables = shapes(net, jnp.zeros((2, 32, 32, 3)))
  assert logits.shape == (2, 10)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == 1_930_618


@pytest.mark.parametrize(
  ('size', 'channels', 'dtype'), [((28, 28), 1, jnp.float32), ((8, 12), 3, jnp.bfloat16)], ids=['MNIST', 'bfloat16']
)
def test_logits_are_float32_for_images_of_any_size_and_dtype(size, channels, dtype):
  space = Darts(2).cells['normal']
  logits, variables = shapes(supernet([space] * 2, 4, 5, 7), jnp.zeros((3, *size, channels), dtype))
  assert (logits.shape, logits.dtype) == ((3, 7), jnp.float32)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
  # 4 channels double in the cells 1 and 3, and the last cell has two nodes.
  assert variables['params']['classifier'].shape == (2 * 16, 7)
  assert variables['params']['stem'].shape == (3, 3, channels, 12)


@pytest.mark.usefixtures('x64')
def test_supernet_is_its_stem_cells_and_classifier(plain):
  """By the definition of each; normal and reduction cells have mixing weights of their own."""
  normal = Darts(1, ('skip_connect', 'sep_conv_3x3')).cells['normal']
  reduce = Darts(2, ('max_pool_3x3', 'none', 'dil_conv_3x3')).cells['normal']
  net = supernet([normal, reduce], 2, 4, 5)
  rng = np.random.default_rng(1)
  images = rng.normal(size=(2, 4, 8, 3))
  mixing = {'normal': rng.uniform(size=(2, 2)), 'reduce': rng.uniform(size=(5, 3))}
  variables = plain.draw(lambda: net.init(jax.random.key(0), images, mixing, train=False))
  found = jax.jit(lambda images, mixing: net.apply(variables, images, mixing, train=True))(images, mixing)

  params, statistics = variables['params'], variables['batch_stats']
  stem = plain.batch_norm(plain.conv(images, params['stem']), affine=params['stem_bn'])
  states = [stem, stem]
  # The cells 1 and 2 of 4 reduce, so the first input of the cells 2 and 3 is twice as large as the second.
  layout = [(normal, 2, 1, False), (reduce, 4, 2, False), (reduce, 8, 2, True), (normal, 8, 1, True)]
  for i, (spec, channels, stride, larger) in enumerate(layout):
    cell = Cell(spec, channels, stride, (larger, False), discrete=False)
    own = {'params': params[f'cell{i}'], 'batch_stats': statistics[f'cell{i}']}
    states.append(plain.cell(cell, own, states[-2:], mixing[NAMES[stride - 1]], train=True))
  assert states[-1].shape == (2, 1, 2, 8)
  expected = states[-1].mean(axis=(1, 2)) @ params['classifier'] + params['classifier_bias']
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize('stem', ['cifar', 'imagenet'])
@pytest.mark.usefixtures('x64')
def test_a_supernet_without_a_choice_is_the_network_of_its_only_cell(stem):
  """With either stem; the scale and bias that BN has in a discrete cell are one and zero before any training."""
  space = Darts(1, ('skip_connect',)).cells['normal']
  searched = supernet([space] * 2, 4, 3, 5, stem=stem)
  network = Network(searched.cells, searched.plan, 4, 5, stem=stem)
  images = np.random.default_rng(0).normal(size=(3, 32, 64, 3))
  mixing = {name: np.ones((2, 1)) for name in ('normal', 'reduce')}
  ours, theirs = (
    jax.eval_shape(lambda net=net, more=more: net.init(jax.random.key(0), images, *more, train=False))['params']
    for net, more in ((searched, (mixing,)), (network, ()))
  )
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), ours)

  def fill(path, leaf):
    found = params
    for entry in path:
      found = found.get(entry.key) if found is not None else None
    return found if found is not None else np.full(leaf.shape, float(path[-1].key == 'scale'))

  shared = jax.tree_util.tree_map_with_path(fill, theirs)
  found = jax.jit(lambda: searched.apply({'params': params}, images, mixing, train=True))()
  expected = jax.jit(lambda: network.apply({'params': shared}, images, train=True).main)()
  np.testing.assert_allclose(found, expected, rtol=1e-10)
  assert len(jax.tree.leaves(ours)) < len(jax.tree.leaves(theirs))
  assert ('stem1' in ours) == (stem == 'imagenet')
