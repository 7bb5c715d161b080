"""A value that is computed once: a barrier to XLA's fusion on CPU.

XLA's CPU compiler merges an elementwise producer into every consumer, and drops optimization barriers before it does. A
node that is read by nine shifted windows is then summed up nine times, in nine times the code. It does not merge across
the call of a function that it is told not to inline, so on CPU that is the barrier; elsewhere it is nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array


def computed_once(function: Callable[..., Array], *args: Array) -> Array:
  """`function(*args)`, not merged into what reads it; for lowerings on CPU, not to be differentiated."""

  def compute(*args: Array) -> Array:
    # What is called in turn may be inlined.
    with set_xla_metadata(inlineable=None):
      return function(*args)

  with set_xla_metadata(inlineable='false'):
    return jax.jit(compute)(*args)


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
