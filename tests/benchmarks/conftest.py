"""What several files of parity tests use."""

from collections.abc import Callable, Iterable

import pytest


@pytest.fixture(scope='session')
def check() -> Callable[[Iterable[tuple[str, float, float]]], list[str]]:
  """Asserts that every error is within its tolerance and that no name comes twice; gives the names."""

  def checked(results: Iterable[tuple[str, float, float]]) -> list[str]:
    results = list(results)
    assert not {name: error for name, error, tolerance in results if not error <= tolerance}
    names = [name for name, _, _ in results]
    assert len(names) == len(set(names))
    return names

  return checked
