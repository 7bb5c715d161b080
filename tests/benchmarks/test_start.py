"""The benchmark of a search's start recognises what a search says."""

import re

import pytest

from benchmarks import start

# Programs that compile within a second are not cached.
SMALL = [
  '--config=configs/digits.py',
  '--config.batch_size=8',
  '--config.network.channels=2',
  '--config.space.nodes=2',
  "--config.space.operations=('none', 'sep_conv_3x3', 'dil_conv_5x5')",
  '--config.hypergradient.name=first_order',
]


def test_starts_with_an_empty_and_a_full_cache_are_measured(capsys):
  start.run(SMALL, 1)
  rows = [line.strip('| ').split(' | ') for line in capsys.readouterr().out.splitlines()[2:]]
  assert [name for name, *_ in rows] == ['empty', 'full']
  for _, *seconds in rows:
    assert all(re.fullmatch(r'\d+\.\d', each) for each in seconds)
    assert 0 < float(seconds[0]) <= float(seconds[1]) <= float(seconds[2])


def test_what_the_search_says_when_it_cannot_start_is_passed_on(tmp_path):
  with pytest.raises(ValueError, match='^the search ended: error: config.batch_size: -1'):
    start.start_once([*SMALL, '--config.batch_size=-1'], tmp_path)
