"""Flags that name a group of the config, and set fields of it."""

import dataclasses
import pathlib

import pytest

from darts_jax import spaces
from darts_jax.commands import entry
from darts_jax.hypergradient.settings import Exact, FiniteDifference, FirstOrder, Unrolled
from darts_jax.search.settings import Search, read
from darts_jax.strategies.darts import Darts
from darts_jax.strategies.sgas import Sgas

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = f'--config={ROOT / "configs" / "digits.py"}'


@pytest.fixture
def settings_of(ask, tmp_path):
  """The settings of a search with flags and a config file, of which the lines that set fields are given."""

  def settings(arguments, *lines):
    path = tmp_path / 'mine.py'
    body = ''.join(f'  {line}\n' for line in lines)
    path.write_text(
      f'import sys\nsys.path.insert(0, {str(ROOT)!r})\n'
      'from configs import digits\nfrom ml_collections import ConfigDict\n'
      f'def get_config():\n  config = ConfigDict()\n{body}  return config\n'
    )
    found = []

    def run(config, workdir, **flags):
      found.append(read(config))
      return 0

    answer = ask(f'--config={path}', *arguments, run=run)
    assert (answer.code, len(found)) == (0, 1), answer.errors
    return found[0]

  return settings


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ([], FiniteDifference('differentiated', radius=0.5)),
    (['--config.hypergradient=exact'], Exact('differentiated')),
    (['--config.hypergradient', 'exact'], Exact('differentiated')),
    (['--config.hypergradient.name=exact'], Exact('differentiated')),
    (['--config.hypergradient=finite_difference'], FiniteDifference('differentiated', radius=0.5)),
    (['--config.hypergradient=unrolled', '--config.hypergradient.steps=2'], Unrolled('differentiated', steps=2)),
    (['--config.hypergradient.steps=2', '--config.hypergradient=unrolled'], Unrolled('differentiated', steps=2)),
    (['--config.hypergradient=exact', '--config.hypergradient.clipping=none'], Exact('none')),
    (['--config.hypergradient=exact', '--config.hypergradient=first_order'], FirstOrder('differentiated')),
  ],
)
def test_another_name_of_a_group_leaves_the_fields_that_both_have(settings_of, arguments, expected):
  lines = 'config = digits.get_base()', 'config.hypergradient.clipping = "differentiated"'
  assert settings_of(arguments, *lines, 'config.hypergradient.radius = 0.5').hypergradient == expected


@pytest.mark.parametrize('given', ["config.strategy = 'darts'", 'pass'])
@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ([], Darts()),
    (['--config.strategy=sgas'], Sgas()),
    (['--config.strategy.name=sgas'], Sgas()),
    (['--config.strategy', 'sgas', '--config.strategy.criterion=2'], Sgas(criterion=2)),
    (['--config.strategy.criterion=2', '--config.strategy=sgas'], Sgas(criterion=2)),
    (['--config.strategy.init_scale=0.5'], Darts(init_scale=0.5)),
    (['--config.strategy.temperature=(2.0, 0.5)'], Darts(temperature=(2.0, 0.5))),
  ],
)
def test_a_group_may_be_a_name_alone_or_left_out(settings_of, given, arguments, expected):
  assert settings_of(arguments, 'config.epochs = 3', given) == Search(epochs=3, strategy=expected)


@pytest.mark.parametrize('flag', ['--config.space=recurrent', '--config.space.name=recurrent'])
def test_a_space_is_named_like_other_groups(settings_of, flag):
  # The operations of the file are those of its own space.
  lines = ('config.space = ConfigDict({"name": "darts", "nodes": 2, "operations": ("none", "skip_connect")})',)
  assert settings_of([flag], *lines) == read({'space': 'recurrent'})
  assert settings_of([], *lines).space == spaces.Darts(2, ('none', 'skip_connect'))


def test_a_space_that_the_task_of_a_file_cannot_learn_is_refused(ask):
  answer = ask(DIGITS, '--config.space=recurrent', run=lambda config, workdir: read(config) and 0)
  assert answer.code == 2
  assert answer.errors.startswith("error: config.space.name: 'recurrent' is not allowed; the task images has no")


@pytest.mark.parametrize('given', ['pass', 'config.alphas = None'])
def test_a_switch_that_a_file_leaves_out_leaves_the_next_flag(settings_of, given):
  found = settings_of(['--config.remat', '--config.alphas.every', '2', '--config.epochs=3'], given)
  assert (found.remat, found.alphas.every, found.epochs) == (True, 2, 3)


def test_a_group_named_as_it_is_keeps_its_fields(ask, tmp_path):
  lines = 'config = digits.get_base()', 'config.hypergradient.radios = 0.5', 'return config'
  path = tmp_path / 'mine.py'
  head = f'import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom configs import digits\ndef get_config():\n'
  path.write_text(head + ''.join(f'  {line}\n' for line in lines))
  answer = ask(f'--config={path}', '--config.hypergradient=finite_difference')
  assert answer.code == 2
  assert answer.errors.startswith('error: config.hypergradient.radios: unknown field; did you mean')


def test_flags_can_name_every_group_that_goes_by_a_name():
  groups = {field.name for field in dataclasses.fields(Search) if 'kinds' in field.metadata}
  assert groups == {'space', 'task', 'strategy', 'hypergradient'}
  assert groups < set(entry._NAMED)


def test_fields_of_groups_that_a_file_leaves_out_can_be_set(settings_of):
  flags = ['--config.alphas.every=2', '--config.network.channels', '6', '--config.hypergradient.name=exact']
  found = settings_of(flags, 'config.data = ConfigDict({"name": "digits"})')
  assert (found.alphas.every, found.task.network.channels, found.hypergradient) == (2, 6, Exact())
