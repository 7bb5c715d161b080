"""Orders and timings of a step, and estimators without an outer loss, on a quadratic loss with closed forms."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from darts_jax.hypergradient import Estimator, Pass, make
from darts_jax.runtime.mesh import Shards, make_mesh
from darts_jax.runtime.packed import Packed
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.state import SearchState
from darts_jax.search.step import counted_by, search_step, watched
from darts_jax.search.timing import Timing
from darts_jax.tasks.base import Halves, Seen

RATE, ALPHAS_RATE, DECAY = 0.2, 0.1, 0.05
RNG = np.random.default_rng(0)
C, SCALE = RNG.normal(size=(5, 3)), np.array([0.5, 1.0, 1.5, 2.0, 2.5])
W, ALPHA = RNG.normal(size=5), RNG.normal(size=3)
FIELDS = {'steps': 2, 'backward_steps': 1, 'terms': 2, 'step_size': 0.3, 'iterations': 3, 'damping': 0.5}
WEIGHTS_FIRST = Timing(weights_first=True)


class Batch(NamedTuple):
  points: Any


BATCHES = Halves(*[Batch(RNG.normal(size=(8, 5)) + shift) for shift in (0, 2)])


class Bowl(NamedTuple):
  """½ Σ s (w + Cα − x)², the mean over the points x of a batch; every pass is counted, if that is wanted."""

  passes: list[int] | None = None

  def __call__(self, weights, statistics, mixing, batch, precision, updating):
    if self.passes is not None:
      jax.debug.callback(lambda: self.passes.append(1))
    residuals = weights['w'] + C @ mixing['normal'][0] - batch.points
    loss = jnp.mean(jnp.sum(SCALE * residuals**2, axis=1)) / 2
    carried = jnp.mean(batch.points[:, :1], axis=1)
    return loss, Seen(loss, {'size': jnp.sqrt(loss)}, statistics.vector + 1, jax.lax.stop_gradient(carried))


ACTIVE = np.array([[True, False, True, True, False], [False, False, True, False, True]])


class Gated(Bowl):
  """The same, of whose weights only some are active: at every other step these and those."""

  def __call__(self, weights, statistics, *args):
    loss, seen = super().__call__(weights, statistics, *args)
    active = jnp.asarray(ACTIVE)[statistics.vector[0].astype(int) % 2]
    return loss, seen._replace(active=active)


class Straight(NamedTuple):
  """Mixing weights are α."""

  def mix(self, arch, step, key, purpose):
    return arch

  def project(self, before, after):
    return after


def slope(w: np.ndarray, alpha: np.ndarray, half: str) -> tuple[np.ndarray, np.ndarray]:
  """∇w and ∇α of the loss of a half."""
  of_weights = SCALE * (w + C @ alpha - getattr(BATCHES, half).points.mean(axis=0))
  return of_weights, C.T @ of_weights


def optimizers(alphas: optax.GradientTransformation) -> Optimizers:
  step = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE))
  return Optimizers(step, step, alphas, lambda step: jnp.asarray(RATE), 100.0, DECAY)


def moved(w: np.ndarray, gradient: np.ndarray) -> np.ndarray:
  """After an update of the weights."""
  return w - RATE * (gradient + DECAY * w)


class Taken(NamedTuple):
  state: SearchState
  metrics: dict[str, Any]
  passes: int


@dataclasses.dataclass
class Steps:
  """A compiled step by an estimator; the optimiser of α is SGD, or Adam."""

  estimator: Estimator
  timing: Timing = Timing()
  adam: bool = False
  check: bool = False

  def __post_init__(self):
    self.bowl = Bowl([])
    transformation = optax.adam(ALPHAS_RATE) if self.adam else optax.sgd(ALPHAS_RATE)
    self.optimizers = optimizers(transformation)
    self.compiled = jax.jit(self.step)

  def step(self, state: SearchState, train: Batch, valid: Batch, **changes: Any) -> Any:
    options = {'objective': self.bowl, 'check': self.check, 'timing': self.timing, **changes}
    estimator, optimizers = self.estimator, self.optimizers
    return search_step(state, train, valid, searched=Straight(), estimator=estimator, optimizers=optimizers, **options)

  def start(self) -> SearchState:
    weights, statistics = Packed.pack({'w': jnp.asarray(W)}), Packed.pack({'mean': jnp.zeros(1)})
    alphas = {'normal': jnp.asarray(ALPHA)[None]}
    momenta = self.optimizers.weights.init(weights.vector), self.optimizers.alphas.init(alphas)
    carried = Halves(*[jnp.full(8, value, float) for value in (-1.0, -2.0)])
    return SearchState(jnp.int32(0), jax.random.key(0), weights, statistics, alphas, *momenta, carried)

  def take(self, state: SearchState) -> Taken:
    self.bowl.passes.clear()
    after, info = self.compiled(state, *BATCHES)
    jax.effects_barrier()
    return Taken(after, jax.device_get(info.metrics), len(self.bowl.passes))


def values(state: SearchState) -> tuple[np.ndarray, np.ndarray]:
  return np.asarray(state.weights.vector), np.asarray(state.alphas['normal'][0])


def assert_same(found: Any, expected: Any) -> None:
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


@pytest.mark.parametrize('timing', [Timing(), WEIGHTS_FIRST])
@pytest.mark.usefixtures('x64')
def test_joint_moves_weights_and_alphas_by_one_pass_over_one_batch(timing):
  """Both at the same time, whatever the order is where one follows the other."""
  steps = Steps(make('joint', {}), timing)
  state, w, alpha = steps.start(), W, ALPHA
  for number in range(3):
    of_weights, of_alphas = slope(w, alpha, 'train')
    info = steps.compiled(state, *BATCHES)[1]
    np.testing.assert_allclose(info.hypergradient['normal'][0], of_alphas, rtol=1e-12)
    state, found, passes = steps.take(state)
    w, alpha = moved(w, of_weights), alpha - ALPHAS_RATE * of_alphas
    np.testing.assert_allclose(values(state)[0], w, rtol=1e-12)
    np.testing.assert_allclose(values(state)[1], alpha, rtol=1e-12)
    assert (passes, int(state.step), state.statistics.vector[0]) == (1, number + 1, number + 1)
    np.testing.assert_allclose(found['alphas_gradient_norm'], np.linalg.norm(of_alphas), rtol=1e-12)
    np.testing.assert_allclose(found['weights_gradient_norm'], np.linalg.norm(of_weights), rtol=1e-12)
    # There is no other loss to say anything of.
    assert set(found) == {
      'train_loss', 'train_size', 'alphas_gradient_norm', 'weights_gradient_norm', 'clipped', 'learning_rate'
    }  # fmt: skip
    np.testing.assert_array_equal(state.carried.train, BATCHES.train.points[:, 0])
    np.testing.assert_array_equal(state.carried.valid, np.full(8, -2.0))


@pytest.mark.parametrize('timing', [Timing(), WEIGHTS_FIRST, Timing(every=2)])
@pytest.mark.usefixtures('x64')
def test_without_an_estimator_alphas_stay(timing):
  steps = Steps(make('none', {}), timing, adam=True)
  start = steps.start()
  state, found, passes = steps.take(start)
  np.testing.assert_allclose(values(state)[0], moved(W, slope(W, ALPHA, 'train')[0]), rtol=1e-12)
  assert_same((state.alphas, state.alphas_optimizer), (start.alphas, start.alphas_optimizer))
  assert passes == 1
  assert set(found) == {'train_loss', 'train_size', 'weights_gradient_norm', 'clipped', 'learning_rate'}
  np.testing.assert_array_equal(state.carried.valid, start.carried.valid)


def exact(w: np.ndarray) -> np.ndarray:
  """The hypergradient through one step of SGD; B = Cᵀ diag(s)."""
  ahead = moved(w, slope(w, ALPHA, 'train')[0])
  v, direct = slope(ahead, ALPHA, 'valid')
  return direct - RATE * C.T @ (SCALE * v)


def unrolled(w: np.ndarray) -> np.ndarray:
  """Through two; a step multiplies the weights by 1 − ξ(s + λ)."""
  ahead = w
  for _ in range(2):
    ahead = moved(ahead, slope(ahead, ALPHA, 'train')[0])
  v, direct = slope(ahead, ALPHA, 'valid')
  return direct - RATE * C.T @ (SCALE * (v + (1 - RATE * (SCALE + DECAY)) * v))


@pytest.mark.parametrize('weights_first', [False, True])
@pytest.mark.parametrize(
  ('name', 'expected', 'passes'),
  [
    ('first_order', lambda w: slope(w, ALPHA, 'valid')[1], 1),
    ('exact', exact, 3),
    ('finite_difference', exact, 4),
    ('unrolled', unrolled, 5),
  ],
)
@pytest.mark.usefixtures('x64')
def test_whoever_moves_second_moves_at_what_the_first_has_become(name, expected, passes, weights_first):
  steps = Steps(make(name, FIELDS), Timing(weights_first=weights_first), check=True)
  state, found, made = steps.take(steps.start())
  if weights_first:
    w = moved(W, slope(W, ALPHA, 'train')[0])
    alpha = ALPHA - ALPHAS_RATE * expected(w)
    losses = (W, ALPHA), (w, ALPHA)
  else:
    alpha = ALPHA - ALPHAS_RATE * expected(W)
    w = moved(W, slope(W, alpha, 'train')[0])
    losses = (W, alpha), (W, ALPHA)
  # A finite difference of a quadratic loss is exact but for rounding, divided by the radius.
  np.testing.assert_allclose(values(state)[0], w, rtol=1e-9)
  np.testing.assert_allclose(values(state)[1], alpha, rtol=1e-9)
  checks = 2 if name == 'finite_difference' else 0
  assert (made, int(state.step), state.statistics.vector[0]) == (passes + 1 + checks, 1, 1)
  residuals = losses[0][0] + C @ losses[0][1] - BATCHES.train.points
  np.testing.assert_allclose(found['train_loss'], np.mean(np.sum(SCALE * residuals**2, axis=1)) / 2, rtol=1e-9)
  if name == 'first_order':
    residuals = losses[1][0] + C @ losses[1][1] - BATCHES.valid.points
    np.testing.assert_allclose(found['valid_loss'], np.mean(np.sum(SCALE * residuals**2, axis=1)) / 2, rtol=1e-9)
  if checks:
    assert found['checks'] == 1
    assert found['disagreement'] < 1e-9


@pytest.mark.parametrize(
  ('name', 'weights_first'),
  [
    ('first_order', False),
    ('first_order', True),
    ('finite_difference', False),
    ('finite_difference', True),
    ('joint', False),
  ],
)
@pytest.mark.usefixtures('x64')
def test_alphas_move_at_every_other_step_from_one_on(name, weights_first):
  timing = Timing(weights_first, 2, 2)
  steps = Steps(make(name, FIELDS), timing, adam=True, check=True)
  always = Steps(make(name, FIELDS), dataclasses.replace(timing, every=1, start=0), adam=True, check=True)
  state = steps.start()
  for number in range(6):
    before, alone = state, always.take(state)
    state, found, passes = steps.take(before)
    assert (int(state.step), found['alphas_updates']) == (number + 1, number in (3, 5))
    if found['alphas_updates']:
      # As if they always did.
      assert_same(state.replace(key=None), alone.state.replace(key=None))
      assert {key: value for key, value in found.items() if key != 'alphas_updates'} == alone.metrics
      assert passes == alone.passes
      continue
    assert_same((state.alphas, state.alphas_optimizer), (before.alphas, before.alphas_optimizer))
    assert_same(state.carried.valid, before.carried.valid)
    w, alpha = values(before)
    np.testing.assert_allclose(values(state)[0], moved(w, slope(w, alpha, 'train')[0]), rtol=1e-12)
    # What is not computed costs nothing, and counts as nothing in a mean.
    assert passes == 1
    assert {key for key, value in found.items() if counted_by(key) != 'steps' and value} == set()
    assert set(watched(steps.estimator)) <= set(found)
  assert timing.updates(jnp.int32(6)) == 2


@pytest.mark.parametrize('timing', [Timing(), Timing(True, 2)])
@pytest.mark.usefixtures('x64')
def test_no_number_of_steps_makes_another_program(timing):
  steps = Steps(make('finite_difference', FIELDS), timing)
  chex.clear_trace_counter()
  take = jax.jit(chex.assert_max_traces(steps.step, n=1))
  state = steps.start()
  for number in range(3):
    state, _ = take(state, *BATCHES)
    assert state.step == number + 1


def test_times_at_which_alphas_move():
  for every in (1, 2, 3, 5):
    for start in (0, 1, 4, 7):
      timing = Timing(every=every, start=start)
      steps = np.arange(40)
      moves = [step >= start and (step + 1) % every == 0 for step in steps]
      np.testing.assert_array_equal(timing.moves(steps), moves)
      np.testing.assert_array_equal(timing.updates(steps), [sum(moves[:step]) for step in steps])
      for interval in (1, 4, 6):
        # Of the steps up to the next line of a log, the last at which α move.
        chosen = np.logical_and(moves, timing.is_last(steps, interval))
        lines = [range(first, first + interval) for first in range(0, 36, interval)]
        expected = {max((step for step in line if moves[step]), default=None) for line in lines} - {None}
        assert set(np.flatnonzero(chosen[:36])) == expected


@pytest.mark.parametrize(
  ('name', 'timing'), [('exact', Timing(True, 2)), ('joint', Timing(every=2)), ('none', Timing())]
)
@pytest.mark.usefixtures('x64')
def test_eight_devices_take_the_steps_of_one(name, timing):
  steps = Steps(make(name, FIELDS), timing, adam=True)
  one = two = steps.start()
  axes = SearchState(*[PartitionSpec()] * 7, carried=PartitionSpec('data'))
  wide = jax.jit(
    jax.shard_map(
      functools.partial(steps.step, shards=Shards(8)),
      mesh=make_mesh(8),
      in_specs=(axes, PartitionSpec('data'), PartitionSpec('data')),
      out_specs=(axes, PartitionSpec()),
      check_vma=False,
    )
  )
  for _ in range(2):
    one, (two, _) = steps.take(one).state, wide(two, *BATCHES)
  for a, b in zip(jax.tree.leaves(one.replace(key=None)), jax.tree.leaves(two.replace(key=None)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize('name', ['first_order', 'finite_difference', 'exact', 'joint', 'none'])
@pytest.mark.parametrize('timing', [WEIGHTS_FIRST, Timing(every=2), Timing(True, 2)])
@pytest.mark.usefixtures('x64')
def test_steps_for_a_gpu_are_those_for_the_cpu(name, timing):
  steps = Steps(make(name, FIELDS), timing, check=True)
  step = functools.partial(steps.step, objective=Bowl())

  def call(key, state, *batches):
    state, info = step(state.replace(key=jax.random.wrap_key_data(key)), *batches)
    return jax.tree.leaves(state.replace(key=None)), info.metrics

  state = steps.start()
  arguments = jax.random.key_data(state.key), state.replace(key=None), *BATCHES
  checks = [jax.export.DisabledSafetyCheck.platform()]
  found, expected = (
    jax.export.export(jax.jit(call), platforms=[platform], disabled_checks=checks)(*arguments).call(*arguments)
    for platform in ('cuda', 'cpu')
  )
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, expected)


@pytest.mark.parametrize('name', ['joint', 'first_order', 'finite_difference'])
@pytest.mark.usefixtures('x64')
def test_weights_that_are_not_active_stay_and_so_does_their_momentum(name):
  steps = Steps(make(name, FIELDS))
  momentum = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=0.9))
  steps.optimizers = dataclasses.replace(steps.optimizers, weights=momentum, inner=momentum)
  step = jax.jit(functools.partial(steps.step, objective=Gated()))
  state, w, trace = steps.start(), W, np.zeros(5)
  for number in range(4):
    before = values(state)
    state, _ = step(state, *BATCHES)
    alpha = before[1] if name == 'joint' else values(state)[1]
    active = ACTIVE[number % 2]
    trace = np.where(active, 0.9 * trace + slope(w, alpha, 'train')[0] + DECAY * w, trace)
    w = np.where(active, w - RATE * trace, w)
    np.testing.assert_allclose(values(state)[0], w, rtol=1e-12)
    found = optax.tree_utils.tree_get(state.weights_optimizer, 'trace')
    np.testing.assert_allclose(found, trace, rtol=1e-12)
    np.testing.assert_array_equal(values(state)[0][~active], before[0][~active])


def test_batches_of_other_shapes_are_named():
  steps = Steps(make('first_order', {}))
  with pytest.raises(AssertionError, match='the batches of both halves are to have the same structure, shapes and dt'):
    steps.step(steps.start(), BATCHES.train, Batch(BATCHES.valid.points[:4]))


@pytest.mark.usefixtures('x64')
def test_a_pass_that_changes_what_is_carried_on_is_named():
  def forget(problem, memory, gradients):
    return memory._replace(estimate=jax.tree.map(lambda a: a[:, :1], gradients.alphas))

  steps = Steps(Estimator('forgetful', (Pass('valid', forget),)))
  with pytest.raises(AssertionError, match='what follows from a pass changes the structure, a shape or a dtype'):
    steps.step(steps.start(), *BATCHES)
