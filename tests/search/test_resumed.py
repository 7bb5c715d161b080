"""Whole searches of strategies with draws, or with parameters besides α, that go on from a checkpoint."""

import shutil
from typing import Any

import jax
import numpy as np
import pytest

from darts_jax import search
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import loop

pytestmark = pytest.mark.usefixtures('same_programs')

CONFIG: dict[str, Any] = {
  'epochs': 3,
  'batch_size': 200,
  'data': {'name': 'digits'},
  'augment': {'crop_padding': 1, 'flip': False},
  'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'sep_conv_3x3')},
  'network': {'channels': 4, 'layers': 3},
  'alphas': {'learning_rate': 0.05},
  'hypergradient': {'name': 'first_order'},
}


@pytest.mark.parametrize('strategy', [{'name': 'gdas'}, {'name': 'pc_darts', 'channel_part': 2}])
def test_a_search_that_is_brought_back_an_epoch_ends_the_same_bit_for_bit(tmp_path, monkeypatch, strategy):
  monkeypatch.setattr(loop, 'make_mesh', lambda seeds: make_mesh(1))
  monkeypatch.setattr(loop, 'enable_cache', lambda: None)
  config, folder = CONFIG | {'strategy': strategy}, tmp_path / 'run'
  whole = search.run(config, folder)
  with np.load(folder / 'alphas.npz') as file:
    history = dict(file)
  assert history['step'].tolist() == [0, 3, 6, 9]
  names = [name if name in history else f'parameters_{name}' for name in whole.state.alphas]
  assert all(np.ptp(history[name], axis=0).min() > 0 for name in names)
  assert whole.warning is None or 'not settled' in whole.warning
  for step in Checkpoints(folder / 'checkpoints').steps()[1:]:
    shutil.rmtree(folder / 'checkpoints' / str(step))
  assert Checkpoints(folder / 'checkpoints').steps() == [3]
  again = search.run(config, folder)
  assert (again.genotype, again.valid_loss, again.warning) == (whole.genotype, whole.valid_loss, whole.warning)
  states = [state.replace(key=jax.random.key_data(state.key)) for state in (again.state, whole.state)]
  jax.tree.map(np.testing.assert_array_equal, *states)
  with np.load(folder / 'alphas.npz') as file:
    assert sorted(file.files) == sorted(history)
    for name, values in history.items():
      np.testing.assert_array_equal(file[name], values, err_msg=name)
