"""GDAS: what is drawn, by which gradients α move, and what is read off them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.report import page, workdir
from darts_jax.search.records import AlphaHistory
from darts_jax.search.searched import Searched
from darts_jax.spaces.darts import Darts as DartsSpace
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.spaces.recurrent import Recurrent
from darts_jax.strategies.gdas import Gdas
from darts_jax.strategies.relaxed import ALPHAS, EVALUATE, WEIGHTS, Time

SPACE = NasBench201()
SPEC = SPACE.cells['cell']
RNG = np.random.default_rng(0)
ALPHA = RNG.normal(size=(6, 5))


def softmax(values):
  exact = np.exp(values - values.max(axis=1, keepdims=True))
  return exact / exact.sum(axis=1, keepdims=True)


@pytest.mark.parametrize('tau', [10.0, 0.1])
def test_operations_are_chosen_as_often_as_the_softmax_says_at_any_temperature(tau):
  searched = Searched.start(Gdas(tau=(tau, tau)), SPACE, (10**6,))
  alphas = {'cell': jnp.asarray(ALPHA, jnp.float32)}
  number = 4000

  @jax.jit
  def draw(step):
    return searched.mix(alphas, step, jax.random.fold_in(jax.random.key(1), step), WEIGHTS)['cell'].operations

  found = np.asarray(jax.lax.map(draw, jnp.arange(number)))
  assert set(np.unique(found)) == {0, 1}
  assert (found.sum(axis=2) == 1).all()
  chances = softmax(ALPHA)
  # Five standard errors of a frequency.
  assert (np.abs(found.mean(axis=0) - chances) < 5 * np.sqrt(chances * (1 - chances) / number)).all()
  # Edges are independent of each other.
  together = np.mean(found[:, 0, 3] * found[:, 1, 3])
  assert abs(together - chances[0, 3] * chances[1, 3]) < 5 * np.sqrt(0.25 / number)


@pytest.mark.parametrize('tau', [10.0, 1.0, 0.1])
@pytest.mark.usefixtures('x64')
def test_the_gradient_of_alphas_is_that_of_the_softmax_with_noise(tau):
  """Of a loss Σ c_o w_o on every edge; s (c − Σ s c) / τ, with s for the softmax."""
  noise, costs = RNG.gumbel(size=(6, 5)), RNG.normal(size=(6, 5))

  def loss(alpha):
    return jnp.sum(costs * Gdas().choose(alpha + noise, SPEC, SPEC, tau).operations)

  value, found = jax.value_and_grad(loss)(jnp.asarray(ALPHA))
  soft = softmax((ALPHA + noise) / tau)
  expected = soft * (costs - (soft * costs).sum(axis=1, keepdims=True)) / tau
  np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)
  np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-12)
  assert value == pytest.approx(costs[np.arange(6), (ALPHA + noise).argmax(axis=1)].sum())


@pytest.mark.parametrize(
  ('mode', 'computed', 'constant'), [('none', 6, None), ('exact', None, None), ('released', 6, 1)]
)
def test_what_is_not_chosen_is_not_trained(mode, computed, constant):
  mixing = Gdas(inactive_gradient=mode).choose(jnp.asarray(ALPHA), SPEC, SPEC, 1.0)
  assert mixing.active.sum() == 6
  np.testing.assert_array_equal(mixing.active, mixing.operations)
  assert (mixing.computed if computed is None else mixing.computed.sum()) == computed
  assert mixing.constant == constant


def test_the_temperature_falls_by_the_same_amount_from_epoch_to_epoch():
  ends = (3, 6, 9, 12)
  found = [float(Gdas(tau=(10.0, 1.0)).temperature_at(Time(step, ends))) for step in range(13)]
  np.testing.assert_allclose(found, [10] * 3 + [7] * 3 + [4] * 3 + [1] * 4, rtol=1e-6)
  assert float(Gdas().temperature_at(Time(0, (5,)))) == 10


def test_every_purpose_and_step_has_a_draw_of_its_own_and_evaluations_none():
  searched = Searched.start(Gdas(), DartsSpace(), (100,))
  alphas = searched.init(jax.random.key(0))

  @jax.jit
  def mix(seed, step, purpose):
    key = jax.random.fold_in(jax.random.key(seed), step)
    return {name: each.active for name, each in searched.mix(alphas, step, key, purpose).items()}

  draws = [(0, 3, WEIGHTS), (0, 3, ALPHAS), (0, 4, WEIGHTS), (1, 3, WEIGHTS)]
  found = [jax.device_get(mix(*each)) for each in draws]
  again = jax.device_get(mix(*draws[0]))
  for name, spec in searched.cells.items():
    np.testing.assert_array_equal(again[name], found[0][name])
    for other in found[1:]:
      assert (other[name] != found[0][name]).any(axis=1).sum() > spec.num_edges / 2
    most_likely = np.asarray(alphas[name]).argmax(axis=1)
    np.testing.assert_array_equal(mix(2, 5, EVALUATE)[name].argmax(axis=1), most_likely)
  assert (found[0]['normal'] != found[0]['reduce']).any()


def test_the_architecture_is_that_of_the_largest_alphas_as_the_space_has_it():
  alphas = {'cell': np.array(ALPHA, np.float32)}
  alphas['cell'][2, 0] = 9
  found = Gdas().read(alphas, SPACE, None)
  assert [SPACE.cells['cell'].operations.index(each) for each in SPACE.operations(found)] == list(
    alphas['cell'].argmax(axis=1)
  )
  space = DartsSpace(1)
  weak = {name: np.zeros((2, 8), np.float32) for name in space.cells}
  weak['normal'][:, 0], weak['normal'][1, 5], weak['normal'][0, 3] = 9, 2, 1
  assert Gdas().read(weak, space, None).cell('normal').pairs == (('sep_conv_5x5', 1), ('skip_connect', 0))
  # It would be another one if α moved as far again.
  doubts = Gdas().doubts(weak, weak, space)
  assert (doubts.kept, doubts.operations) == (4, 2)
  # An edge is as strong as its operation is likely, e³/(e⁹ + …) and e²/(1 + …), however large its α is.
  weak['normal'][0, 3], weak['normal'][1, 0] = 3, 0
  assert Gdas().read(weak, space, None).cell('normal').pairs == (('sep_conv_5x5', 1), ('skip_connect', 0))


def test_weights_cannot_be_added_to_the_states_of_a_recurrent_cell():
  with pytest.raises(ValueError, match="^config.strategy.inactive_gradient: 'released' is not allowed; on text it is"):
    Gdas(inactive_gradient='released').check(Recurrent())
  Gdas().check(Recurrent())


def test_reports_show_the_probabilities_of_draws(tmp_path):
  space = DartsSpace(1, ('none', 'skip_connect', 'sep_conv_3x3'))
  searched = Searched.start(Gdas(tau=(10.0, 1.0), init_scale=1.0), space, (4, 8))
  key = jax.random.key(0)
  alphas = jax.device_get(searched.init(key))
  history = AlphaHistory(tmp_path, searched, None)
  for step in (0, 4, 8):
    history.append(step, step // 4, alphas, key, searched, {})
  run = workdir.read(tmp_path)
  for name, values in alphas.items():
    expected = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(run.history.mixing[name][0], expected, rtol=1e-6)
  np.testing.assert_allclose(run.history.temperatures, [10, 1, 1])
  shown = page.render(run)
  assert 'Every step draws one operation an edge.' in shown
  assert 'aria-label="Temperature of the softmax over time."' in shown
