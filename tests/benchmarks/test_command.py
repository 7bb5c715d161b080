"""Command lines of benchmarks: what a user gets wrong is one line and exit code 2, and help is what the module says."""

import subprocess
import sys

import pytest

from benchmarks.command import exit_code, output_file


@pytest.mark.parametrize(
  ('benchmark', 'argument', 'message'),
  [
    ('plain_recurrent', '--config=configs/cifar.py', "config.task.name: 'images' is not allowed"),
    ('plain_convolutional', '--config=configs/ptb.py', "config.task.name: 'text' is not allowed"),
    ('sgas', '--config=configs/ptb.py', "config.task.name: 'text' is not allowed"),
    ('search_step', '--repeats=1', '--config: missing'),
    ('rulers', '--json=results.json', '--table: missing'),
  ],
)
def test_a_wrong_argument_is_one_line(benchmark, argument, message):
  command = [sys.executable, '-m', f'benchmarks.{benchmark}', argument]
  done = subprocess.run(command, check=False, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stdout == ''
  [line] = done.stderr.splitlines()
  assert line.startswith(f'error: {message}')


@pytest.mark.parametrize('asked', ['-h', '--help'])
def test_help_is_printed_instead(monkeypatch, capsys, asked):
  def run():
    raise AssertionError

  monkeypatch.setattr(sys, 'argv', ['search_step.py', '--repeats=0', asked])
  assert exit_code(run, 'What it measures.') == 0
  assert capsys.readouterr().out == 'What it measures.\n'


def test_exit_code_is_what_the_benchmark_returns():
  assert [exit_code(run, None) for run in (lambda: None, lambda: 1)] == [0, 1]


def test_a_file_of_results_is_known_to_be_writable_before_anything_runs(tmp_path):
  assert output_file(None, '--json') is None
  assert output_file(str(tmp_path / 'results.json'), '--json') == tmp_path / 'results.json'
  (tmp_path / 'file').touch()
  for path, message in (
    (tmp_path, f'{tmp_path} is a folder; give a file'),
    (
      tmp_path / 'none' / 'results.json',
      f'{tmp_path}/none is not a folder; make it, or give a file in one that exists',
    ),
    (tmp_path / 'file' / 'results.json', f'{tmp_path}/file is not a folder'),
    ('https://example.org/results.json', 'https://example.org/results.json is a URL'),
  ):
    with pytest.raises(ValueError, match=f'^--json: {message}'):
      output_file(str(path), '--json')
