"""Packages that can be called like the function that they are about."""

import sys
import types
from collections.abc import Callable
from typing import Any


def make_callable(package: str, function: Callable[..., Any]) -> None:
  """Lets an imported package be called as a function."""

  class Package(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
      return function(*args, **kwargs)

  sys.modules[package].__class__ = Package
