"""The benchmark of searches on one and on several devices."""

import pytest

from benchmarks import devices
from darts_jax.search import Search
from darts_jax.settings import build


def test_differences_of_searches_by_step(capsys, tiny_search, monkeypatch):
  walk, asked = devices.walk, []

  def walked(settings, images, num_devices, steps, smooth):
    """One search by all steps; those on two devices differ from it by what they are told to."""
    if not asked:
      asked.append(walk(settings, images, 1, steps, smooth))
    asked.append((num_devices, smooth))
    found = asked[0]
    apart = (num_devices - 1) * (0.5 if smooth else 0.25)
    return devices.Walk(found.alphas + apart, found.losses - 2 * apart)

  monkeypatch.setattr(devices, 'walk', walked)
  devices.run(build(Search, tiny_search()), 2, 3)
  assert asked[1:] == [(1, False), (2, False), (1, True), (2, True)]
  rows = [line.strip('| ').split(' | ') for line in capsys.readouterr().out.splitlines()]
  assert tuple(rows[0]) == devices.TITLES
  assert [row[0] for row in rows[2:]] == ['1', '3']
  # Adam's first steps are as long as its learning rate, 0.01.
  assert [float(row[1]) for row in rows[2:]] == pytest.approx([0.01, 0.03], rel=0.5)
  assert [row[2:] for row in rows[2:]] == [['2.5e-01', '5.0e-01', '5.0e-01', '1.0e+00']] * 2
