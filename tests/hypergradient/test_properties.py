"""What holds for every estimator."""

import dataclasses
import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import darts_jax.hypergradient
from darts_jax.hypergradient import (
  BILEVEL,
  ESTIMATORS,
  Cost,
  Estimator,
  Gradients,
  Problem,
  amended,
  conjugate_gradient,
  exact,
  exact_reverse,
  fields_of,
  finite_difference,
  first_order,
  from_optax,
  global_norm,
  hypergradient,
  make,
  neumann,
  sgd,
  truncated,
  unrolled,
)
from darts_jax.runtime.compilation import count_compilations
from darts_jax.runtime.mesh import batch_sharding, make_mesh, replicated

RATE = 0.2
LEFT = 1 - 2 * RATE


class Case(NamedTuple):
  """An estimator, the gradients and products that it says it costs, and its pw + qα − 2 for the toy problem.

  There T steps at rate ξ end at w_T = α + (1 − 2ξ)^T (w − α), and J = 1 − (1 − 2ξ)^K; B = −2, H = 2, and v = α.
  """

  estimator: Estimator
  gradients: int
  products: int
  slopes: tuple[float, float]


CASES = {
  'first_order': Case(first_order(), 1, 0, (1, 0)),
  'finite_difference': Case(finite_difference(), 4, 0, (LEFT, 4 * RATE)),
  'one_sided': Case(finite_difference(one_sided=True), 3, 0, (LEFT, 4 * RATE)),
  'exact': Case(exact(), 2, 1, (LEFT, 4 * RATE)),
  'exact_reverse': Case(exact_reverse(), 2, 1, (LEFT, 4 * RATE)),
  'unrolled': Case(unrolled(3), 4, 3, (LEFT**3, 2 - 2 * LEFT**3)),
  'truncated': Case(truncated(4, 2), 5, 2, (LEFT**4, 2 - LEFT**4 - LEFT**2)),
  'neumann': Case(neumann(3, RATE), 1, 4, (1, 1 - LEFT**4)),
  'conjugate_gradient': Case(conjugate_gradient(6, 0.7), 1, 7, (1, 2 / 2.7)),
  'amended': Case(amended(0.3), 1, 2, (1, 4 * 0.3)),
}

any_case = pytest.mark.parametrize('case', list(CASES.values()), ids=list(CASES))
any_estimator = pytest.mark.parametrize('estimator', [case.estimator for case in CASES.values()], ids=list(CASES))


def test_all_estimators_are_here():
  assert list(BILEVEL) == list(dict.fromkeys(case.estimator.name for case in CASES.values()))


def test_estimators_are_made_from_the_fields_that_they_have():
  fields = {'steps': 3, 'backward_steps': 2, 'radius': 0.5, 'one_sided': True, 'damping': 0.1, 'unknown': None}
  made = {name: make(name, fields) for name in ESTIMATORS}
  assert {name: estimator.name for name, estimator in made.items()} == {name: name for name in ESTIMATORS}
  passes = {name: len(estimator.passes) for name, estimator in made.items()}
  assert passes['finite_difference'] == 3
  assert passes['unrolled'] == 3 + 1 + 3
  assert passes['truncated'] == 3 + 1 + 2
  assert fields_of('first_order') == ()
  assert fields_of('truncated') == ('steps', 'backward_steps')
  with pytest.raises(ValueError, match=r'^steps: 0 is not allowed'):
    make('unrolled', {'steps': 0})


@any_case
@pytest.mark.usefixtures('x64')
def test_toy_problem_with_its_slopes_and_mapped(toy, case):
  """The estimate is linear in w and α; that it can be differentiated and mapped is what meta-learning asks."""
  function = hypergradient(case.estimator, toy.train, toy.valid, sgd(RATE))

  weights, alphas = jnp.array([-2.0, 1.0, 2.0, 5.0]), jnp.array([2.0, -3.0, 0.5, 4.0])
  values, slopes = jax.jit(jax.vmap(jax.value_and_grad(lambda w, a: function(w, a)[0], (0, 1))))(weights, alphas)
  np.testing.assert_allclose(values, case.slopes[0] * weights + case.slopes[1] * alphas - 2, rtol=1e-10)
  # Those of a finite difference have rounding divided by the radius, 1e-14.
  for found, slope in zip(slopes, case.slopes, strict=True):
    np.testing.assert_allclose(found, np.full(4, slope), rtol=1e-10, atol=1e-10)


