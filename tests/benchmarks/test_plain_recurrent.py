"""The plain recurrent step, which the benchmark holds the package's against, computes the same."""

import re

import pytest
from ml_collections import ConfigDict

from benchmarks import plain_recurrent
from configs import ptb
from darts_jax.search.settings import Search
from darts_jax.settings import build


@pytest.fixture
def settings():
  config = ptb.get_config()
  config.update(batch_size=8, task={'name': 'text', 'bptt': 2, 'temporal_activation': 0.0})
  config.hypergradient = ConfigDict({'name': 'first_order'})
  config.space.nodes, config.network.width = 2, 3
  return build(Search, config)


@pytest.mark.parametrize('scan', [True, False])
def test_both_steps_are_measured(settings, capsys, scan):
  plain_recurrent.run(settings, 1, scan)
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(' | ')[0] for line in lines[2:4]] == ['| package', '| plain']
  assert re.fullmatch(r'package / plain: \d+\.\d\d', lines[4])


def test_another_loss_is_noticed(settings, monkeypatch):
  loss = plain_recurrent.plain_loss
  monkeypatch.setattr(plain_recurrent, 'plain_loss', lambda *args: 1.001 * loss(*args))
  with pytest.raises(AssertionError, match='Mismatch'):
    plain_recurrent.run(settings, 1, True)
