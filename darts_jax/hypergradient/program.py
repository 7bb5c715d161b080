"""The program of an estimator: a loop over its passes that contains each kind of derivative once.

A pass computes a gradient of a loss at `Memory.at`, or the derivative of that gradient along a direction; its `follow`
function then sets up the next pass. `Program` is the body of the loop over passes. `hypergradient` runs it in a
`lax.scan`, for any two losses. A search step (`darts_jax.search.step`) runs it in a `lax.while_loop`, whose passes are
those of the estimator and of the weight update; there both losses are one function of a batch, which `Passes` traces
once. The laboratory (`darts_jax.laboratory.bench`) compiles single passes, `gradient_pass` or `derivative` of a `gated`
loss, and runs them one by one.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from darts_jax.hypergradient.base import (
  Derivative,
  Estimator,
  Gradients,
  InnerOptimizer,
  Loss,
  Memory,
  Pass,
  Problem,
)
from darts_jax.runtime.materialise import product_with_tangents
from darts_jax.runtime.platforms import GPUS

Array = jax.Array
PyTree = Any
T = TypeVar('T')


class Found(NamedTuple):
  """Result of a pass.

  Attributes:
    gradients: see `Gradients`.
    seen: auxiliary output of the loss; zeros where the pass is a product.
  """

  gradients: Gradients
  seen: PyTree


class Carry(NamedTuple):
  """Carry of the loop over passes; the structure is the same after every pass.

  Attributes:
    number: `[]` int32, number of the next pass.
    memory: the estimator's memory.
    rest: anything else that passes change, such as the state of a search.
  """

  number: Array
  memory: Memory
  rest: Any


class Line(NamedTuple):
  """One pass of a program.

  Attributes:
    each: the pass.
    follow: maps the carry and the result of the pass to the next carry, with the number of the next pass. Lines with
      the same function share a branch.
    updating: whether the weight update uses the gradient of this pass, as at one line of a search step.
  """

  each: Pass
  follow: Callable[[Carry, Found], Carry]
  updating: bool = False


class Program:
  """Passes as the iterations of a loop.

  Attributes:
    lines: the passes, at least one.
  """

  def __init__(self, lines: Sequence[Line], choose: Callable[..., Any] = lax.switch) -> None:
    """Groups lines with the same `follow` into branches.

    Args:
      lines: the passes, at least one.
      choose: `(index, branches, *arguments) → result` of the branch at that index; the branches compute little.
    """
    distinct = list(dict.fromkeys(line.follow for line in lines))
    self.lines = lines
    self._branches = [_same_structure(follow) for follow in distinct]
    self._branch_of = jnp.array([distinct.index(line.follow) for line in lines])
    self._choose = choose

  def make_pass(self, find: Callable[[Carry], Found], carry: Carry) -> Carry:
    """The body of the loop: runs one pass by `find`, then the `follow` function of its line."""
    found = find(carry)
    if len(self._branches) == 1:
      return self._branches[0](carry, found)
    after: Carry = self._choose(self._branch_of[carry.number], self._branches, carry, found)
    return after

  def run(self, find: Callable[[Carry], Found], carry: Carry, counted: bool) -> Carry:
    """Runs passes until the number of the next pass is the number of lines.

    Args:
      find: runs the next pass of a carry.
      carry: the carry before the first pass.
      counted: whether every line runs exactly once, in order. The trip count is then known to the compiler, and the
        host need not read a condition after every pass.

    Returns:
      The carry after the last pass.
    """
    body = functools.partial(self.make_pass, find)
    if len(self.lines) == 1:
      return body(carry)
    if not counted:
      last = len(self.lines) - 1
      after: Carry = lax.while_loop(lambda carry: carry.number <= last, body, carry)
      return after
    every = jnp.int32(len(self.lines))
    start = jnp.int32(0), carry
    _, after = lax.while_loop(lambda c: c[0] < every, lambda c: (c[0] + 1, body(c[1])), start)
    return after


def _same_structure(follow: Callable[[Carry, Found], Carry]) -> Callable[[Carry, Found], Carry]:
  """Wraps `follow` with a check, at trace time, that the carry keeps its structure, shapes and dtypes."""

  def checked(carry: Carry, found: Found) -> Carry:
    after = follow(carry, found)
    message = 'what follows from a pass changes the structure, a shape or a dtype of what is carried on'
    chex.assert_trees_all_equal_structs(after, carry, custom_message=message)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, carry, custom_message=message)
    return after

  return checked


def derivative(
  what: Derivative, loss: Loss, weights: PyTree, alphas: PyTree, direction: PyTree, weights_wanted: bool = True
) -> Gradients:
  """Computes the derivative of a pass.

  Args:
    what: see `Derivative`.
    loss: the loss that is differentiated.
    weights: the weights at which it is differentiated.
    alphas: the α at which it is differentiated.
    direction: d, like the weights; not used for a gradient.
    weights_wanted: whether the part in the weights is computed; zeros stand for it otherwise.

  Returns:
    The gradients; or Hd and Bd. Forward over reverse mode takes a Jacobian-vector product of the gradients. Reverse
    over reverse mode takes the gradient of ⟨∇w L, d⟩, which is equal since second derivatives are symmetric.
  """

  def gradient(weights: PyTree) -> Gradients:
    if weights_wanted:
      return Gradients(*jax.grad(loss, (0, 1))(weights, alphas))
    return Gradients(jax.tree.map(jnp.zeros_like, weights), jax.grad(loss, 1)(weights, alphas))

  if what == 'gradient':
    return gradient(weights)
  if what == 'product':
    traced, shapes = jax.make_jaxpr(gradient, return_shape=True)(weights)
    along = jax.tree.map(lambda _, d: d, weights, direction)
    found = product_with_tangents(traced, jax.tree.leaves(weights), jax.tree.leaves(along))
    return jax.tree.unflatten(jax.tree.structure(shapes), found)
  _, transpose = jax.vjp(jax.grad(loss), weights, alphas)
  return Gradients(*transpose(direction))


class BatchLoss(Protocol):
  """One loss function for both losses of a bilevel problem, which differ in their batches."""

  def __call__(self, weights: PyTree, alphas: PyTree, batch: Any, updating: Array) -> tuple[Array, PyTree]:
    """The loss of a batch, `[]`, and its auxiliary output.

    Args:
      weights: parameters of the network.
      alphas: architecture parameters.
      batch: a batch of either half of the data.
      updating: `[]` bool, whether the weight update uses the gradient of this loss.
    """
    ...


#: A loss of `(weights, alphas, batch, updating, wanted)`; `wanted`, `[]` bool, says whether the gradient in the weights
#: is needed.
GatedLoss = Callable[[PyTree, PyTree, Any, Array, Array], tuple[Array, PyTree]]


def gated(loss: BatchLoss, gate: Callable[[Array], contextlib.AbstractContextManager[None]] | None) -> GatedLoss:
  """A loss whose gradient in the weights is skipped at run time where it is not needed.

  Args:
    loss: the loss of a batch.
    gate: `wanted → context manager`; a loss traced inside it has a zero gradient in the weights, without computing it,
      where `wanted` is false. None computes the gradient always.
  """

  def call(weights: PyTree, alphas: PyTree, batch: Any, updating: Array, wanted: Array) -> tuple[Array, PyTree]:
    with contextlib.nullcontext() if gate is None else gate(wanted):
      return loss(weights, alphas, batch, updating)

  return call


def gradient_pass(
  loss: GatedLoss, weights: PyTree, alphas: PyTree, batch: Any, updating: Array, wanted: Array
) -> Found:
  """The result of a gradient pass; see `GatedLoss` for the arguments."""
  (_, seen), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, alphas, batch, updating, wanted)
  return Found(Gradients(*gradients), seen)


@dataclasses.dataclass(frozen=True)
class Losses:
  """The loss that passes differentiate: inner and outer loss are this loss at batches of different halves of the data.

  Attributes:
    rough: the loss.
    fine: the loss in float32, for passes that are `precise`; None if `rough` is in float32 already.
    gate: see `gated`.
    mean: `(wanted, found) → found`, the mean over all devices that share a batch; `wanted`, `[]` bool, says whether
      the gradient in the weights is averaged, too. None if there is one device.
  """

  rough: BatchLoss
  fine: BatchLoss | None = None
  gate: Callable[[Array], contextlib.AbstractContextManager[None]] | None = None
  mean: Callable[[Array, Found], Found] | None = None


def stacked(train: Any, *valid: Any) -> Any:
  """Stacks the batches of both halves, or the inner loss's batch alone, along a new leading axis."""
  message = 'the batches of both halves are to have the same structure, shapes and dtypes'
  for other in valid:
    chex.assert_trees_all_equal_structs(train, other, custom_message=message)
    chex.assert_trees_all_equal_shapes_and_dtypes(train, other, custom_message=message)
  return jax.tree.map(lambda *arrays: jnp.stack(arrays), train, *valid)


