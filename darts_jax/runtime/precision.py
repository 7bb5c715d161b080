"""What a precision of the settings means: to products on accelerators, and to dtypes that JAX chooses by itself."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec('P')
T = TypeVar('T')


def precisely(precision: str) -> contextlib.AbstractContextManager[Any]:
  """Within, products in float32 are those of float32: accelerators would else round factors to ten bits or fewer."""
  return jax.default_matmul_precision('highest') if precision == 'float32' else contextlib.nullcontext()


def in_float32(function: Callable[P, T]) -> Callable[P, T]:
  """The same function whether or not `JAX_ENABLE_X64` is set, which would make all of a run float64.

  What such a function is made of is in float64 where a caller says so, `with jax.enable_x64(True)`.
  """

  @functools.wraps(function)
  def call(*args: P.args, **kwargs: P.kwargs) -> T:
    with jax.enable_x64(False):
      return function(*args, **kwargs)

  return call
