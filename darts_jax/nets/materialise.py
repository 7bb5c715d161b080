"""A value that is computed once: a barrier to XLA's fusion on CPU.

XLA's CPU compiler merges an elementwise producer into every consumer, and drops optimization barriers before it does. A
node that is read by nine shifted windows is then summed up nine times, in nine times the code. It does not merge
across a conditional, so on CPU the barrier is one whose condition it cannot see through; elsewhere it is nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array


def computed_once(function: Callable[[Array], Array], x: Array) -> Array:
  """`function(x)`, not merged into what reads it; for lowerings on CPU, not to be differentiated."""
  result = jax.eval_shape(function, x)
  # The barrier on the condition is dropped only after the passes that would remove the conditional.
  true = lax.optimization_barrier(jnp.array(True))
  return lax.cond(true, function, lambda _: jnp.zeros(result.shape, result.dtype), x)


def materialise(x: Array) -> Array:
  """Returns `x`, computed once; its cotangents and tangents are, too."""
  return materialise_p.bind(x)


materialise_p = Primitive('materialise')
materialise_p.def_impl(lambda x: x)
materialise_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(materialise_p, lambda context, x: [x])
mlir.register_lowering(
  materialise_p, mlir.lower_fun(lambda x: computed_once(lambda x: x, x), multiple_results=False), platform='cpu'
)
ad.deflinear2(materialise_p, lambda cotangent, _: [materialise_p.bind(cotangent)])


def _batch(args: Any, axes: Any) -> tuple[Array, Any]:
  return materialise_p.bind(args[0]), axes[0]


batching.primitive_batchers[materialise_p] = _batch
