"""The table of NAS-Bench-201: what is read from its files, and what is said of other ones."""

import itertools
import pathlib

import numpy as np
import pytest

from darts_jax.spaces import nasbench201_table
from darts_jax.spaces.nasbench201 import OPERATIONS, NasBench201
from darts_jax.spaces.nasbench201_table import Table

CASES = pathlib.Path(__file__).parents[1] / 'cases' / 'nasbench201'
EARLY, LATE = 'mini_nb201_12ep_acc.csv', 'nats_tss_200ep_test_acc.csv'
TEXTS = ['|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|'.format(*each) for each in itertools.product(OPERATIONS, repeat=6)]
BEST = '|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|'


@pytest.fixture
def folder(tmp_path):
  """Real lines, and made-up ones for all other architectures, in another order than that of the space."""
  rng = np.random.default_rng(0)
  for name, place, before in ((EARLY, 1, '0,'), (LATE, 3, '')):
    header, *lines = (CASES / name).read_text().splitlines()
    real = {line.split(',')[place] for line in lines}
    numbers = rng.uniform(0, 100, (len(TEXTS), 6)).round(3)
    for text, row in zip(TEXTS, numbers.tolist(), strict=True):
      if text not in real:
        values = ','.join(map(str, row))
        lines.append(f'{before}{text},{values}' if name == EARLY else f'{",".join(map(str, row[:3]))},{text},x')
    rng.shuffle(lines)
    (tmp_path / name).write_text('\n'.join([header, *lines]) + '\n')
  return tmp_path


def test_accuracies_are_those_of_the_lines(folder):
  table = Table.read(folder, '--table')
  assert table.values.shape == (15_625, 3, 3)
  # As published: the optimum by either number, which is the same cell on CIFAR-10.
  found = table.accuracies(NasBench201().from_json(BEST))
  np.testing.assert_allclose(found, [0.8489199999023438, 0.8903, 0.9437333333333333], rtol=1e-15)
  found = table.accuracies(NasBench201().from_json(BEST), 'imagenet16')
  np.testing.assert_allclose(found, [0.37099999857584635, 0.3736666663614909, 0.46333333245171445], rtol=1e-15)
  empty = table.accuracies(NasBench201().from_json(TEXTS[0]), 'cifar100')
  np.testing.assert_allclose(empty, [0.009999999992370605, 0.009999999996185303, 0.00999999999109904], rtol=1e-14)


def test_a_space_with_a_table_knows_accuracy_and_rank_of_every_architecture(tmp_path, write_table):
  """Test accuracies after 200 epochs, of which many are equal; equal ones share the best rank."""
  rng = np.random.default_rng(0)
  after = rng.integers(0, 9, len(TEXTS)) ** 2
  write_table(tmp_path, rng.permutation(after), rng.permutation(after), after)
  space = NasBench201(str(tmp_path))
  known = space.judge('cifar10')
  for place in (0, 7, 15_624):
    arch = space.from_json(TEXTS[place])
    better = sum(each > after[place] for each in after.tolist())
    expected = {'true_accuracy': after[place] / 100, 'true_rank': 1 + better, 'true_optimum': 0.64}
    assert known(arch) == pytest.approx({**expected, 'true_mean': after.mean() / 100})
    # Data that the benchmark does not have are taken for CIFAR-10; on the others all networks are alike there.
    assert space.judge('digits')(arch) == known(arch)
    for dataset, accuracy in (('cifar100', 0.505), ('imagenet16', 0.305)):
      alike = dict.fromkeys(('true_accuracy', 'true_optimum', 'true_mean'), accuracy)
      assert space.judge(dataset)(arch) == pytest.approx({'true_rank': 1, **alike})


def test_a_spreadsheets_mark_and_line_ends_and_further_columns_are_read(folder):
  before = Table.read(folder, '--table').values
  path = folder / LATE
  lines = [f'{line},"a, b"' for line in path.read_text().splitlines()]
  path.write_bytes('\r\n'.join(['\ufeff' + lines[0].replace('a, b', 'note'), *lines[1:]]).encode())
  np.testing.assert_array_equal(Table.read(folder, '--table').values, before)


def refused(path):
  with pytest.raises(ValueError, match='^--table: ') as caught:
    Table.read(path, '--table')
  message = str(caught.value)
  assert '\n' not in message
  # What is wanted, and how.
  for wanted in (EARLY, LATE, 'cellstr, cifar10-val', 'ArchitectureString, CIFAR10TestAccuracy200Epochs'):
    assert wanted in message
  return message


def test_other_formats_are_refused_by_name(tmp_path):
  assert f'{tmp_path} is empty; wanted is a folder with' in refused(tmp_path)
  assert f'{tmp_path / "none"} is not there' in refused(tmp_path / 'none')
  published = tmp_path / 'NAS-Bench-201-v1_1-096897.pth'
  published.write_bytes(b'PK')
  assert f'{published} is a file, which is not read' in refused(published)
  assert f'holds {published.name}; wanted' in refused(tmp_path)
  for name in ('b', 'c', EARLY):
    (tmp_path / name).touch()
  assert f'holds {published.name}, b, c and 1 more; wanted' in refused(tmp_path)


def test_a_table_that_is_not_whole_is_refused():
  # Real lines alone.
  with pytest.raises(ValueError, match=r'mini_nb201_12ep_acc\.csv: 5 architectures; wanted are all 15625, one a line$'):
    Table.read(CASES, '--table')


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ('cifar10-val', 'cifar10-valid', 'column cifar10-val is missing, or there twice; wanted is CSV with the columns'),
    ('cifar10-test', 'cifar10-val', 'column cifar10-val is missing, or there twice; wanted is CSV with the columns'),
    ('imagenet-val\n', 'imagenet-val;\n', 'column imagenet-val is missing'),
    (f'{BEST},89.03,84.89199999023438', f'{BEST},89.03,good', "'good' is no percentage; allowed are 0 to 100"),
    (f'{BEST},89.03,84.89199999023438', f'{BEST},89.03,nan', "'nan' is no percentage"),
    (f'{BEST},89.03,84.89199999023438', f'{BEST},89.03,848.9', "'848.9' is no percentage"),
    (f'{BEST},89.03', BEST, '7 values in place of 8'),
    (BEST, BEST.replace('nor_conv_1x1', 'nor_conv_7x7'), "'nor_conv_7x7' is no operation of NAS-Bench-201"),
    (BEST, TEXTS[0], 'is listed twice'),
    (BEST, '"', 'field larger than field limit'),
  ],
)
def test_damage_is_named(folder, old, new, message):
  path = folder / EARLY
  text = path.read_text()
  assert text.count(old) == 1
  path.write_text(text.replace(old, new))
  with pytest.raises(ValueError, match='.') as caught:
    Table.read(folder, '--table')
  said = str(caught.value)
  assert said.startswith(f'{path}: column ' if message.startswith('column') else f'{path}: line ')
  assert message in said
  assert '\n' not in said


def test_damaged_files_are_refused_in_one_line(folder, complaints, monkeypatch):
  monkeypatch.setattr(nasbench201_table, '_FILES', {EARLY: nasbench201_table._FILES[EARLY]})
  path = folder / EARLY
  path.write_bytes(path.read_bytes()[:20_000])
  # All of them lack architectures; a few also have a line that cannot be read.
  found = complaints(lambda _: Table.read(folder, '--table'), path, 60)
  assert len(found) == 60
  assert any('line ' in line for line in found)
