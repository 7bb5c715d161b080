"""What a user gets wrong on the command line of a benchmark is one line and exit code 2."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
  ('benchmark', 'argument', 'message'),
  [
    ('plain_recurrent', '--config=configs/cifar.py', '--config: a search for convolutional cells'),
    ('plain_convolutional', '--config=configs/ptb.py', '--config: a search for recurrent cells'),
    ('sgas', '--config=configs/ptb.py', '--config: a search for recurrent cells'),
    ('search_step', '--repeats=1', '--config: missing'),
  ],
)
def test_a_wrong_argument_is_one_line(benchmark, argument, message):
  command = [sys.executable, '-m', f'benchmarks.{benchmark}', argument]
  done = subprocess.run(command, check=False, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stdout == ''
  [line] = done.stderr.splitlines()
  assert line.startswith(f'error: {message}')
