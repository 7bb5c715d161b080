"""All estimators by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from darts_jax.hypergradient.base import Estimator
from darts_jax.hypergradient.implicit import amended, conjugate_gradient, neumann
from darts_jax.hypergradient.one_step import exact, exact_reverse, finite_difference, first_order
from darts_jax.hypergradient.single_level import joint, none
from darts_jax.hypergradient.unrolled import truncated, unrolled

#: Constructors of all estimators.
ESTIMATORS: dict[str, Callable[..., Estimator]] = {
  function.__name__: function
  for function in (
    first_order,
    finite_difference,
    exact,
    exact_reverse,
    unrolled,
    truncated,
    neumann,
    conjugate_gradient,
    amended,
    joint,
    none,
  )
}
#: Names of the estimators of the hypergradient of a bilevel problem.
BILEVEL = tuple(name for name in ESTIMATORS if name not in ('joint', 'none'))


def fields_of(name: str) -> tuple[str, ...]:
  """Names of the arguments of an estimator's constructor."""
  return tuple(inspect.signature(ESTIMATORS[name]).parameters)


def make(name: str, fields: Mapping[str, Any]) -> Estimator:
  """Makes an estimator by name.

  Args:
    name: key in `ESTIMATORS`.
    fields: arguments of the constructor by name; other keys are ignored.

  Raises:
    ValueError: an argument is not allowed.
  """
  return ESTIMATORS[name](**{field: fields[field] for field in fields_of(name) if field in fields})
