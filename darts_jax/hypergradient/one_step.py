"""Estimators that approximate the inner optimum by one optimiser step from w [DARTS §2.3].

With g = ∇w L_train(w, α) and the inner optimiser's step w' = Φ(w, g), the chain rule gives

  ∇α L_val(w', α) + B u,   u = (∂Φ/∂g)ᵀ v,   v = ∇w' L_val(w', α),   B = ∂²L_train/∂α∂w at (w, α).

For plain SGD with learning rate ξ this is the paper's ∇α L_val(w', α) − ξ ∇²αw L_train v. `first_order` sets w' = w and
leaves out the *mixed product* B u; the other estimators differ in how they compute it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from darts_jax.hypergradient.base import (
  Derivative,
  Estimator,
  Gradients,
  Memory,
  Pass,
  Problem,
  add,
  check_positive,
  global_norm,
  like,
  over,
)

PyTree = Any


def first_order() -> Estimator:
  """∇α L_val(w, α): the paper's ξ = 0 [DARTS §2.3].

  Costs one gradient, in α only: one forward and one backward pass, 2–3 times the time of a forward pass, and the memory
  of one gradient.
  """

  def finish(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    del problem
    return memory._replace(estimate=gradients.alphas, outer=gradients.alphas)

  return Estimator('first_order', (Pass('valid', finish, weights=False),))


def finite_difference(radius: float = 0.01, one_sided: bool = False) -> Estimator:
  """The mixed product as a difference quotient along u with step ε = radius / ‖u‖ [DARTS §2.3].

    central:    [∇α L_train(w + εu, α) − ∇α L_train(w − εu, α)] / 2ε
    one-sided:  [∇α L_train(w + εu, α) − ∇α L_train(w, α)] / ε

  ‖·‖ is the Euclidean norm over all weights. ε‖u‖ = radius for any learning rate in u, so for plain SGD this is the
  paper's ε = 0.01/‖v‖. Costs four gradients (three if one-sided), about ten forward passes, and the memory of one
  gradient, as the passes run in a loop. Where the losses are smooth, the truncation error is O(ε²), or O(ε) if
  one-sided; across the kinks of ReLU and max pooling it is not small at the paper's radius. `Estimator.checks` compare
  with half the radius.

  Args:
    radius: length of the step in weight space.
    one_sided: whether to step to one side only.

  Raises:
    ValueError: `radius` is not positive and finite.
  """
  check_positive('radius', radius, 'a finite difference needs a positive, finite radius')

  def look_ahead(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    return _look_ahead(problem, memory, gradients)._replace(scratch=gradients.alphas)

  def step_aside(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    direction = _pull_back(problem, memory.direction, gradients.weights)
    # For u = 0 the product is zero, and any finite ε gives that.
    epsilon = over(radius, global_norm(direction))
    return memory._replace(
      at=add(problem.weights, epsilon, direction),
      direction=direction,
      outer=gradients.alphas,
      epsilon=epsilon.astype(memory.epsilon.dtype),
    )

  def cross_over(part: float) -> Any:
    def advance(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
      at = add(problem.weights, -part * memory.epsilon, memory.direction)
      return memory._replace(at=at, scratch=gradients.alphas)

    return advance

  def quotient(memory: Memory, gradients: Gradients, epsilon: jax.Array) -> PyTree:
    """The difference quotient of the gradients in α at the current point and those in `memory.scratch`."""
    if one_sided:
      product = jax.tree.map(lambda plus, base: (plus - base) / epsilon, gradients.alphas, memory.scratch)
    else:
      product = jax.tree.map(lambda minus, plus: (plus - minus) / (2 * epsilon), gradients.alphas, memory.scratch)
    return like(product, gradients.alphas)

  def finish(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    product = quotient(memory, gradients, memory.epsilon)
    return memory._replace(
      at=add(problem.weights, memory.epsilon / 2, memory.direction),
      estimate=jax.tree.map(jnp.add, memory.outer, product),
    )

  def compare(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    del problem
    whole = jax.tree.map(jnp.subtract, memory.estimate, memory.outer)
    half = quotient(memory, gradients, memory.epsilon / 2)
    difference = over(global_norm(jax.tree.map(jnp.subtract, whole, half)), global_norm(whole))
    return memory._replace(disagreement=difference.astype(memory.disagreement.dtype))

  def aside(advance: Any) -> Pass:
    return Pass('train', advance, weights=False, precise=True)

  def sides(part: float, last: Any) -> tuple[Pass, ...]:
    return (aside(last),) if one_sided else (aside(cross_over(part)), aside(last))

  return Estimator(
    'finite_difference',
    (Pass('train', look_ahead, precise=one_sided), Pass('valid', step_aside), *sides(1, finish)),
    checks=sides(0.5, compare),
    scratch=lambda problem: jax.tree.map(jnp.zeros_like, problem.alphas),
    reports=('epsilon',),
  )


def exact() -> Estimator:
  """The mixed product as `jax.jvp` of ∇α L_train(·, α) along u: forward over reverse mode, without a radius to choose.

  Costs two gradients and one Jacobian-vector product of a gradient, about twelve forward passes, and about twice the
  memory of a gradient (Pearlmutter 1994). The derivative at a point does not see the kinks of ReLU and max pooling;
  a finite difference averages over the kinks that it crosses.
  """
  return _exact('exact', 'product')


def exact_reverse() -> Estimator:
  """The mixed product as ∇α⟨∇w L_train(w, α), u⟩: reverse over reverse mode, also called double backward.

  Gives the same numbers as `exact` and is there to compare costs: two gradients and the gradient of a gradient, which
  are as many forward and backward passes, but all intermediate values of the inner gradient are kept in memory.
  """
  return _exact('exact_reverse', 'reverse_product')


def _exact(name: str, product: Derivative) -> Estimator:
  def turn_back(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    direction = _pull_back(problem, memory.direction, gradients.weights)
    return memory._replace(at=problem.weights, direction=direction, outer=gradients.alphas)

  def finish(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    del problem
    return memory._replace(estimate=jax.tree.map(jnp.add, memory.outer, gradients.alphas))

  # Reverse over reverse mode differentiates the gradient in the weights, so that gradient is needed.
  last = Pass('train', finish, derivative=product, weights=product == 'reverse_product')
  return Estimator(name, (Pass('train', _look_ahead), Pass('valid', turn_back), last))


def _look_ahead(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
  """The first pass of a second-order estimator: from g to w'."""
  after, _ = problem.inner.update(problem.weights, gradients.weights, problem.inner.state)
  return memory._replace(at=like(after, problem.weights), direction=gradients.weights)


def _pull_back(problem: Problem, gradient: PyTree, cotangent: PyTree) -> PyTree:
  """u = (∂Φ/∂g)ᵀ v at g = `gradient`, v = `cotangent`."""

  def update(gradient: PyTree) -> PyTree:
    return like(problem.inner.update(problem.weights, gradient, problem.inner.state)[0], problem.weights)

  _, transpose = jax.vjp(update, gradient)
  return transpose(cotangent)[0]
