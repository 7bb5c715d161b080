"""What a precision of the settings means to products on accelerators."""

import contextlib
from typing import Any

import jax


def precisely(precision: str) -> contextlib.AbstractContextManager[Any]:
  """Within, products in float32 are those of float32: accelerators would else round factors to ten bits or fewer."""
  return jax.default_matmul_precision('highest') if precision == 'float32' else contextlib.nullcontext()
