"""Runs are float32 whatever JAX's own default is; exact tests of what they are made of say `enable_x64` themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax import search, spaces, training
from darts_jax.runtime.precision import in_float32
from darts_jax.search import loop as search_loop
from darts_jax.training import loop as training_loop
from darts_jax.training.language import loop as language_loop

NETWORK = {'channels': 2, 'layers': 3}
SEARCH = {
  'epochs': 1,
  'batch_size': 8,
  'data': {'name': 'digits'},
  'space': {'nodes': 1, 'operations': ('none', 'skip_connect')},
  'network': NETWORK,
}
TRAINING = {'epochs': 1, 'batch_size': 8, 'data': {'name': 'digits'}, 'network': {**NETWORK, 'auxiliary': False}}
TEXT = {'epochs': 1, 'batch_size': 8, 'network': {'width': 4}}


class Opened(Exception):
  """Instead of a run."""


def words(folder):
  """Text files, as a setting."""
  for name in ('train', 'valid', 'test'):
    (folder / f'{name}.txt').write_text('one two three four five\n' * 200)
  return {'name': 'files', 'dir': str(folder)}


def dtypes(tree):
  return {leaf.dtype for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)}


@pytest.mark.parametrize(
  ('module', 'loop', 'run'),
  [
    (search_loop, search_loop.Epochs, lambda folder: search.run(SEARCH, folder / 'run')),
    (
      search_loop,
      search_loop.Epochs,
      lambda folder: search.run({**TEXT, 'space': 'recurrent', 'data': words(folder)}, folder / 'run'),
    ),
    (
      training_loop,
      training_loop._Loop,
      lambda folder: training.run(TRAINING, folder / 'run', spaces.published()['DARTS_V2']),
    ),
    (
      language_loop,
      language_loop._Loop,
      lambda folder: training.run(
        {**TEXT, 'task': 'text', 'data': words(folder)}, folder / 'run', spaces.published()['RNN_DARTS_V2']
      ),
    ),
  ],
  ids=['search', 'search on text', 'training', 'training on text'],
)
@pytest.mark.usefixtures('x64')
def test_the_state_of_a_run_is_float32(monkeypatch, tmp_path, module, loop, run):
  found = []

  def opened(self):
    found.append((self.template(), jnp.asarray(np.ones(1)), jnp.ones(())))
    raise Opened

  monkeypatch.setattr(module, 'enable_cache', lambda: None)
  monkeypatch.setattr(loop, 'run', opened)
  with pytest.raises(Opened):
    run(tmp_path)
  assert dtypes(found) <= {np.dtype(name) for name in ('float32', 'int32', 'uint32', 'bool')}
  assert jnp.ones(()).dtype == np.float64


def test_random_keys_are_of_one_kind_whatever_the_environment_says():
  with jax.default_prng_impl('rbg'):
    assert jax.random.key_impl(jax.random.key(0)) == 'rbg'
    assert in_float32(lambda: jax.random.key_impl(jax.random.key(0)))() == 'threefry2x32'
