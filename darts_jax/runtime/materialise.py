"""A value that is computed once: a barrier to XLA's fusion on CPU.

XLA's CPU compiler merges an elementwise producer into every consumer, and drops optimization barriers before it does. A
node that is read by nine shifted windows is then summed up nine times, in nine times the code. It does not merge across
the call of a function that it is told not to inline, so on CPU that is the barrier; elsewhere it is nothing.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array


def computed_once(function: Callable[..., Any], *args: Array, **static: Any) -> Any:
  """`function(*args, **static)`, not merged into what reads it; for lowerings on CPU, not to be differentiated.

  Args:
    function: of a module, since it is traced once for all arrays of the same shapes.
    *args: arrays.
    **static: what else it takes, hashable.
  """
  with set_xla_metadata(inlineable='false'):
    return _traced_once(function, tuple(static.items()))(*args)


@functools.cache
def _traced_once(function: Callable[..., Any], static: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
  def compute(*args: Array) -> Any:
    # What is called in turn may be inlined.
    with set_xla_metadata(inlineable=None):
      return function(*args, **dict(static))

  return jax.jit(compute)


def materialise(x: Array) -> Array:
  """Returns `x`, computed once; its cotangents and tangents are, too."""
  return materialise_all([x])[0]


def materialise_all(arrays: Sequence[Array]) -> list[Array]:
  """Returns the arrays, all computed before any of them is read; their cotangents and tangents likewise."""
  return materialise_p.bind(*arrays) if arrays else []


_with_tangents: contextvars.ContextVar[bool] = contextvars.ContextVar('with_tangents', default=False)


@contextlib.contextmanager
def materialised_with_tangents() -> Iterator[None]:
  """Within, forward mode computes what is materialised together with its tangents.

  Otherwise XLA may well schedule all of a backward pass before it begins with the tangents of it, and keep for them
  what they read at every layer. For a function that is traced already, as reverse mode needs values that do not depend
  on tangents.
  """
  token = _with_tangents.set(True)
  try:
    yield
  finally:
    _with_tangents.reset(token)


def _same(*arrays: Array) -> list[Array]:
  return list(arrays)


def _jvp(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[list[Array], list[Any]]:
  moving = [t for t in tangents if not isinstance(t, ad.Zero)]
  if _with_tangents.get():
    both = materialise_all([*primals, *moving])
    values, moved = both[: len(primals)], iter(both[len(primals) :])
  else:
    values, moved = materialise_all(primals), iter(materialise_all(moving))
  return values, [t if isinstance(t, ad.Zero) else next(moved) for t in tangents]


def _transpose(cotangents: Sequence[Any], *args: Any) -> list[Any]:
  del args
  moved = iter(materialise_all([ct for ct in cotangents if not isinstance(ct, ad.Zero)]))
  return [ct if isinstance(ct, ad.Zero) else next(moved) for ct in cotangents]


def _batch(args: Sequence[Array], axes: Sequence[Any]) -> tuple[list[Array], Sequence[Any]]:
  return materialise_all(args), axes


materialise_p = Primitive('materialise')
materialise_p.multiple_results = True
materialise_p.def_impl(_same)
materialise_p.def_abstract_eval(_same)
mlir.register_lowering(materialise_p, lambda context, *arrays: arrays)
mlir.register_lowering(
  materialise_p, mlir.lower_fun(functools.partial(computed_once, _same), multiple_results=True), platform='cpu'
)
ad.primitive_jvps[materialise_p] = _jvp
ad.primitive_transposes[materialise_p] = _transpose
batching.primitive_batchers[materialise_p] = _batch
