"""What the command says of a network."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments import describe

ROOT = pathlib.Path(describe.__file__).parents[1]
SIZES = dict.fromkeys(('channels', 'layers', 'classes', 'image_size', 'image_channels'))


def run(capsys, genotype='DARTS_V2', imagenet=False, auxiliary=False, draw=None, **others):
  code = describe.run(genotype, imagenet, auxiliary, draw, **{**SIZES, 'json': False, **others})
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


@pytest.mark.parametrize(('ending', 'start'), [('svg', b'<?xml'), ('png', b'\x89PNG'), ('pdf', b'%PDF')])
def test_drawings_are_of_the_kind_their_name_says(tmp_path, capsys, ending, start):
  path = tmp_path / f'cells.{ending}'
  run(capsys, draw=str(path))
  assert path.read_bytes().startswith(start)


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
    ({'genotype': 'NASNT'}, "did you mean 'NASNet'"),
    ({'genotype': 'RNN_ENAS'}, '--genotype: RNN_ENAS is a recurrent architecture'),
    ({'layers': 'many'}, '--layers: many is not allowed; it has to be a whole number ≥ 1'),
    ({'channels': '7'}, '--channels: 7 is not allowed; it has to be even'),
    ({'image_size': '30'}, '--image_size: 30×30 is not allowed; .* divisible by 4'),
    ({'image_size': '28', 'auxiliary': True}, '--image_size: 28×28 is too small for an auxiliary head'),
    ({'draw': 'cells.gif'}, '--draw: cells.gif is no file name that ends with one of .svg, .png, .pdf, .dot'),
    ({'draw': '/nowhere/cells.svg'}, '--draw: /nowhere/cells.svg cannot be written'),
  ],
)
def test_wrong_flags_are_one_line(capsys, arguments, said):
  with pytest.raises(ValueError, match=said):
    run(capsys, **arguments)


def test_the_command_itself(command):
  process = command('describe', '--genotype=DARTS_V1', '--channels=4', '--layers=3')
  assert process.returncode == 0
  assert process.stdout.startswith('parameters: ')
  process = command('describe', '--genotype=DARTS_V1', '--chanels=4')
  assert (process.returncode, process.stdout) == (2, '')
  assert process.stderr == "error: Unknown command line flag 'chanels'. Did you mean: channels ?\n"


def test_a_reader_that_has_enough_is_no_error():
  arguments = [sys.executable, '-m', 'experiments.describe', '--genotype=DARTS_V2', '--json']
  with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
    process.stdout.close()
    assert process.stderr.read() == b''
    assert process.wait(60) == 0
