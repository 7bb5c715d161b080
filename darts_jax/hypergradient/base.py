"""Types of the hypergradient estimators: passes over a bilevel problem, and the values carried between them.

An estimator is a sequence of *passes*. A pass computes a gradient of a loss, or the derivative of that gradient along a
direction, at one point; a small function then takes the result and sets the point of the next pass. The expensive work
is all in the passes, and there are few kinds of them, so a program that runs them in a loop contains each kind once.
Without the loop, XLA would compile a gradient again for every pass and allocate memory for all of them.
`darts_jax.hypergradient.program` builds that program.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple
from typing import Literal as OneOf

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

Array = jax.Array
PyTree = Any
#: A scalar loss `(weights, alphas) → []`.
Loss = Callable[[PyTree, PyTree], Array]
#: Kind of derivative that a pass computes: a gradient, or the derivative of a gradient along a direction in weight
#: space by forward mode over reverse mode (`product`) or by reverse mode over reverse mode (`reverse_product`).
Derivative = OneOf['gradient', 'product', 'reverse_product']


class Gradients(NamedTuple):
  """Result of a pass: a pytree like the weights and a pytree like the α.

  They are the gradients of a loss at one point; or Hd and Bd, the derivatives of those gradients along d.
  """

  weights: PyTree
  alphas: PyTree


@dataclasses.dataclass(frozen=True)
class InnerOptimizer:
  """The inner optimiser Φ and its current state.

  Attributes:
    update: one step `(weights, gradient, state) → (weights, state)`, differentiable in its floating-point arguments at
      the gradients that occur.
    state: the optimiser's state, such as momentum, before the first step.
    weight_decay: λ if the update adds λw to the gradient. Implicit estimators, which assume that the inner problem is
      solved, need it.
    limit: applied to v, the outer loss's gradient in the weights, before v is multiplied with derivatives of the
      update; clipping of its norm, for example. None leaves v as it is.
  """

  update: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
  state: PyTree = ()
  weight_decay: float | Array = 0.0
  limit: Callable[[PyTree], PyTree] | None = None


def sgd(learning_rate: float) -> InnerOptimizer:
  """Plain gradient descent, w' = w − ξg."""
  return InnerOptimizer(lambda w, g, state: (jax.tree.map(lambda x, y: x - learning_rate * y, w, g), state))


