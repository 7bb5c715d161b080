"""`darts-jax`: its commands, the configs of the package by name, what it says about an installation."""

import importlib
import os
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from darts_jax import __version__
from darts_jax.commands import COMMANDS, doctor, named
from darts_jax.commands.main import main

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))


@pytest.fixture
def tell(capsys, monkeypatch, tmp_path):
  """Gives arguments to `darts-jax` in an empty folder; returns the exit code and what it printed."""
  monkeypatch.chdir(tmp_path)

  def tell(*arguments):
    with pytest.raises(SystemExit) as exited:
      main(arguments)
    return exited.value.code or 0, *capsys.readouterr()

  return tell


@pytest.mark.parametrize('arguments', [(), ('--help',), ('-h',), ('help',)])
def test_all_commands_are_listed(tell, arguments):
  code, output, errors = tell(*arguments)
  assert (code, errors) == (0, '')
  assert dict(re.findall(r'^  (\w+) +(\S.*)$', output, re.MULTILINE)) == COMMANDS


def test_the_version_is_said(tell):
  assert tell('--version') == (0, f'darts-jax {__version__}\n', '')


@pytest.mark.parametrize(
  ('name', 'meant'), [('serch', ' (did you mean search?)'), ('trains', ' (did you mean train?)'), ('--zzz', '')]
)
def test_a_command_that_is_none_is_one_line(tell, name, meant):
  code, output, errors = tell(name, '--config=digits')
  assert (code, output) == (2, '')
  assert errors == f'error: {name} is no command{meant}; commands are {", ".join(COMMANDS)}\n'


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_says_what_it_does_with_its_flags_and_an_example(tell, name):
  command = importlib.import_module(f'darts_jax.commands.{name}').COMMAND
  code, output, errors = tell(name, '--help')
  assert (code, errors) == (0, '')
  assert output.startswith(f'usage: darts-jax {name} {command.arguments}'.rstrip() + '\n')
  assert f'\n\nexample: darts-jax {name} {command.example}'.rstrip() in output
  for flag in command.flags:
    assert re.search(rf'^  --{flag.name}\b', output, re.MULTILINE)
    # All of its words, wherever lines are broken.
    assert ''.join(flag.help.split()) in ''.join(output.split())


@pytest.mark.parametrize('name', sorted(path.stem for path in (ROOT / 'experiments').glob('*.py')))
def test_a_file_of_a_command_is_the_command(capsys, monkeypatch, name):
  monkeypatch.setattr(sys, 'argv', [f'{name}.py', '--help'])
  monkeypatch.setattr(sys, 'path', ['experiments', *sys.path[1:]])
  with pytest.raises(SystemExit) as exited:
    runpy.run_path(str(ROOT / 'experiments' / f'{name}.py'), run_name='__main__')
  assert not exited.value.code
  assert capsys.readouterr().out.startswith(f'usage: python -m experiments.{name} ')


def test_configs_are_listed_with_their_commands(tell):
  code, output, errors = tell('configs')
  assert (code, errors) == (0, '')
  rows = [line.split(maxsplit=2) for line in output.splitlines()]
  assert [name for name, _, _ in rows] == CONFIGS == list(named.paths())
  for name, command, summary in rows:
    assert command in COMMANDS
    assert (ROOT / 'configs' / f'{name}.py').read_text().startswith(f'"""{summary}\n')


