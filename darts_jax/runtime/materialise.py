"""Materialises values, that is, prevents XLA from fusing their computation into consumers, on CPU.

XLA's CPU compiler fuses an elementwise producer into every consumer, and drops optimization barriers before it does so.
A sum that is read by nine shifted windows is then computed nine times, with nine times the code. XLA does not fuse
across calls of a function that it must not inline, so on CPU such calls are the barrier; on other platforms nothing is
done.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching

from darts_jax.runtime.platforms import lower_as

Array = jax.Array


def computed_once(function: Callable[..., Any], *args: Array, **static: Any) -> Any:
  """`function(*args, **static)`, which XLA does not fuse into its consumers; for lowerings on CPU, not differentiable.

  Args:
    function: a function of a module, not a closure, since traces are cached by function.
    *args: arrays.
    **static: hashable arguments; equal values share a trace, such as 2 and 2.0.
  """
  with set_xla_metadata(inlineable='false'):
    return _traced_once(function, tuple(static.items()))(*args)


@functools.cache
def _traced_once(function: Callable[..., Any], static: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
  def compute(*args: Array) -> Any:
    # Only this call must not be inlined; nested calls may be.
    with set_xla_metadata(inlineable=None):
      return function(*args, **dict(static))

  return jax.jit(compute)


def materialise(x: Array) -> Array:
  """Returns `x`, materialised; its cotangents and tangents are materialised, too."""
  return materialise_all([x])[0]


def materialise_all(arrays: Sequence[Array]) -> list[Array]:
  """Returns the arrays, all materialised before any of them is read; their cotangents and tangents are, too."""
  return materialise_p.bind(*arrays, with_tangents=False) if arrays else []


def product_with_tangents(traced: ClosedJaxpr, point: Sequence[Array], direction: Sequence[Array]) -> list[Array]:
  """A Jacobian-vector product in which materialised values are computed together with their tangents.

  Otherwise XLA may schedule a whole backward pass before the tangents of it, and keep the inputs of the tangents at
  every layer until then.

  Args:
    traced: the function. Its `materialise` primitives are marked only for this product: in reverse mode, values must
      not depend on tangents.
    point: the arguments of the function.
    direction: the tangents of the arguments.
  """
  function = jaxpr_as_fun(_marked(traced, True, {}))
  product = jax.make_jaxpr(lambda point, direction: jax.jvp(function, point, direction)[1])(point, direction)
  return jaxpr_as_fun(_marked(product, False, {}))(*point, *direction)


def _marked(value: Any, with_tangents: bool, known: dict[int, Any]) -> Any:
  """Sets `with_tangents` of all `materialise` primitives in a jaxpr, or in a parameter of an equation.

  Args:
    value: a jaxpr, or any parameter.
    with_tangents: whether values are to be computed together with their tangents.
    known: results by the id of a jaxpr; gets further ones.
  """
  if type(value) is tuple:
    parts = tuple(_marked(each, with_tangents, known) for each in value)
    return parts if any(new is not old for new, old in zip(parts, value, strict=True)) else value
  # From JAX 0.12 on, `Jaxpr` and `ClosedJaxpr` are one class, whose attribute `jaxpr` is the object itself.
  if isinstance(value, ClosedJaxpr) and value.jaxpr is not value:
    inner = _marked(value.jaxpr, with_tangents, known)
    # Equal jaxprs stay one object, since JAX caches by identity.
    return known.setdefault(id(value), value if inner is value.jaxpr else ClosedJaxpr(inner, value.consts))
  if not isinstance(value, Jaxpr):
    return value
  if id(value) not in known:
    eqns = [_marked_eqn(eqn, with_tangents, known) for eqn in value.eqns]
    changed = any(new is not old for new, old in zip(eqns, value.eqns, strict=True))
    known[id(value)] = value.replace(eqns=eqns) if changed else value
  return known[id(value)]


def _marked_eqn(eqn: Any, with_tangents: bool, known: dict[int, Any]) -> Any:
  if eqn.primitive is materialise_p:
    return eqn.replace(params={'with_tangents': with_tangents})
  params = {name: _marked(value, with_tangents, known) for name, value in eqn.params.items()}
  changed = any(params[name] is not eqn.params[name] for name in params)
  return eqn.replace(params=params) if changed else eqn


def _same(*arrays: Any, with_tangents: bool = False) -> list[Any]:
  del with_tangents
  return list(arrays)


def _jvp(primals: Sequence[Array], tangents: Sequence[Any], *, with_tangents: bool) -> tuple[list[Array], list[Any]]:
  moving = [t for t in tangents if not isinstance(t, ad.Zero)]
  if with_tangents:
    both = materialise_all([*primals, *moving])
    values, moved = both[: len(primals)], iter(both[len(primals) :])
  else:
    values, moved = materialise_all(primals), iter(materialise_all(moving))
  return values, [t if isinstance(t, ad.Zero) else next(moved) for t in tangents]


def _transpose(cotangents: Sequence[Any], *args: Any, with_tangents: bool) -> list[Any]:
  del args, with_tangents
  moved = iter(materialise_all([ct for ct in cotangents if not isinstance(ct, ad.Zero)]))
  return [ct if isinstance(ct, ad.Zero) else next(moved) for ct in cotangents]


def _batch(args: Sequence[Array], axes: Sequence[Any], *, with_tangents: bool) -> tuple[list[Array], Sequence[Any]]:
  return materialise_p.bind(*args, with_tangents=with_tangents), axes


materialise_p = Primitive('materialise')
materialise_p.multiple_results = True
materialise_p.def_impl(_same)
materialise_p.def_abstract_eval(_same)
lower_as(materialise_p, _same, cpu=lambda *arrays, with_tangents: computed_once(_same, *arrays))
ad.primitive_jvps[materialise_p] = _jvp
ad.primitive_transposes[materialise_p] = _transpose
batching.primitive_batchers[materialise_p] = _batch
