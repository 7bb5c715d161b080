"""Steps made for a GPU, which takes all branches and leaves no gradient out, come to what those for the CPU do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.data.images import load
from darts_jax.runtime.compilation import compiler_options
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import Search, Searcher
from darts_jax.settings import build

NETWORK = {'channels': 2, 'layers': 3}
SPACE = {'nodes': 1, 'operations': ('none', 'skip_connect', 'avg_pool_3x3', 'sep_conv_3x3')}


# An estimator with checks, one without, and one that makes products besides gradients.
@pytest.mark.parametrize('estimator', ['finite_difference', 'first_order', 'exact'])
def test_steps_for_a_gpu_are_those_for_the_cpu(tiny_search, estimator):
  config = tiny_search(batch_size=32, log_every=1, space=SPACE, network=NETWORK, hypergradient={'name': estimator})
  settings, images = build(Search, config), load('digits')
  searcher = Searcher.open(settings, images, make_mesh(1))
  data = jax.tree.map(jnp.asarray, settings.task.halves(images, settings, settings.seed))
  arguments = searcher.init(jax.random.key(settings.seed)), data, jnp.int32(1)
  # A program for a platform can be called here, too, and is compiled for the CPU then.
  checks = [jax.export.DisabledSafetyCheck.platform()]

  # Sums of one kind, so that both programs round alike.
  options = {'xla_disable_hlo_passes': compiler_options()['xla_disable_hlo_passes']}

  def call(platform):
    exported = jax.export.export(jax.jit(searcher._run), platforms=[platform], disabled_checks=checks)(*arguments)
    return jax.jit(exported.call, compiler_options=options)(*arguments)

  found, expected = call('cuda'), call('cpu')
  (state, sums), (_, others) = found, expected
  assert int(sums['steps']) == 1
  if estimator == 'finite_difference':
    assert float(sums['checks']) == float(others['checks']) == 1
  before = arguments[0]
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    if jnp.issubdtype(a.dtype, jnp.floating):
      # Sums in another order: some tens of the rounding of float32. The step moves α by 0.01.
      np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * max(1, np.abs(b).max()))
  for kind, alphas in state.alphas.items():
    assert np.abs(alphas - before.alphas[kind]).max() > 5e-3
