"""Commands as a user gives them."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='session')
def command() -> Callable[..., 'subprocess.CompletedProcess[str]']:
  """Runs `python -m experiments.NAME ARGUMENTS` in the repository."""

  def run(name: str, *arguments: str) -> 'subprocess.CompletedProcess[str]':
    return subprocess.run(
      [sys.executable, '-m', f'experiments.{name}', *arguments],
      cwd=ROOT,
      env=os.environ | {'XLA_FLAGS': ''},
      capture_output=True,
      text=True,
      timeout=500,
      check=False,
    )

  return run
