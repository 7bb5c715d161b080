"""Runs estimators of the hypergradient pass by pass, on one frozen state of a supernet.

For every network and precision two programs are compiled: the gradients of a batch's loss, and their derivative along a
direction. All estimators run on these two programs. Differences between them are therefore not due to compilation, and
many estimators cost no more to compile than one.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.hypergradient import Estimator, Gradients, Memory, Pass, Problem, derivative
from darts_jax.hypergradient.program import gated, gradient_pass
from darts_jax.nets.bilinear import weights_gradient_if
from darts_jax.nets.conv import Supernet
from darts_jax.runtime.compilation import compile_with_report, compiler_options
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.searched import Searched
from darts_jax.search.state import SearchState
from darts_jax.search.step import BatchLoss
from darts_jax.tasks.base import Halves
from darts_jax.tasks.images import ImageBatch, ImageLoss

Array = jax.Array
PyTree = Any
#: A gradient in the α by kind of cell, in float64 on the host.
Gradient = dict[str, np.ndarray]


class Frozen(NamedTuple):
  """Input of all estimators, on the host.

  Attributes:
    state: state of a search with its random key as integers, see `to_host`.
    batches: a batch of each half of the data, augmented and normalised.
  """

  state: SearchState
  batches: Halves


def to_host(state: SearchState) -> SearchState:
  """Copies a state to NumPy arrays; the typed random key becomes the integers of its key data."""
  host: SearchState = jax.device_get(state.replace(key=jax.random.key_data(state.key)))
  return host


class Outcome(NamedTuple):
  """Estimate and cost of an estimator.

  Attributes:
    estimate: the hypergradient.
    term: its second-order term, `estimate − outer`.
    outer: its direct part ∇α L_val.
    memory: the estimator's memory after the last pass, on the host.
    seconds: time in the passes, the median of the timed calls; NaN if none was timed. The vector arithmetic between
      passes is not included.
    num_bytes: XLA's temporary memory in the largest pass, plus the memory carried between passes.
  """

  estimate: Gradient
  term: Gradient
  outer: Gradient
  memory: Memory
  seconds: float
  num_bytes: int


@dataclasses.dataclass
class Bench:
  """A supernet in one precision, and the programs compiled for it.

  Attributes:
    net: the supernet, or its smooth twin.
    searched: the strategy, which maps α to mixing weights.
    optimizers: the optimisers of the search; estimators make virtual steps of the inner one.
    precision: `float32`, `float64` or `bfloat16`. With `bfloat16`, the gradients that a finite difference subtracts are
      computed in float32, as in a search.
    fine: for `bfloat16`, the bench of the same network in float32.
    note: called with a message after every compilation.
    advances: compiled functions between passes, shared by all benches.
    products_of_weights: whether products include the part in the weights; one-step estimators do not need it.
  """

  net: Supernet
  searched: Searched
  optimizers: Optimizers
  precision: str
  fine: 'Bench | None' = None
  note: Callable[[str], None] = lambda message: None
  advances: dict[Any, Callable[..., Memory]] = dataclasses.field(default_factory=dict)
  products_of_weights: bool = True

  def __post_init__(self) -> None:
    self._programs: dict[Any, _Program] = {}

  @property
  def dtype(self) -> str:
    """The dtype of weights and α."""
    return 'float64' if self.precision == 'float64' else 'float32'

  def estimate(self, estimator: Estimator, frozen: Frozen, repeats: int = 0, checks: bool = False) -> Outcome:
    """Runs an estimator.

    Args:
      estimator: estimator of the hypergradient.
      frozen: state and batches.
      repeats: number of timed calls after the first call.
      checks: whether the first call also runs the estimator's checks.
    """
    with self._context():
      place = self._place(frozen)
      memory, num_bytes, _ = self._run(estimator, place, checks)
      seconds = [self._run(estimator, place, False)[2] for _ in range(repeats)]
      memory = jax.device_get(memory)
    whole, outer = ({k: np.asarray(v, np.float64) for k, v in x.items()} for x in (memory.estimate, memory.outer))
    term = {name: whole[name] - outer[name] for name in whole}
    return Outcome(whole, term, outer, memory, statistics.median(seconds) if seconds else float('nan'), num_bytes)

  def differences(self, frozen: Frozen, outcome: Outcome, radii: Iterable[float]) -> Iterator[Gradient]:
    """Yields, for each radius, the central difference of ∇α L_train along the direction u that an estimator found."""
    with self._context():
      place = self._place(frozen)
      direction = jnp.asarray(outcome.memory.direction, self.dtype)
      norm = float(np.linalg.norm(np.asarray(direction, np.float64)))
      bench = self.fine or self
      for radius in radii:
        epsilon = radius / norm
        plus, minus = (
          jax.device_get(bench._gradient(place, 'train', place.weights + scale * direction, False)[1].alphas)
          for scale in (epsilon, -epsilon)
        )
        yield {name: (np.asarray(plus[name], np.float64) - minus[name]) / (2 * epsilon) for name in plus}

  def gradients(self, frozen: Frozen, half: str = 'train') -> tuple[float, Gradients]:
    """The loss of a batch and its gradients, on the host."""
    with self._context():
      place = self._place(frozen)
      loss, found = self._gradient(place, half, place.weights, True)
      return float(loss), jax.device_get(found)

  def time_gradient(self, frozen: Frozen, repeats: int) -> tuple[float, int]:
    """Median seconds of a gradient over `repeats` calls, and XLA's temporary memory in bytes."""
    with self._context():
      place = self._place(frozen)
      seconds = []
      for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(self._gradient(place, 'train', place.weights, True))
        seconds.append(time.perf_counter() - start)
      return statistics.median(seconds[1:]), self._program('gradient', place, 'train').temporary_bytes

  def _gradient(self, place: '_Place', half: str, weights: Array, weights_wanted: bool) -> tuple[Array, Gradients]:
    """The loss of a batch and its gradients at other weights."""
    found: tuple[Array, Gradients] = self._program('gradient', place, half)(
      *place.arguments(half, weights, weights, weights_wanted)
    )
    return found

  def _run(self, estimator: Estimator, place: '_Place', checks: bool) -> tuple[Memory, int, float]:
    memory = estimator.start(_problem(place.state, self.optimizers))
    temporary, seconds = 0, 0.0
    for each in (*estimator.passes, *(estimator.checks if checks else ())):
      bench = self.fine if each.precise and self.fine else self
      program = bench._program(each.derivative, place, each.loss)
      arguments = jax.block_until_ready(place.arguments(each.loss, memory.at, memory.direction, each.weights))
      start = time.perf_counter()
      _, gradients = jax.block_until_ready(program(*arguments))
      seconds += time.perf_counter() - start
      memory = self._follow(each)(place.state, memory, gradients)
      temporary = max(temporary, program.temporary_bytes)
    return memory, temporary + sum(leaf.nbytes for leaf in jax.tree.leaves(memory)), seconds

  def _follow(self, each: Pass) -> Callable[..., Memory]:
    key = each.advance, each.loss
    if key not in self.advances:

      def call(now: SearchState, memory: Memory, gradients: Gradients) -> Memory:
        return each.follow(_problem(now, self.optimizers), memory, gradients)

      self.advances[key] = jax.jit(call)
    return self.advances[key]

  def _program(self, what: Any, place: '_Place', half: str) -> '_Program':
    """The compiled program `_Place.arguments → (loss, Gradients)` of a derivative, for the shape of a half's batch."""
    arguments = place.arguments(half, place.weights, place.weights, True)
    batch = place.batches[half]
    key = what, batch.images.shape
    if key not in self._programs:

      def program(
        now: SearchState, batch: ImageBatch, weights: Array, direction: Array, wanted: Array
      ) -> tuple[Array, Gradients]:
        batch_loss = BatchLoss.at(now, ImageLoss(self.net), self.searched, self._compute_precision)
        loss, updating = gated(batch_loss, weights_gradient_if), jnp.array(False)
        if what == 'gradient':
          found = gradient_pass(loss, weights, now.alphas, batch, updating, wanted)
          return found.seen.loss, found.gradients

        def value(weights: Array, alphas: PyTree) -> Array:
          return loss(weights, alphas, batch, updating, wanted)[0]

        product = derivative(what, value, weights, now.alphas, direction, self.products_of_weights)
        return jnp.zeros((), weights.dtype), product

      jitted = jax.jit(program, compiler_options=compiler_options())
      report = compile_with_report(jitted, *arguments)
      twin = ' of the smooth twin' if self.net.smooth else ''
      how = 'loaded' if report.cached else 'compiled'
      name = {'gradient': 'gradient', 'product': 'product', 'reverse_product': 'reverse product'}[what]
      self.note(f'{name}{twin}, {self.precision}, {len(batch.labels)} images: {how} in {report.seconds:.1f} s')
      memory = report.compiled.memory_analysis()
      self._programs[key] = _Program(report.compiled, memory.temp_size_in_bytes if memory else 0)
    return self._programs[key]

  @property
  def _compute_precision(self) -> str:
    return 'bfloat16' if self.precision == 'bfloat16' else 'float32'

  @contextmanager
  def _context(self) -> Iterator[None]:
    with jax.enable_x64(self.precision == 'float64'):
      yield

  def _place(self, frozen: Frozen) -> '_Place':
    """Puts state and batches on the device, in the dtype of this bench."""

    def cast(tree: PyTree) -> PyTree:
      return jax.tree.map(lambda x: jnp.asarray(x, self.dtype if np.issubdtype(x.dtype, np.floating) else None), tree)

    key = jax.random.wrap_key_data(jnp.asarray(frozen.state.key))
    return _Place(
      cast(frozen.state.replace(key=None)).replace(key=key),
      {half: cast(batch) for half, batch in frozen.batches._asdict().items()},
    )


