"""Platforms: whether there are devices, and programs of primitives for each."""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

#: GPUs, as JAX names them when it lowers a program.
GPUS = ('cuda', 'rocm')


def lower_as(
  primitive: Primitive,
  program: Callable[..., Any],
  *,
  cpu: Callable[..., Any] | None = None,
  gpu: Callable[..., Any] | None = None,
) -> None:
  """Says what a primitive is in JAX's own operations.

  Args:
    primitive: to be lowered.
    program: a function of its arguments and parameters.
    cpu: another one for CPU.
    gpu: another one for GPUs.
  """
  programs = [(None, program), ('cpu', cpu), *[(platform, gpu) for platform in GPUS]]
  for platform, function in programs:
    if function is not None:
      rule = mlir.lower_fun(function, multiple_results=primitive.multiple_results)
      mlir.register_lowering(primitive, rule, platform=platform)


def check_devices() -> None:
  """Raises a ValueError unless JAX finds devices of the platform that it is told to use (`JAX_PLATFORMS`)."""
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