def from_optax(
  optimizer: optax.GradientTransformation, state: PyTree, weight_decay: float | Array = 0.0
) -> InnerOptimizer:
  """An Optax optimiser with its state.

  A quotient by a norm or a root has no derivative where that is zero: `optax.adam` needs `eps_root > 0` if an entry of
  the gradient can be exactly zero.
  """

  def update(weights: PyTree, gradient: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    updates, state = optimizer.update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state

  return InnerOptimizer(update, state, weight_decay)


@dataclasses.dataclass(frozen=True)
class Problem:
  """A bilevel problem at one state (w, α).

  Attributes:
    inner: the inner optimiser.
    weights: w.
    alphas: α.
  """

  inner: InnerOptimizer
  weights: PyTree
  alphas: PyTree


class Memory(NamedTuple):
  """Values that an estimator carries from one pass to the next; the structure is the same after every pass.

  Attributes:
    at: the weights at which the next pass differentiates.
    direction: like the weights; the direction along which the next pass differentiates a gradient. After the last pass
      of a one-step estimator, u.
    estimate: like the α; the hypergradient accumulated so far.
    outer: like the α; the direct part ∇α L_val of the estimate. The difference of both is the second-order term.
    epsilon: `[]`, the step ε of a finite difference along u.
    disagreement: `[]`, set by the checks of a finite difference: its distance from the difference at half the radius,
      relative to the former.
    residual: `[]`, ‖v − (H + λI + δI)x‖ / ‖v‖ of an estimator that solves (H + λI + δI)x = v by iteration.
    scratch: values that only this estimator needs.
  """

  at: PyTree
  direction: PyTree
  estimate: PyTree
  outer: PyTree
  epsilon: Array
  disagreement: Array
  residual: Array
  scratch: PyTree


class Pass(NamedTuple):
  """One evaluation at `Memory.at`.

  Attributes:
    loss: the loss that is differentiated: `train` for the inner loss, `valid` for the outer loss.
    advance: computes the next memory from the gradients of this pass.
    derivative: the kind of derivative; a product is taken along `Memory.direction`.
    weights: whether the gradient in the weights is needed, by `advance` or, in reverse over reverse mode, by the
      derivative. The gradient in the α is always computed.
    precise: whether the gradient is subtracted from another one that is so close that it needs float32: in a lower
      precision the difference would be rounding error.
  """

  loss: OneOf['train', 'valid']
  advance: Callable[[Problem, Memory, Gradients], Memory]
  derivative: Derivative = 'gradient'
  weights: bool = True
  precise: bool = False

  def follow(self, problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    """Calls `advance`, after the inner optimiser's `limit` on the outer loss's gradient in the weights."""
    if self.loss == 'valid' and problem.inner.limit is not None:
      gradients = gradients._replace(weights=problem.inner.limit(gradients.weights))
    return self.advance(problem, memory, gradients)


class Cost(NamedTuple):
  """Numbers of forward and backward passes of a loss, including passes over tangents."""

  forward: int
  backward: int


@dataclasses.dataclass(frozen=True)
class Estimator:
  """A way to estimate the hypergradient.

  Attributes:
    name: key in `darts_jax.hypergradient.ESTIMATORS`.
    passes: the passes, in order.
    checks: optional further passes that measure the quality of the estimate and leave it as it is.
    scratch: makes the initial `Memory.scratch`.
    reports: names of the fields of the memory that describe the quality of the estimate.
    curvature: whether the estimator needs an inner loss with curvature, H ≠ 0.
    single_level: whether weights and α share one loss: a search step then makes one pass, of the inner loss, and its
      gradients update both.
  """

  name: str
  passes: tuple[Pass, ...]
  checks: tuple[Pass, ...] = ()
  scratch: Callable[[Problem], PyTree] = lambda problem: ()
  reports: tuple[str, ...] = ()
  curvature: bool = False
  single_level: bool = False

  def start(self, problem: Problem) -> Memory:
    """The memory before the first pass; that pass differentiates at w."""
    zeros = jax.tree.map(jnp.zeros_like, problem.alphas)
    # The finite-difference step of a small gradient exceeds the range of half precision.
    scalar = jnp.zeros((), jnp.promote_types(jnp.result_type(*jax.tree.leaves(problem.alphas)), jnp.float32))
    direction = jax.tree.map(jnp.zeros_like, problem.weights)
    return Memory(problem.weights, direction, zeros, zeros, scalar, scalar, scalar, self.scratch(problem))

  @property
  def has_outer_loss(self) -> bool:
    """Whether any pass differentiates the outer loss."""
    return any(each.loss == 'valid' for each in self.passes)

  @property
  def cost(self) -> Cost:
    """Forward and backward passes that `passes` take."""
    count = sum(1 if each.derivative == 'gradient' else 2 for each in self.passes)
    return Cost(count, count)


def global_norm(tree: PyTree) -> Array:
  """The Euclidean norm over all entries of a pytree, `[]`; its gradient at zero is zero.

  The leaves are joined into one vector: separate norms would be hundreds of kernels.
  """
  vector = ravel_pytree(tree)[0]
  square = jnp.vdot(vector, vector)
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def over(value: Array | float, norm: Array) -> Array:
  """`value / norm`; `value` itself where the norm is zero."""
  return value / jnp.where(norm > 0, norm, 1)


def check_positive(name: str, value: float, need: str) -> None:
  """Raises a ValueError unless the value is positive and finite; the message has the argument's name and `need`."""
  if not 0 < value < math.inf:
    raise ValueError(f'{name}: {value} is not allowed; {need}')


def add(tree: PyTree, scale: Array | float, direction: PyTree) -> PyTree:
  """`tree + scale · direction`, in the dtypes of the tree."""
  return jax.tree.map(lambda x, d: x + (jnp.asarray(scale, d.dtype) * d).astype(x.dtype), tree, direction)


def like(tree: PyTree, old: PyTree) -> PyTree:
  """Casts floating-point leaves of `tree` to the dtypes of `old`, which has the same structure."""

  def cast(value: Array, before: Array) -> Array:
    return jnp.asarray(value, before.dtype) if jnp.issubdtype(before.dtype, jnp.floating) else value

  return jax.tree.map(cast, tree, old)


def dot(a: PyTree, b: PyTree) -> Array:
  """The inner product of two pytrees, `[]`."""
  return jnp.vdot(ravel_pytree(a)[0], ravel_pytree(b)[0])
