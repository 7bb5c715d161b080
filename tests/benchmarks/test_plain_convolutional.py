"""The plain convolutional step, which the benchmark holds the package's against, computes the same."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks import plain_convolutional
from benchmarks.search_step import open_search
from configs import digits
from darts_jax.search.settings import Search
from darts_jax.settings import build


def make_settings(nodes, *operations):
  """Of a normal cell and two reduction cells, so that inputs are prepared in both ways."""
  config = digits.get_config()
  config.batch_size = 8
  config.hypergradient = ConfigDict({'name': 'first_order'})
  config.network.update(channels=2, layers=3)
  config.space.nodes = nodes
  if operations:
    config.space.operations = operations
  return build(Search, config)


WITH_ALL_OPERATIONS = make_settings(1)
WITH_EDGES_BETWEEN_NODES = make_settings(2, 'none', 'skip_connect')


@pytest.mark.parametrize('settings', [WITH_ALL_OPERATIONS, WITH_EDGES_BETWEEN_NODES])
def test_both_steps_are_measured(settings, capsys):
  plain_convolutional.run(settings, 1)
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(' | ')[0] for line in lines[2:4]] == ['| package', '| plain']
  assert re.fullmatch(r'package / plain: \d+\.\d\d', lines[4])


def test_weights_are_those_of_the_package_one_by_one():
  searcher, _, _, _ = open_search(make_settings(2), 1)
  state = searcher.init(jax.random.key(0))
  plain = plain_convolutional.PlainSearch(searcher)
  weights = plain_convolutional.plain_weights(state.weights.tree, searcher.learner.net)
  mixing = {name: each.operations for name, each in searcher.searched.look(state.alphas, state.step, state.key).items()}
  images = jnp.zeros((1, *searcher.learner.image_shape))
  expected = jax.eval_shape(plain.net.init, state.key, images, mixing)['params']
  assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, expected)
  values = [np.sort(np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])) for tree in (weights, state.weights)]
  np.testing.assert_array_equal(*values)


def test_another_loss_is_noticed(monkeypatch):
  logits = plain_convolutional.PlainSupernet.__call__
  monkeypatch.setattr(
    plain_convolutional.PlainSupernet, '__call__', lambda self, x, mixing: 1.01 * logits(self, x, mixing)
  )
  with pytest.raises(AssertionError, match='Mismatch'):
    plain_convolutional.run(WITH_EDGES_BETWEEN_NODES, 1)
