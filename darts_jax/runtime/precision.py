"""Numerical precision of products on accelerators, and defaults of JAX that results must not depend on."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec('P')
T = TypeVar('T')


def precisely(precision: str) -> contextlib.AbstractContextManager[Any]:
  """Context in which, with `'float32'`, products have full float32 precision.

  Otherwise accelerators round the factors to ten bits or fewer.
  """
  return jax.default_matmul_precision('highest') if precision == 'float32' else contextlib.nullcontext()


def in_float32(function: Callable[P, T]) -> Callable[P, T]:
  """Wraps a function so that it runs with float32 as the default dtype and with threefry keys.

  That is so whatever `JAX_ENABLE_X64` and `JAX_DEFAULT_PRNG_IMPL` say. With keys of another kind, draws for the images
  of a batch would depend on how it is divided among devices. The functions that it calls can still be called on their
  own in float64, within `jax.enable_x64(True)`.
  """

  @functools.wraps(function)
  def call(*args: P.args, **kwargs: P.kwargs) -> T:
    with jax.enable_x64(False), jax.default_prng_impl('threefry2x32'):
      return function(*args, **kwargs)

  return call
