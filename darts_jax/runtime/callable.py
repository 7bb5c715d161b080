"""Makes packages callable, such as `darts_jax.hypergradient(…)`."""

import sys
import types
from collections.abc import Callable
from typing import Any


def make_callable(package: str, function: Callable[..., Any]) -> None:
  """Makes an imported package callable.

  Args:
    package: full name of the package.
    function: the function that a call of the package calls.
  """

  class Package(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
      return function(*args, **kwargs)

  sys.modules[package].__class__ = Package