@any_estimator
@pytest.mark.usefixtures('x64')
def test_jit_changes_nothing_and_compiles_once(quadratic, estimator):
  function = hypergradient(estimator, quadratic.train, quadratic.valid, sgd(RATE))
  jitted = jax.jit(function)
  weights, alphas = jax.tree.map(jnp.asarray, (quadratic.w, quadratic.alpha))
  others = 2 * weights, 2 * alphas
  now = jitted(weights, alphas)
  with count_compilations() as counter:
    jitted(*others)
  assert counter.count == 0
  with jax.disable_jit():
    one_by_one = function(weights, alphas)
  # Sums in another order; those of a finite difference are divided by its radius.
  for leaf, other in zip(jax.tree.leaves(now), jax.tree.leaves(one_by_one), strict=True):
    np.testing.assert_allclose(leaf, other, rtol=1e-10, atol=1e-10)


@any_estimator
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float64'])
@pytest.mark.parametrize('weights_too', [False, True])
@pytest.mark.usefixtures('x64')
def test_gradient_has_the_dtype_of_alpha(quadratic, estimator, dtype, weights_too):
  function = hypergradient(estimator, quadratic.train, quadratic.valid, sgd(RATE))
  alphas = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), quadratic.alphas)
  weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype if weights_too else 'float32'), quadratic.weights)
  gradient, memory = jax.eval_shape(function, weights, alphas)
  assert {leaf.dtype for leaf in jax.tree.leaves((gradient, memory.outer))} == {jnp.dtype(dtype)}
  assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, alphas)


@any_estimator
def test_memory_has_one_structure_in_all_passes(nested, estimator):
  """So that the passes can be the iterations of a `lax.scan`."""
  weights, alphas = jax.tree.map(jnp.asarray, (nested.weights, nested.alphas))
  problem = Problem(nested.optimizer('clipped').inner, weights, alphas)
  gradients = Gradients(weights, alphas)
  memory = jax.eval_shape(lambda: estimator.start(problem))
  assert jax.tree.map(jnp.shape, memory.at) == jax.tree.map(jnp.shape, weights)
  for each in (*estimator.passes, *estimator.checks):
    after = jax.eval_shape(lambda memory, each=each: each.advance(problem, memory, gradients), memory)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), memory, after))
    memory = after
  assert set(estimator.reports) <= set(memory._fields)


def test_passes_say_what_they_ask_of_a_gradient():
  """Only finite differences subtract gradients, and a last pass has no use for the part in the weights.

  But for what is left of a residual; and reverse over reverse has that part in any case.
  """
  asked = {name: [(p.derivative, p.weights, p.precise) for p in CASES[name].estimator.passes] for name in CASES}
  gradient, product = ('gradient', True, False), ('product', True, False)
  assert asked == {
    'first_order': [('gradient', False, False)],
    'finite_difference': [gradient, gradient, *[('gradient', False, True)] * 2],
    'one_sided': [('gradient', True, True), gradient, ('gradient', False, True)],
    'exact': [gradient, gradient, ('product', False, False)],
    'exact_reverse': [gradient, gradient, ('reverse_product', True, False)],
    'unrolled': [*[gradient] * 4, *[product] * 2, ('product', False, False)],
    'truncated': [*[gradient] * 5, product, ('product', False, False)],
    'neumann': [gradient, *[product] * 4],
    'conjugate_gradient': [gradient, *[product] * 7],
    'amended': [gradient, product, ('product', False, False)],
  }


@any_case
def test_cost_is_what_is_computed(toy, case):
  """A product makes one forward pass with a tangent, which counts as another."""
  count = 0

  def counted(loss):
    def counting(weights, alphas):
      def increment():
        nonlocal count
        count += 1

      jax.debug.callback(increment)
      return loss(weights, alphas)

    return counting

  jax.jit(hypergradient(case.estimator, counted(toy.train), counted(toy.valid), sgd(RATE)))(1.0, 2.0)
  jax.effects_barrier()
  assert count == case.gradients + case.products
  passes = case.gradients + 2 * case.products
  assert case.estimator.cost == Cost(passes, passes)


