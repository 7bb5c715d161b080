"""What the command says of a network."""

import ast
import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest

from darts_jax import spaces
from darts_jax.commands import describe
from darts_jax.spaces import recurrent

ROOT = pathlib.Path(__file__).parents[2]
DEFAULTS = {flag.name: flag.default for flag in describe.FLAGS}


def run(capsys, genotype='DARTS_V2', **flags):
  code = describe.run(**{**DEFAULTS, 'genotype': genotype, **flags})
  assert code == 0
  return capsys.readouterr().out


def test_published_sizes_are_the_defaults(capsys):
  lines = run(capsys, auxiliary=True).splitlines()
  assert lines[:2] == ['parameters: 3,349,342', 'with the auxiliary head: 3,825,768']
  assert lines[2].startswith('multiply-adds: 528,359,040')
  assert run(capsys, imagenet=True, auxiliary=True).splitlines()[:2] == [
    'parameters: 4,718,752',
    'with the auxiliary head: 5,979,528',
  ]
  assert run(capsys, classes='100').splitlines()[0] == 'parameters: 3,401,272'
  # One colour less costs the stem 9 · 108 weights each.
  assert run(capsys, image_channels='1').splitlines()[0] == f'parameters: {3_349_342 - 2 * 9 * 108:,}'


@pytest.mark.parametrize(
  ('sizes', 'weights', 'multiply_adds'),
  [
    # 4·H² + 8·2H² + H·V multiply-adds.
    ({}, '22,960,000', 20 * 850**2 + 850 * 10_000),
    ({'width': '700', 'vocabulary': '33278'}, '33,127,878', 20 * 700**2 + 700 * 33_278),
    ({'width': '300'}, '4,810,000', 20 * 300**2 + 300 * 10_000),
  ],
)
def test_language_models_have_their_published_sizes(capsys, sizes, weights, multiply_adds):
  lines = run(capsys, 'RNN_DARTS_V2', **sizes).splitlines()
  assert lines[0] == f'parameters: {weights}'
  assert lines[2] == f'multiply-adds: {multiply_adds:,} per token'


def test_a_language_model_of_a_file_is_described_part_by_part(tmp_path, capsys):
  spaces.save(recurrent.genotype((('relu', 0), ('identity', 1)), (1, 2)), tmp_path / 'found.json')
  flags = {'genotype': str(tmp_path / 'found.json'), 'width': '3', 'vocabulary': '5'}
  table = [' '.join(line.split()) for line in run(capsys, **flags).splitlines()[5:-2]]
  assert table == [
    'activation reads parameters multiply-adds',
    'embedding word 15 0',
    's0 input and previous state 36 36',
    's1 relu s0 18 18',
    's2 identity s1 18 18',
    'decoder mean of s1–s2 5 15',
  ]
  found = json.loads(run(capsys, json=True, **flags))
  assert (found['parameters'], found['multiply_adds']) == (15 + 36 + 18 + 18 + 5, 36 + 18 + 18 + 15)
  assert found['settings'] == {'width': 3, 'vocabulary': 5}
  assert found['genotype'] == {'recurrent': [['relu', 0], ['identity', 1]], 'concat': [1, 2]}
  assert [part['reads'] for part in found['parts'][1:3]] == ['input and previous state', 's0']


def test_json_has_what_the_table_has(capsys):
  found = json.loads(run(capsys, channels='4', layers='5', image_size='8', json=True))
  assert sum(part['weights'] for part in found['parts']) == found['parameters']
  assert sum(part['multiply_adds'] for part in found['parts']) == found['multiply_adds']
  table = run(capsys, channels='4', layers='5', image_size='8')
  for part in found['parts']:
    assert any(
      line.split()[0] == part['name'] and f'{part["multiply_adds"]:,}' in line
      for line in table.splitlines()
      if line and line[0] != ' '
    )


@pytest.mark.parametrize(('ending', 'start'), [('svg', b'<?xml'), ('PNG', b'\x89PNG'), ('pdf', b'%PDF')])
def test_drawings_are_of_the_kind_their_name_says(tmp_path, capsys, ending, start):
  path = tmp_path / f'cells.{ending}'
  run(capsys, draw=str(path))
  assert path.read_bytes().startswith(start)


@pytest.mark.parametrize('name', ['AmoebaNet', 'RNN_ENAS'])
def test_the_line_that_is_printed_describes_the_same(capsys, name):
  found = run(capsys, name)
  line = found.splitlines()[-1]
  assert line.startswith('Genotype(')
  assert run(capsys, line) == found


def test_a_recurrent_cell_is_drawn(tmp_path, capsys):
  for ending in ('svg', 'DOT'):
    run(capsys, 'RNN_DARTS_V2', draw=str(tmp_path / f'cell.{ending}'))
  assert (tmp_path / 'cell.svg').read_bytes().startswith(b'<?xml')
  text = (tmp_path / 'cell.DOT').read_text()
  # What makes s0 has two edges, and each of the eight nodes one, and one into the output.
  assert (text.count('digraph'), text.count('->'), text.count('[label="relu"]')) == (1, 2 + 8 + 8, 3)


