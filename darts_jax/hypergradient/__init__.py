"""Estimators of the hypergradient ∇α L_val(w*(α), α) [DARTS §2.3], for any losses and any pytrees.

L_train is the inner loss, L_val the outer loss, and w* the weights to which the inner optimiser would converge. With
B = ∂²L_train/∂α∂w, A = ∂²L_train/∂w² + λI for the optimiser's weight decay λ, and w' = Φ(w, g) for a step of the inner
optimiser with g = ∇w L_train:

| constructor | estimate | forward and backward passes |
|---|---|---|
| `first_order()` | ∇α L_val(w, α) | 1 |
| `exact()` | ∇α L_val(w', α) + Bu, by forward over reverse; u = (∂Φ/∂g)ᵀ ∇w L_val(w', α), −ξv for SGD | 4 |
| `exact_reverse()` | the estimate of `exact()`, by reverse over reverse | 4 |
| `finite_difference(radius, one_sided)` | with [∇α L_train(w + εu, α) − ∇α L_train(w − εu, α)] / 2ε for Bu | 4, or 3 |
| `unrolled(steps)` | gradient of L_val(w_T(α), α) through T inner steps | 3T + 1 |
| `truncated(steps, backward_steps)` | gradient of L_val(w_T(α), α) through the last K of T inner steps | T + 2K + 1 |
| `neumann(terms, step_size)` | ∇α L_val − γB Σ_{j≤K} (I − γA)ʲ v, v = ∇w L_val(w, α) | 2K + 3 |
| `conjugate_gradient(iterations, damping)` | ∇α L_val − B(A + δI)⁻¹ v | 2n + 3 |
| `amended(amending)` | ∇α L_val − ηBAv | 5 |
| `joint()` | ∇α L_train(w, α): weights and α share one loss, and there is no hypergradient | 1 |
| `none()` | 0: α stay as they are | 0 |

The last column counts forward passes of a loss, and as many backward passes; a directional derivative of a gradient
counts as two.

The package itself is callable: `darts_jax.hypergradient(…)` calls the function `hypergradient`.
"""

from darts_jax.hypergradient.base import (
  Cost,
  Derivative,
  Estimator,
  Gradients,
  InnerOptimizer,
  Memory,
  Pass,
  Problem,
  from_optax,
  global_norm,
  over,
  sgd,
)
from darts_jax.hypergradient.catalogue import BILEVEL, ESTIMATORS, fields_of, make
from darts_jax.hypergradient.implicit import amended, conjugate_gradient, neumann
from darts_jax.hypergradient.one_step import exact, exact_reverse, finite_difference, first_order
from darts_jax.hypergradient.program import derivative, hypergradient
from darts_jax.hypergradient.single_level import joint, none
from darts_jax.hypergradient.unrolled import truncated, unrolled
from darts_jax.runtime.callable import make_callable

__all__ = [
  'BILEVEL',
  'ESTIMATORS',
  'Cost',
  'Derivative',
  'Estimator',
  'Gradients',
  'InnerOptimizer',
  'Memory',
  'Pass',
  'Problem',
  'amended',
  'conjugate_gradient',
  'derivative',
  'exact',
  'exact_reverse',
  'fields_of',
  'finite_difference',
  'first_order',
  'from_optax',
  'global_norm',
  'hypergradient',
  'joint',
  'make',
  'neumann',
  'none',
  'over',
  'sgd',
  'truncated',
  'unrolled',
]

make_callable(__name__, hypergradient)
