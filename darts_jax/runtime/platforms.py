"""Programs of primitives by platform."""

from collections.abc import Callable
from typing import Any

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
