"""The example of docs/spaces.md runs as it is written, in a folder of the user's own."""

import pathlib
import re

import numpy as np

TEXT = (pathlib.Path(__file__).parents[2] / 'docs' / 'spaces.md').read_text(encoding='utf-8')


def test_a_space_of_ones_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  [example] = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
  names = {}
  exec(example, names)
  assert names['logits'].shape == (4, 10)
  params = names['variables']['params']
  # Nodes and output have as many channels as the layer says; the third cell reads the block and the cell before it.
  assert [params[f'cell{i}']['preprocess0']['kernel'].shape[1:] for i in (0, 1)] == [(24, 8), (24, 8)]
  assert params['residual2']['conv0'].shape == (3, 3, 8, 16)
  assert params['cell3']['preprocess0']['kernel'].shape == (2, 8, 1, 8)
  assert params['classifier'].shape == (16, 10)
  # An architecture of it: every edge stays, with one of its own operations.
  space = names['space']
  drawn = space.sample(np.random.default_rng(0))
  assert [len(edges) for edges in drawn.cell('rung').nodes] == [2, 2, 2]
  assert {pair for pair in drawn.cell('rung').pairs if pair[1] == 0} <= {('skip_connect', 0), ('max_pool_3x3', 0)}
  assert space.from_json(space.to_json(drawn)) == drawn
