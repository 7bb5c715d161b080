"""The compiled parts of a search, on the tiniest supernet with a parallel and a strided edge of every kind."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.flatten_util import ravel_pytree

from darts_jax.data.images import Images, split
from darts_jax.runtime.compilation import CompilationCounter, compiler_options, count_compilations
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import Search, Searcher
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.searched import Searched
from darts_jax.search.step import search_step
from darts_jax.settings import build
from darts_jax.tasks.base import Halves
from darts_jax.tasks.images import ImageLoss

EPOCHS, BATCH = 4, 128
SEARCH = build(
  Search,
  {
    'epochs': EPOCHS,
    'batch_size': BATCH,
    'log_every': 2,
    'data': {'name': 'digits'},
    'augment': {'crop_padding': 1, 'flip': True, 'cutout': 2},
    'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'max_pool_3x3', 'sep_conv_3x3')},
    'network': {'channels': 4, 'layers': 3},
    # Decay and clipping are strong enough for their absence to be seen.
    'weights': {'learning_rate': 0.01, 'final_learning_rate': 0.002, 'weight_decay': 0.01, 'clip_norm': 0.42},
    'alphas': {'learning_rate': 0.003, 'weight_decay': 0.05},
    'strategy': {'init_scale': 0.05},
    'hypergradient': {'name': 'finite_difference', 'radius': 0.02},
  },
)


class Lab(NamedTuple):
  searcher: Searcher
  data: Halves

  def init(self) -> Any:
    # From some keys, such as 0 and 1, rounding decides on which side of a kink of ReLU or pooling a pixel lies: in
    # float64, too, the gradient jumps by 0.8 % when the weights move by a millionth of themselves.
    return self.searcher.init(jax.random.key(4))


def make_lab(settings: Search, images: Images, num_devices: int) -> Lab:
  mesh = make_mesh(num_devices)
  searcher = Searcher.open(settings, images, mesh)
  return Lab(searcher, searcher.place([settings.task.halves(images, settings, settings.seed)]))


@pytest.fixture(scope='module')
def lab(digits) -> Lab:
  return make_lab(SEARCH, digits, 1)


@pytest.fixture(scope='module')
def wide_lab(digits) -> Lab:
  return make_lab(SEARCH, digits, 8)


class Trajectory(NamedTuple):
  """States before and after every step, as NumPy; what the steps reported; what each compiled."""

  states: list[Any]
  metrics: list[dict[str, float]]
  compilations: list[CompilationCounter]


def walk(lab: Lab, num_steps: int) -> Trajectory:
  trajectory = Trajectory([], [], [])
  state = lab.init()
  trajectory.states.append(jax.device_get(state))
  for _ in range(num_steps):
    with count_compilations() as counter:
      state, metrics = lab.searcher.run(state, lab.data, jnp.int32(1))
    trajectory.states.append(jax.device_get(state))
    found = jax.device_get(metrics)
    each = found.pop('each')
    trajectory.metrics.append({name: value.item() for name, value in found.items()})
    assert {name: values[0] for name, values in each.items()}.items() <= trajectory.metrics[-1].items()
    trajectory.compilations.append(counter)
  return trajectory


@pytest.fixture(scope='module')
def trajectory(lab) -> Trajectory:
  return walk(lab, 3)


@pytest.fixture(scope='module')
def wide_trajectory(wide_lab) -> Trajectory:
  return walk(wide_lab, 3)


def assert_trees_close(found, expected, rtol, atol=0.0):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_search_is_compiled_once(trajectory):
  counts = [counter.count for counter in trajectory.compilations]
  assert counts[0] >= 1
  assert counts[1:] == [0, 0]


def test_state_is_donated(lab):
  before = lab.init()
  after, _ = lab.searcher.run(before, lab.data, jnp.int32(1))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, lab.data)))


def test_many_steps_are_the_same_as_one_after_the_other(lab, trajectory):
  state, sums = lab.searcher.run(lab.init(), lab.data, jnp.int32(3))
  assert_trees_close(jax.device_get(state), trajectory.states[3], rtol=0)
  assert sums['steps'] == 3
  assert bool(sums['finite'])
  for name in ('train_loss', 'valid_accuracy', 'alphas_gradient_norm'):
    np.testing.assert_allclose(sums[name], sum(metrics[name] for metrics in trajectory.metrics), rtol=1e-6)


def test_steps_stop_after_a_loss_that_is_not_finite(lab):
  state = lab.init()
  state = state.replace(weights=jax.tree.map(lambda w: w * jnp.nan, state.weights))
  state, sums = lab.searcher.run(state, lab.data, jnp.int32(5))
  assert not sums['finite']
  assert sums['steps'] == state.step == 1


class Gradients(NamedTuple):
  """What a step is made of.

  The hypergradient before it, and what is to be reported of it; ∇w L_train, as a vector, and BN statistics at the new
  α.
  """

  alphas: dict[str, np.ndarray]
  weights: np.ndarray
  statistics: Any
  reports: dict[str, float]


def norm(*arrays: np.ndarray) -> float:
  return float(np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in arrays)))


def learning_rate(step: int, steps_per_epoch: int) -> float:
  """A cosine by epoch [DARTS §A.1]."""
  rates = SEARCH.weights
  phase = (1 + math.cos(math.pi * (step // steps_per_epoch) / EPOCHS)) / 2
  return rates.final_learning_rate + (rates.learning_rate - rates.final_learning_rate) * phase


@pytest.fixture(scope='module')
def gradients(lab, trajectory) -> list[Gradients]:
  """The gradients of the steps of the trajectory, put together from gradients of a loss written down here."""
  net, rates = lab.searcher.learner.net, SEARCH.weights
  batches = jax.jit(lab.searcher.batches)

  @jax.jit
  def differentiate(statistics, weights, alphas, batch):
    def loss(weights, alphas):
      mixing = {name: jnp.exp(a) / jnp.sum(jnp.exp(a), axis=1, keepdims=True) for name, a in alphas.items()}
      variables = {'params': weights, 'batch_stats': statistics}
      logits, updated = net.apply(variables, batch.images, mixing, train=True, mutable=['batch_stats'])
      return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(BATCH), batch.labels]), updated['batch_stats']

    return jax.grad(loss, (0, 1), has_aux=True)(weights, alphas)

  def compute(before, new_alphas):
    train, valid = batches(before, lab.data)
    w, unravel = ravel_pytree(before.weights.tree)
    momentum = optax.tree_utils.tree_get(before.weights_optimizer, 'trace')
    rate = learning_rate(int(before.step), lab.searcher.learner.steps_per_epoch)

    def at(w, alphas, batch):
      (of_weights, of_alphas), statistics = differentiate(before.statistics.tree, unravel(w), alphas, batch)
      return np.asarray(ravel_pytree(of_weights)[0]), jax.device_get(of_alphas), statistics

    # [DARTS §2.3], with the momentum and decay of the virtual step.
    g, _, _ = at(w, before.alphas, train)
    v, outer, _ = at(w - rate * (rates.momentum * momentum + g + rates.weight_decay * w), before.alphas, valid)
    epsilon = SEARCH.hypergradient.radius / norm(v)

    def product(epsilon):
      (_, plus, _), (_, minus, _) = (at(w + sign * epsilon * v, before.alphas, train) for sign in (1, -1))
      return {name: -rate * (plus[name] - minus[name]) / (2 * epsilon) for name in outer}

    whole, half = product(epsilon), product(epsilon / 2)
    estimate = {name: outer[name] + whole[name] for name in outer}
    of_weights, _, statistics = at(w, new_alphas, train)
    reports = {
      'epsilon': epsilon / rate,
      'second_order_fraction': norm(*whole.values()) / norm(*outer.values()),
      'disagreement': norm(*(whole[name] - half[name] for name in outer)) / norm(*whole.values()),
    }
    return Gradients(estimate, of_weights, statistics, reports)

  return [compute(before, after.alphas) for before, after in itertools.pairwise(trajectory.states)]


def test_alphas_move_by_adam_with_decay_in_the_gradient(trajectory, gradients):
  settings = SEARCH.alphas
  for name in trajectory.states[0].alphas:
    mean = square = 0.0
    for t, (before, after) in enumerate(itertools.pairwise(trajectory.states), start=1):
      alpha = before.alphas[name]
      g = gradients[t - 1].alphas[name] + settings.weight_decay * alpha
      mean = settings.beta1 * mean + (1 - settings.beta1) * g
      square = settings.beta2 * square + (1 - settings.beta2) * g**2
      root = np.sqrt(square / (1 - settings.beta2**t))
      step = -settings.learning_rate * mean / (1 - settings.beta1**t) / (root + 1e-8)
      np.testing.assert_allclose(after.alphas[name] - alpha, step, rtol=1e-2, atol=1e-5, err_msg=f'{name}, step {t}')
  for metrics, gradient in zip(trajectory.metrics, gradients, strict=True):
    np.testing.assert_allclose(metrics['alphas_gradient_norm'], norm(*gradient.alphas.values()), rtol=1e-3)


def test_steps_that_are_logged_check_their_hypergradient(trajectory, gradients):
  assert [metrics['checks'] for metrics in trajectory.metrics] == [0, 1, 0]
  for metrics, gradient in zip(trajectory.metrics, gradients, strict=True):
    expected = gradient.reports if metrics['checks'] else gradient.reports | {'disagreement': 0.0}
    # Differences of gradients in float32, of which a thousandth is left.
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[name], value, rtol=2e-2, err_msg=name)
  assert trajectory.metrics[1]['disagreement'] > 0.01


def test_weights_move_by_clipped_sgd_with_momentum_and_decay(trajectory, gradients, lab):
  rates = SEARCH.weights
  factors, momentum = [], 0.0
  for t, (before, after) in enumerate(itertools.pairwise(trajectory.states)):
    w = np.asarray(ravel_pytree(before.weights.tree)[0])
    g = gradients[t].weights
    factors.append(min(1, rates.clip_norm / norm(g)))
    momentum = rates.momentum * momentum + factors[-1] * g + rates.weight_decay * w
    step = -learning_rate(t, lab.searcher.learner.steps_per_epoch) * momentum
    np.testing.assert_allclose(ravel_pytree(after.weights.tree)[0] - w, step, rtol=1e-3, atol=1e-6, err_msg=f'step {t}')
    np.testing.assert_allclose(trajectory.metrics[t]['weights_gradient_norm'], norm(g), rtol=1e-4)
  # Some gradients have been clipped.
  assert min(factors) < 0.95, factors
  assert [metrics['clipped'] for metrics in trajectory.metrics] == [factor < 1 for factor in factors]


def test_running_statistics_are_those_of_the_weight_update(trajectory, gradients):
  for after, gradient in zip(trajectory.states[1:], gradients, strict=True):
    assert_trees_close(after.statistics.tree, gradient.statistics, rtol=1e-4, atol=1e-5)


def test_learning_rate_falls_from_first_to_final_by_epoch(lab):
  steps = lab.searcher.learner.steps_per_epoch
  assert steps == 719 // BATCH
  schedule = Optimizers.from_settings(SEARCH, lab.searcher.epoch_ends).learning_rate
  found = np.array([float(schedule(jnp.int32(step))) for step in range(EPOCHS * steps + 1)])
  np.testing.assert_allclose(found, [learning_rate(step, steps) for step in range(EPOCHS * steps + 1)], rtol=1e-6)
  assert (found[0], found[-1]) == pytest.approx((0.01, 0.002))
  assert set(np.flatnonzero(np.diff(found)) + 1) == {steps, 2 * steps, 3 * steps, 4 * steps}


def test_one_device_and_eight_take_the_same_steps(trajectory, wide_trajectory):
  for one, eight in zip(trajectory.states, wide_trajectory.states, strict=True):
    assert_trees_close(eight.alphas, one.alphas, rtol=0, atol=1e-5)
    assert_trees_close((eight.weights, eight.statistics), (one.weights, one.statistics), rtol=0, atol=1e-4)
  for name, alphas in trajectory.states[3].alphas.items():
    assert np.max(np.abs(alphas - trajectory.states[0].alphas[name])) > 0.005


def test_one_device_and_eight_find_the_same_genotype(lab, wide_lab):
  searched = Searched.from_settings(SEARCH)
  found = []
  for each in (lab, wide_lab):
    # From here the genotype changes, and its operations end well ahead of the next (by 0.035 in α).
    state = each.searcher.init(jax.random.key(3))
    initial = jax.device_get(state.alphas)
    state, _ = each.searcher.run(state, each.data, jnp.int32(EPOCHS * lab.searcher.learner.steps_per_epoch))
    found.append(searched.read(jax.device_get(state.alphas)))
    assert found[-1] != searched.read(initial)
  assert found[0] == found[1]


def test_all_devices_work(wide_lab):
  state, _ = wide_lab.searcher.run(wide_lab.init(), wide_lab.data, jnp.int32(1))
  for leaf in jax.tree.leaves((state, wide_lab.data)):
    assert len(leaf.sharding.device_set) == 8
    assert leaf.is_fully_replicated


@pytest.mark.parametrize('name', ['lab', 'wide_lab'])
def test_evaluation_counts_every_image_once(request, digits, trajectory, name):
  each, state = request.getfixturevalue(name), trajectory.states[3]
  found = each.searcher.evaluate(jax.device_put(state, each.data.valid.labels.sharding), each.data)
  _, chosen = split(len(digits.y_train), 0.5, SEARCH.seed)
  assert len(chosen) % BATCH  # The last batch is filled up.
  images = (digits.x_train[chosen] - np.float32(digits.mean)) / np.float32(digits.std)
  mixing = {name: np.exp(a) / np.exp(a).sum(axis=1, keepdims=True) for name, a in state.alphas.items()}
  variables = {'params': state.weights.tree, 'batch_stats': state.statistics.tree}
  logits = jax.jit(functools.partial(each.searcher.learner.net.apply, train=False))(variables, images, mixing)
  logits, labels = np.asarray(logits, np.float64), digits.y_train[chosen]
  losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
  np.testing.assert_allclose(found.loss, losses.mean(), rtol=1e-5)
  np.testing.assert_allclose(found.accuracy, (logits.argmax(axis=1) == labels).mean(), rtol=1e-6)


def make_step(settings: Search, images: Images, smooth: bool = False) -> tuple[Any, Any]:
  """A step as a function of state and batches, and these; of a network without kinks if it is smooth."""
  each = make_lab(settings, images, 1)
  state = each.searcher.init(jax.random.key(0))
  objective = each.searcher.learner.objective
  step = functools.partial(
    search_step,
    objective=ImageLoss(objective.net.clone(smooth=True)) if smooth else objective,
    searched=Searched.from_settings(settings),
    estimator=settings.hypergradient.estimator(),
    optimizers=Optimizers.from_settings(settings, [1]),
    precision=settings.precision,
  )
  return step, (state, *each.searcher.batches(state, each.data))


TINIEST = {
  'batch_size': 4,
  'space': {'nodes': 1, 'operations': ('none', 'skip_connect')},
  'network': {'channels': 2, 'layers': 3},
}


def test_step_without_jit_computes_the_same(digits):
  step, args = make_step(build(Search, TINIEST | {'hypergradient': {'name': 'first_order'}}), digits)
  assert_trees_close(jax.jit(step, compiler_options=compiler_options())(*args), step(*args), rtol=1e-4, atol=1e-6)


def test_learning_rate_is_not_computed_in_every_kernel_that_reads_it(digits):
  step, args = make_step(build(Search, TINIEST | {'hypergradient': {'name': 'exact'}}), digits)
  # The virtual step, its transpose, the step of the weights and the metrics; far fewer than the kernels of either step.
  assert 1 <= jax.jit(step).lower(*args).compile().as_text().count(' cosine(') <= 4


TINY = {
  'batch_size': 16,
  'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'sep_conv_3x3')},
  'network': {'channels': 2, 'layers': 3},
  'hypergradient': {'name': 'finite_difference'},
}


@pytest.fixture(scope='module')
def take_step(digits):
  """A function from changed settings to a step without arguments, always from the same state.

  Without kinks, which a difference along a rounded direction crosses elsewhere.
  """

  def take(**changes):
    step, args = make_step(build(Search, {**TINY, **changes}), digits, smooth=True)
    return jax.jit(lambda: step(*args), compiler_options=compiler_options())

  return take


@pytest.fixture(scope='module')
def tiny_step(take_step):
  return take_step()()


def relative_error(found, expected):
  found, expected = (np.asarray(ravel_pytree(tree)[0], np.float64) for tree in (found, expected))
  return norm(found - expected) / norm(expected)


def conditionals(jaxpr):
  """Of all conditionals in a program, however deep, the branches."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'cond':
      yield eqn.params['branches']
    for inner in jaxprs_in_params(eqn.params):
      yield from conditionals(inner)


