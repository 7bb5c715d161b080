"""Estimators of the hypergradient ∇α L_val(w*(α), α) [DARTS §2.3], for any losses and any pytrees.

One inner step from w stands for the inner optimum: with g = ∇w L_train(w, α) and the inner optimiser's update
w' = Φ(w, g), the chain rule gives

  ∇α L_val(w', α) + B u,   u = (∂Φ/∂g)ᵀ v,   v = ∇w' L_val(w', α),   B = ∂²L_train/∂α∂w at (w, α).

For plain SGD with learning rate ξ this is the paper's ∇α L_val(w', α) − ξ ∇²αw L_train v. The estimators differ in
how they get the *mixed product* B u, if at all:

  first_order         leaves it out and takes w' = w
  finite_difference   [∇α L_train(w + εu, α) − ∇α L_train(w − εu, α)] / 2ε
  exact               a Jacobian-vector product, forward over reverse, of ∇α L_train(·, α) along u

An estimator is written as the *passes* it makes: the points at which it wants a gradient, and what it does with
each before it names the next. All passes differentiate one function at different points, so a program that makes
them in a loop holds that function once; XLA would otherwise compile it over again for every pass. `hypergradient`
makes the passes one after the other; a search step (`darts_jax.search.step`) makes them in a `lax.scan`,
together with the pass of its weight update.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

Array = jax.Array
PyTree = Any
#: A scalar loss `(weights, alphas) → []`.
Loss = Callable[[PyTree, PyTree], Array]
#: The inner optimiser's virtual step Φ: `(weights, gradient) → weights`, differentiable in the gradient.
InnerUpdate = Callable[[PyTree, PyTree], PyTree]


class Gradients(NamedTuple):
  """The gradients of a loss at one point: a pytree like the weights and one like the α."""

  weights: PyTree
  alphas: PyTree


@dataclasses.dataclass(frozen=True)
class Problem:
  """A bilevel problem at one state (w, α).

  Attributes:
    train_loss: inner loss.
    inner_update: virtual step of the inner optimiser.
    weights: w.
    alphas: α.
  """

  train_loss: Loss
  inner_update: InnerUpdate
  weights: PyTree
  alphas: PyTree


class Memory(NamedTuple):
  """What an estimator carries from one pass to the next; the structure is the same after every pass.

  Attributes:
    at: the weights at which the next pass differentiates.
    direction: like the weights: g after the first pass of a second-order estimator, then u.
    estimate: like the α: what the hypergradient has come to so far.
    epsilon: `[]` the step ε of a finite difference along u.
    outer_norm: `[]` ‖∇α L_val(w', α)‖, the first-order part.
  """

  at: PyTree
  direction: PyTree
  estimate: PyTree
  epsilon: Array
  outer_norm: Array


class Pass(NamedTuple):
  """One gradient evaluation.

  Attributes:
    loss: which loss is differentiated.
    advance: what follows from the gradients.
    weights: whether `advance` reads the gradient in the weights; that in the α is always there.
    precise: whether the gradient is one of two to be subtracted, which are so close that rounding to less than
      float32 would leave nothing.
  """

  loss: Literal['train', 'valid']
  advance: Callable[[Problem, Memory, Gradients], Memory]
  weights: bool = True
  precise: bool = False


@dataclasses.dataclass(frozen=True)
class Estimator:
  """A way to estimate the hypergradient: its passes, in order."""

  name: str
  passes: tuple[Pass, ...]

  def start(self, problem: Problem) -> Memory:
    """The memory before the first pass, which always differentiates at w."""
    zeros = jax.tree.map(jnp.zeros_like, problem.alphas)
    scalar = jnp.zeros((), jax.tree.leaves(problem.alphas)[0].dtype)
    return Memory(problem.weights, jax.tree.map(jnp.zeros_like, problem.weights), zeros, scalar, scalar)


def hypergradient(
  estimator: Estimator, train_loss: Loss, valid_loss: Loss, inner_update: InnerUpdate
) -> Callable[[PyTree, PyTree], tuple[PyTree, Memory]]:
  """The hypergradient as a function of weights and α.

  Args:
    estimator: one of `first_order()`, `finite_difference(radius)`, `exact()`.
    train_loss: inner loss L_train.
    valid_loss: outer loss L_val.
    inner_update: virtual step Φ of the inner optimiser; not used by first order.

  Returns:
    A function `(weights, alphas) → (gradient, memory)`: the gradient is a pytree like the α, the memory holds the
    by-products. Pure, so it can be jitted, differentiated and mapped.

  Example:
    >>> train = lambda w, a: w * w - 2 * a * w + a * a
    >>> valid = lambda w, a: a * w - 2 * a + 1
    >>> gradient, _ = hypergradient(exact(), train, valid, lambda w, g: w - 0.5 * g)(-2.0, 2.0)
    >>> float(gradient)  # (1 − 2ξ)w + 4ξα − 2 at ξ = 0.5
    2.0
  """
  differentiate = {
    'train': jax.grad(train_loss, (0, 1)),
    'valid': jax.grad(valid_loss, (0, 1)),
  }

  def estimate(weights: PyTree, alphas: PyTree) -> tuple[PyTree, Memory]:
    weights, alphas = jax.tree.map(jnp.asarray, (weights, alphas))
    problem = Problem(train_loss, inner_update, weights, alphas)
    memory = estimator.start(problem)
    for step in estimator.passes:
      memory = step.advance(problem, memory, Gradients(*differentiate[step.loss](memory.at, alphas)))
    return memory.estimate, memory

  return estimate


def first_order() -> Estimator:
  """∇α L_val(w, α), the paper's ξ = 0. One gradient, in α only: 2–3 forward passes [DARTS §2.3]."""

  def finish(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    del problem
    return memory._replace(estimate=gradients.alphas, outer_norm=global_norm(gradients.alphas))

  return Estimator('first_order', (Pass('valid', finish, weights=False),))


def finite_difference(radius: float = 0.01) -> Estimator:
  """The mixed product as a central difference along u of half-width ε = radius / ‖u‖ [DARTS §2.3].

  ‖·‖ is the Euclidean norm over all weights, and ε‖u‖ = radius whatever the learning rate in u, so this is
  the paper's ε = 0.01/‖v‖ for plain SGD. Costs four gradients, about ten forward passes, with the memory of
  one where passes are made in a loop. The truncation error is O(ε²) where the losses are smooth; across the kinks
  of ReLU and max pooling it is not small at the paper's radius.

  Args:
    radius: length of the step to either side in weight space.

  Raises:
    ValueError: `radius` is not positive and finite.
  """
  if not 0 < radius < math.inf:
    raise ValueError(f'radius: {radius} is not allowed; a finite difference needs a positive, finite radius')

  def step_aside(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    direction = _pull_back(problem, memory.direction, gradients.weights)
    norm = global_norm(direction)
    # u = 0 has a zero product; any finite ε finds it.
    epsilon = radius / jnp.where(norm > 0, norm, 1)
    return memory._replace(
      at=_along(problem.weights, epsilon, direction),
      direction=direction,
      estimate=gradients.alphas,
      epsilon=epsilon.astype(memory.epsilon.dtype),
      outer_norm=global_norm(gradients.alphas),
    )

  def cross_over(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    return memory._replace(
      at=_along(problem.weights, -memory.epsilon, memory.direction),
      estimate=_along(memory.estimate, 1 / (2 * memory.epsilon), gradients.alphas),
    )

  def finish(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    del problem
    return memory._replace(estimate=_along(memory.estimate, -1 / (2 * memory.epsilon), gradients.alphas))

  return Estimator(
    'finite_difference',
    (
      Pass('train', _look_ahead),
      Pass('valid', step_aside),
      Pass('train', cross_over, weights=False, precise=True),
      Pass('train', finish, weights=False, precise=True),
    ),
  )


def exact() -> Estimator:
  """The mixed product as `jax.jvp` of ∇α L_train(·, α) along u: forward over reverse, no step to choose.

  Costs two gradients and one Jacobian-vector product of a gradient, about twelve forward passes, with about
  twice the memory of a gradient. Differentiation leaves out the curvature that sits in kinks, where a
  finite difference smooths it in.
  """

  def finish(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    direction = _pull_back(problem, memory.direction, gradients.weights)
    inner = jax.grad(problem.train_loss, 1)
    _, product = jax.jvp(lambda weights: inner(weights, problem.alphas), (problem.weights,), (direction,))
    return memory._replace(
      direction=direction,
      estimate=jax.tree.map(jnp.add, gradients.alphas, product),
      outer_norm=global_norm(gradients.alphas),
    )

  return Estimator('exact', (Pass('train', _look_ahead), Pass('valid', finish)))


ESTIMATORS: dict[str, Callable[..., Estimator]] = {
  'first_order': first_order,
  'finite_difference': finite_difference,
  'exact': exact,
}


def global_norm(tree: PyTree) -> Array:
  """The Euclidean norm over all entries of a pytree, `[]`; as one vector, since a kernel a leaf would be hundreds."""
  return jnp.linalg.norm(ravel_pytree(tree)[0])


def _look_ahead(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
  """The first pass of a second-order estimator: from g to w'."""
  return memory._replace(at=problem.inner_update(problem.weights, gradients.weights), direction=gradients.weights)


def _pull_back(problem: Problem, gradient: PyTree, cotangent: PyTree) -> PyTree:
  """u = (∂Φ/∂g)ᵀ v at g = `gradient`, v = `cotangent`."""
  _, transpose = jax.vjp(lambda g: problem.inner_update(problem.weights, g), gradient)
  return transpose(cotangent)[0]


def _along(tree: PyTree, scale: Array, direction: PyTree) -> PyTree:
  return jax.tree.map(lambda x, d: x + scale.astype(d.dtype) * d, tree, direction)