def test_table_says_what_the_estimators_cost():
  rows = [
    line.split('|')
    for line in inspect.cleandoc(darts_jax.hypergradient.__doc__ or '').splitlines()
    if line.startswith('| `')
  ]
  said = {row[1].strip().strip('`').split('(')[0]: row[-2].strip() for row in rows}
  assert said == {
    'first_order': '1',
    'finite_difference': '4, or 3',
    'exact': '4',
    'exact_reverse': '4',
    'unrolled': '3T + 1',
    'truncated': 'T + 2K + 1',
    'neumann': '2K + 3',
    'conjugate_gradient': '2n + 3',
    'amended': '5',
    'joint': '1',
    'none': '0',
  }
  by_size = {
    'unrolled': [(unrolled(t), 3 * t + 1) for t in (1, 2, 7)],
    'truncated': [(truncated(t, k), t + 2 * k + 1) for t, k in ((1, 1), (7, 1), (7, 3))],
    'neumann': [(neumann(k), 2 * k + 3) for k in (0, 1, 7)],
    'conjugate_gradient': [(conjugate_gradient(n), 2 * n + 3) for n in (1, 2, 7)],
  }
  for estimators in by_size.values():
    assert [estimator.cost for estimator, _ in estimators] == [Cost(passes, passes) for _, passes in estimators]


# Degenerate problems.


@any_estimator
@pytest.mark.usefixtures('x64')
def test_no_gradient_at_the_weights_after(quadratic, estimator, safely_clipped):
  """With v = 0 there is no product with second derivatives, and 0 · ∞ must not appear in its place."""

  def valid(weights, alphas):
    return 3 * jnp.sum(alphas[:2]) + 0 * weights[0]

  function = jax.jit(hypergradient(estimator, quadratic.train, valid, safely_clipped(RATE, 0.7)))
  for w in (quadratic.w, quadratic.optimum()):
    gradient, memory = function(quadratic.nest(w), quadratic.alphas)
    np.testing.assert_allclose(quadratic.flat(gradient), [3, 3, 0, 0], atol=1e-11)
    np.testing.assert_array_equal(quadratic.flat(memory.direction), 0)
    assert np.all(np.isfinite(quadratic.flat(memory)))


@pytest.mark.parametrize(
  'name', ['finite_difference', 'one_sided', 'exact', 'exact_reverse', 'unrolled', 'truncated', 'neumann']
)
@pytest.mark.usefixtures('x64')
def test_no_gradient_to_clip(quadratic, name, safely_clipped):
  """L_train = wᵀCα at α = 0: g = 0 at any w, which stays, and H = 0; every step and term is Bu = Cᵀu with u = −ξv."""
  problem = dataclasses.replace(quadratic, A=0 * quadratic.A, a=0 * quadratic.a, alpha=0 * quadratic.alpha)
  steps = {'unrolled': 3, 'truncated': 2, 'neumann': 4}.get(name, 1)
  gradient, _ = problem.estimate(CASES[name].estimator, safely_clipped(RATE, 0.7))
  expected = problem.direct(problem.w) - steps * RATE * problem.C.T @ problem.v(problem.w)
  np.testing.assert_allclose(gradient, expected, rtol=1e-10)


@pytest.mark.usefixtures('x64')
def test_global_norm_has_a_gradient_everywhere():
  tree = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array(-4.0)}
  norm, slope = jax.value_and_grad(global_norm)(tree)
  np.testing.assert_allclose(norm, 5)
  np.testing.assert_allclose(slope['a'], [0.6, 0])
  np.testing.assert_allclose(slope['b'], -0.8)
  norm, slope = jax.value_and_grad(global_norm)(jax.tree.map(jnp.zeros_like, tree))
  assert norm == 0
  np.testing.assert_array_equal(slope['a'], 0)


# The outer loss's gradient v, limited.

STEPS = {'finite_difference': 1, 'exact': 1, 'exact_reverse': 1, 'unrolled': 3, 'truncated': 4}


