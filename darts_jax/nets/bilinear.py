"""Maps that are bilinear in images and weights, as one JAX primitive that is closed under differentiation.

A bilinear map y = B(x, w) and its two gradients are *faces* of one trilinear form T(x, w, y) = ⟨B(x, w), y⟩: each is
the gradient of T with respect to one argument at the other two. The primitive computes any of the three faces, so its
derivatives are the same primitive with another target, to any order, in forward and reverse mode. The exact
hypergradient needs this (`jax.custom_vjp` has no forward mode). As a primitive it can also have a different
implementation on each platform, and skip the weight gradient at run time in passes of a search step that need only the
gradient with respect to α, although the program contains the weight gradient only once (see `weights_gradient_if`).
"""

import abc
import contextlib
import contextvars
import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ParamSpec, Self, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jax.sharding import Mesh

from darts_jax.runtime.materialise import materialise_all
from darts_jax.runtime.platforms import lower_as

Array = jax.Array
Shape = tuple[int, ...]
P = ParamSpec('P')
T = TypeVar('T')

#: The arguments of the trilinear form. The primitive takes the arrays of two of them, in this order, and returns the
#: gradient with respect to the third.
GROUPS = ('images', 'weights', 'outputs')


class Bilinear(abc.ABC):
  """A bilinear map of arrays of one dtype; static and hashable, since it is a parameter of the primitive."""

  @abc.abstractmethod
  def shapes(self, group: str) -> list[Shape]:
    """Shapes of the arrays of one argument of the trilinear form, which is one of `GROUPS`."""

  @abc.abstractmethod
  def apply(self, images: list[Array], weights: list[Array]) -> list[Array]:
    """Computes the map in JAX's own operations."""

  def __call__(self, images: Sequence[Array], weights: Sequence[Array]) -> list[Array]:
    """Computes the map by the primitive, or in JAX's own operations within `in_plain_operations`."""
    if _plain.get():
      return self.apply(list(images), list(weights))
    return self.gradient('outputs', images, weights)

  def gradient(self, target: str, first: Sequence[Array], second: Sequence[Array]) -> list[Array]:
    """Computes, by the primitive, the gradient of the trilinear form with respect to `target` at the other two."""
    return _bind(target, first, second, _wanted.get() if self.optional else None, self)

  @property
  def optional(self) -> bool:
    """Whether passes that need no weight gradients can skip the gradient with respect to the weights of this map."""
    return True

  @property
  def kept(self) -> bool:
    """Whether the backward pass keeps the outputs; the two terms of a tangent are then summed into one array."""
    return False

  def face(self, target: str, first: list[Array], second: list[Array]) -> list[Array]:
    """Computes the face `target` in JAX's own operations; see `gradient`."""
    if target == 'outputs':
      return self.apply(first, second)
    unknown = [jax.ShapeDtypeStruct(shape, second[0].dtype) for shape in self.shapes(target)]
    along = (lambda x: self.apply(x, first)) if target == 'images' else (lambda w: self.apply(first, w))
    return list(jax.linear_transpose(along, unknown)(second)[0])

  def face_on_cpu(self, target: str, first: list[Array], second: list[Array]) -> list[Array]:
    """Computes the face `target` in the fastest way on CPU; by default this is `face`."""
    return self.face(target, first, second)

  @property
  def likeness(self) -> Hashable:
    """A key: maps of one class with equal keys can share kernels on GPUs."""
    return self

  @classmethod
  def faces_on_gpu(
    cls, maps: Sequence[Self], target: str, first: Sequence[list[Array]], second: Sequence[list[Array]]
  ) -> list[list[Array]]:
    """Computes the face `target` of several maps with equal `likeness` in the fastest way on GPUs."""
    return [each.face(target, x, y) for each, x, y in zip(maps, first, second, strict=True)]


