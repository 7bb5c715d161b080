"""A value that is computed once: a barrier to XLA's fusion on CPU.

XLA's CPU compiler merges an elementwise producer into every consumer, and drops optimization barriers
before it does. A node that is read by nine shifted windows is then summed up nine times, in nine times the code. It
does not merge across loops, so there the barrier is a copy in a loop; elsewhere it is nothing.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array


def materialise(x: Array) -> Array:
  """Returns `x`, of any shape with a leading batch axis; its cotangents and tangents are materialised too."""
  return materialise_p.bind(x)


def _copy_in_loop(x: Array) -> Array:
  # At least two iterations, or XLA takes the loop away.
  blocks = 2 if x.shape[0] % 2 == 0 else x.shape[0]
  # JAX would forward the input of an empty body, hence the barrier in it.
  return lax.map(lax.optimization_barrier, x.reshape(blocks, -1, *x.shape[1:])).reshape(x.shape)


def _lower_on_cpu(context: mlir.LoweringRuleContext, x: Any) -> Sequence[Any]:
  # The loop would gather an array that is spread over several devices.
  devices = getattr(context.module_context.axis_context, 'num_devices', None)
  if devices not in (None, 1):
    return [x]
  return mlir.lower_fun(_copy_in_loop, multiple_results=False)(context, x)


materialise_p = Primitive('materialise')
materialise_p.def_impl(lambda x: x)
materialise_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(materialise_p, lambda context, x: [x])
mlir.register_lowering(materialise_p, _lower_on_cpu, platform='cpu')
ad.deflinear2(materialise_p, lambda cotangent, _: [materialise_p.bind(cotangent)])
batching.primitive_batchers[materialise_p] = lambda args, axes: (materialise_p.bind(args[0]), axes[0])
