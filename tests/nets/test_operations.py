import jax
import numpy as np
import pytest

from darts_jax.nets.operations import Operations
from darts_jax.spaces.operations import NOISE, OPERATIONS

# Numbers of edges that differ, so that no operation can be taken for another. Noise is not computed of an image.
NAMES = [name for name in OPERATIONS if name not in ('none', NOISE)]
EDGES = dict(zip(NAMES, [2, 3, 2, 1, 2, 3, 1, 2, 2, 3, 2], strict=True))


@pytest.mark.parametrize(
  ('stride', 'discrete', 'train', 'size', 'output_size'),
  [(1, False, True, (5, 7), (5, 7)), (2, True, False, (5, 8), (3, 4)), (2, False, True, (6, 3), (3, 2))],
)
@pytest.mark.usefixtures('x64')
def test_edges_computed_together_equal_one_after_the_other(plain, stride, discrete, train, size, output_size):
  x = np.random.default_rng(1).normal(size=(2, *size, 4))
  module = Operations(tuple(EDGES.items()), stride, discrete)
  variables = plain.draw(lambda: module.init(jax.random.key(0), x, train=False))
  found = jax.jit(lambda variables, x: module.apply(variables, x, train=train))(variables, x)
  assert found.keys() == EDGES.keys()
  own = plain.Variables(variables['params'], variables['batch_stats'], train)
  for name, count in EDGES.items():
    edges = [own.operation(x, name, member, edges=EDGES, stride=stride, discrete=discrete) for member in range(count)]
    # What has no parameters for an edge is one image that all edges share.
    shared = 'pool' in name or (name == 'skip_connect' and stride == 1)
    expected = np.stack(edges[:1] if shared else edges)
    assert expected.shape[2:4] == output_size
    np.testing.assert_allclose(
      found[name].evaluate(), expected, rtol=0, atol=1e-12 * np.abs(expected).max(), err_msg=name
    )


@pytest.mark.parametrize('discrete', [False, True])
def test_what_is_learned(discrete):
  """In a search no BN has weights of its own; in a discrete network all do, and pools have no BN."""
  module = Operations(tuple(EDGES.items()), 2, discrete)
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), np.zeros((1, 4, 4, 6), np.float32), train=False))
  paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
  assert any('scale' in path for path in paths) == any("['bias']" in path for path in paths) == discrete
  normalised = sum(EDGES.values()) - sum(EDGES[name] for name in EDGES if 'pool' in name) + 2 * (not discrete)
  assert variables['batch_stats']['bn0']['mean'].shape == (6 * normalised,)
  pointwise, affine = 6 * 6, 12 if discrete else 0
  sizes = {
    'skip_connect': pointwise + affine,
    'sep_conv_3x3': 2 * (9 * 6 + pointwise + affine),
    'sep_conv_5x5': 2 * (25 * 6 + pointwise + affine),
    'sep_conv_7x7': 2 * (49 * 6 + pointwise + affine),
    'dil_conv_3x3': 9 * 6 + pointwise + affine,
    'dil_conv_5x5': 25 * 6 + pointwise + affine,
    'conv_7x1_1x7': 2 * 7 * pointwise + affine,
    # With a bias where BN has none.
    'nor_conv_1x1': pointwise + (affine or 6),
    'nor_conv_3x3': 9 * pointwise + (affine or 6),
  }
  total = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert total == sum(EDGES[name] * size for name, size in sizes.items())


@pytest.mark.usefixtures('x64')
def test_without_running_statistics_evaluation_has_those_of_the_batch(plain):
  """And pools are as they are, unless BN follows them."""
  x = np.random.default_rng(1).normal(size=(2, 4, 4, 4))
  edges = {'avg_pool_3x3': 2, 'nor_conv_3x3': 2}
  module = Operations(tuple(edges.items()), 1, False, pools_normalised=False, tracked=False)
  variables = plain.draw(lambda: module.init(jax.random.key(0), x, train=False))
  assert not variables['batch_stats']
  own = plain.Variables(variables['params'], {}, True)
  expected = [plain.avg_pool(x)[None]]
  settings = {'edges': edges, 'stride': 1, 'discrete': False, 'pools_normalised': False}
  expected.append(np.stack([own.operation(x, 'nor_conv_3x3', member, **settings) for member in range(2)]))
  for train in (False, True):
    found, changed = module.apply(variables, x, train=train, mutable=['batch_stats', 'moments'])
    assert not any(changed.values())
    for name, each in zip(edges, expected, strict=True):
      np.testing.assert_allclose(found[name].evaluate(), each, rtol=0, atol=1e-12 * np.abs(each).max())
