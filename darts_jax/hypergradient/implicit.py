"""Estimators by implicit differentiation: they take w to be the inner optimum and differentiate its equation.

Where ∇w L_train(w, α) + λw = 0, λ being the inner optimiser's weight decay, the implicit function theorem gives

  ∇α L_val(w, α) − B A⁻¹ v,   v = ∇w L_val(w, α),   A = H + λI.

The estimators differ in their approximation of A⁻¹. They make no step of the inner optimiser, so momentum, clipping and
the learning rate do not matter. Their error grows with the distance of w from the optimum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from darts_jax.hypergradient.base import (
  Estimator,
  Gradients,
  Memory,
  Pass,
  Problem,
  add,
  check_positive,
  dot,
  global_norm,
  over,
)

Array = jax.Array
PyTree = Any


def neumann(terms: int = 5, step_size: float = 0.01) -> Estimator:
  """A⁻¹ ≈ γ Σ_{j≤K} (I − γA)ʲ: a Neumann series (Lorraine et al. 2020, arXiv 1911.02590).

  Converges if all eigenvalues of A lie in (0, 2/γ); the error shrinks like the largest |1 − γ·eigenvalue| to the power
  K. With K = 0 the second-order term is −γBv, as if A were I/γ. Costs one gradient and K + 1 products, about
  3 + 7(K + 1) forward passes, and the memory of one product. `Memory.residual` is ‖(I − γA)^{K+1} v‖ / ‖v‖.

  Args:
    terms: K, the number of terms beyond the first.
    step_size: γ.

  Raises:
    ValueError: `terms` is less than 0, or `step_size` not positive and finite.
  """
  if terms < 0:
    raise ValueError(f'terms: {terms} is not allowed; a Neumann series has at least 0 terms beyond the first')
  check_positive('step_size', step_size, 'a Neumann series needs a positive, finite one')

  def begin(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    del problem
    memory = memory._replace(direction=gradients.weights, estimate=gradients.alphas, outer=gradients.alphas)
    return memory._replace(scratch=global_norm(gradients.weights))

  def add_term(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    curved = add(gradients.weights, problem.inner.weight_decay, memory.direction)
    direction = add(memory.direction, -step_size, curved)
    return memory._replace(
      direction=direction,
      estimate=add(memory.estimate, -step_size, gradients.alphas),
      residual=over(global_norm(direction), memory.scratch).astype(memory.residual.dtype),
    )

  return Estimator(
    'neumann',
    (Pass('valid', begin), *[Pass('train', add_term, derivative='product')] * (terms + 1)),
    scratch=lambda problem: jnp.zeros((), _dtype(problem.weights)),
    reports=('residual',),
    curvature=True,
  )


class _Krylov(NamedTuple):
  """State of the conjugate gradient iteration.

  Attributes:
    right: v, the right-hand side.
    solution: x, the current solution.
    residual: r = v − (A + δI)x.
    square: `[]` ⟨r, r⟩.
  """

  right: PyTree
  solution: PyTree
  residual: PyTree
  square: Array


def conjugate_gradient(iterations: int = 5, damping: float = 10.0) -> Estimator:
  """A⁻¹v ≈ the solution of (A + δI)x = v by conjugate gradients from x = 0 (Pedregosa 2016, arXiv 1602.02355).

  If A + δI is positive definite, the solution is exact, but for rounding, after as many iterations as there are
  weights. The Hessian of a network is not positive definite: at a direction without positive curvature the iteration
  stops and keeps its solution. Products rounded to bfloat16 lose the orthogonality of the residuals. Costs one gradient
  and n + 1 products, about 3 + 7(n + 1) forward passes, and the memory of one product. `Memory.residual` is ‖v − (A +
  δI)x‖ / ‖v‖, computed from x and not by the recurrence.

  Args:
    iterations: n.
    damping: δ, added to the diagonal of A.

  Raises:
    ValueError: `iterations` is less than 1, or `damping` not positive and finite.
  """
  if iterations < 1:
    raise ValueError(f'iterations: {iterations} is not allowed; conjugate gradients need at least 1')
  check_positive('damping', damping, 'conjugate gradients need a positive, finite one')

  def damped(problem: Problem, direction: PyTree, curved: PyTree) -> PyTree:
    return add(curved, problem.inner.weight_decay + damping, direction)

  def begin(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    del problem
    v = gradients.weights
    zeros = jax.tree.map(jnp.zeros_like, v)
    return memory._replace(direction=v, outer=gradients.alphas, scratch=_Krylov(v, zeros, v, dot(v, v)))

  def iterate(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    _, solution, residual, square = memory.scratch
    curved = damped(problem, memory.direction, gradients.weights)
    curvature = dot(memory.direction, curved)
    goes_on = (curvature > 0) & (square > 0)
    length = jnp.where(goes_on, square / jnp.where(goes_on, curvature, 1), 0)
    residual = add(residual, -length, curved)
    after = dot(residual, residual)
    ratio = jnp.where(goes_on, after / jnp.where(goes_on, square, 1), 0)
    direction = jax.tree.map(
      lambda r, d: jnp.where(goes_on, r + ratio.astype(d.dtype) * d, d), residual, memory.direction
    )
    solution = add(solution, length, memory.direction)
    return memory._replace(
      direction=direction,
      scratch=memory.scratch._replace(solution=solution, residual=residual, square=after),
    )

  def iterate_last(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    memory = iterate(problem, memory, gradients)
    return memory._replace(direction=memory.scratch.solution)

  def finish(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    right = memory.scratch.right
    rest = add(right, -1, damped(problem, memory.direction, gradients.weights))
    return memory._replace(
      estimate=add(memory.outer, -1, gradients.alphas),
      residual=over(global_norm(rest), global_norm(right)).astype(memory.residual.dtype),
    )

  def start(problem: Problem) -> _Krylov:
    zeros = jax.tree.map(jnp.zeros_like, problem.weights)
    return _Krylov(zeros, zeros, zeros, jnp.zeros((), _dtype(problem.weights)))

  passes = [Pass('train', iterate, derivative='product')] * (iterations - 1)
  return Estimator(
    'conjugate_gradient',
    (
      Pass('valid', begin),
      *passes,
      Pass('train', iterate_last, derivative='product'),
      Pass('train', finish, derivative='product'),
    ),
    scratch=start,
    reports=('residual',),
    curvature=True,
  )


def amended(amending: float = 0.1) -> Estimator:
  """A⁻¹ ≈ ηA, so ∇α L_val(w, α) − ηBAv (Bi et al. 2019, arXiv 1910.11831).

  Where A is positive definite, the angle between Av and A⁻¹v is less than 90°, but it is not zero for any η. Costs one
  gradient and two products, about 16 forward passes, and the memory of one product.

  Args:
    amending: η.

  Raises:
    ValueError: `amending` is not positive and finite.
  """
  check_positive('amending', amending, 'an amended gradient needs a positive, finite one')

  def begin(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    del problem
    return memory._replace(direction=gradients.weights, outer=gradients.alphas)

  def curve(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    return memory._replace(direction=add(gradients.weights, problem.inner.weight_decay, memory.direction))

  def finish(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    del problem
    return memory._replace(estimate=add(memory.outer, -amending, gradients.alphas))

  return Estimator(
    'amended',
    (
      Pass('valid', begin),
      Pass('train', curve, derivative='product'),
      Pass('train', finish, derivative='product', weights=False),
    ),
    curvature=True,
  )


def _dtype(tree: PyTree) -> Any:
  return jnp.result_type(*jax.tree.leaves(tree))