def test_a_config_that_is_shown_is_a_file_of_ones_own(tell, tmp_path):
  code, output, errors = tell('show', 'cifar_gdas')
  assert (code, errors) == (0, '')
  assert output == (ROOT / 'configs' / 'cifar_gdas.py').read_text()
  (tmp_path / 'mine.py').write_text(output)
  # The field is wrong, but all before it was read.
  code, _, errors = tell('search', '--config=mine.py', '--config.epochs=none')
  assert (code, errors.startswith('error: flag --config.epochs=none: invalid literal for int()')) == (2, True), errors


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      ('search', '--config=digit'),
      '--config: digit is no file and no config of the package (did you mean digits?); `darts-jax configs` lists them',
    ),
    (
      ('search', '--config=zzz'),
      '--config: zzz is no file and no config of the package; `darts-jax configs` lists them',
    ),
    (
      ('train', '--config=configs/cifar_eval.py'),
      '--config: configs/cifar_eval.py: no such file; the config of the package is --config=cifar_eval',
    ),
    (('search', 'digits'), '--config: missing (did you mean --config=digits?); usage: darts-jax search --config='),
    (('search', '--config='), '--config: missing; usage: '),
    (('',), "'' is no command"),
    (('show', ''), "'' is no file and no config of the package"),
    (('search', '--config=digits_eval'), 'config.auxiliary_weight: unknown field'),
    (('search', '--config=configs/digit.py'), '--config: configs/digit.py: no such file'),
    (('show', 'cifer'), 'cifer is no file and no config of the package (did you mean cifar?)'),
    (('show',), 'name: missing; usage: darts-jax show NAME'),
    (('show', 'cifar', 'mnist'), 'mnist: unexpected argument; usage: darts-jax show NAME'),
    (('configs', '--all'), "Unknown command line flag 'all'"),
    (('completion', 'tcsh'), 'SHELL: tcsh is not known; allowed are bash, zsh, fish'),
    (('export', '--output=x'), '--workdir: missing; usage: darts-jax export --workdir=DIR --output=FILE'),
  ],
)
def test_errors_of_users_are_one_line(tell, tmp_path, arguments, message):
  code, output, errors = tell(*arguments)
  assert (code, output, errors.count('\n')) == (2, '', 1)
  assert errors.startswith(f'error: {message}')
  assert list(tmp_path.iterdir()) == []


def test_a_file_without_its_ending_is_named(tell, tmp_path):
  (tmp_path / 'mine.py').write_text('')
  assert tell('search', '--config=mine')[2] == 'error: --config: mine: no such file; did you mean mine.py?\n'


def test_a_config_of_another_command_is_told_as_such(tell):
  _, _, errors = tell('train', '--config=digits', '--genotype=DARTS_V2')
  assert errors == 'error: config.space: it is called config.task now; digits is a config of the command search\n'