@any_case
@pytest.mark.usefixtures('x64')
def test_outer_gradient_is_limited_before_it_is_multiplied(quadratic, case):
  """All that is multiplied with second derivatives shrinks as v does; what is not, and the steps, stay as they are."""
  optimizer = quadratic.optimizer('momentum')
  w, momentum = quadratic.w, quadratic.buffer(optimizer)
  for _ in range(STEPS.get(case.estimator.name, 0)):
    momentum = quadratic.momentum * momentum + quadratic.g(w) + quadratic.decay * w
    w = w - quadratic.rate * momentum
  norm = np.linalg.norm(quadratic.v(w))

  def estimate(limit):
    inner = dataclasses.replace(optimizer.inner, limit=limit)
    function = hypergradient(case.estimator, quadratic.train, quadratic.valid, inner)
    gradient, memory = function(quadratic.weights, quadratic.alphas)
    return gradient, memory.outer, memory.direction

  @jax.jit
  def compute(max_norm):
    def clip(v):
      return jax.tree.map(lambda leaf: leaf * jnp.minimum(1, max_norm / global_norm(v)), v)

    return estimate(None), estimate(clip)

  (whole, outer, direction), (found, found_outer, found_direction) = compute(norm / 4)
  np.testing.assert_allclose(outer, quadratic.direct(w), rtol=1e-11)
  np.testing.assert_allclose(found_outer, outer, rtol=1e-12)
  # Finite differences of a quadratic loss are exact but for rounding divided by the radius.
  np.testing.assert_allclose(found, outer + (whole - outer) / 4, rtol=1e-9, atol=1e-11)
  np.testing.assert_allclose(found_direction, direction / 4, rtol=1e-9, atol=1e-12)
  assert np.any(whole != outer) == (case.estimator.name != 'first_order')
  # A gradient within the limit is the same as without one.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-13), *compute(1.001 * norm))


# Symmetries.

ten_examples = settings(max_examples=10, deadline=None, derandomize=True, database=None)
coefficients = st.floats(-3, 3, allow_subnormal=False)


@any_estimator
@pytest.mark.usefixtures('x64')
def test_estimate_is_linear_in_the_outer_loss(quadratic, estimator):
  """Conjugate gradients, too, where they have converged, as six of them have."""

  def another(weights, alphas):
    x, y = quadratic.flat(weights), quadratic.flat(alphas)
    return jnp.sum(jnp.sin(x)) * jnp.sum(y**2) + jnp.vdot(x, quadratic.a) ** 2

  def estimate(a, b, weights, alphas):
    def valid(weights, alphas):
      return a * quadratic.valid(weights, alphas) + b * another(weights, alphas)

    inner = quadratic.optimizer('clipped').inner
    return quadratic.flat(hypergradient(estimator, quadratic.train, valid, inner)(weights, alphas)[0])

  jitted = jax.jit(estimate)

  @ten_examples
  @given(a=coefficients, b=coefficients, scale=coefficients)
  def check(a, b, scale):
    arguments = jax.tree.map(lambda leaf: scale * leaf, quadratic.weights), quadratic.alphas
    both, first, second = (np.asarray(jitted(x, y, *arguments)) for x, y in ((a, b), (1.0, 0.0), (0.0, 1.0)))
    size = 1 + abs(a) * np.max(np.abs(first)) + abs(b) * np.max(np.abs(second))
    np.testing.assert_allclose(both, a * first + b * second, rtol=0, atol=1e-10 * size)

  check()