class Passes:
  """Runs the passes of a program with a single trace of the loss.

  Everything that differs between passes is a traced argument, looked up by the number of the pass.
  """

  def __init__(self, losses: Losses, lines: Sequence[Line], batches: Any) -> None:
    """Makes lookup tables, by number of the pass, of the half, the derivative and the precision.

    Args:
      losses: see `Losses`.
      lines: the lines of the program; one of them updates the weights.
      batches: see `stacked`.
    """
    passes = [line.each for line in lines]
    products = [each for each in passes if each.derivative != 'gradient']
    assert len({each.derivative for each in products}) <= 1, 'an estimator differentiates gradients in one way'
    assert not any(each.precise for each in products), 'products are as precise as the rest'
    self._losses = losses
    self._batches = batches
    self._half_of = jnp.array([('train', 'valid').index(each.loss) for each in passes])
    self._wants_weights = jnp.array([each.weights for each in passes])
    self._precise = [each.precise for each in passes]
    self._is_product = [each.derivative != 'gradient' for each in passes]
    self._product: Derivative | None = products[0].derivative if products else None
    self._product_of_weights = any(each.weights for each in products)
    [self._updating] = [number for number, line in enumerate(lines) if line.updating]
    self._rough = jax.jit(gated(losses.rough, losses.gate))
    self._fine = None
    if losses.fine is not None and any(self._precise):
      self._fine = jax.jit(gated(losses.fine, losses.gate))

  def nothing(self, weights: PyTree, alphas: PyTree) -> PyTree:
    """Zeros of the structure of the loss's auxiliary output, for passes that have none."""
    batch = jax.tree.map(lambda x: x[0], self._batches)
    shapes = jax.eval_shape(self._rough, weights, alphas, batch, jnp.array(False), jnp.array(True))[1]
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def find(self, number: Array, memory: Memory, alphas: PyTree, nothing: PyTree) -> Found:
    """Runs one pass.

    Args:
      number: `[]` int32, number of the pass.
      memory: the estimator's memory.
      alphas: the α at which the loss is differentiated.
      nothing: see the method `nothing`.
    """
    batch = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, self._half_of[number], keepdims=False), self._batches)

    def gradient() -> Found:
      arguments = memory.at, alphas, batch, number == self._updating, self._wants_weights[number]
      roughly = functools.partial(gradient_pass, self._rough)
      # The program contains a second gradient only if some pass needs more precision.
      if self._fine is None:
        return roughly(*arguments)
      finely = functools.partial(gradient_pass, self._fine)
      found: Found = lax.cond(jnp.array(self._precise)[number], finely, roughly, *arguments)
      return found

    def product() -> Found:
      assert self._product is not None

      def value(weights: PyTree, alphas: PyTree) -> Array:
        return self._rough(weights, alphas, batch, jnp.array(False), self._wants_weights[number])[0]

      direction, of_weights = memory.direction, self._product_of_weights
      return Found(derivative(self._product, value, memory.at, alphas, direction, of_weights), nothing)

    if self._product is not None:
      found = lax.cond(jnp.array(self._is_product)[number], product, gradient)
    else:
      found = gradient()
    return found if self._losses.mean is None else self._losses.mean(self._wants_weights[number], found)


