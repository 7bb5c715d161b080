"""Platforms: a check for devices, and lowerings of primitives for each platform."""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

#: JAX's names of GPU platforms in lowerings.
GPUS = ('cuda', 'rocm')


def lower_as(
  primitive: Primitive,
  program: Callable[..., Any],
  *,
  cpu: Callable[..., Any] | None = None,
  gpu: Callable[..., Any] | None = None,
) -> None:
  """Registers the lowering of a primitive, written in JAX's own operations.

  Args:
    primitive: the primitive.
    program: a function of its arguments and parameters, for all platforms without one of their own.
    cpu: the function for CPU.
    gpu: the function for GPUs.
  """
  programs = [(None, program), ('cpu', cpu), *[(platform, gpu) for platform in GPUS]]
  for platform, function in programs:
    if function is not None:
      rule = mlir.lower_fun(function, multiple_results=primitive.multiple_results)
      mlir.register_lowering(primitive, rule, platform=platform)


def check_devices() -> None:
  """Raises a ValueError unless JAX finds devices of the platforms in `JAX_PLATFORMS`."""
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:
    plugins = {plugin.name for plugin in importlib.metadata.entry_points(group='jax_plugins')}
    there = f'cpu; installed plugins: {", ".join(sorted(plugins)) or "none"}'
    reason = f' ({" ".join(str(error).split())})' if str(error) else ''
    asked = jax.config.values['jax_platforms'] or 'any platform'
    raise ValueError(
      f'JAX_PLATFORMS: there are no devices of {asked}; there is {there}. darts_jax[cuda] and darts_jax[tpu] install'
      f' what JAX needs for accelerators{reason}'
    ) from error