@dataclasses.dataclass(frozen=True)
class DirectSum(Bilinear):
  """Several independent bilinear maps as one, so that one conditional skips the weight gradients of all of them.

  Attributes:
    maps: the maps; their arrays follow each other in the arguments and the results.
  """

  maps: tuple[Bilinear, ...]

  def shapes(self, group: str) -> list[Shape]:
    """See `Bilinear`."""
    return [shape for each in self.maps for shape in each.shapes(group)]

  @property
  def optional(self) -> bool:
    """See `Bilinear`."""
    return all(each.optional for each in self.maps)

  @property
  def kept(self) -> bool:
    """See `Bilinear`."""
    return any(each.kept for each in self.maps)

  def apply(self, images: list[Array], weights: list[Array]) -> list[Array]:
    """See `Bilinear`."""
    parts = self._parts('outputs', images, weights)
    return [y for each, first, second in parts for y in each.apply(first, second)]

  def face(self, target: str, first: list[Array], second: list[Array]) -> list[Array]:
    """See `Bilinear`."""
    return [y for each, *arrays in self._parts(target, first, second) for y in each.face(target, *arrays)]

  def face_on_cpu(self, target: str, first: list[Array], second: list[Array]) -> list[Array]:
    """See `Bilinear`."""
    return [y for each, *arrays in self._parts(target, first, second) for y in each.face_on_cpu(target, *arrays)]

  @classmethod
  def faces_on_gpu(
    cls, maps: Sequence['DirectSum'], target: str, first: Sequence[list[Array]], second: Sequence[list[Array]]
  ) -> list[list[Array]]:
    """See `Bilinear`."""
    return [each._face_on_gpu(target, x, y) for each, x, y in zip(maps, first, second, strict=True)]

  def _face_on_gpu(self, target: str, first: list[Array], second: list[Array]) -> list[Array]:
    alike: dict[Any, list[int]] = {}
    for i, each in enumerate(self.maps):
      alike.setdefault((type(each), each.likeness), []).append(i)
    parts = [*self._parts(target, first, second)]
    found: dict[int, list[Array]] = {}
    for (kind, _), members in alike.items():
      maps, firsts, seconds = zip(*[parts[i] for i in members], strict=True)
      found |= zip(members, kind.faces_on_gpu(maps, target, firsts, seconds), strict=True)
    return [y for i in range(len(self.maps)) for y in found[i]]

  def _parts(
    self, target: str, first: Sequence[Array], second: Sequence[Array]
  ) -> Iterator[tuple[Bilinear, list[Array], list[Array]]]:
    """Yields every map with its own arrays of the two arguments."""
    names, arrays = sources(target), (iter(first), iter(second))
    for each in self.maps:
      mine = [list(itertools.islice(a, len(each.shapes(name)))) for name, a in zip(names, arrays, strict=True)]
      yield each, mine[0], mine[1]


_wanted: contextvars.ContextVar[Array | None] = contextvars.ContextVar('weights_gradient_wanted', default=None)


_plain: contextvars.ContextVar[bool] = contextvars.ContextVar('plain_operations', default=False)


@contextlib.contextmanager
def in_plain_operations() -> Iterator[None]:
  """Context in which maps are traced in JAX's own operations, as one program for all platforms and batch sizes."""
  token = _plain.set(True)
  try:
    yield
  finally:
    _plain.reset(token)


def in_plain() -> bool:
  """Whether tracing takes place within `in_plain_operations`."""
  return _plain.get()


_as_channels: contextvars.ContextVar[bool] = contextvars.ContextVar('edges_as_channels', default=False)


@contextlib.contextmanager
def edges_as_channels(wanted: bool) -> Iterator[None]:
  """Context in which, if `wanted`, cells are traced with the edges of a stack as channels of one image.

  See `darts_jax.nets.layers`.
  """
  token = _as_channels.set(wanted)
  try:
    yield
  finally:
    _as_channels.reset(token)


def traced_for(mesh: Mesh, function: Callable[P, T]) -> Callable[P, T]:
  """Wraps a function of networks so that it is traced as suits the devices of a mesh: on TPUs, edges as channels."""
  tpus = mesh.devices.flat[0].platform == 'tpu'

  @functools.wraps(function)
  def traced(*args: P.args, **kwargs: P.kwargs) -> T:
    with edges_as_channels(tpus):
      return function(*args, **kwargs)

  return traced


def as_channels() -> bool:
  """Whether tracing takes place within `edges_as_channels(True)`."""
  return _as_channels.get()


@contextlib.contextmanager
def weights_gradient_if(wanted: Array | None) -> Iterator[None]:
  """Context in which bilinear maps are traced so that weight gradients are zero and not computed unless `wanted`.

  On GPUs weight gradients are computed in any case.

  Args:
    wanted: `[]` bool, traced; None if gradients are always wanted.
  """
  token = _wanted.set(wanted)
  try:
    yield
  finally:
    _wanted.reset(token)


def weights_gradient_wanted() -> Array | None:
  """The argument of the innermost `weights_gradient_if`; None outside."""
  return _wanted.get()


def sources(target: str) -> tuple[str, str]:
  """The names of the two arguments of the trilinear form other than `target`, in the order of `GROUPS`."""
  first, second = (group for group in GROUPS if group != target)
  return first, second


def _bind(target: str, first: Sequence[Any], second: Sequence[Any], wanted: Any, form: Bilinear) -> list[Array]:
  gate = [] if wanted is None else [wanted]
  return list(bilinear_p.bind(*first, *second, *gate, target=target, form=form, gated=bool(gate)))


