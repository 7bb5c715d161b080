"""Commands as a user gives them."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='session')
def command() -> Callable[..., 'subprocess.CompletedProcess[str]']:
  """Runs `python -m experiments.NAME ARGUMENTS` in the repository, on one device.

  It is compiled as quickly as the tests are, or, if it is `optimised`, as it is for a user.
  """
  quick = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]

  def run(name: str, *arguments: str, optimised: bool = False) -> 'subprocess.CompletedProcess[str]':
    return subprocess.run(
      [sys.executable, '-m', f'experiments.{name}', *arguments],
      cwd=ROOT,
      env=os.environ | {'XLA_FLAGS': '' if optimised else ' '.join(quick)},
      capture_output=True,
      text=True,
      timeout=500,
      check=False,
    )

  return run


class Answer(NamedTuple):
  code: int | str | None
  output: str
  errors: str


Ask = Callable[..., Answer]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> Ask:
  """Gives a command line to an entry point, the one of the search by default, in an empty folder."""
  monkeypatch.chdir(tmp_path)

  from darts_jax.commands import entry, search

  def ask(*arguments: str, run: Callable[..., int] = search.run) -> Answer:
    monkeypatch.setattr(sys, 'argv', ['search.py', *arguments])
    with pytest.raises(SystemExit) as exited:
      entry.launch(entry.Command(run, 'how it is called', 'an example', distributed=True), 'test')
    return Answer(exited.value.code, *capsys.readouterr())

  return ask