@dataclasses.dataclass(frozen=True)
class _Program:
  """A compiled program and XLA's temporary memory in it, which is slow to query."""

  compiled: jax.stages.Compiled
  temporary_bytes: int

  def __call__(self, *args: Any) -> Any:
    return self.compiled(*args)


@dataclasses.dataclass(frozen=True)
class _Place:
  """A frozen state on the device."""

  state: SearchState
  batches: dict[str, ImageBatch]

  @property
  def weights(self) -> Array:
    return self.state.weights.vector

  def arguments(self, half: str, weights: Array, direction: Array, weights_wanted: bool) -> tuple[Any, ...]:
    """Arguments of a program: state, batch, point, direction, and whether the gradient in the weights is wanted."""
    return self.state, self.batches[half], weights, direction, jnp.array(weights_wanted)


def _problem(state: SearchState, optimizers: Optimizers) -> Problem:
  return Problem(optimizers.inner_optimizer(state.weights_optimizer), state.weights.vector, state.alphas)


def compare(found: Gradient, reference: Gradient) -> dict[str, float | None]:
  """Compares a gradient in α with a reference.

  Returns:
    `error`: ‖found − reference‖ / ‖reference‖. `cosine`: the cosine of both. `sign`: the share of entries with the
    reference's sign. `rank`: the mean over edges of Kendall's τ between the orders of an edge's operations by both
    gradients. None where a norm is zero.
  """
  names = sorted(reference)
  a, b = (np.concatenate([x[name].ravel() for name in names]) for x in (found, reference))
  norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
  if not norms[1]:
    return dict.fromkeys(('error', 'cosine', 'sign', 'rank'))
  error = float(np.linalg.norm(a - b)) / norms[1]
  if not norms[0]:
    return {'error': error, 'cosine': None, 'sign': None, 'rank': None}
  # A vector, such as the β of PC-DARTS, is one row.
  rows = [[np.atleast_2d(each[name]) for each in (found, reference)] for name in names]
  ranks = [_kendall(*pair) for both in rows for pair in zip(*both, strict=True)]
  return {
    'error': error,
    'cosine': float(a @ b) / (norms[0] * norms[1]),
    'sign': float(np.mean(np.sign(a) == np.sign(b))),
    'rank': float(np.mean(ranks)) if any(both[0].shape[1] > 1 for both in rows) else None,
  }


def _kendall(x: np.ndarray, y: np.ndarray) -> float:
  """Kendall's τ: the share of pairs that are in the same order less the share of those that are not."""
  first, second = np.triu_indices(len(x), 1)
  return float(np.mean(np.sign(x[first] - x[second]) * np.sign(y[first] - y[second]))) if len(first) else 0.0