def test_graphviz_has_every_edge(tmp_path, capsys):
  run(capsys, draw=str(tmp_path / 'cells.dot'))
  text = (tmp_path / 'cells.dot').read_text()
  assert text.count('sep_conv_3x3') == 5
  assert text.count('max_pool_3x3') == 5
  assert text.count('digraph') == 2


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    ({'genotype': None}, '--genotype: missing'),
    ({'genotype': 'Genotype(normal=['}, 'the genotype in line 1: it is cut off'),
    ({'genotype': 'NASNT'}, "did you mean 'NASNet'"),
    ({'genotype': 'RNN_ENAS', 'channels': '4'}, '--channels: not allowed; RNN_ENAS is a recurrent architecture'),
    ({'genotype': 'RNN_ENAS', 'imagenet': True}, '--imagenet: not allowed; RNN_ENAS is a recurrent architecture'),
    ({'genotype': 'RNN_ENAS', 'vocabulary': '0'}, '--vocabulary: 0 is not allowed; it has to be a whole number ≥ 1'),
    ({'width': '300'}, '--width: not allowed; DARTS_V2 is a convolutional architecture; it has --channels, --layers'),
    ({'layers': 'many'}, '--layers: many is not allowed; it has to be a whole number ≥ 1'),
    ({'layers': '1000000000000'}, '--layers: 1000000000000 is not allowed; it has to be a whole number ≥ 1 and ≤ 200'),
    ({'genotype': '/dev/zero'}, '/dev/zero: not a file, but a device'),
    ({'genotype': '~nosuchuser/genotype.json'}, 'genotype: ~nosuchuser/genotype.json: no home folder is known'),
    ({'draw': 'gs://bucket/cells.svg'}, '--draw: gs://bucket/cells.svg is a URL'),
    ({'channels': '7'}, '--channels: 7 is not allowed; it has to be even'),
    ({'image_size': '28', 'auxiliary': True}, '--image_size: 28×28 is too small for an auxiliary head'),
    ({'draw': 'cells.gif'}, '--draw: cells.gif is no file name that ends with one of .svg, .png, .pdf, .dot'),
    ({'draw': '/nowhere/cells.svg'}, '--draw: /nowhere/cells.svg cannot be written'),
  ],
)
def test_wrong_flags_are_one_line(capsys, arguments, said):
  with pytest.raises(ValueError, match=said):
    run(capsys, **arguments)


def test_a_pipe_gets_no_drawing(tmp_path, capsys):
  path = tmp_path / 'cells.dot'
  os.mkfifo(path)
  with pytest.raises(ValueError, match='^--draw: .*cells.dot cannot be written .not a file, but a pipe'):
    run(capsys, draw=str(path))
  assert path.is_fifo()


def test_the_command_itself(command):
  process = command('describe', '--genotype=DARTS_V1', '--channels=4', '--layers=3')
  assert process.returncode == 0
  assert process.stdout.startswith('parameters: ')
  process = command('describe', '--genotype=DARTS_V1', '--chanels=4')
  assert (process.returncode, process.stdout) == (2, '')
  assert process.stderr == "error: Unknown command line flag 'chanels'. Did you mean: channels ?\n"


def test_a_file_of_a_command_runs_by_itself_on_any_terminal(tmp_path):
  """Beside it lies select.py, whose name is also that of a module of Python; the terminal does not know ×."""
  environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  arguments = [
    sys.executable,
    ROOT / 'experiments' / 'describe.py',
    '--genotype=DARTS_V1',
    '--channels=4',
    '--layers=3',
  ]
  done = subprocess.run(
    arguments, cwd=tmp_path, env={**environment, 'PYTHONIOENCODING': 'ascii'}, capture_output=True, check=False
  )
  sizes = b'--channels=4 --layers=3 --classes=10 --image_size=32 --image_channels=3'
  assert (done.returncode, done.stderr) == (0, b'a network with ' + sizes + b'\n')
  assert b' 32\\xd732\\xd712 ' in done.stdout


@pytest.mark.parametrize('name', ['search', 'train', 'select', 'describe', 'convert', 'export', 'hypergradients'])
def test_run_as_a_file_a_command_finds_its_modules_and_not_its_neighbours(monkeypatch, name):
  folder = ROOT / 'experiments'
  _, first, second, third, *_ = ast.parse((folder / f'{name}.py').read_text(encoding='utf-8')).body
  assert (ast.unparse(first), ast.unparse(second), type(third)) == ('import pathlib', 'import sys', ast.If)
  monkeypatch.setattr(sys, 'path', [str(folder), *sys.path])
  runpy.run_path(str(folder / f'{name}.py'))
  assert sys.path[0] == str(ROOT)
  assert str(folder) not in sys.path


def test_a_reader_that_has_enough_is_no_error():
  arguments = [sys.executable, '-m', 'experiments.describe', '--genotype=DARTS_V2', '--json']
  with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
    process.stdout.close()
    assert process.stderr.read() == b''
    assert process.wait(60) == 0