@any_estimator
@pytest.mark.usefixtures('x64')
def test_order_and_structure_of_the_weights_do_not_matter(nested, estimator, safely_clipped):
  """Neither do names: a weight is as good as any other, also in norms and inner products."""

  def estimate(order, weights, alphas):
    back = jnp.argsort(order)

    def loss(name):
      return lambda weights, alphas: getattr(nested, name)(nested.flat(weights)[back], alphas)

    inner = safely_clipped(RATE, 0.7)
    return nested.flat(hypergradient(estimator, loss('train'), loss('valid'), inner)(weights, alphas)[0])

  jitted = jax.jit(estimate)

  @ten_examples
  @given(order=st.permutations(range(6)), scale=coefficients)
  def check(order, scale):
    order = np.array(order)
    w, alphas = scale * nested.w, nested.alphas
    expected = jitted(np.arange(6), w, alphas)
    np.testing.assert_allclose(jitted(order, w[order], alphas), expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(jitted(order, nested.nest(w[order]), alphas), expected, rtol=1e-9, atol=1e-10)

  check()


# Devices.


@any_estimator
@pytest.mark.usefixtures('x64')
def test_devices_compute_what_one_does(estimator):
  """A batch split over eight devices, a small network with mixed activations."""
  rng = np.random.default_rng(0)
  weights = {'first': rng.normal(size=(5, 4)) / 2, 'last': rng.normal(size=(4, 3)) / 2}
  alphas = rng.normal(size=3)
  batches = [(rng.normal(size=(16, 5)), rng.integers(3, size=16)) for _ in range(2)]

  def loss(weights, alphas, batch):
    x, labels = batch
    y = x @ weights['first']
    mixing = jax.nn.softmax(alphas)
    x = mixing[0] * jnp.tanh(y) + mixing[1] * jnp.sin(y) + mixing[2] * y
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x @ weights['last']), labels[:, None], 1))

  @jax.jit
  def estimate(weights, alphas, batches):
    train, valid = (lambda w, a, batch=batch: loss(w, a, batch) for batch in batches)
    return hypergradient(estimator, train, valid, sgd(RATE))(weights, alphas)

  results = []
  for num_devices in (1, 8):
    mesh = make_mesh(num_devices)
    parameters = jax.device_put((weights, alphas), replicated(mesh))
    gradient, memory = estimate(*parameters, jax.device_put(batches, batch_sharding(mesh)))
    assert len(gradient.sharding.device_set) == num_devices
    results.append((gradient, memory.outer, memory.direction))
  for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(one, eight, rtol=1e-10, atol=1e-12)


# L_train = α Σw², L_val = s Σw + Σα: at two weights of 1 the gradient through one step is 1 − s · ξ · 2 · 2.


def squares(weights, alphas):
  return jnp.sum(weights**2) * jnp.sum(alphas)


def outer(slope):
  return lambda weights, alphas: slope * jnp.sum(weights) + jnp.sum(alphas)


@pytest.mark.parametrize('name', ['exact', 'exact_reverse', 'finite_difference', 'unrolled'])
def test_update_in_a_wider_dtype_than_the_weights(name):
  inner = sgd(jnp.float32(0.125))
  weights = jnp.ones(2, jnp.bfloat16)
  function = hypergradient(make(name, {'steps': 1}), squares, outer(1.0), inner)
  gradient, memory = function(weights, jnp.ones(1))
  assert memory.at.dtype == jnp.bfloat16
  # The finite difference moves weights by less than bfloat16 can tell at 1; the others are exact.
  np.testing.assert_allclose(gradient, 0.5, atol=0.15 if name == 'finite_difference' else 0)


@pytest.mark.parametrize('name', ['exact', 'unrolled', 'truncated'])
def test_optimizer_state_that_holds_a_key(name):
  optimizer = optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.125))
  weights = jnp.ones(2)
  inner = from_optax(optimizer, optimizer.init(weights))
  gradient, _ = hypergradient(make(name, {'steps': 1, 'backward_steps': 1}), squares, outer(1.0), inner)(
    weights, jnp.ones(1)
  )
  # The noise does not depend on α.
  np.testing.assert_allclose(gradient, 0.5, rtol=1e-6)


@pytest.mark.parametrize('one_sided', [False, True])
def test_step_of_a_finite_difference_is_not_limited_by_half_precision(one_sided):
  weights, alphas = jnp.ones(2), jnp.ones(1, jnp.float16)
  estimator = finite_difference(0.01, one_sided)
  gradient, memory = hypergradient(estimator, squares, outer(1e-8), sgd(0.1))(weights, alphas)
  assert memory.epsilon > jnp.finfo(jnp.float16).max
  np.testing.assert_allclose(gradient, 1, rtol=1e-3)
