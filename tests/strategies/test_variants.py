"""All relaxed strategies of the package: mixing weights are the same with and without jit, and fit the cells."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from darts_jax.nets.mixed import weights_of
from darts_jax.search.searched import Searched
from darts_jax.spaces.darts import Darts as DartsSpace
from darts_jax.spaces.doubts import Doubts
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.strategies import RELAXED
from darts_jax.strategies.relaxed import ALPHAS, EVALUATE, WEIGHTS

#: Of a user's own there may be more when other tests have run.
NAMES = ('darts', 'sgas', 'gdas', 'pc_darts', 'robust_darts')


class MixingTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.product(name=NAMES, space=(DartsSpace(2), NasBench201()))
  def test_mixing_weights(self, name, space):
    searched = Searched.start(RELAXED[name](), space, (5, 10))
    alphas = searched.init(jax.random.key(0))
    key = jax.random.key(1)

    @self.variant
    def mix(alphas, step, purpose):
      return searched.mix(alphas, step, key, purpose)

    for purpose in (WEIGHTS, ALPHAS, EVALUATE):
      found = mix(alphas, jnp.int32(7), jnp.int32(purpose))
      assert found.keys() == searched.cells.keys()
      expected = searched.mix(alphas, 7, key, purpose)
      for kind, spec in searched.cells.items():
        weights = weights_of(found[kind], spec)
        np.testing.assert_allclose(np.sum(weights.operations, axis=1), 1, rtol=1e-5)
        chex.assert_trees_all_close(found[kind], expected[kind], rtol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(*NAMES)
  def test_an_update_of_alphas(self, name):
    space = DartsSpace(2)
    searched = Searched.start(RELAXED[name](), space)
    before = searched.init(jax.random.key(0))
    after = jax.tree.map(lambda value: value + 1, before)
    chex.assert_trees_all_equal(self.variant(searched.project)(before, after), after)


@pytest.mark.parametrize('name', ['darts', 'gdas', 'pc_darts', 'robust_darts'])
@pytest.mark.parametrize(('others', 'in_doubt'), [(3.0, 6), (0.0, 0)])
def test_none_is_in_doubt_like_any_operation_where_architectures_may_have_it(name, others, in_doubt):
  """It leads all operations, which are alike, or is like them."""
  space = NasBench201()
  searched = Searched.start(RELAXED[name](), space)
  arch = {key: np.zeros_like(value) for key, value in searched.init(jax.random.key(0)).items()}
  arch['cell'][:] = [3.0, *[others] * 4]
  assert set(space.operations(searched.read(arch))) == {'none'}
  assert searched.doubts(arch, arch) == Doubts(kept=6, edges=0, operations=in_doubt)


def test_all_strategies_of_the_package_are_there():
  assert set(NAMES) <= set(RELAXED)
  own = {name for name, kind in RELAXED.items() if kind.__module__.startswith('darts_jax.')}
  assert own == set(NAMES)