def test_what_a_config_says_about_itself_is_one_line(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('"""Mine.\n\nCommand: python -m experiments.train\nCost: an\n\x1bhour.\nShould give: x\n"""')
  found = named.about(str(path))
  assert (found.line, found.command) == ('mine: Mine. Cost: an hour.', 'train')
  for content in (b'x = 1', b'# -*- coding: latin-1 -*-\nx = "\xe9"', b'"""Mine, of no cost."""'):
    path.write_bytes(content)
    assert (named.about(str(path)).line, named.about(str(path)).command) == ('', '')


def test_output_that_cannot_be_written_is_an_error(monkeypatch, capsys):
  class Full:
    def write(self, text):
      raise OSError(28, 'No space left on device')

    def flush(self):
      pass

  monkeypatch.setattr(sys, 'stdout', Full())
  with pytest.raises(SystemExit) as exited:
    main(['--help'])
  assert exited.value.code == 2
  assert capsys.readouterr().err == 'error: standard output cannot be written (No space left on device)\n'


@pytest.mark.parametrize(
  ('name', 'arguments'),
  [('search', ('--config=digits',)), ('train', ('--config=digits_eval', '--genotype=DARTS_V2'))],
)
def test_a_cache_that_cannot_be_written_is_one_line(name, arguments, tmp_path):
  """And no error; that comes of the working directory, after all that is compiled before a run begins."""
  (tmp_path / 'file').write_text('')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text('{"seed": 5}')
  done = subprocess.run(
    [sys.executable, '-m', f'experiments.{name}', *arguments, f'--workdir={tmp_path}/run'],
    cwd=ROOT,
    env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': f'{tmp_path}/file/cache'},
    capture_output=True,
    text=True,
    check=False,
  )
  warning, error = done.stderr.splitlines()
  assert warning.endswith(f'{tmp_path}/file/cache: no compilation cache there: Not a directory')
  assert error.startswith(f'error: --workdir: {tmp_path}/run holds ')


def test_a_file_is_taken_before_a_config_of_the_same_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert named.find_config('digits') == named.paths()['digits']
  pathlib.Path('digits').write_text('')
  assert named.find_config('digits') == pathlib.Path('digits')


def test_bash_completes_commands_flags_and_configs(tell, tmp_path):
  code, script, _ = tell('completion', 'bash')
  assert code == 0

  def complete(*words):
    (tmp_path / 'script').write_text(script)
    program = (
      f'source ./script; COMP_WORDS=(darts-jax {" ".join(repr(word) for word in words)}); COMP_CWORD={len(words)};'
      ' $(complete -p darts-jax | sed "s/.*-F \\([^ ]*\\).*/\\1/"); echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(['bash', '-c', program], cwd=tmp_path, capture_output=True, text=True, check=True)
    return done.stdout.split()

  assert complete('se') == ['search', 'select']
  assert '--workdir' in complete('search', '--')
  for joined in ((), ('=',)):
    assert complete('search', '--config', *joined, 'digits_e') == ['digits_eval', 'digits_evolution']
    assert complete('search', '--seeds', '3', '--compare', *joined, 'text_e') == ['text_eval']
    assert complete('describe', '--genotype', *joined, 'RNN_DARTS_V') == ['RNN_DARTS_V1', 'RNN_DARTS_V2']
  # The word at the cursor is = itself.
  assert set(complete('train', '--config', '=')) == {*CONFIGS, 'script'}
  assert complete('show', 'mn') == ['mnist']


@pytest.mark.parametrize('shell', ['zsh', 'fish'])
def test_other_shells_are_told_all_commands_and_configs(tell, shell):
  code, script, errors = tell('completion', shell)
  assert (code, errors) == (0, '')
  for word in (*COMMANDS, *CONFIGS, '--genotype' if shell == 'zsh' else 'genotype'):
    assert word in script
  if shell == 'zsh':
    # In the lists of `_arguments`, values may follow = or a space, and actions have no colons of their own.
    found = dict(re.findall(r'^ *"--([\w.]+=?)\[.*?\]:[\w.]+:([^"]*)"$', script, re.MULTILINE))
    assert found['config='] == '_darts_jax_config'
    assert found['genotype='] == '_darts_jax_genotype'
    assert [name for name in found if not name.endswith('=')] == []


def test_an_installation_that_works_is_described_on_one_screen(tell):
  code, output, errors = tell('doctor')
  assert (code, errors) == (0, ''), output
  lines = output.splitlines()
  assert len(lines) <= 24
  assert [line[:12].strip() for line in lines if line[0] != ' '] == list(doctor._CHECKS)
  assert lines[0].startswith(f'darts-jax   {__version__}, Python {sys.version.split()[0]}, ')
  assert '8 × cpu' in output
  assert re.search(r'^search step compiled and run in \d+ s, on 8 devices$', output, re.MULTILINE)


def test_without_devices_nothing_else_is_tried(tell, monkeypatch):
  def check_devices():
    raise AssertionError

  monkeypatch.setattr(doctor, 'check_devices', check_devices)
  code, output, _ = tell('doctor')
  assert code == 1
  assert output.splitlines()[-1] == 'devices     FAILED: AssertionError'


def test_what_is_wrong_with_an_installation_is_one_line_each(tell, monkeypatch, tmp_path):
  (tmp_path / 'file').write_text('')
  monkeypatch.setattr(doctor, 'cache_folder', lambda: tmp_path / 'file' / 'xla')

  def broken():
    yield 'begun'
    raise RuntimeError('a step\ndoes not compile')

  monkeypatch.setitem(doctor._CHECKS, 'search step', broken)
  code, output, errors = tell('doctor')
  assert (code, errors) == (1, '')
  said = dict(line.split(maxsplit=1) for line in output.splitlines() if line[0] != ' ')
  assert said['cache'].startswith('FAILED: ')
  assert str(tmp_path / 'file' / 'xla') in said['cache']
  assert output.splitlines()[-2:] == ['search step begun', '            FAILED: RuntimeError: a step does not compile']