def one_of(index: Array, branches: Sequence[Callable[..., T]], *args: Any) -> T:
  """Calls one of several cheap functions, selected by a traced index; on GPUs, calls all and selects a result.

  On GPUs that costs less than the wait until the host has read the index.
  """

  def one(index: Array, *args: Any) -> T:
    found: T = lax.switch(index, branches, *args)
    return found

  def of_all(index: Array, *args: Any) -> T:
    results = [branch(*args) for branch in branches]
    found: T = jax.tree.map(lambda *leaves: lax.select_n(index, *leaves), *results)
    return found

  chosen: T = lax.platform_dependent(index, *args, **dict.fromkeys(GPUS, of_all), default=one)
  return chosen


def hypergradient(
  estimator: Estimator, train_loss: Loss, valid_loss: Loss, inner: InnerOptimizer
) -> Callable[[PyTree, PyTree], tuple[PyTree, Memory]]:
  """The hypergradient as a function of weights and α.

  Args:
    estimator: an estimator, such as `exact()`.
    train_loss: inner loss L_train.
    valid_loss: outer loss L_val.
    inner: the inner optimiser, such as `sgd(0.025)` or `from_optax(optimizer, state)`.

  Returns:
    A pure function `(weights, alphas) → (gradient, memory)`, which can be jitted, differentiated and mapped. The
    gradient is a pytree like the α; the memory holds by-products, see `Memory`. The function raises a ValueError if the
    estimator needs curvature and the inner loss has none.

  Example:
    >>> train = lambda w, a: w * w - 2 * a * w + a * a
    >>> valid = lambda w, a: a * w - 2 * a + 1
    >>> gradient, _ = hypergradient(exact(), train, valid, sgd(0.5))(-2.0, 2.0)
    >>> float(gradient)  # (1 − 2ξ)w + 4ξα − 2 at ξ = 0.5
    2.0
  """
  losses = {'train': train_loss, 'valid': valid_loss}
  passes = estimator.passes
  kinds = list(dict.fromkeys((each.loss, each.derivative, each.weights) for each in passes))
  kind_of = jnp.array([kinds.index((each.loss, each.derivative, each.weights)) for each in passes])

  def estimate(weights: PyTree, alphas: PyTree) -> tuple[PyTree, Memory]:
    weights, alphas = jax.tree.map(jnp.asarray, (weights, alphas))
    problem = Problem(inner, weights, alphas)
    if estimator.curvature and not inner.weight_decay and not has_curvature(train_loss, weights, alphas):
      raise ValueError(
        f'train_loss: its gradient does not change with the weights; {estimator.name} needs a loss with curvature'
      )

    def evaluator(loss: str, what: Derivative, weights_wanted: bool) -> Callable[[Memory], Gradients]:
      return lambda memory: derivative(what, losses[loss], memory.at, alphas, memory.direction, weights_wanted)

    def follower(each: Pass) -> Callable[[Carry, Found], Carry]:
      def follow(carry: Carry, found: Found) -> Carry:
        memory = each.follow(problem, carry.memory, found.gradients)
        return carry._replace(number=carry.number + 1, memory=memory)

      return follow

    evaluators = [evaluator(*kind) for kind in kinds]
    # Passes with the same `advance` and the same loss share one function, and with it one branch of the program.
    followers = {(each.advance, each.loss): follower(each) for each in passes}
    program = Program([Line(each, followers[each.advance, each.loss]) for each in passes])

    def find(carry: Carry) -> Found:
      return Found(lax.switch(kind_of[carry.number], evaluators, carry.memory), ())

    def body(carry: Carry, _: None) -> tuple[Carry, None]:
      return program.make_pass(find, carry), None

    start = Carry(jnp.int32(0), estimator.start(problem), ())
    if not passes:
      return start.memory.estimate, start.memory
    # A `lax.scan`, since reverse mode cannot differentiate a `lax.while_loop`.
    carry, _ = lax.scan(body, start, length=len(passes))
    return carry.memory.estimate, carry.memory

  return estimate


def has_curvature(loss: Loss, weights: PyTree, alphas: PyTree) -> bool:
  """Whether ∂²loss/∂w² is not structurally zero.

  JAX drops tangents that it knows to be zero, so the Hessian is structurally zero if the jaxpr of a Hessian-vector
  product has no path from the direction to the result. Only a trace is made; nothing is computed.
  """

  def product(direction: PyTree) -> PyTree:
    return jax.jvp(lambda w: jax.grad(loss)(w, alphas), (weights,), (direction,))[1]

  jaxpr = jax.make_jaxpr(product)(weights).jaxpr
  reached = set(jaxpr.invars)

  def reads(variables: Sequence[Any]) -> bool:
    return any(not isinstance(x, Literal) and x in reached for x in variables)

  for eqn in jaxpr.eqns:
    if reads(eqn.invars):
      reached.update(eqn.outvars)
  return reads(jaxpr.outvars)
