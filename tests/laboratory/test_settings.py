import json
import re

import numpy as np
import pytest

from configs import hypergradients
from darts_jax.hypergradient.settings import Exact, Neumann
from darts_jax.laboratory import Laboratory
from darts_jax.laboratory.run import run
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.settings import build


def test_estimators_share_what_all_of_them_have_with_that_of_the_search():
  search = {'hypergradient': {'name': 'exact', 'clipping': 'constant', 'clip_outer': True}}
  settings = build(Laboratory, {'search': search, 'fields': {'neumann': {'terms': 3}}})
  assert settings.hypergradient('exact') == Exact(clipping='constant', clip_outer=True)
  assert settings.hypergradient('neumann') == Neumann(clipping='constant', clip_outer=True, terms=3)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'problems': ('toys',)}, "config.problems: 'toys' is not known; allowed are quadratic, supernet"),
    ({'estimators': ('exakt',)}, "config.estimators: 'exakt' is not known; allowed are first_order, "),
    (
      {'estimators': ('exact', 'joint')},
      "config.estimators: 'joint' estimates no hypergradient; allowed are first_ord",
    ),
    (
      {'search': {'hypergradient': {'name': 'none'}}},
      "config.search.hypergradient.name: 'none' estimates no hypergradient; allowed are first_order, finite_differ",
    ),
    ({'estimators': ()}, 'config.estimators: () is empty; at least one is compared'),
    ({'precisions': ('float16',)}, "config.precisions: 'float16' is not known; allowed are float32, float64, bfloat16"),
    ({'precisions': ()}, 'config.precisions: () is empty; at least one is measured'),
    (
      {'search': {'hypergradient': {'name': 'truncated', 'steps': 1}}},
      'config.search.hypergradient.backward_steps: 2 is not allowed; between 1 and steps, 1, can be differentiated',
    ),
    (
      {'fields': {'truncated': {'steps': 1}}},
      'config.fields.truncated.backward_steps: 2 is not allowed; between 1 and steps, 1, can be differentiated',
    ),
    (
      {'fields': {'neumann': {'clipping': 'constant'}}},
      'config.fields.neumann.clipping: all estimators have that of config.search.hypergradient.clipping; set it there',
    ),
    ({'batch_sizes': (0,)}, 'config.batch_sizes: 0 is not allowed; it has to be ≥ 1'),
    ({'unrolled_steps': (1, -1)}, 'config.unrolled_steps: -1 is not allowed; it has to be ≥ 1'),
    ({'images': 100}, 'config.images: 100 is not allowed; the largest batch has 128 images'),
    ({'search': {'network': {'channels': 3}}}, 'config.search.network.channels: 3 is not allowed; it has to be even'),
    ({'quadratic': {'condition': 0.5}}, 'config.quadratic.condition: 0.5 is not allowed; it has to be ≥ 1'),
  ],
)
def test_settings_of_the_laboratory_have_their_limits(config, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
    build(Laboratory, config)


def test_default_config_is_fit():
  settings = build(Laboratory, hypergradients.get_config())
  assert settings.search.task.source == 'digits'
  assert settings.precisions == ('float32', 'float64', 'bfloat16')


def test_directory_of_a_search_is_not_written_to(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('')
  with pytest.raises(ValueError, match=f'^--workdir: {tmp_path} holds a search; choose another$'):
    run({}, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


def test_checkpoint_that_is_none(tmp_path):
  with pytest.raises(
    ValueError, match=f'^--checkpoint: {tmp_path}/config.json: cannot be read .*; {tmp_path} holds no search$'
  ):
    run({}, tmp_path / 'new', checkpoint=str(tmp_path))
  (tmp_path / 'config.json').write_text('{"data": {"name": "digits"}, "batch_size": 32}')
  with pytest.raises(ValueError, match=f'^--checkpoint: {tmp_path} has no checkpoint that can be read;'):
    run({'batch_sizes': ()}, tmp_path / 'new', checkpoint=str(tmp_path))
  with pytest.raises(ValueError, match='^config.batch_sizes: 1024 is larger than the train half of digits'):
    run({'batch_sizes': (1024,), 'images': 1024, 'search': {'data': {'name': 'digits'}}}, tmp_path / 'new')
  with pytest.raises(ValueError, match="^config.search.data.dir '/nowhere' holds no cifar10: put there"):
    run({'search': {'data': {'name': 'cifar10', 'dir': '/nowhere'}}}, tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def test_config_that_was_changed_since_the_search_is_refused(tmp_path):
  config = {'seed': 0, 'data': {'name': 'npz', 'path': 'mine.npz', 'dir': ''}, 'dataset': {'pixels': 'a'}}
  Checkpoints(tmp_path / 'checkpoints').save(1, {'weights': np.zeros(2)}, {}, claim=config)
  (tmp_path / 'config.json').write_text(json.dumps({**config, 'seed': 1}))
  message = 'config.json: not what the checkpoints were saved with (config.seed: 0 → 1); write it as it was'
  with pytest.raises(ValueError, match=f'^--checkpoint: {tmp_path}/{re.escape(message)}$'):
    run({}, tmp_path / 'new', checkpoint=str(tmp_path))
  # Data may have moved.
  moved = {**config, 'data': {**config['data'], 'path': str(tmp_path / 'moved.npz')}}
  (tmp_path / 'config.json').write_text(json.dumps(moved))
  with pytest.raises(ValueError, match='moved.npz .*cannot be read'):
    run({}, tmp_path / 'new', checkpoint=str(tmp_path))
