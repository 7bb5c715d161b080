"""The examples of docs/nasbench201.md run as they are written, in a folder of the user's own."""

import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.spaces.nasbench201_table import Table

TEXT = (pathlib.Path(__file__).parents[2] / 'docs' / 'nasbench201.md').read_text(encoding='utf-8')
SPACE = NasBench201()


def example(word):
  [found] = [block for block in re.findall(r'```(?:python)?\n(.*?)```', TEXT, re.DOTALL) if word in block]
  return found


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_a_search_on_the_table(folder, write_table, capsys):
  (folder / 'DIR').mkdir()
  # Convolutions are good, and the more there are of them the better.
  counts = [SPACE.to_json(arch).count('nor_conv_3x3') for arch in SPACE.all()]
  write_table(folder / 'DIR', *[10 * np.array(counts)] * 3)
  exec(example('InProcess()'), {})
  # One architecture in ten has three or more, so that 100 random ones lack it with a probability of 3 · 10⁻⁵.
  assert capsys.readouterr().out.count('nor_conv_3x3') >= 3


def test_a_search_in_processes_with_a_journal(folder, write_table):
  (folder / 'DIR').mkdir()
  write_table(folder / 'DIR', *[np.linspace(0, 100, SPACE.size).round(3)] * 3)
  # A file, as processes import it.
  script = folder / 'script.py'
  script.write_text(example('Processes('))
  command = [sys.executable, str(script)]
  first = subprocess.run(command, check=True, capture_output=True, text=True)
  journal = (folder / 'runs' / 'evolution' / 'trials.jsonl').read_text().splitlines()
  assert len(journal) == 1 + 2 * 100
  # The run has ended, and is known.
  assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == first.stdout
  assert (folder / 'runs' / 'evolution' / 'trials.jsonl').read_text().splitlines() == journal


def test_files_that_are_made_from_the_benchmark(folder, monkeypatch):
  """With a stand-in for its API, which answers in the same form."""
  texts = [SPACE.to_json(arch) for arch in SPACE.all()]
  bases = {'cifar10-valid': 1, 'cifar10': 2, 'cifar100': 3, 'ImageNet16-120': 4}

  class Api:
    def __iter__(self):
      return iter(texts)

    def get_more_info(self, index, dataset, iepoch=None, hp='12', is_random=True):
      assert is_random is False
      value = bases[dataset] + index / 20_000 + (10 if hp == '200' else 0)
      found = {'train-accuracy': 0.0, 'test-accuracy': value, 'valid-accuracy': value + 50}
      if dataset == 'cifar10':
        del found['valid-accuracy']
      return found

  module = types.ModuleType('nats_bench')
  module.create = lambda path, space, fast_mode, verbose: Api()
  monkeypatch.setitem(sys.modules, 'nats_bench', module)
  exec(example('nats_bench.create'), {})
  values = 100 * Table.read(folder, '--table').values
  np.testing.assert_allclose(values[400], np.array([[51, 2, 12], [53, 3, 13], [54, 4, 14]]) + 0.02)


def test_the_network_has_as_many_weights_as_the_published_one(capsys):
  exec(example('nets.conv'), {})
  assert capsys.readouterr().out == '1531546\n'
