import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.spaces.darts import Darts as DartsSpace
from darts_jax.strategies.darts import Darts
from darts_jax.strategies.relaxation import candidates, rows_of, softmax
from darts_jax.strategies.relaxed import EVALUATE, Time

SPACE = DartsSpace(2, ('none', 'skip_connect', 'sep_conv_3x3'))
SPEC = SPACE.cells['normal']


@pytest.mark.usefixtures('x64')
def test_mixing_weights_are_the_softmax_at_the_temperature_of_the_step():
  strategy = Darts(temperature=(4.0, 1.0))
  alphas = {name: jnp.arange(15.0).reshape(5, 3) ** 1.5 for name in SPACE.cells}
  mixing = strategy.mix(alphas, SPACE, SPACE.cells, Time(jnp.int32(3), (3, 6)), jax.random.key(0), EVALUATE)
  # Half way from 4 to 1 by equal factors.
  exact = np.exp(np.asarray(alphas['normal']) / 2)
  np.testing.assert_allclose(mixing['normal'].operations, exact / exact.sum(axis=1, keepdims=True), rtol=1e-6)
  assert mixing['reduce'].edges is None


@pytest.mark.usefixtures('x64')
def test_edges_with_fewer_operations_share_their_weight_among_these():
  nodes = ((SPEC.nodes[0][0], SPEC.nodes[0][1]), (SPEC.nodes[1][2],))
  few = type(SPEC.nodes[0][0])(1, ('skip_connect', 'sep_conv_3x3'))
  part = SPEC.__class__(((nodes[0][0], few), nodes[1]), SPEC.operations, 2, SPEC.outputs, SPEC.output, SPEC.kept)
  assert rows_of(part, SPEC).tolist() == [0, 1, 4]
  assert candidates(part).tolist() == [[True] * 3, [False, True, True], [True] * 3]
  alphas = np.random.default_rng(0).normal(size=(5, 3))
  for temperature in (1.0, 0.5):
    found = softmax(jnp.asarray(alphas), part, SPEC, temperature)
    expected = np.exp(alphas[[0, 1, 4]] / temperature) * [[1, 1, 1], [0, 1, 1], [1, 1, 1]]
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), rtol=1e-12)
  slope = jax.jacrev(lambda x: softmax(x, part, SPEC)[1, 1])(jnp.asarray(alphas))
  assert (slope != 0).tolist() == [[False] * 3, [False, True, True], *[[False] * 3] * 3]


def test_the_architecture_is_that_of_the_strongest_edges():
  alphas = {name: np.zeros((5, 3), np.float32) for name in SPACE.cells}
  alphas['normal'][3, 2], alphas['normal'][4, 1], alphas['normal'][0, 0] = 2, 1, 1
  genotype = Darts().read(alphas, SPACE, None)
  # `none` is never read, however strong it is; ties go to the smaller index.
  assert genotype.cell('normal').pairs == (
    ('skip_connect', 1),
    ('skip_connect', 0),
    ('sep_conv_3x3', 1),
    ('skip_connect', 2),
  )


def test_initial_alphas_are_normal_and_small():
  found = Darts(init_scale=1e-3).init(DartsSpace(), jax.random.key(0))
  drawn = np.concatenate([np.ravel(found[name]) for name in ('normal', 'reduce')])
  assert drawn.shape == (224,)
  # Four standard errors of a standard deviation.
  assert abs(drawn.std() / 1e-3 - 1) < 4 / np.sqrt(2 * 224)
  assert abs(np.corrcoef(found['normal'].ravel(), found['reduce'].ravel())[0, 1]) < 4 / np.sqrt(112)