def _divide(args: Sequence[Any], target: str, form: Bilinear, gated: bool) -> tuple[list[Any], list[Any], Any]:
  """Divides operands into the arrays of the two arguments, and the flag whether weight gradients are wanted."""
  *arrays, wanted = args if gated else (*args, None)
  count = len(form.shapes(sources(target)[0]))
  return list(arrays[:count]), list(arrays[count:]), wanted


def _program_on_gpu(*args: Array, target: str, form: Bilinear, gated: bool) -> list[Array]:
  # The flag is ignored: at a conditional the host would wait for all kernels before it.
  first, second, _ = _divide(args, target, form, gated)
  return form.faces_on_gpu([form], target, [first], [second])[0]


def _program(*args: Array, target: str, form: Bilinear, gated: bool, on_cpu: bool = False) -> list[Array]:
  first, second, wanted = _divide(args, target, form, gated)
  compute = functools.partial(form.face_on_cpu if on_cpu else form.face, target)
  if wanted is None or target != 'weights':
    return compute(first, second)
  zeros = [jnp.zeros(shape, args[0].dtype) for shape in form.shapes(target)]
  return lax.cond(wanted, compute, lambda first, second: zeros, first, second)


bilinear_p = Primitive('bilinear')
bilinear_p.multiple_results = True
bilinear_p.def_impl(jax.jit(bilinear_p.bind, static_argnames=('target', 'form', 'gated')))


@bilinear_p.def_abstract_eval
def _avals(*args: Any, target: str, form: Bilinear, gated: bool) -> list[jax.core.ShapedArray]:
  del gated
  return [jax.core.ShapedArray(shape, args[0].dtype) for shape in form.shapes(target)]


lower_as(bilinear_p, _program, cpu=functools.partial(_program, on_cpu=True), gpu=_program_on_gpu)


def _jvp(
  primals: Sequence[Array], tangents: Sequence[Any], *, target: str, form: Bilinear, gated: bool
) -> tuple[list[Array], list[Any]]:
  first, second, wanted = _divide(primals, target, form, gated)
  terms = []
  for i, tangent in enumerate(_divide(tangents, target, form, gated)[:2]):
    if not all(isinstance(t, ad.Zero) for t in tangent):
      moving = [ad.instantiate_zeros(t) for t in tangent]
      terms.append(_bind(target, *((moving, second) if i == 0 else (first, moving)), wanted, form))
  out = _bind(target, first, second, wanted, form)
  moved = [functools.reduce(ad.add_jaxvals, parts) for parts in zip(*terms, strict=True)]
  return out, materialise_all(moved) if form.kept and target == 'outputs' and len(terms) > 1 else moved


def _transpose(cotangents: Sequence[Any], *args: Any, target: str, form: Bilinear, gated: bool) -> list[Any]:
  first, second, wanted = _divide(args, target, form, gated)
  halves, gate = (first, second), [None] if gated else []
  names = sources(target)
  unknown = 0 if any(map(ad.is_undefined_primal, halves[0])) else 1
  if all(isinstance(ct, ad.Zero) for ct in cotangents):
    results: list[Any] = [ad.Zero(x.aval.to_tangent_aval()) if ad.is_undefined_primal(x) else None for x in args]
    return results
  cotangents = [ad.instantiate_zeros(ct) for ct in cotangents]
  if gated and target == 'weights':
    cotangents = [jnp.where(wanted, ct, 0) for ct in cotangents]
  known = {target: cotangents, names[1 - unknown]: halves[1 - unknown]}
  arguments = [known[name] for name in sources(names[unknown])]
  found = _bind(names[unknown], arguments[0], arguments[1], wanted, form)
  moving = [y if ad.is_undefined_primal(x) else None for x, y in zip(halves[unknown], found, strict=True)]
  nothing = [None] * len(halves[1 - unknown])
  return [*moving, *nothing, *gate] if unknown == 0 else [*nothing, *moving, *gate]


ad.primitive_jvps[bilinear_p] = _jvp
ad.primitive_transposes[bilinear_p] = _transpose


def _batch(args: Sequence[Any], axes: Sequence[Any], **params: Any) -> tuple[list[Array], list[int]]:
  # A loop, since `vmap` (over several seeds in one program) would make slow convolutions with batched filters.
  mapped = [jnp.moveaxis(arg, axis, 0) for arg, axis in zip(args, axes, strict=True) if axis is not None]

  def one(values: Sequence[Array]) -> list[Array]:
    rest = iter(values)
    return bilinear_p.bind(*(a if axis is None else next(rest) for a, axis in zip(args, axes, strict=True)), **params)

  results = lax.map(one, mapped)
  return results, [0] * len(results)


batching.primitive_batchers[bilinear_p] = _batch
