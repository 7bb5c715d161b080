"""What an estimator of the hypergradient is: passes over a bilevel problem, and what is carried between them.

An estimator is written as the *passes* it makes: the points at which it wants a gradient of a loss, or the derivative
of that gradient along a direction, and what it does with each before it names the next. All that is large happens in
the passes, and there are few kinds of them, so a program that makes them in a loop holds each kind once, however often
it is needed: XLA would otherwise compile a gradient over again for every pass, and keep memory for all of them.
`darts_jax.hypergradient.program` makes that program.
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
#: What a pass computes: a gradient, or its derivative along a direction in weight space, by forward mode over reverse
#: mode or by reverse mode over reverse mode.
Derivative = OneOf['gradient', 'product', 'reverse_product']


class Gradients(NamedTuple):
  """What a pass found: a pytree like the weights and one like the α.

  The gradients of a loss at one point; or Hd and Bd, the derivatives of the gradients in weights and α along d.
  """

  weights: PyTree
  alphas: PyTree


@dataclasses.dataclass(frozen=True)
class InnerOptimizer:
  """The inner optimiser Φ, where it stands.

  Attributes:
    update: a step `(weights, gradient, state) → (weights, state)`, differentiable in floating-point arguments at the
      gradients it meets.
    state: before the first step, such as momentum.
    weight_decay: λ if the update adds λw to the gradient; estimators that take the inner problem to be solved need it.
    limit: what is done to v, the outer loss's gradient in the weights, before it is taken back through the update, such
      as clipping its norm; nothing if None.
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

  What Optax divides by a norm or a root has no derivative where that is zero: `optax.adam` needs `eps_root > 0` if an
  entry of the gradient can be exactly zero.
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
  """What an estimator carries from one pass to the next; the structure is the same after every pass.

  Attributes:
    at: the weights at which the next pass differentiates.
    direction: like the weights: along which the next pass differentiates a gradient; in the end, of a one-step
      estimator, u.
    estimate: like the α: what the hypergradient has come to so far.
    outer: like the α: the direct part ∇α L_val of the estimate; the rest is its second-order term.
    epsilon: `[]` the step ε of a finite difference along u.
    disagreement: `[]` once its checks are made, by how much a finite difference differs from that of half the radius,
      as a fraction of the former.
    residual: `[]` of an estimator that solves (H + λ + δ)x = v by iteration: ‖v − (H + λ + δ)x‖ / ‖v‖.
    scratch: what else an estimator keeps.
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
    loss: which loss is differentiated.
    advance: what follows from it.
    derivative: what is computed; a product is taken along `Memory.direction`.
    weights: whether the gradient in the weights is needed, by `advance` or, reverse over reverse, by the derivative;
      that in the α is always there.
    precise: whether it is one of two to be subtracted, which are so close that rounding to less than float32 would
      leave nothing.
  """

  loss: OneOf['train', 'valid']
  advance: Callable[[Problem, Memory, Gradients], Memory]
  derivative: Derivative = 'gradient'
  weights: bool = True
  precise: bool = False

  def follow(self, problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    """`advance`, with the outer loss's gradient as the inner optimiser limits it."""
    if self.loss == 'valid' and problem.inner.limit is not None:
      gradients = gradients._replace(weights=problem.inner.limit(gradients.weights))
    return self.advance(problem, memory, gradients)


class Cost(NamedTuple):
  """Forward and backward passes of a loss, those in tangents included."""

  forward: int
  backward: int


@dataclasses.dataclass(frozen=True)
class Estimator:
  """A way to estimate the hypergradient.

  Attributes:
    name: as in `darts_jax.hypergradient.ESTIMATORS`.
    passes: in order.
    checks: passes that may follow and leave the estimate as it is, to find out how good it is.
    scratch: makes the initial `Memory.scratch`.
    reports: the fields of the memory that say something about the estimate.
    curvature: whether it makes no sense without H.
    single_level: whether weights and α have one loss: a search step makes one pass, of the inner loss, and both move by
      the gradients that it finds.
  """

  name: str
  passes: tuple[Pass, ...]
  checks: tuple[Pass, ...] = ()
  scratch: Callable[[Problem], PyTree] = lambda problem: ()
  reports: tuple[str, ...] = ()
  curvature: bool = False
  single_level: bool = False

  def start(self, problem: Problem) -> Memory:
    """The memory before the first pass, which always differentiates at w."""
    zeros = jax.tree.map(jnp.zeros_like, problem.alphas)
    # Step lengths of small gradients are beyond the range of half precision.
    scalar = jnp.zeros((), jnp.promote_types(jnp.result_type(*jax.tree.leaves(problem.alphas)), jnp.float32))
    direction = jax.tree.map(jnp.zeros_like, problem.weights)
    return Memory(problem.weights, direction, zeros, zeros, scalar, scalar, scalar, self.scratch(problem))

  @property
  def has_outer_loss(self) -> bool:
    """Whether any pass differentiates the outer loss."""
    return any(each.loss == 'valid' for each in self.passes)

  @property
  def cost(self) -> Cost:
    """What the passes cost."""
    count = sum(1 if each.derivative == 'gradient' else 2 for each in self.passes)
    return Cost(count, count)


def global_norm(tree: PyTree) -> Array:
  """The Euclidean norm over all entries of a pytree, `[]`; its gradient at zero is zero.

  As one vector, since a kernel a leaf would be hundreds.
  """
  vector = ravel_pytree(tree)[0]
  square = jnp.vdot(vector, vector)
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def over(value: Array | float, norm: Array) -> Array:
  """`value / norm` for a norm that may be zero, and is left out then."""
  return value / jnp.where(norm > 0, norm, 1)


def check_positive(name: str, value: float, need: str) -> None:
  """Raises a ValueError that names the argument and the need unless the value is positive and finite."""
  if not 0 < value < math.inf:
    raise ValueError(f'{name}: {value} is not allowed; {need}')


def add(tree: PyTree, scale: Array | float, direction: PyTree) -> PyTree:
  """`tree + scale · direction`, in the dtypes of the tree."""
  return jax.tree.map(lambda x, d: x + (jnp.asarray(scale, d.dtype) * d).astype(x.dtype), tree, direction)


def like(tree: PyTree, old: PyTree) -> PyTree:
  """The tree with its floating-point leaves in the dtypes of another one of the same structure."""

  def cast(value: Array, before: Array) -> Array:
    return jnp.asarray(value, before.dtype) if jnp.issubdtype(before.dtype, jnp.floating) else value

  return jax.tree.map(cast, tree, old)


def dot(a: PyTree, b: PyTree) -> Array:
  """The inner product of two pytrees, `[]`."""
  return jnp.vdot(ravel_pytree(a)[0], ravel_pytree(b)[0])