def test_in_bfloat16_a_hypergradient_is_rounded_only_where_nothing_is_subtracted(take_step, tiny_step):
  step = take_step(precision='bfloat16')
  branches = [['bf16' in str(branch) for branch in some] for some in conditionals(step.trace().jaxpr.jaxpr)]
  assert [True, False] in branches  # A conditional has the branch of its false condition first.
  state, info = step()
  expected_state, expected = tiny_step
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {leaf.dtype for leaf in jax.tree.leaves(expected_state)}
  # Images have 8 bits, so the loss is the same to about as many and not to 16.
  assert 2**-16 < relative_error(info.metrics['train_loss'], expected.metrics['train_loss']) < 2**-5
  # A few roundings to 8 bits; with gradients subtracted that are rounded so, it is 0.033.
  assert 2**-16 < relative_error(info.hypergradient, expected.hypergradient) < 5 * 2**-8


def test_in_float32_nothing_is_rounded(take_step):
  text = str(take_step().trace().jaxpr)
  assert 'bf16' not in text
  assert 'HIGHEST' in text


def test_remat_changes_nothing_but_rounding(take_step, tiny_step):
  (state, info), (expected_state, expected) = take_step(remat=True)(), tiny_step
  assert_trees_close(info.metrics, expected.metrics, rtol=1e-4)
  assert_trees_close((state.weights, state.statistics), (expected_state.weights, expected_state.statistics), 1e-4, 1e-5)
  assert relative_error(info.hypergradient, expected.hypergradient) < 1e-2
